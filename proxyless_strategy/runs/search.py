"""One search from one config: table, supernet, derivation, retraining, export, measured latency.

Everything lands in `config.out`; a run that was killed continues where it was when started again with the same config.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardware.backends import get_backend
from hardware.files import write_atomically
from hardware.measuring.nets import measure_model_file, measure_nets
from hardware.measuring.sampling import Measurement
from search_spaces import Subnet

from ..config import SearchConfig
from ..data.images import ImageData
from ..data.sources import load_data
from ..layout import CONFIG_FILE, SEARCH_FILE, TABLE_FILE
from ..strategy.processes import is_first_process
from .prepare import Prepared, _check_processes, _identity, _named, check, prepare
from .result import SearchResult

OnEpoch = Callable[[dict[str, Any]], None]


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

    from ..export.folder import export_folder
    from ..export.onnx import export_onnx
    from ..export.summary import model_summary
    from ..retraining.trainer import train

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
        trained = train(
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


def _claim_out(config: SearchConfig, prepared: Prepared) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    if config.hardware.fill is not None and prepared.latency is not None:
        prepared.latency.table.save(config.out / TABLE_FILE)
    write_atomically(config.out / CONFIG_FILE, json.dumps(_identity(config), indent=2) + "\n")


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

    from ..seeds import isolated_seed
    from ..strategy.processes import end_processes
    from ..strategy.proxyless import ProxylessStrategy
    from .classifier import ImageClassifier
    from .epoch_log import EpochLog
    from .forecast import forecast

    settings = config.search
    strategy = ProxylessStrategy(
        rule=config.rule,
        cost=prepared.cost,
        target=prepared.target,
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
