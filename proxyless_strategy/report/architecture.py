"""The architecture on the page: boxes that a slider moves through the epochs, and the probabilities as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from ..runs.finished import FinishedRun
from .boxes import Block, Group, Shape, Still, groups, is_large, kinds, stills
from .drawing import KIND_COLOURS
from .parts import Cell, table

_FEW = 14
"""Blocks that have room to be drawn larger."""
MOST_STILLS = 200
"""Stills on the page; of a longer film every second one is there, or every third, ..."""


def architecture(search: FinishedRun) -> str:
    """Build the drawing of a search with its slider, its key, and the probabilities of the exported subnet's epoch."""
    parts, film = groups(search), stills(search)
    step = -(-len(film) // MOST_STILLS)
    shown = [*film[:-1][::step], film[-1]]
    numbers = kinds(parts)
    edges = {block.label: number for number, block in enumerate(b for group in parts for b in group.blocks if b.names)}
    drawing = "".join(_group(search, group, film[-1], numbers, edges) for group in parts)
    if is_large(search):
        net = f'<div class="net small" role="img" aria-label="{escape(_counted(search))}">{drawing}</div>'
    else:
        few = sum(len(group.blocks) for group in parts) <= _FEW
        net = f'<div class="net{" few" if few else ""}">{drawing}</div>'
    pieces = ['<div class="film">']
    if len(film) > 1:
        pieces.append(
            '<div class="controls" hidden><button type="button" class="play">Play</button>'
            f'<input type="range" min="0" max="{len(shown) - 1}" value="{len(shown) - 1}" aria-label="Epoch"></div>'
        )
    pieces += [f'<p class="said">{escape(_said(search, film[-1]))}</p>', net, _key(search, parts, numbers)]
    if len(film) < 2:
        pieces.append(
            '<p class="note">No probabilities by epoch: the search was made by a version that did not keep them, so '
            "there is no film. A search made today has one.</p>"
        )
    if step > 1:
        pieces.append(f'<p class="note">Of {len(film) - 1} epochs kept, each {_th(step)} is shown.</p>')
    pieces.append("<h4>Probabilities</h4>")
    pieces.append(_counts(search) if is_large(search) else _odds(search, film[-1], edges))
    pieces.append(f'<p class="note">{escape(_moved(search))}</p>')
    if len(film) > 1:
        data = _data(search, parts, shown, numbers, edges)
        pieces.append(f'<script type="application/json">{_harmless(data)}</script>')
    return "\n".join([*pieces, "</div>"])


def _th(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _harmless(values: Any) -> str:
    """Return JSON that ends no element of a page, whatever stands in it."""
    text = json.dumps(values, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


# ---- boxes -----------------------------------------------------------------------------------------------------


def _group(
    search: FinishedRun, group: Group, still: Still, numbers: dict[str, int | None], edges: dict[str, int]
) -> str:
    large = is_large(search)
    inner, item = ("span", "span") if large else ("ul", "li")
    blocks = "".join(_block(block, still, numbers, edges, item=item, words=not large) for block in group.blocks)
    name = escape(group.name)
    if large:
        return f'<span class="group"><{inner} class="blocks">{blocks}</{inner}><small>{name}</small></span>'
    size = f"<br>{escape(group.size)}" if group.size else ""
    return (
        f'<div class="group" role="group" aria-label="{name}"><{inner} class="blocks">{blocks}</{inner}>'
        f'<p class="size"><strong>{name}</strong>{size}</p></div>'
    )


def _block(
    block: Block,
    still: Still,
    numbers: dict[str, int | None],
    edges: dict[str, int],
    *,
    item: str,
    words: bool,
) -> str:
    choice = still.choices.get(block.label, "")
    place = block.names.index(choice) if choice in block.names else 0
    shape = block.shapes[place]
    odds = still.odds.get(block.label, {}).get(choice, 1.0) if block.names else 1.0
    edge = f' data-edge="{edges[block.label]}"' if block.names else ""
    title = f"{block.label}: {choice}, {odds:.0%}" if block.names else block.label
    style = f"--h:{shape.height:.3g};--w:{shape.width:.3g};--p:{odds:.3f}"
    box = f'<span class="space"><span class="box {_colour(shape, numbers)}" style="{style}"></span></span>'
    if words:
        cost = _cost(block.costs[place]) if block.costs else ""
        kind, side = ("skip" if shape.passes else shape.kind), shape.side
        share = f"{odds:.0%}" if block.names else "fixed"
        box += (
            f'<span class="kind">{escape(kind)}</span><span class="side">{escape(side)}</span>'
            f'<span class="cost">{cost}</span><span class="share">{share}</span>'
        )
    return f'<{item} class="block"{edge} title="{escape(title)}">{box}</{item}>'


def _colour(shape: Shape, numbers: dict[str, int | None]) -> str:
    if shape.passes:
        return "passes"
    number = numbers.get(shape.kind)
    return "fixed" if number is None else f"k{number % len(KIND_COLOURS)}"


def _cost(value: float) -> str:
    return f"{value:.3f}" if 0.0005 <= value < 1 else f"{value:.3g}"


def _key(search: FinishedRun, parts: Sequence[Group], numbers: dict[str, int | None]) -> str:
    kinds = [(name, f"k{n % len(KIND_COLOURS)}") for name, n in numbers.items() if n is not None]
    if any(n is None for n in numbers.values()):
        kinds.append(("in every subnet", "fixed"))
    colours = "".join(
        f'<li><span class="box {colour}" style="--p:1"></span>{escape(name)}</li>' for name, colour in kinds
    )
    skips = any(shape.passes for group in parts for block in group.blocks for shape in block.shapes)
    line = '<li><span class="box passes" style="--p:1"></span>passed on</li>' if skips else ""
    cost = (
        "" if search.network is None or is_large(search) else f" The figure under a block is its cost in {search.unit}."
    )
    note = f"Height: kernel. Width: expansion. Colour: kind. How full a box is: its probability.{cost}"
    return f'<ul class="key">{colours}{line}</ul><p class="note">{escape(note)}</p>'


def _counted(search: FinishedRun) -> str:
    counts = Counter(search.choices.values()).most_common()
    return f"{len(search.choices)} edges: " + ", ".join(f"{count} times {name}" for name, count in counts)


def _said(search: FinishedRun, still: Still) -> str:
    """Say what a still shows, with its figures."""
    exported = still.choices is search.choices
    words = ["Exported subnet" if exported else f"Likeliest subnet of {still.name}"]
    if still.cost is not None:
        words.append(f"{still.cost:.4g} {search.unit}")
    if still.expected is not None:
        words.append(f"expected cost {still.expected:.4g} {search.unit}")
    if search.target is not None:
        words.append(f"target {search.target:.4g} {search.unit}")
    return ", ".join(words)


# ---- probabilities ---------------------------------------------------------------------------------------------


def _odds(search: FinishedRun, still: Still, edges: dict[str, int]) -> str:
    """Build the probabilities as a table, edges by candidates; the exported candidate is framed."""
    names = list(dict.fromkeys(name for odds in search.probabilities.values() for name in odds))
    head = "".join(f'<th scope="col" role="columnheader">{escape(name)}</th>' for name in ("edge", *names))
    lines = []
    for label, odds in still.odds.items():
        cells = [f'<th scope="row" role="rowheader">{escape(label)}</th>']
        places = {name: place for place, name in enumerate(search.probabilities[label])}
        for name in names:
            if name not in places:
                cells.append('<td role="cell" class="none"><span>&ndash;</span></td>')
                continue
            exported = search.choices.get(label) == name
            moves = f'data-odds="{edges[label]}.{places[name]}" ' if label in edges else ""
            where = f'{moves}data-label="{escape(name)}"'
            mark = '<span class="unseen"> %, exported</span>' if exported else '<span class="unseen"> %</span>'
            style = f' class="exported" style="--p:{odds[name]:.3f}"' if exported else f' style="--p:{odds[name]:.3f}"'
            cells.append(f'<td role="cell" {where}{style}><span>{100 * odds[name]:.0f}</span>{mark}</td>')
        lines.append(f'<tr role="row">{"".join(cells)}</tr>')
    return (
        '<table class="odds" role="table"><caption class="unseen">Probability of every candidate of every edge, in '
        f'percent</caption><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table>'
    )


def _counts(search: FinishedRun) -> str:
    """Count how often each candidate occurs in a large subnet."""
    counts = Counter(search.choices.values()).most_common()
    rows = [(Cell(escape(name)), Cell(str(count))) for name, count in counts]
    sure = sum(max(odds.values(), default=0.0) >= 0.9 for odds in search.probabilities.values())
    note = f"{sure} of {len(search.probabilities)} edges have a candidate with a probability of 90 % or more."
    counted = table("How often each candidate occurs", ("candidate", f"of {len(search.choices)} edges"), rows)
    return f'<div class="slim">{counted}</div><p class="note">{escape(note)}</p>'


def _moved(search: FinishedRun) -> str:
    """Say how the derived subnet differs from the most probable one."""
    text = "" if is_large(search) else "In percent. Frame: exported. "
    other = [
        label
        for label, choice in search.choices.items()
        if search.argmax.get(label) not in (None, choice) and label in search.probabilities
    ]
    if not other:
        return f"{text}The derived subnet is the most probable one."
    named = [f"{label} ({search.argmax[label]} to {search.choices[label]})" for label in other]
    rest = f" and {len(named) - 8} more" if len(named) > 8 else ""
    edges = "edge differs" if len(other) == 1 else "edges differ"
    return (
        f"{text}{len(other)} {edges} from the most probable subnet, by the target or the finalists' losses: "
        f"{', '.join(named[:8])}{rest}."
    )


# ---- what the slider needs ---------------------------------------------------------------------------------------


def _data(
    search: FinishedRun,
    parts: Sequence[Group],
    film: Sequence[Still],
    numbers: dict[str, int | None],
    edges: dict[str, int],
) -> dict[str, Any]:
    """Return the stills as plain values; probabilities in thousandths, of a large network of what is shown alone."""
    blocks = [block for group in parts for block in group.blocks if block.names]
    shapes = list(dict.fromkeys(shape for block in blocks for shape in block.shapes))
    words = not is_large(search)

    def thousandths(still: Still, block: Block) -> list[int]:
        odds = still.odds.get(block.label, {})
        return [round(1000 * odds.get(name, 0.0)) for name in block.names]

    pictures = []
    for still in film:
        chosen = [
            block.names.index(still.choices[block.label]) if still.choices.get(block.label) in block.names else 0
            for block in blocks
        ]
        odds = [thousandths(still, block) for block in blocks]
        shown = odds if words else [[row[place]] for row, place in zip(odds, chosen, strict=True)]
        pictures.append({"name": still.name, "said": _said(search, still), "chosen": chosen, "odds": shown})
    return {
        "labels": [block.label for block in blocks],
        "names": [block.names for block in blocks],
        "shapes": [["skip" if s.passes else s.kind, s.side, s.height, s.width, _colour(s, numbers)] for s in shapes],
        "options": [[shapes.index(shape) for shape in block.shapes] for block in blocks],
        "costs": [[_cost(cost) for cost in block.costs] for block in blocks] if words else [],
        "stills": pictures,
    }
