"""The comparison as a picture: a panel for each figure, the original beside its subnet."""

from __future__ import annotations

from ..report.drawing import figure_bytes, new_figure
from .comparison import Comparison

ORIGINAL, SUBNET = "#30638e", "#d1495b"


def draw(comparison: Comparison) -> bytes:
    """Draw a PNG of accuracy, time, parameters and multiply-accumulates; what is not known has no panel."""
    large, small = comparison.original, comparison.subnet
    measured = large.ms is not None and small.ms is not None
    times = (large.ms, small.ms) if measured else (large.table_ms, small.table_ms)
    panels: list[tuple[str, float | None, float | None, str]] = [
        ("test accuracy, %", 100 * large.accuracy, 100 * small.accuracy, ".2f"),
        ("measured ms" if measured else "ms by the table", *times, ".3f"),
        ("parameters, M", large.params / 1e6, small.params / 1e6, ".3g"),
        ("MACs, M", large.macs / 1e6, small.macs / 1e6, ".3g"),
    ]
    known = [(title, a, b, spec) for title, a, b, spec in panels if a is not None and b is not None]
    figure = new_figure(2.6 * len(known), 3.4, dpi=110)
    axes = figure.subplots(1, len(known), squeeze=False)[0]
    for axis, (title, first, second, spec) in zip(axes, known, strict=True):
        bars = axis.bar(["original", "subnet"], [first, second], color=[ORIGINAL, SUBNET], width=0.62)
        axis.bar_label(bars, [f"{value:{spec}}" for value in (first, second)], fontsize=9)
        axis.set_title(title, fontsize=10)
        # from 0: a bar that begins elsewhere shows a ratio that is none
        axis.set_ylim(0, 1.15 * max(first, second, 1e-9))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    place = comparison.place
    figure.suptitle(
        f"{comparison.model}, target {comparison.target}, {place['input_size']} px, {place['device']}", fontsize=10
    )
    return figure_bytes(figure, "png")
