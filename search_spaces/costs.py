"""A space at an input size as operators: the fixed ones, and one per candidate of every edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hardware.errors import SubnetError
from hardware.op_spec import IDENTITY, OpSpec
from hardware.reading import cut, shown

SKIP = "skip"
"""The candidate that passes its input on."""


@dataclass(frozen=True)
class SpaceCosts:
    """What a device executes for each choice.

    Attributes:
        space: Name of the space.
        input_size: Side of the input image in pixels.
        in_chans: Channels of the input image.
        order: The network from input to output: an `OpSpec` where nothing is chosen, a label where an edge stands.
        edges: For each edge's label, the `OpSpec` of each candidate by name, in the candidates' order.
        beside: Operators of every subnet on another branch than the chain, which no chain holds.
        original: The choices of the network that the space was made of, if it was made of one.
    """

    space: str
    input_size: int
    in_chans: int
    order: tuple[OpSpec | str, ...]
    edges: Mapping[str, Mapping[str, OpSpec]]
    beside: tuple[OpSpec, ...] = ()
    original: Mapping[str, str] | None = None

    @property
    def fixed(self) -> tuple[OpSpec, ...]:
        """Operators of every subnet, in execution order, and those beside."""
        return (*(item for item in self.order if isinstance(item, OpSpec)), *self.beside)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of the input image."""
        return (self.in_chans, self.input_size, self.input_size)

    def distinct(self) -> tuple[OpSpec, ...]:
        """Return every operator that needs an entry in a latency table, each once, in order of appearance."""
        ops: list[OpSpec] = []
        for item in self.order:
            ops += [item] if isinstance(item, OpSpec) else list(self.edges[item].values())
        return tuple(dict.fromkeys(op for op in [*ops, *self.beside] if op.kind != IDENTITY))

    def chain(self, choices: Mapping[str, str]) -> tuple[OpSpec, ...]:
        """Return the network of one choice in execution order, without identities and without what is beside.

        Raises:
            SubnetError: `choices` names an unknown edge or candidate, or leaves an edge out.
        """
        check_choices(choices, self.edges, space=self.space)
        ops = [item if isinstance(item, OpSpec) else self.edges[item][choices[item]] for item in self.order]
        return tuple(op for op in ops if op.kind != IDENTITY)

    def random_choices(self, count: int, *, seed: int, vary_depth: bool = True) -> list[dict[str, str]]:
        """Draw subnets.

        Args:
            count: How many.
            seed: Seed of the draw.
            vary_depth: Draw every second subnet from a random subset of each edge's candidates (the same subset of
                names for all its edges), so that total depth and size vary far more than under uniform draws.
        """
        generator = np.random.default_rng(seed)
        names = list(dict.fromkeys(name for options in self.edges.values() for name in options))
        drawn = []
        for index in range(count):
            allowed = set(names)
            if vary_depth and index % 2:
                allowed = {names[i] for i in generator.permutation(len(names))[: generator.integers(1, len(names))]}
            choices = {}
            for label, options in self.edges.items():
                pool = [name for name in options if name in allowed] or list(options)
                choices[label] = pool[generator.integers(len(pool))]
            drawn.append(choices)
        return drawn


def check_choices(choices: Mapping[str, str], edges: Mapping[str, Sequence[str] | Mapping], *, space: str) -> None:
    """Check that `choices` names one known candidate for every edge and nothing else.

    Raises:
        SubnetError: It does not; the message names the label, the value and what is known.
    """
    for label, name in choices.items():
        if label not in edges:
            raise SubnetError(
                f"unknown edge {shown(label)} for the space {cut(space)}; its edges are "
                f"{cut(', '.join(edges), 400) or 'none'}"
            )
        if name not in edges[label]:
            known = cut(", ".join(map(str, edges[label])), 400)
            raise SubnetError(f"unknown candidate {shown(name)} at edge {label}; it has {known}")
    missing = [label for label in edges if label not in choices]
    if missing:
        raise SubnetError(
            f"no candidate given for {cut(', '.join(missing), 300)} of the space {cut(space)}; choose one for each edge"
        )
