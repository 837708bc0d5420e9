"""One search from one config: table, supernet, derivation, retraining, export, measured latency.

Everything lands in `config.out`; a run that was killed continues where it was when started again with the same config.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.backends import get_backend
from hardware.errors import ConfigError, TableError, TargetError
from hardware.files import write_atomically
from hardware.measuring.locks import load_or_build
from hardware.measuring.nets import measure_model_file, measure_nets
from hardware.measuring.predictor import LearnedModel
from hardware.measuring.sampling import Measurement
from hardware.measuring.table import build_table
from hardware.model import CostModel, LatencyModel, cost_model
from hardware.tables import shipped
from hardware.tables.shipped import shipped_names
from hardware.tables.table import LatencyTable
from search_spaces import SpaceCosts, SpaceDeclaration, Subnet, get_space

from .config import SearchConfig
from .data.images import ImageData
from .data.sources import check_data, load_data
from .layout import CONFIG_FILE, SEARCH_FILE, TABLE_FILE
from .processes import is_first_process

OnEpoch = Callable[[dict[str, Any]], None]


CALIBRATION_NETS = 24
NAMED_EDGES = 30
"""Up to so many choices are named one by one in what a search prints; of more, each candidate's number is said."""


@dataclass(frozen=True)
class Prepared:
    """What a search stands on before it starts.

    Attributes:
        space: The space's declaration.
        costs: Its operators at the deployed input size.
        cost: What the search counts: the latency, or another cost.
        target: The target in the unit of `cost`; None where there is none.
        latency: Calibrated latency of its choices; None where no table is used.
        table: Path of the latency table; None where none is used.
    """

    space: SpaceDeclaration
    costs: SpaceCosts
    cost: CostModel
    target: float | None
    latency: LatencyModel | None
    table: Path | None

    @property
    def target_ms(self) -> float | None:
        """The target where it is a latency."""
        return self.target if self.cost is self.latency else None

    def table_ms(self, subnet: Subnet) -> float | None:
        """A subnet's latency by the table, where one is used."""
        return None if self.latency is None else self.latency.latency(subnet.choices)


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        config: What was asked for.
        subnet: The derived subnet.
        folder: timm export folder.
        onnx: The exported ONNX file.
        unit: What the target and the subnet's cost are in: calibrated ms, or the unit of `hardware.cost`.
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
        seconds: Duration of the whole search.
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

    def row(self) -> dict[str, Any]:
        """The result as plain values for a table of results."""
        return {
            "hardware": self.config.hardware.name,
            "rule": self.config.rule,
            "cost": self.config.hardware.cost,
            "unit": self.unit,
            "target_cost": self.target_cost,
            "subnet_cost": self.subnet_cost,
            "target_ms": self.target_ms,
            "table_ms": self.table_ms,
            "latency_ms": self.latency_ms,
            "latency_now_ms": self.latency_now_ms,
            "accuracy": self.accuracy,
            "params": self.params,
            "macs": self.macs,
            "folder": str(self.folder),
            "onnx": str(self.onnx),
            "seconds": self.seconds,
        }


def default_table_path(config: SearchConfig) -> Path:
    """Where a table lies that the config does not name: in the user's cache, by space, size and backend."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hardware = config.hardware
    name = f"{config.space.name.replace(':', '.')}-{config.latency_input_size}px-{hardware.backend}"
    place = f"-{hardware.place.replace(':', '')}" if hardware.place else ""
    return cache / "proxyless_strategy" / f"{name}{place}-{hardware.threads}threads-batch{hardware.batch}.yml"


def table_path(config: SearchConfig) -> Path:
    """The config's latency table: a shipped one by its name, a file, or `default_table_path`."""
    table = config.hardware.table
    if table is not None and str(table) in shipped_names():
        return Path(shipped.__file__).with_name(f"{table}.yml")
    return table or default_table_path(config)


