"""A network as the paper draws it, a box for each block: the geometry that page, GIF and SVG share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from hardware.op_spec import IDENTITY, OpSpec
from search_spaces.costs import SKIP

from ..runs.finished import FinishedRun
from ..runs.network import Operator

MOST_LABELLED_EDGES = 32
"""Above it edges are drawn small and without words."""
FIXED = "fixed"
"""The kind of what nothing is chosen in, where no candidate is of the same kind."""
_HEADS = ("head", "efficient_head", "unbiased_efficient_head")
_WORDS = {"ds_conv": "MB1", "dsa_conv": "DS", "edge_residual": "fused MB", **dict.fromkeys(_HEADS, "head")}


class Shape(NamedTuple):
    """How a candidate, or a fixed operator, is drawn.

    Attributes:
        kind: What its colour stands for: `MB6`, `sep`, `conv`, ...
        side: Its kernel, `5x5`; empty where it has none.
        height: By the kernel, 0..1.
        width: By the expansion, 0..1.
        passes: Whether it passes its input on: a thin line instead of a box.
    """

    kind: str
    side: str
    height: float
    width: float
    passes: bool = False


@dataclass(frozen=True)
class Block:
    """One place of the network, where something is chosen or not.

    Attributes:
        label: The edge's label, or the kind of a fixed operator.
        names: Its candidates; empty where nothing is chosen.
        shapes: How each candidate is drawn; one where nothing is chosen.
        costs: What each costs; empty where that is not known.
    """

    label: str
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """Blocks that stand together: stem, a stage, head.

    Attributes:
        name: Its name.
        size: Channels, pixels and stride of what it puts out; empty where that is not known.
        blocks: Its blocks in order.
    """

    name: str
    size: str
    blocks: tuple[Block, ...]


class Still(NamedTuple):
    """One picture of a film: the likeliest subnet after an epoch, or at its end the exported one.

    Attributes:
        name: When it was.
        choices: Candidate by edge.
        odds: Probability by edge and candidate.
        expected: Expected cost; None where costs are not known.
        cost: What the subnet shown costs; likewise.
    """

    name: str
    choices: Mapping[str, str]
    odds: Mapping[str, Mapping[str, float]]
    expected: float | None
    cost: float | None


def shape_of(name: str, spec: OpSpec | None = None) -> Shape:
    """Return how a candidate is drawn, by its name and, where that is known, its operator.

    >>> shape_of("5x5_e6").kind, shape_of("sep_3x3").side, shape_of("skip").passes
    ('MB6', '3x3', True)
    """
    if name in (SKIP, IDENTITY) or (spec is not None and spec.kind == IDENTITY):
        return Shape(SKIP if name == SKIP else IDENTITY, "", 0.0, 0.5, passes=True)
    block = re.fullmatch(r"(\d{1,3})x\1_e(\d{1,3}(?:_\d{1,3})?)", name)
    if block:
        expansion = block[2].replace("_", ".")
        return _shape(f"MB{expansion}", int(block[1]), float(expansion))
    sides = re.search(r"(\d{1,3})x\1", name)
    kernel = int(sides[1]) if sides else None
    if sides:
        name = re.sub(r"[_.-]*\d{1,3}x\d{1,3}[_.-]*", " ", name)
    kind = " ".join(re.split(r"[_\s]+", name)).strip()
    return _shape(kind or "conv", kernel, None)


def operator_shape(operator: Operator) -> Shape:
    """Return how a fixed operator is drawn."""
    spec = operator.spec
    if spec is None:
        return _shape(operator.key[:12], None, None)
    if spec.kind == IDENTITY:
        return shape_of(IDENTITY)
    if spec.kind == "mbconv":
        expansion = spec.hidden / spec.input_shape[0]
        return _shape(f"MB{expansion:.3g}", spec.kernel, expansion)
    kernel = None if spec.kind in _HEADS else spec.kernel
    return _shape(_WORDS.get(spec.kind, spec.kind.replace("_", " ")), kernel, 1.0 if spec.kind == "ds_conv" else None)


def _shape(kind: str, kernel: int | None, expansion: float | None) -> Shape:
    height = 0.4 if kernel is None else min(1.0, 0.1 * (kernel + 1))
    width = 0.5 if expansion is None else min(1.0, 0.2 + 0.12 * expansion)
    return Shape(kind, "" if kernel is None else f"{kernel}x{kernel}", round(height, 3), round(width, 3))


def is_large(search: FinishedRun) -> bool:
    """Return whether a search has too many edges for words in each box."""
    return len(search.choices) > MOST_LABELLED_EDGES


def groups(search: FinishedRun) -> list[Group]:
    """Return a search's network in groups, from input to output: its edges alone where no more is known of it.

    Of a large network the operators between its edges are left out.
    """
    network = search.network
    if network is None:
        blocks = [_edge(search, label) for label in search.choices]
        parts = [(_stage(block.label), [block]) for block in blocks]
    else:
        order = [item for item in network.order if isinstance(item, str) or not operator_shape(item).passes]
        edges = [place for place, item in enumerate(order) if isinstance(item, str)]
        first, last = (edges[0], edges[-1]) if edges else (len(order), len(order))
        parts, stage = [], ""
        for place, item in enumerate(order):
            if isinstance(item, str):
                stage = _stage(item)
                parts.append((stage, [_edge(search, item)]))
            elif not is_large(search) or place in (0, len(order) - 1):
                name = "stem" if place < first else "head" if place > last else stage
                parts.append((name, [_fixed(item)]))
    return [
        Group(name, _size(search, members), tuple(members))
        for name, members in (
            (name, [block for _, blocks in found for block in blocks])
            for name, found in groupby(parts, key=lambda part: part[0])
        )
    ]


def _stage(label: str) -> str:
    """Return what a label begins with, as words: `stage1_block0` stands in stage 1."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", re.split(r"[_./]", label)[0])


