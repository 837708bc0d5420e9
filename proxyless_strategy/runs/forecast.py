"""What a search will take, from a few measured batches and the number of its steps."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch.nn import functional

from search_spaces import SpaceCosts, SpaceDeclaration, Subnet

from ..config import Rule, SearchConfig, SearchSettings
from ..data.images import ImageData
from ..export.summary import SavedBytes
from ..norms import FusedNorms
from ..seeds import isolated_seed
from ..strategy.proxyless import ProxylessStrategy
from ..strategy.supernet.capture import Captures
from ..strategy.supernet.recorders import Recorder
from ..threads import TIMED_PIXELS
from .bottleneck import Feeding, feeding
from .playoff import PHASE, epochs_at_most

GRADIENT_STEP = 0.725
"""An architecture step of the gradient rule in training steps (`python -m tests.benchmarks.step_cost`)."""
SUBNETS = 3
LOADER_SECONDS = 10.0


@dataclass(frozen=True)
class Schedule:
    """Steps of one search.

    Attributes:
        weights: Weight steps.
        architecture: Architecture steps.
    """

    weights: int
    architecture: int


def schedule(per_epoch: int, settings: SearchSettings, rule: Rule) -> Schedule:
    """Count the steps of a search whose epochs have `per_epoch` weight steps.

    The first epoch after a warm-up has no architecture steps.
    """
    epochs = settings.epochs - (1 if settings.warmup_epochs else 0)
    return Schedule(
        weights=per_epoch * (settings.warmup_epochs + settings.epochs),
        architecture=per_epoch * max(0, epochs) // settings.steps_between(rule),
    )


@dataclass(frozen=True)
class StepCost:
    """The slowest of a few random subnets, in one process.

    Attributes:
        seconds: Forward and backward pass, per image.
        forward_seconds: Forward pass alone, per image.
        saved_bytes: What is kept for the backward pass, per image, with the parameters.
    """

    seconds: float
    forward_seconds: float
    saved_bytes: float


@dataclass(frozen=True)
class Forecast:
    """What a search will take.

    Attributes:
        seconds: Duration of search and retraining.
        memory_bytes: Weights, gradients, momentum and one path's activations, in one process.
        step_images: Images a second of a training step in one process.
        loader_images: Images a second of the loader alone in one process.
        workers: Processes of that loader.
        place: Where a step was timed.
        epoch_seconds: Of an epoch of `warmup`, `search` and, where there are any, `finalists` and `retrain`.
        feeding: What else decides which of loader and step is the slower.
    """

    seconds: float
    memory_bytes: float
    step_images: float
    loader_images: float
    workers: int
    place: str
    epoch_seconds: Mapping[str, float] = field(default_factory=dict)
    feeding: Feeding | None = None

    def sentence(self) -> str:
        """Return the forecast in words."""
        slower = "" if self.feeding is None else f"; {self.feeding.sentence()}"
        hours = self.seconds / 3600
        duration = f"{self.seconds / 60:.1f} minutes" if hours < 3 else f"{hours:.0f} hours"
        return (
            f"predicted: about {duration} on {self.place}, {self.memory_bytes / 2**20:.0f} MiB for weights, gradients, "
            f"momentum and one path's activations; images a second in one process: {self.step_images:.0f} of a "
            f"training step, {self.loader_images:.0f} of the loader alone ({self.workers} workers){slower}"
        )

    @property
    def loader_is_slower(self) -> bool:
        """Whether steps will wait for images."""
        return self.loader_images < self.step_images


@dataclass(frozen=True)
class CaptureForecast:
    """What capturing candidates takes and saves, by weight steps of the supernet on one path.

    Attributes:
        seconds: Of recording every candidate once, from those of the path.
        captured_ms: A weight step that replays.
        eager_ms: A weight step that does not.
    """

    seconds: float
    captured_ms: float
    eager_ms: float

    def sentence(self) -> str:
        """Return it in words."""
        times = f"measured: a weight step takes {self.captured_ms:.1f} ms captured and {self.eager_ms:.1f} ms eagerly"
        saved = self.eager_ms - self.captured_ms
        if saved <= 0:
            return f"{times}, so that search.capture does not pay; leave it out"
        steps = math.ceil(1e3 * self.seconds / saved)
        return f"{times}; recording all candidates once takes about {self.seconds:.0f} s, which {steps} steps win back"


def capture_forecast(
    config: SearchConfig, space: SpaceDeclaration, data: ImageData, *, recorder: Recorder, device: torch.device
) -> CaptureForecast:
    """Take a few weight steps of the supernet, eagerly and captured.

    Random numbers of the caller stay as they are.

    Args:
        config: The search.
        space: Its space.
        data: Its images.
        recorder: Records the candidates.
        device: Where it trains.
    """
    settings, strategy = config.search, ProxylessStrategy()
    with isolated_seed(0):
        network = strategy.mutate_model(space.build(num_classes=data.num_classes, in_chans=data.channels))
        x = torch.randn(settings.process_batch_size, data.channels, config.input_size, config.input_size)
    network, x = network.to(device).train(), x.to(device)
    if settings.channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(len(x), device=device) % data.num_classes
    supernet, captures = strategy.paths_of_space, Captures(recorder)
    norms = FusedNorms(network, settings.norm, setting="search.norm")
    path = [row % len(edge.candidates) for row, edge in enumerate(supernet.edges)]

    def seconds(*, captured: bool) -> float:
        network.zero_grad(set_to_none=True)
        begun = _now(device)
        capturing = captures.active(supernet.selector) if captured else nullcontext()
        with norms, capturing, supernet.running(path):
            _train(network, x, y, settings)
        return _now(device) - begun

    seconds(captured=False)  # the first step, which also chooses kernels, is not timed
    first = seconds(captured=True)
    eager = statistics.median(seconds(captured=False) for _ in range(3))
    replayed = statistics.median(seconds(captured=True) for _ in range(3))
    candidates = sum(len(edge.candidates) for edge in supernet.edges)
    recording = max(0.0, first - eager) * candidates / len(path)
    return CaptureForecast(recording, 1e3 * replayed, 1e3 * eager)


def forecast(config: SearchConfig, space: SpaceDeclaration, costs: SpaceCosts, data: ImageData) -> Forecast:
    """Time a few batches of the loader and a few steps of random subnets, and count the search's steps.

    Random numbers of the caller stay as they are.

    Args:
        config: The search.
        space: Its space.
        costs: The space's operators, for its random subnets.
        data: Its images.
    """
    settings, batch = config.search, config.search.process_batch_size
    with isolated_seed(0):
        loader_images = loader_rate(data, batch)
        step, place = _step_cost(config, space, costs.random_choices(SUBNETS, seed=1), data)
    per_epoch = len(data.loader("weights", batch_size=batch, drop_last=True, replicas=settings.processes))
    steps = schedule(per_epoch, settings, config.update_rule)
    per_image = _image_seconds(data, step, loader_images)
    architecture = GRADIENT_STEP * step.seconds
    if config.rule == "reinforce":
        architecture = settings.samples * step.forward_seconds
    seconds = batch * (steps.weights * per_image + steps.architecture * architecture)
    weights = batch * per_epoch * per_image
    epochs = {"warmup": weights, "search": weights + batch * architecture * steps.architecture / settings.epochs}
    if config.retrain is not None:
        epochs["retrain"] = len(data.training) * per_image  # type: ignore[arg-type]
        seconds += config.retrain.epochs * epochs["retrain"]
        seconds += len(data.test) * max(step.forward_seconds, 1 / loader_images)  # type: ignore[arg-type]
        played = epochs_at_most(config)
        if played:
            epochs[PHASE] = len(data.weights) * per_image  # type: ignore[arg-type]
            seconds += played * epochs[PHASE]
    network = space.build(num_classes=data.num_classes, in_chans=data.channels)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Forecast(
        seconds=seconds,
        memory_bytes=3 * 4 * parameters + batch * step.saved_bytes,
        step_images=1 / step.seconds,
        loader_images=loader_images,
        workers=data.workers,
        place=place,
        epoch_seconds=epochs,
        feeding=feeding(
            config,
            data,
            loader_images=loader_images,
            step_images=1 / step.seconds,
            on_gpu=trains_on_gpu(settings),
        ),
    )


def step_seconds(
    config: SearchConfig, space: SpaceDeclaration, costs: SpaceCosts, data: ImageData, choices: Mapping[str, str]
) -> float:
    """Return what a training step of one subnet takes per image, the loader's time where that is longer.

    Random numbers of the caller stay as they are.
    """
    with isolated_seed(0):
        step, _ = _step_cost(config, space, [choices], data)
        return _image_seconds(data, step, loader_rate(data, config.search.process_batch_size))


def _image_seconds(data: ImageData, step: StepCost, loader_images: float) -> float:
    # One GPU decodes and trains in turn; Pillow's workers read while it trains.
    if data.decoder == "nvjpeg":
        return step.seconds + 1 / loader_images
    return max(step.seconds, 1 / loader_images)


def loader_rate(data: ImageData, batch: int) -> float:
    """Return the images a second of the training loader alone.

    Discards one batch per worker, then times one per worker; at least two of each, and fewer where the data set has
    fewer.
    """
    loader = data.loader("weights", batch_size=min(batch, len(data.weights)))  # type: ignore[arg-type]
    # Workers prepare a batch each at the same time, so batches arrive in waves.
    wave = max(2, data.workers)
    untimed = min(wave, (len(loader) - 1) // 2) if len(loader) > 1 else 0
    count, begun = 0, time.perf_counter()
    start = end = begun
    for number, (images, labels) in enumerate(itertools.islice(loader, untimed + wave), start=1):
        if number <= untimed:
            start = _now(images.device)
            continue
        count += len(labels)
        if (end := _now(images.device)) - begun > LOADER_SECONDS:
            break
    return count / max(end - start, 1e-9)


def trains_on_gpu(settings: SearchSettings) -> bool:
    """Whether a search with these settings trains on a GPU of this machine."""
    return torch.cuda.is_available() and settings.accelerator in ("auto", "gpu", "cuda")


def _step_cost(
    config: SearchConfig, space: SpaceDeclaration, nets: Sequence[Mapping[str, str]], data: ImageData
) -> tuple[StepCost, str]:
    settings = config.search
    on_gpu = trains_on_gpu(settings)
    device = torch.device("cuda" if on_gpu else "cpu")
    images = settings.process_batch_size
    if on_gpu:
        place = f"{settings.processes} x {torch.cuda.get_device_name()}"
    else:
        images = max(2, min(images, TIMED_PIXELS // config.input_size**2))
        place = f"{settings.processes} x {torch.get_num_threads()} CPU threads (less on a GPU)"
    x = torch.randn(images, data.channels, config.input_size, config.input_size, device=device)
    y = torch.arange(images, device=device) % data.num_classes
    measured = [step_cost(space, choices, x, y, num_classes=data.num_classes, settings=settings) for choices in nets]
    return StepCost(
        seconds=max(cost.seconds for cost in measured),
        forward_seconds=max(cost.forward_seconds for cost in measured),
        saved_bytes=max(cost.saved_bytes for cost in measured),
    ), place


def step_cost(
    space: SpaceDeclaration,
    choices: Mapping[str, str],
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    num_classes: int,
    settings: SearchSettings,
) -> StepCost:
    """Measure what a training step of one stand-alone subnet takes.

    Args:
        space: The space's declaration.
        choices: The subnet.
        x: `B x C x H x W` images, on the device that trains.
        y: `B` class numbers.
        num_classes: Outputs of the classifier.
        settings: Precision, memory format and norms.
    """
    subnet = Subnet(space, dict(choices))
    arguments = subnet.model_args(num_classes=num_classes, in_chans=x.shape[1])
    model = timm.create_model(subnet.timm_name, **arguments).to(x.device).train()
    if settings.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    with FusedNorms(model, settings.norm, setting="search.norm"):
        # The first step, which also chooses kernels, is not timed.
        with SavedBytes() as saved:
            _train(model, x, y, settings)
        start = _now(x.device)
        _train(model, x, y, settings)
        middle = _now(x.device)
        with torch.no_grad(), _autocast(x.device, settings):
            model(x)
        end = _now(x.device)
    return StepCost((middle - start) / len(x), (end - middle) / len(x), saved.total / len(x))


def _train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, settings: SearchSettings) -> None:
    with _autocast(x.device, settings):
        loss = functional.cross_entropy(model(x), y)
    loss.backward()


def _autocast(device: torch.device, settings: SearchSettings) -> Any:
    """Return the context of mixed precision as Lightning enters it: a CPU has no 16-mixed and takes bf16-mixed."""
    if not settings.precision.endswith("-mixed"):
        return nullcontext()
    half = torch.float16 if settings.precision == "16-mixed" and device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, half)


def _now(device: torch.device) -> float:
    # Kernels run after their launch has returned.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