def check(config: SearchConfig) -> None:
    """Refuse what cannot work, before any work is done.

    Raises:
        ProxylessError: The space, backend, data, table, target or objective is impossible, or `out` is not writable or
            holds another search.
    """
    space = get_space(config.space.name, **config.space.options)
    check_data(config.data)
    if config.hardware.device != "other":
        get_backend(config.hardware.backend, config.hardware.place).close()
    _check_objective(config)
    _check_out(config)
    path = table_path(config)
    table = None
    if config.hardware.uses_table:
        if config.hardware.device == "other" and not path.exists():
            raise TableError(
                f"there is no table {path} of the other device; give an existing one, or of "
                f"{', '.join(shipped_names())}"
            )
        if path.exists():
            table = LatencyTable.load(path)
            _check_table(config, table)
        if config.hardware.fill is not None:
            LearnedModel.load(config.hardware.fill)
    if table is not None or not config.hardware.uses_table:
        data = load_data(config.data, input_size=config.input_size, seed=config.seed)
        _prepared(config, space, data, table)


def prepare(config: SearchConfig, *, data: ImageData | None = None, quiet: bool = False) -> Prepared:
    """Build the latency table if one is needed and missing, and say what the space's extreme subnets cost.

    Args:
        config: The search.
        data: Its data, where they are loaded already.
        quiet: Print nothing.
    """
    space = get_space(config.space.name, **config.space.options)
    data = data or load_data(config.data, input_size=config.input_size, seed=config.seed)
    path = table_path(config)
    costs = _costs(config, space, data)
    table = None

    def build() -> LatencyTable:
        if not quiet:
            print(
                f"no latency table at {path}: measuring {len(costs.distinct())} operators of {space.name}", flush=True
            )
        nets = [costs.chain(choices) for choices in costs.random_choices(CALIBRATION_NETS, seed=0)]
        return build_table(
            costs.distinct(),
            nets,
            backend=config.hardware.backend,
            input_size=config.latency_input_size,
            batch=config.hardware.batch,
            threads=config.hardware.threads,
            place=config.hardware.place,
            space=space.name,
            out=path,
            progress=sys.stderr.isatty(),
        )

    if config.hardware.uses_table:
        table = load_or_build(path, build)
        _check_table(config, table)
    prepared = _prepared(config, space, data, table)
    if not quiet:
        print(_summary(config, prepared), flush=True)
    return prepared


def run_search(config: SearchConfig, *, on_epoch: OnEpoch | None = None) -> SearchResult:
    """Search, derive, retrain, export and measure.

    With `search.devices` above 1 Lightning starts the calling script once more for each further process. Those take
    part in the search and then end here: only the first process retrains, exports and measures.

    Args:
        config: What to search.
        on_epoch: Called once per epoch of search and retraining with `phase` (warmup, search, retrain), `epoch`,
            `default` (accuracy in 0..1) and what else is known.

    Raises:
        ProxylessError: See `check`; or a later step failed.
    """
    import timm

    from .export.folder import export_folder
    from .export.onnx import export_onnx
    from .export.summary import model_summary
    from .retraining.trainer import retrain

    started = time.monotonic()
    check(config)
    _check_processes(config)
    first = is_first_process()
    data = load_data(config.data, input_size=config.input_size, seed=config.seed)
    prepared = prepare(config, data=data, quiet=not first)
    if first:
        _claim_out(config, prepared)
    report = on_epoch or (lambda metrics: None)
    subnet, weights = _searched(config, prepared, data, report)
    model_args = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
    subnet_cost, table_ms = prepared.cost.cost(subnet.choices), prepared.table_ms(subnet)
    said = f"{subnet_cost:.4g} {prepared.cost.unit}" + (" by the table" if prepared.cost is prepared.latency else "")
    print(f"derived {_named(subnet.choices)}: {said}", flush=True)

    if config.retrain is not None:
        drop: dict[str, Any] = {"drop_rate": config.retrain.dropout, "drop_path_rate": config.retrain.drop_path}
        trained = retrain(
            lambda: timm.create_model(subnet.timm_name, **model_args, **drop),
            data,
            config.retrain,
            seed=config.seed,
            checkpoint=config.out / "retrain.ckpt",
            on_epoch=lambda metrics: report({"phase": "retrain", "default": metrics["accuracy"], **metrics}),
            progress=sys.stderr.isatty(),
        )
        model, accuracy = trained.model, trained.test_accuracy
    else:
        model, accuracy = timm.create_model(subnet.timm_name, **model_args), None
        model.load_state_dict(weights)
    size = (data.channels, config.latency_input_size, config.latency_input_size)
    summary = model_summary(model, size)
    folder = export_folder(
        model,
        config.out / "model",
        model_args=model_args,
        subnet=subnet.to_dict(),
        pretrained_cfg=data.pretrained_cfg(),
        metrics={
            "accuracy": accuracy,
            "table_ms": table_ms,
            "target_ms": prepared.target_ms,
            "unit": prepared.cost.unit,
            "target_cost": prepared.target,
            "subnet_cost": subnet_cost,
        },
    )
    onnx = export_onnx(folder, config.out / "model.onnx", input_shape=size, batch=config.hardware.batch)
    measured = _measured(config, prepared, subnet, onnx.path)
    result = SearchResult(
        config=config,
        subnet=subnet,
        folder=folder,
        onnx=onnx.path,
        unit=prepared.cost.unit,
        target_cost=prepared.target,
        subnet_cost=subnet_cost,
        target_ms=prepared.target_ms,
        table_ms=table_ms,
        latency_ms=None if measured is None else measured.settled_ms,
        latency_now_ms=None if measured is None else measured.ms,
        accuracy=accuracy,
        params=summary.params,
        macs=summary.macs,
        seconds=time.monotonic() - started,
    )
    write_atomically(config.out / "row.json", json.dumps(result.row(), indent=2) + "\n")
    return result


