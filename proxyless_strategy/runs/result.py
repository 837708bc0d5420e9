"""What a search writes: the settings that own its folder, what the supernet found, and the result's row."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware import notebook
from hardware.errors import ConfigError
from hardware.files import write_atomically
from search_spaces import Subnet

from ..config import SearchConfig
from ..layout import CONFIG_FILE, ROW_FILE, SEARCH_FILE, SUPERNET_FILE, TABLE_FILE
from ..owner import Start, owned
from ..strategy.finalists import Finalist
from ..strategy.verdict import sentences
from .film import FilmRecorder
from .network import network_record
from .same_run import check_same_run

if TYPE_CHECKING:
    from .prepare import Prepared


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        config: What was asked for.
        subnet: The derived subnet.
        folder: timm export folder.
        onnx: The exported ONNX file.
        unit: What the target and the subnet's cost are in: calibrated ms or mJ, or the unit of `hardware.cost`.
        target_cost: The target; None where there was none.
        subnet_cost: The subnet's cost.
        target_ms: The target where it is a latency.
        table_ms: The subnet's latency by the table; None where no table was used.
        latency_ms: Measured latency, in the state of the machine in which the table was built; None where the table is
            of another device.
        latency_now_ms: The same as the clock read it, before that correction.
        accuracy: Test accuracy of the retrained subnet, 0..1; None without retraining.
        params: Parameters of the exported model.
        macs: Its multiply-accumulates.
        seconds: Duration of the whole search, of all its starts.
        warnings: Why the result may be worth little, in sentences.
        original_cost: What the original network costs, where the space is made of one.
        search_loss: Architecture loss of the search's own subnet, with the supernet's weights or, with
            `finalists_epochs`, after these and by the retraining's loss; None where it was not held against a
            sensitivity knapsack, or is not finite.
        knapsack_loss: The same of that knapsack.
        int8_onnx: The ONNX file in int8, of which the latency then is; None where int8 was not searched for.
        int8_accuracy: Its test accuracy, 0..1.
        device: Whose latencies these are, in words; None where none was looked up or measured.
        energy_mj: Measured gross energy of one inference, where energy was searched for; None where the table is of
            another device, or other work kept this one busy.
    """

    config: SearchConfig
    subnet: Subnet
    folder: Path
    onnx: Path
    unit: str
    target_cost: float | None
    subnet_cost: float
    target_ms: float | None
    table_ms: float | None
    latency_ms: float | None
    latency_now_ms: float | None
    accuracy: float | None
    params: int
    macs: int
    seconds: float
    warnings: tuple[str, ...] = ()
    original_cost: float | None = None
    search_loss: float | None = None
    knapsack_loss: float | None = None
    int8_onnx: Path | None = None
    int8_accuracy: float | None = None
    device: str | None = None
    energy_mj: float | None = None

    def row(self) -> dict[str, Any]:
        """Return the result as plain values, one row of a table of results."""
        return {
            "hardware": self.config.hardware.name or self.device,
            "rule": self.config.rule,
            "cost": self.config.hardware.cost,
            "unit": self.unit,
            "target_cost": self.target_cost,
            "subnet_cost": self.subnet_cost,
            **({} if self.original_cost is None else {"original_cost": self.original_cost}),
            "target_ms": self.target_ms,
            "table_ms": self.table_ms,
            "latency_ms": self.latency_ms,
            "latency_now_ms": self.latency_now_ms,
            **({"energy_mj": self.energy_mj} if self.config.hardware.cost == "energy" else {}),
            "accuracy": self.accuracy,
            "params": self.params,
            "macs": self.macs,
            "folder": str(self.folder),
            "onnx": str(self.onnx),
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "search_loss": self.search_loss,
            "knapsack_loss": self.knapsack_loss,
            "finalists_epochs": self.config.search.finalists_epochs,
            **self._int8(),
        }

    def _int8(self) -> dict[str, Any]:
        if self.int8_onnx is None:
            return {}
        return {"int8_onnx": str(self.int8_onnx), "int8_accuracy": self.int8_accuracy}

    def _repr_html_(self) -> str:
        row, names = self.row(), ("unit", "target_cost", "subnet_cost", "table_ms", "latency_ms", "accuracy", "params")
        shown = (*names, "macs", "folder", *self._int8())
        warned = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.warnings)
        return self.subnet._repr_html_() + notebook.pairs({name: row[name] for name in shown}) + warned


