"""The choices of a subnet as a drawing: a box an edge, as the paper draws an architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import NamedTuple

from .blocks import SKIP

COLOURS = {3: "#4c78a8", 5: "#f58518", 7: "#54a24b"}
"""By the side of a candidate's kernel."""
OTHER = "#8a8a8a"
_UNIT, _GAP, _FULL = 6, 4, 64
_CANDIDATE = re.compile(r"(?:.*?)(\d+)x\1(?:_e(\d+))?")


class Box(NamedTuple):
    """How a candidate is drawn.

    Attributes:
        width: In pixels; of the expansion.
        height: In pixels; of the kernel.
        colour: Of the kernel.
    """

    width: int
    height: int
    colour: str


def box(name: str) -> Box:
    """Return how a candidate is drawn: a higher box has a larger kernel, a wider one a larger expansion.

    >>> box("5x5_e6"), box("skip"), box("max_pool")
    (Box(width=44, height=40, colour='#f58518'), Box(width=14, height=2, colour='#8a8a8a'), \
Box(width=14, height=24, colour='#8a8a8a'))
    """
    if name == SKIP:
        return Box(14, 2, OTHER)
    found = _CANDIDATE.fullmatch(name)
    if found is None:
        return Box(14, 24, OTHER)
    kernel, expansion = int(found[1]), int(found[2] or 1)
    return Box(8 + _UNIT * min(expansion, 8), min(_FULL, 8 * kernel), COLOURS.get(kernel, OTHER))


def boxes_svg(choices: Mapping[str, str]) -> str:
    """Draw choices from the input to the output, as SVG; pointing at a box names its edge and its candidate.

    Args:
        choices: Candidate by edge.
    """
    x, parts = _GAP, []
    for label, name in choices.items():
        shape = box(name)
        y = (_FULL - shape.height) / 2
        title = escape(f"{label}: {name}")
        parts.append(
            f'<rect x="{x}" y="{y:g}" width="{shape.width}" height="{shape.height}" fill="{shape.colour}">'
            f"<title>{title}</title></rect>"
        )
        x += shape.width + _GAP
    described = escape(", ".join(f"{label} {name}" for label, name in choices.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{described}" viewBox="0 0 {x} {_FULL}" '
        f'style="max-width:100%" width="{x}" height="{_FULL}">{"".join(parts)}</svg>'
    )