def _measured(config: SearchConfig, prepared: Prepared, subnet: Subnet, onnx: Path) -> Measurement | None:
    """The deployed latency: of the ONNX file where the backend runs it, else of the same operators in the backend."""
    hardware = config.hardware
    if hardware.device == "other":
        return None
    table = None if prepared.latency is None else prepared.latency.table
    with get_backend(hardware.backend, hardware.place or (table.header.place if table else None)) as backend:
        shared: dict[str, Any] = {"batch": hardware.batch, "threads": hardware.threads, "backend": backend}
        if hardware.backend == "onnxruntime":
            return measure_model_file(onnx, input_shape=prepared.costs.input_shape, table=table, **shared)
        return measure_nets([prepared.costs.chain(subnet.choices)], table=table, progress=False, **shared)[0]


# ---- checks ----------------------------------------------------------------------------------------------------


def _check_objective(config: SearchConfig) -> None:
    from .objectives import make_objective

    target = config.target_ms or config.target_cost or config.target
    make_objective(
        config.objective, rule=config.rule, target=2.0 if target else None, minimum=2.0, **config.objective_options
    )


def _check_processes(config: SearchConfig) -> None:
    from .processes import launched

    if config.search.devices > 1 and launched():
        raise ConfigError(
            f"search.devices = {config.search.devices}, but this script has already run a search on several processes; "
            "run each of them in a script of its own"
        )


def _check_out(config: SearchConfig) -> None:
    existing = config.out
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(
            f"cannot write to {config.out}: {existing} is no folder that may be written to; choose another out"
        )
    saved = config.out / CONFIG_FILE
    if saved.exists():
        found = json.loads(saved.read_text(encoding="utf-8"))
        if found != _identity(config):
            differing = sorted(key for key in found if found[key] != _identity(config).get(key))
            raise ConfigError(
                f"{config.out} holds a search with other settings ({', '.join(differing)}); "
                "choose another out or remove it"
            )


def _identity(config: SearchConfig) -> dict[str, Any]:
    return json.loads(config.model_dump_json(exclude={"out"}))


def _claim_out(config: SearchConfig, prepared: Prepared) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    if config.hardware.fill is not None and prepared.latency is not None:
        prepared.latency.table.save(config.out / TABLE_FILE)
    write_atomically(config.out / CONFIG_FILE, json.dumps(_identity(config), indent=2) + "\n")


