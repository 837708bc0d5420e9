"""Finished searches as pictures: how the expected cost went to its target, and which subnets came out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.reading import reading
from search_spaces.blocks import SKIP

from ..runs.finished import RECORD, FinishedRun, read_runs
from .drawing import COLOURS, OTHER, Badge, draw_badges, draw_points, figure_bytes, new_figure

MOST_LABELLED_EDGES = 32
"""Above it edges are drawn without their labels."""
SUFFIXES = (".png", ".svg", ".pdf")


def candidate_style(name: str) -> tuple[str, float, str]:
    """Return colour, height (0..1) and short text of a candidate.

    A colour stands for a kernel's size; the height of an MBConv for its expansion.
    """
    sides = re.search(r"(\d+)x\d+", name)
    colour = COLOURS.get(int(sides[1]), OTHER) if sides else OTHER
    expansion = re.fullmatch(r"(\d+x\d+)_e(\d+)", name)
    if expansion:
        return colour, min(1.0, 0.15 * int(expansion[2])), f"{expansion[1]}\ne{expansion[2]}"
    return colour, 0.7, name.replace("_", "\n")


def draw_searches(folder: Path, out: Path) -> Path:
    """Draw the searches of a folder.

    Args:
        folder: See `read_runs`.
        out: A .png, .svg or .pdf file.

    Raises:
        ConfigError: There is no finished search, or `out` has another suffix.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out} is no picture; end its name with {', '.join(SUFFIXES)}")
    with reading(folder, RECORD):
        content = overview(read_runs(folder), kind=out.suffix[1:])
    write_atomically(out, content, error=ConfigError, remedy="choose another place with --out")
    return out


def overview(searches: Sequence[FinishedRun], *, kind: str = "png") -> bytes:
    """Draw one picture of all searches: expected cost over the epochs, and the derived subnets."""
    figure = new_figure(12, 1.6 + 0.75 * max(3, len(searches)))
    left, right = figure.subplots(1, 2)
    units = list(dict.fromkeys(search.unit for search in searches))
    for index, search in enumerate(searches):
        colour = f"C{index}"
        points = [(row["epoch"], row["expected"]) for row in search.history if row["expected"] is not None]
        # The rule `sensitivity` has no epochs: its subnet stands at 0, where others begin.
        start = points[0][1] if points else search.expected
        whole = start if len(units) > 1 else 1.0
        left.plot([epoch for epoch, _ in points], [e / whole for _, e in points], color=colour, label=search.name)
        if search.target is not None:
            left.axhline(search.target / whole, color=colour, linestyle=":", linewidth=1)
        if search.subnet_cost:
            left.plot(points[-1][0] + 0.5 if points else 0, search.subnet_cost / whole, "o", color=colour)
    left.set(
        xlabel="epoch",
        ylabel=units[0] if len(units) == 1 else "share of the first epoch's",
        title="expected latency E[LAT] (line), target (dotted), exported subnet measured (dot)"
        if units == ["ms"]
        else "expected cost (line), target (dotted), exported subnet (dot)",
    )
    left.title.set_fontsize(10)
    left.legend(fontsize=8)
    _draw_subnets(right, searches)
    return figure_bytes(figure, kind)


def progress_picture(search: FinishedRun, *, kind: str = "svg") -> bytes:
    """Draw expected cost with its target, entropy, and validation accuracy of one search over the epochs."""
    figure = new_figure(11.5, 3.1)
    axes = figure.subplots(1, 3)
    warmup = [row["epoch"] for row in search.history if row["phase"] == "warmup"]
    panels = (("expected", f"expected cost, {search.unit}"), ("entropy", "entropy of an edge, nats"))
    for panel, (key, title) in zip(axes, (*panels, ("default", "validation accuracy")), strict=True):
        points = [(row["epoch"], row[key]) for row in search.history if row.get(key) is not None]
        if points:
            panel.plot(*zip(*points, strict=True), color="#4c78a8", linewidth=1.8)
        else:
            panel.text(0.5, 0.5, "not recorded", ha="center", transform=panel.transAxes)
        if warmup:
            panel.axvspan(0.5, max(warmup) + 0.5, color="#eeeeee", label="warm-up")
        panel.set_xlim(0.5, max((row["epoch"] for row in search.history), default=1) + 1)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    if search.target is not None:
        axes[0].axhline(search.target, color="#d1495b", linestyle="--", linewidth=1.2, label="target")
    if search.subnet_cost is not None:
        last = max((row["epoch"] for row in search.history), default=0)
        label = "exported subnet, measured" if search.is_measured else "exported subnet"
        axes[0].plot(last + 0.5, search.subnet_cost, "o", color="#54a24b", label=label)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=len(handles), fontsize=8, frameon=False)
    return figure_bytes(figure, kind)


