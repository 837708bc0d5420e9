"""What only a later phase of a search would refuse, refused before its first step."""

from __future__ import annotations

import os
import warnings
from typing import Any

import timm
import torch

from hardware.backends import get_backend
from hardware.errors import ConfigError, DataError, ProxylessError
from search_spaces import SpaceCosts, SpaceDeclaration, Subnet
from search_spaces.from_timm.declaration import TimmDeclaration
from search_spaces.from_timm.paths import NONE

from ..config import SearchConfig
from ..data.decoding import try_decoder
from ..data.images import ImageData
from ..norms import check_norm
from ..retraining.setup import check_training
from ..retraining.teacher import load_teacher
from ..seeds import isolated_seed
from ..strategy.capturing import NO_GPU, SEVERAL
from ..strategy.verdict import CONFIG_NAMES, Plan, SearchWarning
from ..world import planned
from .forecast import trains_on_gpu
from .layer_rates import layer_decay
from .logs import check_loggers
from .playoff import epochs_at_most, training_of
from .retrained import starting_weights, teacher_of

USED_BY_SENSITIVITY = {"batch_size", "accelerator", "deterministic", "threads", "checkpoint_every", "resume_anyway"}
"""Settings of a search that the rule `sensitivity` goes by, or that say what may be otherwise when it is repeated."""


_PRECISIONS = {
    "32-true": torch.float32,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "64-true": torch.float64,
}


