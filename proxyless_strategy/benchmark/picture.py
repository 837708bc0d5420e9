"""A benchmark as a picture: accuracy against latency."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..report.drawing import Badge, draw_badges
from .result import Benchmark, Row

OURS, OTHERS = "#d1495b", "#30638e"


def _is_ours(row: Row) -> bool:
    return row.source == "export" or row.model.startswith("proxylessnas")


def draw(benchmark: Benchmark) -> bytes:
    """A PNG: published accuracy over measured latency, one panel for each backend and batch; networks by number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    rows, columns = len(benchmark.backends), len(benchmark.batches)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(6.4 * columns, 4.4 * rows + 0.5),
        squeeze=False,
        layout="constrained",
        sharey=True,
        dpi=110,
    )
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
        marks = []
        for number, row, ms in shown:
            y = row.accuracy.top1 if row.accuracy else floor
            marks.append((str(number), ms, y, OURS if _is_ours(row) else OTHERS, "o" if row.accuracy else "s"))
            panel.plot(ms, y, marker=marks[-1][4], markersize=5, color=marks[-1][3], linestyle="none")
        drawn.append((panel, marks))
        panel.margins(x=0.12, y=0.14)
        panel.grid(True, alpha=0.25)
        panel.set_title(f"{backend}, batch {batch}", fontsize=10)
        panel.set_xlabel("ms for a whole batch", fontsize=9)
        if j == 0:
            panel.set_ylabel("published ImageNet top-1, %", fontsize=9)
    handles = [
        Line2D([], [], marker="o" if row.accuracy else "s", linestyle="none", color=OURS if _is_ours(row) else OTHERS)
        for row in ranked
    ]
    names = [row.model if row.source != "export" else "/".join(Path(row.model).parts[-2:]) for row in ranked]
    labels = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    title = "red: ProxylessNAS and exports\nsquare: no published accuracy\nbadges that would overlap stand apart"
    legend = figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False, title=title)
    legend.get_title().set_fontsize(8)
    figure.suptitle(f"{benchmark.header['device']}, {benchmark.header['threads']} thread(s)", fontsize=10)
    figure.canvas.draw()  # only now is known where anything lies in pixels
    figure.set_layout_engine("none")
    for panel, marks in drawn:
        draw_badges(panel, marks)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
