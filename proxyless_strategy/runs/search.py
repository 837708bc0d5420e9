"""The story of one search: prepare, search the supernet, derive, retrain, export, measure, write.

Everything lands in `config.out`; a run that was killed continues where it was when started again with the same config.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import timm
import torch

from hardware.errors import ConfigError
from hardware.processor import say_if_busy
from search_spaces import Subnet

from ..checkpoints import previous_checkpoint
from ..config import SearchConfig
from ..data.unreadable import as_begun, noting_unreadable
from ..determinism import deterministic, prepare_cublas
from ..export.folder import export_folder
from ..export.onnx import export_onnx
from ..export.summary import model_summary
from ..layout import INT8_FILE, MODEL, ONNX_FILE
from ..owner import Start
from ..progress import Told
from ..seeds import isolated_seed
from ..strategy.meeting import check_alike, first_before_others, met, part
from ..strategy.processes import end_processes, launched, lost_process_named
from ..strategy.proxyless import ProxylessStrategy
from ..strategy.supernet.recorders import CudaRecorder
from ..strategy.verdict import CONFIG_NAMES, sentences
from ..threads import Threads, crowded, keep_threads, read_threads, settle, training_step
from ..world import entered, find_world, is_first
from .checkpoints import SearchCheckpoints, find_checkpoints
from .classifier import image_evaluator
from .deployed import measure_deployed, measured_energy
from .ended import finished_result
from .epoch_log import EpochLog
from .finished import read_losses, read_searched, read_warnings
from .forecast import capture_forecast, forecast, trains_on_gpu
from .layer_rates import layer_decay
from .logs import Logs
from .own_signals import OwnSignals
from .places import EXPORT_SECONDS, NOT_RETRAINED, RETRAINED, Places, phases
from .playoff import SENSITIVITY, play_off
from .prepare import TOLD, Prepared, named, prepare
from .quantised import int8_beside, is_for_int8
from .quantised_finalists import quantised_judge
from .quiet import quiet_lightning
from .result import SearchResult, claim_out, search_record, write_row, write_search
from .retrained import check_start, starting_weights, trained_subnet
from .sensitivity import search_by_sensitivity, sensitivity_start

OnEpoch = Callable[[dict[str, Any]], None]


def run_search(config: SearchConfig, *, on_epoch: OnEpoch | None = None) -> SearchResult:
    """Search, derive, retrain, export and measure.

    With `search.devices` above 1 Lightning starts the calling script once more for each further process, unless a
    launcher (torchrun, srun) has started them: see `proxyless_strategy.world`. They take part in the search and then
    end here: only the first process retrains, exports and measures.

    Args:
        config: What to search.
        on_epoch: Called once per epoch of search and retraining with `phase` (warmup, search, retrain), `epoch`,
            `default` (accuracy in 0..1) and what else is known.

    Raises:
        ProxylessError: See `prepare`; or a later step failed.
    """
    if config.shrink is not None:
        raise ConfigError("the section shrink is for `proxyless shrink` alone; remove it, or search without a sweep")
    began = time.monotonic()
    _refuse_second_launch(config)
    prepare_cublas(config.deterministic)  # a table may be measured on the GPU before it searches
    world = find_world(config.search.devices, config.search.nodes)
    if world.launched and config.rule == "sensitivity":
        raise ConfigError(
            f"rule sensitivity works in one process, but {world.launcher} has started {world.size}; start one, and set "
            "search.devices and search.nodes to 1"
        )
    with entered(world):
        if world.launched and world.first:
            print(world.sentence(), flush=True)
        with lost_process_named(), met(world, cuda=trains_on_gpu(config.search)):
            if (ended := _ended(config)) is not None:
                return ended
            return _run(config, on_epoch or (lambda metrics: None), began)


def _ended(config: SearchConfig) -> SearchResult | None:
    """Return the result of this search where it has ended, on all hosts alike; see `finished_result`."""
    ended = finished_result(config)
    # One that found it elsewhere than the first one, or had it alone, would leave the others to wait for it.
    check_alike("folder", {"ended": ended is not None})
    if ended is not None and is_first():
        print(f"{config.out} holds this search, which has ended: nothing is done; for another, choose another out")
    return ended


def _run(config: SearchConfig, report: OnEpoch, began: float) -> SearchResult:
    first = is_first()
    if first:
        say_if_busy()
    found: dict[str, Any] = {"searched": None, "checkpoints": None}

    def look() -> None:
        # A run that was killed later than the search has its subnet on disk, and does not search again.
        found["searched"] = read_searched(config.out, prepared.space)
        if found["searched"] is not None:
            check_start(config, prepared.space, found["searched"][1])
        # A checkpoint that cannot be continued is refused here: a refused start leaves `out` as it was.
        found["checkpoints"] = None if found["searched"] else find_checkpoints(prepared, first=first)

    # The table is measured by the first process, on its host; the others read it.
    with first_before_others("preparation"):
        prepared = prepare(config, quiet=not first)
        prepared = replace(prepared, data=as_begun(prepared.data, config.out))
    told = Told(unit=prepared.cost.unit, target=prepared.target, shown=first)
    logs = Logs(config, shown=first)
    noting = noting_unreadable(config.out, prepared.data)
    if not first:
        with first_before_others("checkpoint"):
            look()
        _check_alike(prepared, **found)
        with noting:
            return _finished(prepared, report, Start(config.out, {}), told, logs, **found)
    with ExitStack() as stack:
        with first_before_others("checkpoint"):
            start = stack.enter_context(claim_out(prepared, look=look, began=began))
        stack.enter_context(noting)
        stack.enter_context(told)
        _check_alike(prepared, **found)

        def noted(metrics: dict[str, Any]) -> None:
            start.note()
            told.epoch(metrics)
            logs.epoch(metrics)
            report(metrics)

        return _finished(prepared, noted, start, told, logs, **found)


def _check_alike(
    prepared: Prepared, searched: tuple[Subnet, dict[str, Any]] | None, checkpoints: SearchCheckpoints | None
) -> None:
    """Refuse processes on several hosts that have other data, another table or another checkpoint than the first."""
    found: dict[str, Any] = {"searched": searched is not None}
    if checkpoints is not None:
        place = "none" if checkpoints.latest is None else " ".join(map(str, checkpoints.place))
        found |= {**checkpoints.identity, "checkpoint": place}
    check_alike("search", found)
    if searched is not None:
        # What is left to do is the first one's alone.
        part()
        if not is_first():
            raise SystemExit(0)


def _finished(
    prepared: Prepared,
    report: OnEpoch,
    start: Start,
    told: Told,
    logs: Logs,
    searched: tuple[Subnet, dict[str, Any]] | None,
    checkpoints: SearchCheckpoints | None,
) -> SearchResult:
    """Do what is still to be done in the folder that is this search's own."""
    config = prepared.config
    if searched is not None:
        told.plan(phases(config, searched=True), afterwards=EXPORT_SECONDS)
    subnet, weights = searched or _searched(prepared, report, checkpoints, told=told, logs=logs)
    cost, table_ms = prepared.cost.cost(subnet.choices), prepared.table_ms(subnet)
    by = " by the table" if prepared.cost in (prepared.latency, prepared.energy) else ""
    print(f"derived {named(subnet.choices)}: {cost:.4g} {prepared.cost.unit}{by}", flush=True)

    model, accuracy = trained_subnet(prepared, subnet, weights, report, told)
    told.stage("export: timm folder, ONNX file and its latency")

    data = prepared.data
    size = (data.channels, config.latency_input_size, config.latency_input_size)
    summary = model_summary(model, size)
    folder = export_folder(
        model,
        config.out / MODEL,
        model_args=subnet.model_args(num_classes=data.num_classes, in_chans=data.channels),
        subnet=subnet.to_dict(),
        pretrained_cfg=data.pretrained_cfg(),
        metrics={
            "accuracy": accuracy,
            "table_ms": table_ms,
            "target_ms": prepared.target_ms,
            "unit": prepared.cost.unit,
            "target_cost": prepared.target,
            "subnet_cost": cost,
            **data.record(),
        },
    )
    onnx = export_onnx(folder, config.out / ONNX_FILE, input_shape=size, batch=config.hardware.batch).path
    # of an earlier end with other settings, for which the report would take it
    (config.out / INT8_FILE).unlink(missing_ok=True)
    int8 = None
    if is_for_int8(config, prepared.latency_table):
        table = prepared.latency_table
        int8 = int8_beside(config, onnx, config.out / INT8_FILE, data, accuracy=accuracy, table=table)
    deployed = onnx if int8 is None else int8.path
    (measured,), device = measure_deployed(prepared, [subnet], [deployed], int8=int8 is not None)
    energy_mj = None if prepared.energy is None else measured_energy(prepared, subnet, onnx)

    result = SearchResult(
        config=config,
        subnet=subnet,
        folder=folder,
        onnx=onnx,
        unit=prepared.cost.unit,
        target_cost=prepared.target,
        subnet_cost=cost,
        target_ms=prepared.target_ms,
        table_ms=table_ms,
        latency_ms=None if measured is None else measured.settled_ms,
        latency_now_ms=None if measured is None else measured.ms,
        accuracy=accuracy,
        params=summary.params,
        macs=summary.macs,
        seconds=start.seconds,
        warnings=read_warnings(config.out),
        original_cost=prepared.original,
        int8_onnx=None if int8 is None else int8.path,
        int8_accuracy=None if int8 is None else int8.accuracy,
        device=device,
        energy_mj=energy_mj,
        **read_losses(config.out),
    )
    write_row(result)
    logs.result(result.row())
    return result