def check_trainer(config: SearchConfig) -> None:
    """Let Lightning say whether this machine has the accelerator and the devices, and computes in that precision.

    Raises:
        ConfigError: It does not, a logger's package is missing, or `data.decoder` does not work here.
    """
    check_loggers(config.loggers)
    from pytorch_lightning import Trainer

    from .placement import placed
    from .quiet import quiet_lightning

    settings = config.search
    try:
        with quiet_lightning(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the search's own trainer says it again
            Trainer(
                accelerator=settings.accelerator,
                precision=settings.precision,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **placed(planned(settings.devices, settings.nodes)),
            )
    except Exception as error:
        raise ConfigError(
            f"search.accelerator = {settings.accelerator!r}, devices = {settings.devices}, precision = "
            f"{settings.precision}: {' '.join(str(error).split())[:300]}; choose what this machine has, or auto"
        ) from error
    try_decoder(config.data, trains_on_gpu=trains_on_gpu(settings))


def check_norms(config: SearchConfig) -> None:
    """Run a norm of a few values as the search and the retraining will.

    Raises:
        ConfigError: What is to compute the norms cannot run here, or not so.
    """
    settings, retrain = config.search, config.retraining
    asked: list[tuple[str, Any, torch.dtype, bool]] = []
    if config.rule != "sensitivity":
        asked.append(("search", settings, _PRECISIONS[settings.precision], trains_on_gpu(settings)))
    if retrain is not None:
        asked.append(("retrain", retrain, getattr(torch, retrain.precision), torch.cuda.is_available()))
    for section, given, dtype, on_gpu in asked:
        # Each of several processes tries it on its own GPU when it starts: here all would take the first one.
        tried = dtype if settings.processes == 1 or dtype == torch.float64 else None
        place, setting = "cuda" if on_gpu else "cpu", f"{section}.norm"
        check_norm(given.norm, place, tried, setting=setting, channels_last=given.channels_last)


def check_capture(config: SearchConfig) -> None:
    """Refuse to capture candidates where nothing can be captured.

    Raises:
        ConfigError: The search is told to, and does not train on a GPU, or in several processes.
    """
    settings = config.search
    if settings.capture is not True or config.rule == "sensitivity":
        return
    wrong = None if trains_on_gpu(settings) else NO_GPU
    if settings.processes > 1:
        wrong = SEVERAL.format(processes=settings.processes)
    if wrong is not None:
        raise ConfigError(f"search.capture = true: {wrong}; set it to auto, or leave it out")


def check_sensitivity(config: SearchConfig, space: SpaceDeclaration) -> list[SearchWarning]:
    """Return what a config sets that its rule `sensitivity` has no use for.

    Raises:
        ConfigError: The space has no inherited weights, of which that rule, or a start, asks.
    """
    asks = "rule" if config.rule == "sensitivity" else "search.start"
    if "sensitivity" not in (config.rule, config.search.start):
        return []
    if not isinstance(space, TimmDeclaration) or space.weights == NONE:
        other = "gradient or reinforce" if asks == "rule" else "uniform"
        raise ConfigError(
            f"{asks} = sensitivity asks what inherited weights say, but the space {space.name} has none; name a timm: "
            f"space with weights, or set {asks} to {other}"
        )
    if asks != "rule":
        return []
    passed_on = {"norm"} if config.retrain is not None and config.retrain.norm is None else set()
    searching = sorted(config.search.model_fields_set - USED_BY_SENSITIVITY - passed_on)
    ignored = [f"search.{name}" for name in searching]
    ignored += [name for name in ("objective", "objective_options") if name in config.model_fields_set]
    if not ignored:
        return []
    sentence = f"rule sensitivity trains no supernet, so that it makes nothing of {', '.join(ignored)}"
    return [SearchWarning("ignored_settings", sentence)]


def check_plan(config: SearchConfig, data: ImageData) -> list[SearchWarning]:
    """Return what is wrong with the schedule but can be searched.

    Raises:
        ConfigError: It has no architecture step.
        DataError: It has no weight step, or too few images for statistics.
    """
    settings = config.search
    if config.rule == "sensitivity":
        if len(data.weights) < 2:  # type: ignore[arg-type]
            raise DataError("the weights part has one image, which has no batch statistics; give more images")
        return []
    try:
        loader = data.loader(
            "weights", batch_size=settings.process_batch_size, drop_last=True, replicas=settings.processes, workers=0
        )
    except DataError as error:
        raise DataError(f"search.batch_size = {settings.batch_size}: {error}") from error
    found = Plan(
        batches=len(loader),
        epochs=settings.warmup_epochs + settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        steps_per_update=settings.steps_between(config.update_rule),
    ).warnings(CONFIG_NAMES)
    for warning in found:
        if warning.code == "no_steps_planned":
            raise ConfigError(warning.sentence)
    return found


def check_phases(config: SearchConfig, data: ImageData, space: SpaceDeclaration, costs: SpaceCosts) -> None:
    """Try what each phase starts with: the retraining's loader, network, teacher and optimiser's step, the device.

    Random numbers of the caller stay as they are.

    Raises:
        ProxylessError: A setting of the search, the retraining or the hardware is impossible.
    """
    layer_decay(config, space)
    if config.retrain is not None:
        drop: dict[str, Any] = {"drop_rate": config.retrain.dropout, "drop_path_rate": config.retrain.drop_path}
        starting_weights(config, space)
        name, _ = teacher_of(config, space, data)
        if name is not None:
            load_teacher(name, data)
        with isolated_seed(0):
            _build(space, costs, data, drop)
            check_training(data, config.retrain, seed=config.seed)
            if epochs_at_most(config):
                check_training(*training_of(config, data), seed=config.seed)
    if config.hardware.device != "other" and not config.hardware.uses_table:
        _check_device(config, costs)


def _build(space: SpaceDeclaration, costs: SpaceCosts, data: ImageData, drop: dict[str, Any]) -> None:
    (choices,) = costs.random_choices(1, seed=0)
    subnet = Subnet(space, choices)
    arguments = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
    try:
        timm.create_model(subnet.timm_name, **{**arguments, **drop})
    except ProxylessError:
        raise
    except Exception as error:
        named = f"retrain.dropout = {drop['drop_rate']}, drop_path = {drop['drop_path_rate']}"
        raise ConfigError(
            f"the network {subnet.timm_name} cannot be built with {named}: {' '.join(str(error).split())[:300]}; let "
            "its function take drop_rate and drop_path_rate"
        ) from error


def _check_device(config: SearchConfig, costs: SpaceCosts) -> None:
    hardware = config.hardware
    cores = os.cpu_count() or 1
    if hardware.threads > cores:
        raise ConfigError(
            f"hardware.threads = {hardware.threads}, but this machine has {cores} cores; lower it, or set "
            "hardware.device to other"
        )
    smallest = min(costs.distinct(), key=lambda op: (sum(op.output_shape), op.key))
    with get_backend(**hardware.chosen) as backend:
        try:
            backend.prepare([smallest], batch=hardware.batch, threads=hardware.threads)
        except ProxylessError:
            raise
        except Exception as error:
            raise ConfigError(
                f"hardware.threads = {hardware.threads}, batch = {hardware.batch} cannot run on {hardware.backend}: "
                f"{' '.join(str(error).split())[:300]}; lower them"
            ) from error