def _check_table(config: SearchConfig, table: LatencyTable) -> None:
    hardware, header = config.hardware, table.header
    if hardware.device == "other":
        return
    compared: list[tuple[str, Any, Any]] = [
        ("backend", header.backend, hardware.backend),
        ("threads", header.threads, hardware.threads),
    ]
    if hardware.place:
        with get_backend(hardware.backend, hardware.place) as backend:
            compared.append(("device", header.place or "unknown", backend.place))
    for name, there, here in compared:
        if there != here:
            raise TableError(
                f"the table {table_path(config)} was measured with {name} {there}, but the config says {here}; "
                f"set hardware.{name} or give another table"
            )


def _costs(config: SearchConfig, space: SpaceDeclaration, data: ImageData) -> SpaceCosts:
    return space.costs(config.latency_input_size, num_classes=data.num_classes, in_chans=data.channels)


def _prepared(config: SearchConfig, space: SpaceDeclaration, data: ImageData, table: LatencyTable | None) -> Prepared:
    costs = _costs(config, space, data)
    latency = None
    if table is not None:
        if config.hardware.fill is not None:
            model = LearnedModel.load(config.hardware.fill)
            table = model.complete(table, costs.distinct(), input_size=config.latency_input_size)
        table.check(costs.distinct(), input_size=config.latency_input_size, batch=config.hardware.batch)
        latency = LatencyModel(table, fixed=costs.fixed, edges=costs.edges)
    cost: CostModel
    if latency is not None and config.hardware.cost == "latency":
        cost, (name, cheapest, dearest) = latency, ("target_ms", "fastest", "slowest")
    else:
        cost = cost_model(config.hardware.cost, costs.fixed, costs.edges)
        name, cheapest, dearest = "target_cost", "cheapest", "dearest"
    low, choices = cost.minimum()
    high, _ = cost.maximum()
    target = config.target_cost or config.target_ms
    if config.target is not None:
        target = low + config.target * (high - low)
    if target is not None and target < low:
        raise TargetError(
            f"{name} = {target:g} is below the {cheapest} subnet of {space.name}, {low:.4g} {cost.unit} "
            f"({_named(choices)}); raise the target or choose a smaller space"
        )
    if target is not None and target > high:
        warnings.warn(
            f"{name} = {target:g} is above the {dearest} subnet of {space.name}, {high:.4g} {cost.unit}: it is idle",
            stacklevel=2,
        )
    return Prepared(space, costs, cost, target, latency, None if latency is None else table_path(config))


def _named(choices: Mapping[str, str]) -> str:
    if len(choices) <= NAMED_EDGES:
        return " ".join(choices.values())
    counts = Counter(choices.values())
    return f"{len(choices)} edges, " + ", ".join(f"{count} x {name}" for name, count in counts.most_common())


def _summary(config: SearchConfig, prepared: Prepared) -> str:
    cost, latency = prepared.cost, prepared.latency
    low, cheapest = cost.minimum()
    high, dearest = cost.maximum()
    title, words = prepared.space.name, ("cheapest", "dearest")
    if latency is not None and cost is latency:
        title, words = (
            f"{title} on {latency.table.header.device} ({latency.table.header.backend})",
            ("fastest", "slowest"),
        )
    lines = [
        title,
        f"  {words[0]} subnet {low:.4g} {cost.unit}: {_named(cheapest)}",
        f"  {words[1]} subnet {high:.4g} {cost.unit}: {_named(dearest)}",
    ]
    if prepared.target is not None:
        lines.append(f"  target {prepared.target:.4g} {cost.unit}")
    if config.hardware.fill is not None and latency is not None:
        ops = prepared.costs.distinct()
        predicted = sum(latency.table.entry(op).predicted for op in ops)
        lines.append(f"  {predicted} of {len(ops)} operators predicted by {config.hardware.fill}")
    return "\n".join(lines)


# ---- the supernet ----------------------------------------------------------------------------------------------


