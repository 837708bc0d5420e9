"""Finished searches as one picture: how the expected cost went to its target, and which subnets came out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.reading import reading
from search_spaces.costs import SKIP

from ..runs.finished import RECORD, FinishedRun, read_runs
from .boxes import MOST_LABELLED_EDGES
from .drawing import COLOURS, OTHER, figure_bytes, new_figure

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