def _refuse_second_launch(config: SearchConfig) -> None:
    # Lightning starts further processes by running the script again. They would take part in the script's first search,
    # while this one waits for them in its second.
    if config.search.processes > 1 and launched():
        raise ConfigError(
            f"search.devices = {config.search.devices}, but this script has already run a search on several processes; "
            "run each of them in a script of its own"
        )


# ---- the supernet ----------------------------------------------------------------------------------------------


def _searched(
    prepared: Prepared, report: OnEpoch, checkpoints: SearchCheckpoints | None, *, told: Told, logs: Logs
) -> tuple[Subnet, dict[str, Any]]:
    settings = prepared.config.search
    with deterministic(settings.deterministic, setting="search.deterministic", cuda=trains_on_gpu(settings)):
        if prepared.config.rule != "sensitivity":
            return search_supernet(prepared, report, checkpoints, told=told, logs=logs)
        threads = _search_threads(prepared, begun=False)
        told.plan(phases(prepared.config, searched=True), afterwards=EXPORT_SECONDS)
        with threads.used():
            return search_by_sensitivity(prepared)


@quiet_lightning()
def search_supernet(
    prepared: Prepared,
    report: OnEpoch,
    checkpoints: SearchCheckpoints | None = None,
    *,
    told: Told | None = None,
    logs: Logs | None = None,
) -> tuple[Subnet, dict[str, Any]]:
    """Train the supernet and its architecture parameters, and derive a subnet.

    Args:
        prepared: What the search stands on.
        report: Called once per epoch.
        checkpoints: Where it continues from; None: look for it.
        told: Tells the user how it goes; None: nobody is told.
        logs: Logs it; None: nothing is logged.

    Returns:
        The subnet and, where it is exported or retrained with them, its weights in the supernet under timm's names.
    """
    config, settings, data = prepared.config, prepared.config.search, prepared.data
    checkpoints = checkpoints or find_checkpoints(prepared)
    begun = checkpoints.latest is not None
    threads = _search_threads(prepared, begun=begun)
    with threads.used(), first_before_others("start"):
        start = sensitivity_start(prepared, begun=begun)
    strategy = ProxylessStrategy(
        rule=config.update_rule,
        cost=prepared.cost,
        target=prepared.target,
        objective=config.objective,
        objective_options=config.objective_options,
        warmup_epochs=settings.warmup_epochs,
        steps_per_update=settings.steps_between(config.update_rule),
        estimator=settings.estimator,
        paths=settings.paths,
        samples=settings.samples,
        baseline=settings.baseline,
        warmup_paths=settings.warmup_paths,
        weight_paths=settings.weight_paths,
        finalists=settings.finalists,
        judge=None
        if settings.finalists_dtype == "float32"
        else quantised_judge(config, prepared.space, data, prepared.latency_table),
        learning_rate=settings.architecture_rate(config.update_rule),
        seed=config.seed,
        norm=settings.norm,
        capture=settings.capture,
        **({} if start is None else start.options(contends=not settings.finalists_epochs)),
    )
    strategy.names, strategy.told = CONFIG_NAMES, TOLD
    with isolated_seed(config.seed):
        network = prepared.space.build(num_classes=data.num_classes, in_chans=data.channels)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)
    log = EpochLog(settings.warmup_epochs, report, unit=prepared.cost.unit)
    decay = layer_decay(config, prepared.space, groups=checkpoints.groups)
    evaluator = image_evaluator(config, data, log, checkpoints, decay=decay)
    told = told or Told(shown=False)
    places = Places(told, warmup_epochs=settings.warmup_epochs)
    evaluator.trainer.callbacks[:0] = [OwnSignals(), places, *([logs] if logs else [])]
    with threads.used():
        if is_first():
            predicted = forecast(config, prepared.space, prepared.costs, data)
            print(f"{predicted.sentence()}; {threads.sentence()}", flush=True)
            if settings.capture is not False and settings.processes == 1 and trains_on_gpu(settings):
                device = evaluator.trainer.strategy.root_device
                measured = capture_forecast(config, prepared.space, data, recorder=CudaRecorder(device), device=device)
                print(measured.sentence(), flush=True)
            told.plan(phases(config, predicted), afterwards=EXPORT_SECONDS)
            told.say(NOT_RETRAINED if config.retrain is None else RETRAINED)
        # Lightning does not look for a checkpoint by itself, and NNI's own `resume` starts again at epoch 0.
        module = strategy.search(network, evaluator, ckpt_path=checkpoints.latest)
    derived, contest = module.derive(), module.contest
    record = search_record(module, prepared, history=log.history, film=log.film)
    if settings.finalists_epochs:
        playoff = play_off(prepared, module, start, told)
        derived, contest = playoff.best, playoff.contest(SENSITIVITY)
        told_of = sentences(playoff.warnings())
        for sentence in told_of:
            print(sentence, file=sys.stderr, flush=True)
        record |= {**playoff.record(module.architecture), "warnings": [*record["warnings"], *told_of]}
    choices = {label: str(value) for label, value in module.architecture.export(derived.choice).items()}
    subnet = Subnet(prepared.space, choices)
    record |= {"layer_decay": decay, **({} if start is None or contest is None else start.record(contest))}
    weights = {}
    if starting_weights(config, prepared.space) == "supernet":
        weights = prepared.space.timm_names(module.derived_network(derived).state_dict(), choices)
    # From here on this process is alone: the others exit.
    end_processes(evaluator.trainer.strategy)
    write_search(config.out, subnet, {**record, **checkpoints.record(), **data.record()}, weights)
    # One is enough of a search that has ended.
    previous_checkpoint(checkpoints.path).unlink(missing_ok=True)
    return subnet, weights


