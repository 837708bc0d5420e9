"""A benchmark as a picture: accuracy against latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report.drawing import Badge, draw_badges, draw_points, figure_bytes, new_figure
from .published import OWN_IMAGES
from .result import Benchmark, Row

OURS, OTHERS = "#d1495b", "#30638e"


def _colour(row: Row) -> str:
    return OURS if row.source == "export" or row.model.startswith("proxylessnas") else OTHERS


def _marker(row: Row) -> str:
    if row.accuracy is None:
        return "s"
    return "^" if row.accuracy.source == OWN_IMAGES else "o"


def _axis(benchmark: Benchmark) -> str:
    own = {row.accuracy.source == OWN_IMAGES for row in benchmark.rows if row.accuracy}
    if own == {True}:
        return "top-1 on own test images, %"
    return "published ImageNet top-1, %" if own == {False} else "top-1, %: published, or on own images"


def draw(benchmark: Benchmark) -> bytes:
    """Draw a PNG: accuracy over measured latency, a panel for each backend and batch; networks by number.

    Where no accuracy is known there is no axis of it.
    """
    from matplotlib.lines import Line2D  # slow
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    rows, columns = len(benchmark.backends), len(benchmark.batches)
    figure = new_figure(6.4 * columns, 4.4 * rows + 0.5, dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    known = [row.accuracy.top1 for row in benchmark.rows if row.accuracy]
    floor = (min(known) - 1.0) if known else 0.0
    drawn: list[tuple[Any, list[Badge]]] = []
    ranked = sorted(benchmark.rows, key=lambda row: -(row.accuracy.top1 if row.accuracy else 0.0))
    for (i, backend), (j, batch) in (
        (a, b) for a in enumerate(benchmark.backends) for b in enumerate(benchmark.batches)
    ):
        panel = axes[i][j]
        shown = [
            (number, row, row.latency[backend, batch].ms)
            for number, row in enumerate(ranked, start=1)
            if (backend, batch) in row.latency
        ]
        times = [ms for _, _, ms in shown] or [1.0]
        if max(times) > 8 * min(times):
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            panel.xaxis.set_minor_locator(NullLocator())
        marks = [
            Badge(str(number), ms, row.accuracy.top1 if row.accuracy else floor, _colour(row), _marker(row))
            for number, row, ms in shown
        ]
        draw_points(panel, marks)
        drawn.append((panel, marks))
        panel.margins(x=0.12, y=0.14)
        panel.grid(True, alpha=0.25)
        panel.set_title(f"{backend}, batch {batch}", fontsize=10)
        panel.set_xlabel("ms for a whole batch", fontsize=9)
        if not known:
            panel.set_yticks([])
        if j == 0:
            panel.set_ylabel("no accuracy known" if not known else _axis(benchmark), fontsize=9)
    handles = [Line2D([], [], marker=_marker(row), linestyle="none", color=_colour(row)) for row in ranked]
    names = [row.model if row.source != "export" else "/".join(Path(row.model).parts[-2:]) for row in ranked]
    labels = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    title = "red: ProxylessNAS and exports\nsquare: no accuracy known\ntriangle: on its own test images\n"
    title += "badges that would overlap stand apart"
    legend = figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False, title=title)
    legend.get_title().set_fontsize(8)
    figure.suptitle(f"{benchmark.header['device']}, {benchmark.header['threads']} thread(s)", fontsize=10)
    draw_badges(figure, drawn)
    return figure_bytes(figure, "png")
