"""What a training starts with: loader, optimiser, schedule, threads; and a check of them before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from hardware.errors import ConfigError, ProxylessError

from ..config import RetrainSettings
from ..data.images import ImageData, Part
from ..seeds import isolated_seed
from ..threads import Threads, crowded, settle, training_step
from ..world import current


def check_training(data: ImageData, settings: RetrainSettings, *, seed: int, replicas: int = 1) -> None:
    """Try what a training starts with: its loader, one augmented image, an update of a small network, the schedule.

    Args:
        data: Images.
        settings: Recipe.
        seed: Seed of the training.
        replicas: Processes that will share it.

    Raises:
        ConfigError: A setting is impossible.
        DataError: There are too few images for one batch, or they cannot be augmented so.
    """
    loader = training_loader(data, settings, seed=seed, rank=0, replicas=replicas)
    # By Pillow, as a table is also built where there is no GPU; what nvJPEG lacks was refused by the loader above.
    augmented = replace(data, decoder="pillow").loader(
        "training", batch_size=1, workers=0, rand_augment=settings.rand_augment, cutout=settings.cutout
    )
    if settings.rand_augment is not None or settings.cutout:
        with isolated_seed(0):
            try:
                next(iter(augmented))
            except ProxylessError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"retrain.rand_augment = {settings.rand_augment!r}, cutout = {settings.cutout}: "
                    f"{' '.join(str(error).split())[:300]}; write e.g. rand-m9-mstd0.5"
                ) from error
    with isolated_seed(0):
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
        optimizer = make_optimizer(network, settings)
        scheduler = make_scheduler(optimizer, settings, updates_per_epoch=len(loader))
        try:
            functional.cross_entropy(network(torch.randn(2, 1, 4, 4)), torch.tensor([0, 1])).backward()
            optimizer.step()
        except Exception as error:
            raise ConfigError(
                f"retrain.optimizer = {settings.optimizer!r} makes no update: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}; use one of timm's, such as sgd"
            ) from error
        if scheduler is not None:
            scheduler.step_update(1)


def training_part(settings: RetrainSettings) -> Part:
    """Name the images that are trained on: all, or without those that early stopping looks at."""
    return "training" if settings.early_stopping is None else "weights"


def training_loader(data: ImageData, settings: RetrainSettings, *, seed: int, rank: int, replicas: int) -> DataLoader:
    """Build the loader of one process's share of every batch."""
    if settings.batch_size % replicas:
        raise ConfigError(
            f"retrain.batch_size = {settings.batch_size} is not divisible by {replicas} processes; "
            f"make it a multiple of {replicas}"
        )
    share = settings.batch_size // replicas
    mixing = settings.mixup > 0
    if mixing and share % 2:
        raise ConfigError(
            f"retrain.batch_size = {settings.batch_size} must be even for Mixup; add or take one"
            if replicas == 1
            else f"retrain.batch_size = {settings.batch_size} gives each of {replicas} processes {share} "
            f"images, which must be even for Mixup; make it a multiple of {2 * replicas}"
        )
    # A last batch that is not full would shift batch norms by the moments of a few images, or be odd for Mixup; a
    # data set that is smaller than one batch has no other.
    part = training_part(settings)
    return data.loader(
        part,
        batch_size=share,
        shuffle=True,
        seed=seed,
        drop_last=mixing or len(getattr(data, part)) >= settings.batch_size,
        rand_augment=settings.rand_augment,
        cutout=settings.cutout,
        rank=rank,
        replicas=replicas,
    )


def make_optimizer(model: nn.Module, settings: RetrainSettings) -> torch.optim.Optimizer:
    own = RetrainSettings.model_fields["momentum"].default
    if settings.momentum != own and not _has_momentum(settings.optimizer):
        raise ConfigError(
            f"retrain.momentum = {settings.momentum:g}, but retrain.optimizer = {settings.optimizer} has no momentum; "
            "remove it, or give an optimizer that has one, such as sgd"
        )
    try:
        # Given the model and not its parameters, timm spares biases and norms the weight decay.
        return create_optimizer_v2(
            model,
            opt=settings.optimizer,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
        )
    except Exception as error:  # of timm, of torch, or of a package that an optimiser wraps
        raise ConfigError(
            f"retrain.optimizer = {settings.optimizer!r}: {error}; use one of timm's, such as sgd"
        ) from error


def _has_momentum(optimizer: str) -> bool:
    """Return whether one of timm's optimisers takes a momentum; of an unknown one, which is refused elsewhere, true."""
    try:
        # `lookahead_` before a name wraps it
        return get_optimizer_info(optimizer.lower().split("_")[-1]).has_momentum
    except ValueError:
        return True


def make_scheduler(
    optimizer: torch.optim.Optimizer, settings: RetrainSettings, *, updates_per_epoch: int
) -> Scheduler | None:
    """Build the schedule that changes the rate with every update."""
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=settings.scheduler,
            num_epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
    except Exception as error:
        raise ConfigError(
            f"retrain.scheduler = {settings.scheduler!r}: {error}; use one of timm's, such as cosine"
        ) from error
    if scheduler is None:
        # timm leaves it to its schedules to lower a group's rate by layer.
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    return scheduler


def retraining_threads(
    settings: RetrainSettings,
    folder: Path,
    build: Callable[[], nn.Module],
    data: ImageData,
    *,
    begun: bool,
    names: tuple[str, str] = ("data.workers", "retrain.threads"),
    says: bool = True,
) -> Threads:
    """Decide on the threads of a retraining, each of its processes for itself; its caller trains under `used`.

    Args:
        settings: The recipe.
        folder: Keeps the number.
        build: Makes the network.
        data: Images.
        begun: Whether there is a checkpoint.
        names: Of the settings of the processes that read images and of the threads.
        says: Whether it says what it has decided, and what speaks against it.
    """
    rank, replicas = place()
    here = current().local_size if current().size == replicas else replicas
    on_gpu = torch.cuda.is_available()

    def step() -> Callable[[], None]:
        return training_step(
            build,
            images=settings.batch_size,
            channels=data.channels,
            size=data.input_size,
            classes=data.num_classes,
            channels_last=settings.channels_last,
            precision=getattr(torch, settings.precision),
        )

    threads = settle(
        "retrain",
        folder,
        settings.threads,
        step=step,
        begun=begun,
        processes=here,
        on_gpu=on_gpu,
        first=rank == 0,
    )
    if rank == 0 and says:
        print(f"retraining on {threads.sentence()}", flush=True)
        workers = data.loader("training", batch_size=1, rand_augment=settings.rand_augment).num_workers
        told = crowded(workers, threads, settings=names, processes=here, on_gpu=on_gpu)
        if told:
            print(told, file=sys.stderr, flush=True)
    return threads


def place() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
