"""`proxyless derive`: other subnets from a search that is finished, without searching again."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import ConfigError, TableError
from hardware.files import write_atomically
from hardware.model import CostModel, LatencyModel, cost_model
from hardware.tables.table import LatencyTable
from search_spaces import Subnet, get_space

from ..config import SearchConfig, parse_config
from ..export.folder import read_export
from ..layout import MODEL
from ..strategy.architecture import Edge
from ..strategy.derivation import SLACK, Derived, Deriver


@dataclass(frozen=True)
class FolderSearch:
    """A finished search, read back.

    Attributes:
        config: Its settings.
        space: Its space.
        cost: What its choices cost.
        deriver: Its probabilities and costs.
        export: `config.json` of its export folder.
    """

    config: SearchConfig
    space: Any
    cost: CostModel
    deriver: Deriver
    export: dict[str, Any]

    def choices(self, derived: Derived) -> dict[str, str]:
        """Candidate by edge."""
        return {e.label: str(e.candidates[i]) for e, i in zip(self.deriver.edges, derived.choice, strict=True)}


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


def read_search(folder: Path) -> FolderSearch:
    """The search in a folder, with the table that it used.

    Raises:
        ConfigError: There is no finished search.
        TableError: Its table is gone, or is no longer the one that it used.
    """
    from ..layout import CONFIG_FILE, SEARCH_FILE, TABLE_FILE
    from .prepare import table_path

    try:
        record = json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no finished search ({error}); give the `out` of one that ran to its end"
        ) from error
    config = parse_config({**settings, "out": str(folder)}, source=str(folder / CONFIG_FILE))
    export = read_export(folder / MODEL)
    subnet = Subnet.from_dict(record["subnet"])
    space = get_space(config.space.name, **config.space.options)
    arguments = export["model_args"]
    costs = space.costs(config.latency_input_size, num_classes=arguments["num_classes"], in_chans=arguments["in_chans"])
    cost: CostModel
    if config.hardware.cost == "latency":
        path = folder / TABLE_FILE if (folder / TABLE_FILE).exists() else table_path(config)
        if not path.exists():
            raise TableError(f"the table {path} of the search in {folder} is gone; put it back there")
        cost = LatencyModel(LatencyTable.load(path), fixed=costs.fixed, edges=costs.edges)
    else:
        cost = cost_model(config.hardware.cost, costs.fixed, costs.edges)
    probabilities = record["probabilities"]
    now, then = cost.cost(subnet.choices), row["subnet_cost"]
    if abs(now - then) > 1e-6 * max(now, then):
        raise TableError(
            f"the subnet of {folder} took {then:.6g} {cost.unit} by the table of its search, but takes {now:.6g} by "
            "today's; put the old table back, or search again"
        )
    edges = [Edge(label, names) for label, names in zip(cost.labels, cost.candidates, strict=True)]
    log_p = np.full(cost.costs.shape, -np.inf)
    for index, edge in enumerate(edges):
        p = [max(float(probabilities[edge.label][str(name)]), 1e-300) for name in edge.candidates]
        log_p[index, : len(p)] = np.log(p)
    # E[cost] sees every candidate, not only those that the search derived.
    expected, then = float(cost.expected(np.exp(log_p))), record["expected"]
    if abs(expected - then) > 1e-6 * max(expected, then):
        raise TableError(
            f"the choices of {folder} took {then:.6g} {cost.unit} on average by the table of its search, but take "
            f"{expected:.6g} by today's; put the old table back, or search again"
        )
    return FolderSearch(config, space, cost, Deriver(edges, log_p, cost.costs, cost.fixed), export)


def derive_folder(folder: Path, *, target: float, out: Path) -> DerivedFolder:
    """Derive the most probable subnet on a target into an export folder, with fresh weights.

    Args:
        folder: The `out` of a finished search.
        target: Greatest cost, in the unit of the search's own.
        out: The export folder to write.

    Raises:
        ConfigError, TableError: See `read_search`; or the target is not finite, or `out` holds the search's own result.
        TargetError: No subnet is within the target.
        ExportError: `out` cannot be written.
    """
    import timm

    from ..export.folder import export_folder
    from ..seeds import isolated_seed

    folder, out = Path(folder), Path(out)
    search = read_search(folder)
    if not math.isfinite(target):
        raise ConfigError(f"target = {target} is no budget; give one in {search.cost.unit}")
    if out.resolve() == (folder / MODEL).resolve():
        raise ConfigError(f"out = {out} would replace the network that the search exported; choose another folder")
    derived = search.deriver.within(target, slack=SLACK)
    choices = search.choices(derived)
    subnet = Subnet(search.space, choices)
    old = search.export["model_args"]
    arguments = subnet.model_args(num_classes=old["num_classes"], in_chans=old["in_chans"])
    with isolated_seed(search.config.seed):
        model = timm.create_model(search.export["architecture"], **arguments)
    feeding = dict(search.export["pretrained_cfg"])
    if "label_names" in search.export:
        feeding["label_names"] = search.export["label_names"]
    feeding["num_classes"] = old["num_classes"]
    written = export_folder(
        model,
        out,
        model_args=arguments,
        subnet=subnet.to_dict(),
        pretrained_cfg=feeding,
        metrics={"accuracy": None, "unit": search.cost.unit, "target_cost": target, "subnet_cost": derived.cost},
    )
    return DerivedFolder(written, choices, derived.cost, search.cost.unit)


def save_curve(folder: Path, *, out: Path, points: int = 20) -> list[dict[str, Any]]:
    """The trade-off of a finished search: `curve.json`, `curve.csv` and `curve.png` in `out`.

    Args:
        folder: The `out` of a finished search.
        out: Folder to write to.
        points: Budgets between the cheapest and the most probable subnet.

    Returns:
        One row per subnet, from cheap to dear: `cost`, `unit`, `log_probability`, `subnet`.
    """
    search = read_search(Path(folder))
    rows = [
        {
            "cost": derived.cost,
            "unit": search.cost.unit,
            "log_probability": derived.log_probability,
            "subnet": " ".join(search.choices(derived).values()),
        }
        for derived in search.deriver.curve(points)
    ]
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "curve.csv", text.getvalue())
    write_atomically(out / "curve.json", json.dumps(rows, indent=2) + "\n")
    write_atomically(out / "curve.png", _picture(search, rows))
    return rows


def _picture(search: FolderSearch, rows: list[dict[str, Any]]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    axes.plot([row["cost"] for row in rows], [row["log_probability"] for row in rows], "o-", color="#4c78a8")
    axes.set_xlabel(f"cost, {search.cost.unit}")
    axes.set_ylabel("log-probability of the most probable subnet")
    axes.set_title(f"What each budget gives: {search.space.name}, {search.config.rule} rule")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    return content.getvalue()
