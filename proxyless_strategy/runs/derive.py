"""`proxyless derive`: other subnets from a search that is finished, without searching again."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from hardware.errors import ConfigError, ExportError
from hardware.files import write_atomically
from search_spaces import Subnet

from ..export.folder import BESIDE, RANDOM, export_folder
from ..layout import MODEL
from ..seeds import isolated_seed
from ..strategy.derivation import SLACK
from .finished import FinishedRun, read_run


@dataclass(frozen=True)
class DerivedFolder:
    """A subnet that was derived into an export folder.

    Attributes:
        folder: The export folder, with fresh weights.
        choices: Candidate by edge.
        cost: Its cost.
        unit: What that is in.
    """

    folder: Path
    choices: dict[str, str]
    cost: float
    unit: str


def derive(folder: Path | str, *, target: float, out: Path | str, space: str | None = None) -> DerivedFolder:
    """Derive the most probable subnet on a target into an export folder, with fresh weights.

    Args:
        folder: The `out` of a finished search.
        target: Greatest cost, in the unit of the search's own.
        out: The export folder to write.
        space: The `module:function` of the search's space, where that is the user's own.

    Raises:
        ConfigError: There is no finished search, the target is not finite, or `out` holds the search's own result.
        SpaceError: The space is a function, which is not given again.
        TableError: The table of the search is gone, or has changed.
        TargetError: No subnet is within the target.
        ExportError: `out` cannot be written.
    """
    folder, out = Path(folder), Path(out)
    run = read_run(folder, space=space)
    deriver, unit = run.deriver, run.cost.unit
    if not math.isfinite(target):
        raise ConfigError(f"target = {target} is no budget; give one in {unit}")
    if out.resolve() == (folder / MODEL).resolve():
        raise ConfigError(f"out = {out} would replace the network that the search exported; choose another folder")
    derived = deriver.within(target, slack=SLACK)
    choices = run.candidates(derived)
    subnet = Subnet(run.space, choices)
    old = run.export["model_args"]
    arguments = subnet.model_args(num_classes=old["num_classes"], in_chans=old["in_chans"])
    with isolated_seed(run.config.seed):
        model = timm.create_model(run.export["architecture"], **arguments)
    feeding = {**run.export["pretrained_cfg"], "num_classes": old["num_classes"]}
    feeding |= {name: run.export[name] for name in BESIDE if name in run.export}
    written = export_folder(
        model,
        out,
        model_args=arguments,
        subnet=subnet.to_dict(),
        pretrained_cfg=feeding,
        metrics={
            "accuracy": None,
            "unit": unit,
            "target_cost": target,
            "subnet_cost": derived.cost,
            "weights": RANDOM,
        },
    )
    return DerivedFolder(written, choices, derived.cost, unit)


def save_curve(folder: Path, *, out: Path, points: int = 20, space: str | None = None) -> list[dict[str, Any]]:
    """Write the trade-off of a finished search: `curve.json`, `curve.csv` and `curve.png` in `out`.

    Args:
        folder: The `out` of a finished search.
        out: Folder to write to.
        points: Budgets between the cheapest and the most probable subnet.
        space: See `derive`.

    Returns:
        One row per subnet, from cheap to dear: `cost`, `unit`, `log_probability`, `subnet`.
    """
    run = read_run(folder, space=space)
    rows = [
        {
            "cost": derived.cost,
            "unit": run.cost.unit,
            "log_probability": derived.log_probability,
            "subnet": " ".join(run.candidates(derived).values()),
        }
        for derived in run.deriver.curve(points)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "curve.csv", text.getvalue(), error=ExportError)
    write_atomically(out / "curve.json", json.dumps(rows, indent=2) + "\n", error=ExportError)
    write_atomically(out / "curve.png", _picture(run, rows), error=ExportError)
    return rows


def _picture(run: FinishedRun, rows: list[dict[str, Any]]) -> bytes:
    import matplotlib  # slow, and only a curve draws

    # Without a display the default backend of a desktop's matplotlib would fail.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    axes.plot([row["cost"] for row in rows], [row["log_probability"] for row in rows], "o-", color="#4c78a8")
    axes.set_xlabel(f"cost, {run.cost.unit}")
    axes.set_ylabel("log-probability of the most probable subnet")
    axes.set_title(f"What each budget gives: {run.space.name}, {run.config.rule} rule")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    return content.getvalue()
