"""What all figures share: colours, badges, and matplotlib without a screen."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {3: "#4c78a8", 5: "#f58518", 7: "#54a24b"}
"""By the size of a candidate's kernel."""
OTHER = "#8a8a8a"
KIND_COLOURS = ("#2f6fb0", "#b8501a", "#2f7d3b", "#8a4fb0", "#a8324a", "#00757a", "#7a6a00", "#a03a86")
"""By the number of a kind of candidate; the page has the same in light, and lighter ones in dark."""
FIXED_COLOUR = "#5d6b7a"


class Badge(NamedTuple):
    """A numbered point of a panel."""

    text: str
    x: float
    y: float
    colour: str
    marker: str = "o"


def draw_points(panel: Any, badges: Sequence[Badge]) -> None:
    """Draw the points of the badges, which `draw_badges` covers when all else is in place."""
    for badge in badges:
        panel.plot(badge.x, badge.y, marker=badge.marker, markersize=5, color=badge.colour, linestyle="none")


def draw_badges(figure: Figure, panels: Sequence[tuple[Any, Sequence[Badge]]], *, edge: str = "white") -> None:
    """Draw the numbers of every panel of a figure that is otherwise finished.

    A badge lies on its point, or beside it with a line to it where two would lie on one another.

    Args:
        figure: The figure.
        panels: Its panels, each with its badges.
        edge: Colour of a badge's edge and number.
    """
    # Distances between badges are in pixels. Only drawing tells where anything lies, and the layout must not move it
    # afterwards.
    draw_canvas(figure)
    figure.set_layout_engine("none")
    for panel, badges in panels:
        _draw_badges(panel, badges, edge)


def _draw_badges(panel: Any, marks: Sequence[Badge], edge: str) -> None:
    if not marks:
        return
    panel.autoscale(False)
    size = 15.0  # points
    truth = panel.transData.transform([(x, y) for _, x, y, _, _ in marks])
    spread = spread_out(truth, least=1.05 * size * panel.figure.dpi / 72)
    places = panel.transData.inverted().transform(spread)
    for (text, x, y, colour, marker), (left, top) in zip(marks, places, strict=True):
        panel.plot([x, left], [y, top], color=colour, linewidth=1, zorder=3)
        panel.plot(left, top, marker=marker, markersize=size, color=colour, markeredgecolor=edge, zorder=4)
        panel.annotate(
            text,
            (left, top),
            color=edge,
            fontsize=8,
            fontweight="bold",
            ha="center",
            va="center_baseline",
            zorder=5,
        )


def spread_out(points: Any, *, least: float, rounds: int = 500) -> Any:
    """Move points that are closer than `least` apart, each pair by equal and opposite steps; others stay.

    Args:
        points: `P x 2`.
        least: Distance that any two points shall have.
        rounds: Most rounds over all pairs.

    Returns:
        `P x 2`, with every distance at least `least` unless the rounds ran out.
    """
    moved = np.array(points, dtype=float)
    for _ in range(rounds):
        still = True
        for i, j in itertools.combinations(range(len(moved)), 2):
            gap = moved[j] - moved[i]
            distance = float(np.hypot(*gap))
            if distance < least * (1 - 1e-9):
                # equal points part along a direction of their own, so that a heap of them does not stay on one line
                direction = gap / distance if distance > 0 else np.array([np.cos(i + 2.4 * j), np.sin(i + 2.4 * j)])
                step = direction * (least - distance) / 2
                moved[i] -= step
                moved[j] += step
                still = False
        if still:
            break
    return moved


def new_figure(width: float, height: float, *, dpi: float | None = None) -> Figure:
    """Make an empty figure of that size in inches, without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow
    from matplotlib.figure import Figure

    # Not by pyplot, which keeps every figure until it is closed and may look for a screen.
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_bytes(figure: Figure, kind: str, *, words: bool = False) -> bytes:
    """Return the figure as a file of that kind; the same bytes for the same figure.

    Args:
        figure: The figure.
        kind: `png`, `svg` or `pdf`.
        words: Keep the words of an SVG as text, which the viewer's font draws.
    """
    import matplotlib  # slow

    _take_words_as_they_are(figure)
    buffer = io.BytesIO()
    # By default a file holds the time, and an SVG random ids.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with matplotlib.rc_context({"svg.hashsalt": "proxyless", "svg.fonttype": "none" if words else "path"}):
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    return buffer.getvalue()


def draw_canvas(figure: Figure) -> None:
    """Draw a figure into its canvas."""
    _take_words_as_they_are(figure)
    figure.canvas.draw()


def _take_words_as_they_are(figure: Figure) -> None:
    """Keep matplotlib from reading what stands between two dollars as a formula: names are of any origin."""
    from matplotlib.text import Text  # slow

    for text in figure.findobj(Text):
        text.set_parse_math(False)
