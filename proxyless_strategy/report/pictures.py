"""One picture of one or several searches: how E[LAT] went to its target, and which subnets came out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError
from hardware.files import write_atomically

COLOURS = {3: "#4c78a8", 5: "#f58518", 7: "#54a24b"}


@dataclass(frozen=True)
class FinishedSearch:
    """What a search folder says.

    Attributes:
        name: How the picture calls it.
        target: Its target; None where there was none.
        unit: What target and expected cost are in.
        history: One row per epoch, see `EpochLog`.
        choices: Candidate by edge.
        row: The result's row; empty while the search has not been retrained and measured.
    """

    name: str
    target: float | None
    unit: str
    history: list[dict[str, Any]]
    choices: dict[str, str]
    row: dict[str, Any]


def read_searches(folder: Path) -> list[FinishedSearch]:
    """The search in `folder`, or the searches in its subfolders.

    Raises:
        ConfigError: There is none.
    """
    found = [path.parent for path in (folder / "search.json", *sorted(folder.glob("*/search.json"))) if path.exists()]
    if not found:
        raise ConfigError(f"{folder} holds no finished search (no search.json); give the `out` of a search")
    searches = []
    for place in found:
        search = json.loads((place / "search.json").read_text(encoding="utf-8"))
        row_file = place / "row.json"
        row = json.loads(row_file.read_text(encoding="utf-8")) if row_file.exists() else {}
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        unit = search["unit"]
        target = "no target" if search["target"] is None else f"target {search['target']:.4g} {unit}"
        searches.append(
            FinishedSearch(
                f"{config['rule']}, {target}",
                search["target"],
                unit,
                search["history"],
                search["subnet"]["choices"],
                row,
            )
        )
    return sorted(searches, key=lambda search: (search.name.split(",")[0], search.unit, search.target or 0))


def draw_searches(folder: Path, out: Path) -> Path:
    """Draw the searches of a folder.

    Args:
        folder: See `read_searches`.
        out: A .png, .svg or .pdf file.
    """
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    from search_spaces.blocks import SKIP, parse_candidate

    searches = read_searches(folder)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.6 + 0.75 * max(3, len(searches))), layout="constrained")
    units = list(dict.fromkeys(search.unit for search in searches))
    for index, search in enumerate(searches):
        colour = f"C{index}"
        points = [(row["epoch"], row["expected"]) for row in search.history if row["expected"] is not None]
        whole = points[0][1] if len(units) > 1 else 1.0
        left.plot([epoch for epoch, _ in points], [e / whole for _, e in points], color=colour, label=search.name)
        if search.target is not None:
            left.axhline(search.target / whole, color=colour, linestyle=":", linewidth=1)
        exported = search.row.get("latency_ms" if search.unit.startswith("ms") else "subnet_cost")
        if exported:
            left.plot(points[-1][0] + 0.5, exported / whole, "o", color=colour)
    left.set(
        xlabel="epoch",
        ylabel=units[0] if len(units) == 1 else "share of the first epoch's",
        title="expected latency E[LAT] (line), target (dotted), exported subnet measured (dot)"
        if units == ["ms"]
        else "expected cost (line), target (dotted), exported subnet (dot)",
    )
    left.title.set_fontsize(10)
    left.legend(fontsize=8)

    labels = list(searches[0].choices)
    for index, search in enumerate(searches):
        y = len(searches) - 1 - index
        for column, label in enumerate(labels):
            choice = search.choices.get(label, SKIP)
            if choice == SKIP:
                right.plot([column + 0.1, column + 0.9], [y + 0.45] * 2, color="#bbbbbb", linewidth=1.5)
                continue
            kernel, expansion = parse_candidate(choice)
            height = 0.14 * expansion
            patch = Rectangle(
                (column + 0.06, y + 0.45 - height / 2), 0.88, height, color=COLOURS.get(kernel, "#888888")
            )
            right.add_patch(patch)
            right.text(column + 0.5, y + 0.45, f"{kernel}x{kernel}\ne{expansion}", ha="center", va="center", fontsize=7)
        accuracy = search.row.get("accuracy")
        latency = search.row.get("latency_ms") or search.row.get("table_ms")
        parts = [f"{accuracy:.1%}" if accuracy is not None else "", f"{latency:.3g} ms" if latency else ""]
        note = ", ".join(part for part in parts if part)
        right.text(len(labels) + 0.1, y + 0.45, note, va="center", fontsize=8)
        right.text(-0.1, y + 0.45, search.name, va="center", ha="right", fontsize=8)
    right.set(xlim=(0, len(labels) + 1.6), ylim=(-0.05, len(searches)), title="derived subnets")
    right.title.set_fontsize(10)
    right.set_xticks([column + 0.5 for column in range(len(labels))], labels, rotation=30, ha="right", fontsize=7)
    right.set_yticks([])
    for side in ("top", "right", "left"):
        right.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix.lstrip(".") or "png", dpi=110)
    plt.close(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())
    return out