def _edge(search: FinishedRun, label: str) -> Block:
    names = list(search.probabilities.get(label, ()))
    if search.choices.get(label) is not None and search.choices[label] not in names:
        names.append(search.choices[label])
    options = {} if search.network is None else search.network.edges[label]
    known = [options.get(name) for name in names]
    return Block(
        label,
        tuple(names),
        tuple(shape_of(name, op.spec if op else None) for name, op in zip(names, known, strict=True)),
        tuple(op.cost if op else 0.0 for op in known) if options else (),
    )


def _fixed(operator: Operator) -> Block:
    spec = operator.spec
    label = operator.key if spec is None else spec.kind
    block = Block(label, (), (operator_shape(operator),), (operator.cost,))
    return block


def _size(search: FinishedRun, blocks: Sequence[Block]) -> str:
    """Say width, pixels and stride of a group, by the operators of its edges."""
    if search.network is None:
        return ""
    specs: list[OpSpec] = []
    for block in blocks:
        options = search.network.edges.get(block.label, {}) if block.names else {}
        specs += [op.spec for op in options.values() if op.spec is not None]
    shapes = [spec.output_shape for spec in specs if len(spec.output_shape) == 3]
    if not shapes:
        return ""
    channels, height, width = shapes[-1]
    stride = max(spec.stride for spec in specs)
    return f"{channels} wide, {height}x{width}, stride {stride}"


def kinds(parts: Sequence[Group]) -> dict[str, int | None]:
    """Return the number of each kind's colour, in order of appearance; None for what is fixed in every subnet."""
    blocks = [block for group in parts for block in group.blocks]
    chosen = dict.fromkeys(s.kind for block in blocks if block.names for s in block.shapes if not s.passes)
    numbers: dict[str, int | None] = {kind: number for number, kind in enumerate(sorted(chosen))}
    return numbers | {s.kind: None for block in blocks for s in block.shapes if s.kind not in numbers and not s.passes}


def stills(search: FinishedRun) -> list[Still]:
    """Return the film of a search: the likeliest subnet of each epoch that it kept, and the exported one at last."""
    network = search.network
    names = {label: list(odds) for label, odds in search.probabilities.items()}
    found = []
    for number, epoch in enumerate(() if search.film is None else search.film.epochs):
        assert search.film is not None
        frame = search.film.frame(number)
        choices = {
            label: names[label][max(range(len(row)), key=row.__getitem__)] for label, row in frame.items() if row
        }
        found.append(
            Still(
                f"epoch {epoch}",
                choices,
                {label: dict(zip(names[label], row, strict=True)) for label, row in frame.items()},
                None if network is None else network.expected(frame),
                None if network is None else network.cost(choices),
            )
        )
    cost = None if network is None else network.cost(search.choices)
    return [*found, Still("exported subnet", search.choices, search.probabilities, search.expected, cost)]
