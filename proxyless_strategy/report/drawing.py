"""What the figures share: colours, badges, and matplotlib without a screen."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

COLOURS = {3: "#4c78a8", 5: "#f58518", 7: "#54a24b"}
"""By the size of a candidate's kernel."""
OTHER = "#8a8a8a"


Badge = tuple[str, float, float, str, str]
"""Text, x, y, colour and marker of a numbered point."""


def draw_badges(panel: Any, marks: Sequence[Badge]) -> None:
    """Numbered badges at their points, or beside them with a line to the point where they would lie on one another.

    Where anything lies in pixels must be settled: draw the canvas, then switch the layout engine off.
    """
    if not marks:
        return
    panel.autoscale(False)
    size = 15.0  # points
    truth = panel.transData.transform([(x, y) for _, x, y, _, _ in marks])
    spread = spread_out(truth, least=1.05 * size * panel.figure.dpi / 72)
    places = panel.transData.inverted().transform(spread)
    for (text, x, y, colour, marker), (left, top) in zip(marks, places, strict=True):
        panel.plot([x, left], [y, top], color=colour, linewidth=1, zorder=3)
        panel.plot(left, top, marker=marker, markersize=size, color=colour, markeredgecolor="white", zorder=4)
        panel.annotate(
            text,
            (left, top),
            color="white",
            fontsize=8,
            fontweight="bold",
            ha="center",
            va="center_baseline",
            zorder=5,
        )


def spread_out(points: Any, *, least: float, rounds: int = 500) -> Any:
    """Moves points that are closer than `least` apart, each pair by equal and opposite steps; others stay.

    Args:
        points: `P x 2`.
        least: Distance that any two points shall have.
        rounds: Most rounds over all pairs.

    Returns:
        `P x 2`, with every distance at least `least` unless the rounds ran out.
    """
    import numpy as np

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


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _bytes(figure: Any, kind: str) -> bytes:
    """The figure as a file of that kind; the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with matplotlib.rc_context({"svg.hashsalt": "proxyless"}):
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    _pyplot().close(figure)
    return buffer.getvalue()