def _search_threads(prepared: Prepared, *, begun: bool) -> Threads:
    """Decide on the threads of the search, and of the retraining where they are tried: its steps are of the kind."""
    config, settings, data = prepared.config, prepared.config.search, prepared.data
    first = is_first()

    def step() -> Any:
        subnet = Subnet(prepared.space, dict(prepared.costs.random_choices(1, seed=1)[0]))
        arguments = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
        return training_step(
            lambda: timm.create_model(subnet.timm_name, **arguments),
            images=settings.process_batch_size,
            channels=data.channels,
            size=config.input_size,
            classes=data.num_classes,
            channels_last=settings.channels_last,
            precision=torch.bfloat16 if settings.precision.endswith("-mixed") else torch.float32,
        )

    on_gpu = trains_on_gpu(settings)
    threads = settle(
        "search",
        config.out,
        settings.threads,
        step=step,
        begun=begun,
        processes=settings.devices,
        on_gpu=on_gpu,
        first=first,
    )
    if threads.tried and "retrain" not in read_threads(config.out):
        keep_threads(config.out, {"retrain": threads.number})
    workers = data.loader("weights", batch_size=settings.process_batch_size).num_workers
    names = ("data.workers", "search.threads")
    told = crowded(workers, threads, settings=names, processes=settings.devices, on_gpu=on_gpu)
    if first and told:
        print(told, file=sys.stderr, flush=True)
    return threads