def _searched(
    config: SearchConfig, prepared: Prepared, data: ImageData, report: OnEpoch
) -> tuple[Subnet, dict[str, Any]]:
    """The derived subnet and, right after a search, its weights in the supernet."""
    import torch

    done, weights_file = config.out / SEARCH_FILE, config.out / "supernet.pt"
    if done.exists():
        saved = json.loads(done.read_text(encoding="utf-8"))["subnet"]
        subnet = Subnet(prepared.space, saved["choices"])
        return subnet, torch.load(weights_file, weights_only=True) if weights_file.exists() else {}
    with _quiet_lightning():
        subnet, weights, record = _search(config, prepared, data, report)
    if config.retrain is None:
        beside = weights_file.with_suffix(".tmp")
        torch.save(weights, beside)
        beside.replace(weights_file)
    write_atomically(done, json.dumps({"subnet": subnet.to_dict(), **record}, indent=2) + "\n")
    return subnet, weights


def _search(
    config: SearchConfig, prepared: Prepared, data: ImageData, report: OnEpoch
) -> tuple[Subnet, dict[str, Any], dict[str, Any]]:
    import torch
    from nni.nas.evaluator.pytorch import Lightning, Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    from .epoch_log import EpochLog
    from .evaluator import ImageClassifier
    from .forecast import forecast
    from .processes import end_processes
    from .seeds import isolated_seed
    from .strategy import ProxylessStrategy

    settings = config.search
    strategy = ProxylessStrategy(
        rule=config.rule,
        latency=prepared.cost,
        target_ms=prepared.target,
        objective=config.objective,
        objective_options=config.objective_options,
        warmup_epochs=settings.warmup_epochs,
        steps_per_update=settings.steps_between(config.rule),
        estimator=settings.estimator,
        paths=settings.paths,
        samples=settings.samples,
        baseline=settings.baseline,
        warmup_paths=settings.warmup_paths,
        weight_paths=settings.weight_paths,
        finalists=settings.finalists,
        learning_rate=settings.architecture_rate(config.rule),
        seed=config.seed,
    )
    with isolated_seed(config.seed):
        network = prepared.space.build(num_classes=data.num_classes, in_chans=data.channels)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)
    log = EpochLog(settings.warmup_epochs, report, unit=prepared.cost.unit)
    checkpoint = ModelCheckpoint(
        dirpath=config.out, filename="search", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = Trainer(
        max_epochs=settings.warmup_epochs + settings.epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        precision=settings.precision,
        callbacks=[checkpoint, log],
        logger=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    shared: dict[str, Any] = {
        "batch_size": settings.process_batch_size,
        "seed": config.seed,
        "workers": config.data.workers,
    }
    evaluator = Lightning(
        ImageClassifier(settings),
        trainer,
        train_dataloaders=data.loader("weights", shuffle=True, drop_last=True, **shared),
        val_dataloaders=data.loader("architecture", shuffle=True, **shared),
    )
    last = config.out / "search.ckpt"
    if is_first_process():
        print(forecast(config, prepared.space, prepared.costs, data).sentence(), flush=True)
    module = strategy.search(network, evaluator, ckpt_path=last if last.exists() else None)
    derived = module.derive()
    choices = {label: str(value) for label, value in module.architecture.export(derived.choice).items()}
    p = module.architecture.probabilities()
    record = {
        "probabilities": module.export_probs(),
        "unit": prepared.cost.unit,
        "expected": module.problem.fixed + module.architecture.expected_cost(p, module.problem.costs),
        "target": prepared.target,
        "argmax": module.architecture.export(module.architecture.argmax()),
        "finalists": [
            {
                "choices": module.architecture.export(finalist.derived.choice),
                "cost": finalist.derived.cost,
                "log_probability": finalist.derived.log_probability,
                "loss": finalist.loss if math.isfinite(finalist.loss) else None,
            }
            for finalist in module.finalists
        ],
        "counters": dict(module.counters),
        "history": log.history,
    }
    weights = {}
    if config.retrain is None:
        frozen = module.derived_network()
        weights = prepared.space.timm_names(frozen.state_dict(), choices)
    end_processes(trainer.strategy)
    return Subnet(prepared.space, choices), weights, record


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's hints about loaders and checkpoints, which a user of a config cannot act on."""
    names = ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*LeafSpec.*",
                ".*isinstance\\(treespec.*",
                ".*Checkpoint directory.*exists and is not empty.*",
                ".*is smaller than the logging interval.*",
                ".*wrap PyTorch DataLoader with nni.trace.*",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