def probability_picture(search: FinishedRun, *, kind: str = "svg") -> bytes:
    """Draw the probabilities at the end of a search as a heat map, candidates x edges, and what was derived."""
    from matplotlib.patches import Rectangle  # slow

    edges = list(search.probabilities)
    names = list(dict.fromkeys(name for edge in edges for name in search.probabilities[edge]))
    values = np.array([[search.probabilities[edge].get(name, np.nan) for edge in edges] for name in names])
    labelled = len(edges) <= MOST_LABELLED_EDGES
    figure = new_figure(11.5, 1.5 + 0.3 * len(names))
    axes = figure.subplots()
    axes.set_facecolor("#e4e4e4")
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, pad=0.01, label="probability")
    for column, edge in enumerate(edges):
        if labelled and search.argmax.get(edge) in names:
            y = names.index(search.argmax[edge])
            axes.plot(column, y, "o", markersize=4, color="white", markeredgecolor="#333333")
        if search.choices.get(edge) in names:
            y = names.index(search.choices[edge])
            if labelled:
                axes.add_patch(Rectangle((column - 0.5, y - 0.5), 1, 1, fill=False, color="#d1495b", linewidth=2))
            else:
                axes.plot(column, y, "s", markersize=1.5, color="#d1495b")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    if labelled:
        axes.set_xticks(range(len(edges)), edges, rotation=40, ha="right", fontsize=8)
    else:
        axes.set_xlabel(f"{len(edges)} edges, from {edges[0]} to {edges[-1]}", fontsize=9)
    return figure_bytes(figure, kind)


def trade_off_picture(searches: Sequence[FinishedRun], *, kind: str = "svg") -> bytes | None:
    """Draw accuracy over cost, numbered as in `searches`, by hardware and unit; None without two accuracies."""
    from matplotlib.lines import Line2D  # slow

    rated = [(number, s) for number, s in enumerate(searches, start=1) if s.row.get("accuracy") is not None]
    shown = [(number, s, s.subnet_cost) for number, s in rated if s.subnet_cost is not None]
    if len(shown) < 2:
        return None
    groups: dict[tuple[str | None, str], list[tuple[int, FinishedRun, float]]] = {}
    for number, search, cost in shown:
        groups.setdefault((search.row.get("hardware"), search.unit), []).append((number, search, cost))
    figure = new_figure(max(5.5, 3.8 * len(groups)), 3.6)
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)
    rules = list(dict.fromkeys(str(search.settings["rule"]) for search in searches))
    drawn: list[tuple[Any, list[Badge]]] = []
    palette = dict(zip(rules, ("#d1495b", "#30638e", "#54a24b", "#f58518"), strict=False))
    for panel, ((hardware, unit), points) in zip(axes[0], groups.items(), strict=True):
        marks = [
            Badge(str(number), cost, 100 * search.row["accuracy"], palette.get(str(search.settings["rule"]), OTHER))
            for number, search, cost in points
        ]
        draw_points(panel, marks)
        drawn.append((panel, marks))
        panel.margins(0.18)
        panel.grid(alpha=0.25)
        panel.set_xlabel(unit, fontsize=9)
        panel.set_title(hardware or "", fontsize=10)
    axes[0][0].set_ylabel("test accuracy, %", fontsize=9)
    handles = [Line2D([], [], marker="o", linestyle="none", color=palette[rule], label=rule) for rule in palette]
    axes[0][-1].legend(handles=handles, fontsize=8)
    draw_badges(figure, drawn)
    return figure_bytes(figure, kind)


def _draw_subnets(axes: Any, searches: Sequence[FinishedRun]) -> None:
    """Draw one line of blocks per search; edges in columns."""
    from matplotlib.patches import Rectangle  # slow

    labels = list(dict.fromkeys(label for search in searches for label in search.choices))
    labelled = len(labels) <= MOST_LABELLED_EDGES
    for index, search in enumerate(searches):
        y = len(searches) - 1 - index
        for column, label in enumerate(labels):
            choice = search.choices.get(label, SKIP)
            if choice == SKIP:
                axes.plot([column + 0.1, column + 0.9], [y + 0.45] * 2, color="#bbbbbb", linewidth=1.5)
                continue
            colour, height, text = candidate_style(choice)
            height *= 0.92
            gap = 0.06 if labelled else 0.0
            axes.add_patch(Rectangle((column + gap, y + 0.45 - height / 2), 1 - 2 * gap, height, color=colour))
            if labelled:
                axes.text(column + 0.5, y + 0.45, text, ha="center", va="center", fontsize=7)
        accuracy = search.row.get("accuracy")
        latency = search.row.get("latency_ms") or search.row.get("table_ms")
        parts = [f"{accuracy:.1%}" if accuracy is not None else "", f"{latency:.3g} ms" if latency else ""]
        note = ", ".join(part for part in parts if part)
        axes.text(len(labels) * 1.02, y + 0.45, note, va="center", fontsize=8)
        axes.text(-0.02 * len(labels), y + 0.45, search.name, va="center", ha="right", fontsize=8)
    axes.set(xlim=(0, len(labels) * 1.27), ylim=(-0.05, len(searches)), title="derived subnets")
    axes.title.set_fontsize(10)
    if labelled:
        axes.set_xticks([column + 0.5 for column in range(len(labels))], labels, rotation=30, ha="right", fontsize=7)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(labels)} edges", fontsize=8)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