@contextmanager
def claim_out(
    prepared: Prepared, *, look: Callable[[], object] = lambda: None, began: float | None = None
) -> Iterator[Start]:
    """Make `out` this search's own, by its settings, and keep there a table that a learned model filled.

    Args:
        prepared: What the search stands on.
        look: Looks at what the folder holds, when no other process can write there any more, and may refuse it.
        began: When this start began, by `time.monotonic`; None: now.

    Raises:
        ConfigError: Another process owns it, or has made it another search's meanwhile.
    """
    config = prepared.config

    def check() -> dict[str, Any]:
        # Whoever owned the folder until now may have begun another search since `prepare` looked.
        differing = check_same_run(config)
        look()
        if differing:
            # the result of other settings: were this start killed, its row would pass for the result of these
            (config.out / ROW_FILE).unlink(missing_ok=True)
        return {key: {"from": old, "to": new} for key, (old, new) in differing.items()}

    with owned(config.out, check=check, began=began) as start:
        if config.hardware.fill is not None and prepared.latency is not None:
            prepared.latency.table.save(config.out / TABLE_FILE)
        _write_json(config.out / CONFIG_FILE, config.identity())
        yield start


def search_record(
    module: Any, prepared: Prepared, *, history: Sequence[Mapping[str, Any]], film: FilmRecorder
) -> dict[str, Any]:
    """Return what `search.json` says beside the subnet.

    Args:
        module: The strategy's module after the search.
        prepared: What the search stood on.
        history: One row per epoch.
        film: The probabilities after each epoch.
    """
    architecture, problem = module.architecture, module.problem
    return {
        "probabilities": module.export_probs(),
        "unit": prepared.cost.unit,
        "expected": problem.fixed + architecture.expected_cost(architecture.probabilities(), problem.costs),
        "target": prepared.target,
        "argmax": architecture.export(architecture.argmax()),
        "finalists_dtype": prepared.config.search.finalists_dtype,
        "finalists": [finalist_record(architecture, finalist) for finalist in module.finalists],
        "warnings": sentences(module.warnings()),
        "counters": dict(module.counters),
        "history": history,
        "film": film.record(architecture.labels),
        "network": network_record(prepared.costs, prepared.cost),
    }


def finalist_record(architecture: Any, finalist: Finalist) -> dict[str, Any]:
    """Return what `search.json` says of a finalist.

    Args:
        architecture: The strategy's, of which the subnet is.
        finalist: The subnet and its loss.
    """
    return {
        "choices": architecture.export(finalist.derived.choice),
        "cost": finalist.derived.cost,
        "log_probability": finalist.derived.log_probability,
        # JSON has no infinity, which stands for a subnet whose loss is not finite.
        "loss": finalist.loss if math.isfinite(finalist.loss) else None,
    }


def write_search(out: Path, subnet: Subnet, record: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Write what the supernet's search found.

    Args:
        out: The run folder.
        subnet: The derived subnet.
        record: Everything else of `search.json`.
        weights: The subnet's weights under timm's names; empty where they are not to be used.
    """
    # search.json says that the search is over, so the weights must lie there first.
    if weights:
        import torch  # slow, and only needed here

        content = io.BytesIO()
        torch.save(weights, content)
        write_atomically(out / SUPERNET_FILE, content.getvalue(), error=ConfigError)
    found = {"subnet": subnet.to_dict(), "keeps_weights": bool(weights), **record}
    _write_json(out / SEARCH_FILE, found, dense=("film", "network"))


def write_row(result: SearchResult) -> None:
    """Write the result's row, which ends the search."""
    _write_json(result.config.out / ROW_FILE, result.row())


def _write_json(path: Path, values: Mapping[str, Any], *, dense: Sequence[str] = ()) -> None:
    """Write a mapping as JSON, a line a value; what is under the keys `dense` stands on one line each."""
    lines = json.dumps({key: value for key, value in values.items() if key not in dense}, indent=2)
    ends = [f"  {json.dumps(key)}: {json.dumps(values[key], separators=(',', ':'))}" for key in dense if key in values]
    write_atomically(path, ",\n".join([lines.removesuffix("\n}"), *ends]) + "\n}\n", error=ConfigError)
