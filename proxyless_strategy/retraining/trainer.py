"""The loop: train a network, with timm's optimisers, schedules and weight averaging, and beside a teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hardware.errors import CheckpointError, ConfigError, TrainingError
from hardware.reading import DAMAGE, shown, why

from .. import signals
from ..checkpoints import latest_checkpoint, previous_checkpoint, remove_leftovers
from ..config import RetrainSettings
from ..data.batches import EpochBatches
from ..data.digest import data_digest
from ..data.images import ImageData
from ..determinism import deterministic
from ..norms import FusedNorms
from ..seeds import seeded
from ..strategy.meeting import check_alike
from ..strategy.nonfinite import blame, is_finite, largest
from ..strategy.together import Together, gathered
from .checkpoints import TrainingCheckpoints, random_state, set_random_state
from .evaluation import Evaluation, evaluate
from .setup import make_optimizer, make_scheduler, place, training_loader, training_part
from .stopping import EarlyStopping
from .teacher import check_teacher, distilled, teacher_digest

FORMAT = "proxyless-retrain/1"
_WHAT = "a retraining"
_OTHER_PROCESSES = "{} is of {} processes and goes on with {}: an update has the same images, with other random numbers"
TEST_BATCH = 256
_SINCE = {
    "layer_decay": None,
    "early_stopping": None,
    "starting_weights": None,
    "teacher_network": None,
    "deterministic": False,
    "norm": "torch",
}
"""How trainings were whose checkpoints do not say so: older versions knew none of it."""


@dataclass(frozen=True, eq=False)
class RetrainResult:
    """A trained subnet.

    Attributes:
        model: The network with the (averaged) weights of the last epoch, or with early stopping of the best one, on the
            CPU, in evaluation mode.
        test_accuracy: Share of test images that it classifies correctly, 0..1; measured once.
        test_loss: Mean cross-entropy on the test images, without label smoothing.
        test_top5: Share of test images whose class is among the five most probable ones, 0..1.
        epochs: Epochs trained.
        seconds: Training time, of earlier interrupted runs too.
        best_epoch: With early stopping the epoch of the weights; None without it.
    """

    model: nn.Module
    test_accuracy: float
    test_loss: float
    test_top5: float
    epochs: int
    seconds: float
    best_epoch: int | None = None


def train(
    build: Callable[[], nn.Module],
    data: ImageData,
    settings: RetrainSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_place: Callable[[float], None] | None = None,
    device: torch.device | str | None = None,
    identity: Mapping[str, str] | None = None,
    teacher: nn.Module | None = None,
) -> RetrainResult:
    """Train a network from its own weights on the weight and architecture images together, and test it once.

    With `settings.early_stopping` it trains on the weight images alone, and the architecture images say which epoch
    was the best.

    Every epoch is a function of (seed, epoch) and of the state at its start. So a run that was killed continues from
    its checkpoint as if it had not stopped; on a CPU with the same number of threads, bit for bit. Checkpoints are
    written within an epoch too, every `settings.checkpoint_every` minutes and when a signal ends it: with the random
    numbers of that update. The random numbers of the caller stay as they are.

    Within a process group (torchrun, or `retraining.folder.retrain` with several devices) each process trains on its
    share of every batch; batch norms count their own share. The first process writes the checkpoint and tests.

    Args:
        build: Makes the network with the weights that it starts from; called once, under the seed.
        data: Images; the test part is read after the last epoch only.
        settings: Recipe. Mixup replaces the hard labels, weight decay spares biases and norms, and the weights'
            moving average has a warm-up, so that it is of use in a short training too.
        seed: Seed of the fresh weights, the order of images, augmentation and dropout.
        checkpoint: File that is written before the first epoch, within each (see above) and after it, and continued
            from if it exists; until the end the one before is kept too, see `proxyless_strategy.checkpoints`.
        on_epoch: Called after each epoch with epoch (1, 2, ...), epochs, loss, accuracy (of the training images as
            they were augmented), learning_rate and seconds.
        on_place: Called with the epochs that are done, one under way in parts: before each update.
        device: Where to train; None: a GPU if there is one.
        identity: What else tells this training from others, beside its settings, seed and number of images: a
            checkpoint with other values is refused.
        teacher: A network that gets the same images, in evaluation mode; its outputs are learned as
            `settings.teacher_weight` and `teacher_temperature` say, see `teacher.distilled`.
            `settings.teacher` is a name that `teacher.load_teacher` reads, and nothing here.

    Raises:
        ConfigError: A setting is impossible, the checkpoint is of another training, or the teacher is one of other
            images or classes.
        TrainingError: The loss is no longer finite.
        DataError: There are too few images for one batch.
    """
    where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    with deterministic(bool(settings.deterministic), setting="retrain.deterministic", cuda=where.type == "cuda"):
        with seeded(seed, 0):
            # `seeded` knows the CPU's generators alone; layers that are made on a GPU draw from the GPU's.
            if where.type == "cuda":
                torch.cuda.manual_seed_all(seed)
            model = build()
        if teacher is not None:
            check_teacher(teacher, data)
            if not {*map(id, teacher.modules())}.isdisjoint(map(id, model.modules())):
                raise ConfigError("the teacher is a part of the network that it would teach; give a copy")
        training = _Training(model, data, settings, seed=seed, device=where, identity=identity or {}, teacher=teacher)
        begun = checkpoint is not None and training.resume(checkpoint)
        check_alike("retraining", {**training.identity, "epoch": training.epoch, "step": training.step})
        saved = None
        if checkpoint is not None:
            saved = TrainingCheckpoints(
                checkpoint,
                minutes=settings.checkpoint_every,
                state=training.state,
                writes=training.rank == 0,
                together=Together(where) if training.replicas > 1 else None,
            )
            if not begun:
                # Before the first epoch: a path that cannot be written shows now, and not after hours.
                saved.write()

        def moved() -> None:
            if on_place is not None and training.rank == 0:
                on_place(training.epoch + training.step / len(training.loader))

        def after_update() -> None:
            if saved is not None:
                saved.after_update()
            moved()

        # An update that a signal cuts in two cannot be gone on with.
        with nullcontext() if saved is None else signals.held():
            while not training.over:
                moved()
                report = training.run_epoch(after_update)
                if saved is not None:
                    saved.write()
                if on_epoch is not None and training.rank == 0:
                    on_epoch(report)
                if saved is not None:
                    saved.leave_if_asked()
        if checkpoint is not None and training.rank == 0:
            previous_checkpoint(checkpoint).unlink(missing_ok=True)
        best_epoch = None
        if training.stopping is not None:
            training.stopping.restore(training.averaged)
            best_epoch = training.stopping.best_epoch
        trained = training.averaged.to(memory_format=torch.contiguous_format).eval()
        nothing = Evaluation(math.nan, math.nan, math.nan)
        found = evaluate(trained, data.loader("test", batch_size=TEST_BATCH)) if training.rank == 0 else nothing
        return RetrainResult(trained.to("cpu"), *found, training.epoch, training.seconds, best_epoch)


def begun_with(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return what tells the training from others that goes on there; None where none does.

    Raises:
        CheckpointError: There are checkpoints, but none can be used.
    """
    latest = latest_checkpoint(checkpoint, what=_WHAT, check=_why_not, set_aside=False)
    return None if latest is None else latest.state["identity"]


class _Training:
    """Everything that changes during a training, saved after each epoch and within it."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        settings: RetrainSettings,
        *,
        seed: int,
        device: torch.device,
        identity: Mapping[str, str],
        teacher: nn.Module | None,
    ):
        self.settings = settings
        self.seed = seed
        self.device = device
        self.epoch = 0
        self.step = 0  # updates of the epoch under way
        self.sums: list[Any] = [0.0, 0, 0]  # of its images: loss, right answers, number
        self.seconds = 0.0
        self._started: float | None = None  # when the clock was last added to the seconds
        self._random: dict[str, Any] | None = None  # of a checkpoint within an epoch
        self.memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self.memory_format)
        self.teacher = None if teacher is None else teacher.to(device).to(memory_format=self.memory_format).eval()
        self.largest_at_start = float(largest(self.model.parameters(), device))
        self.rank, self.replicas = place()
        mixing = settings.mixup > 0
        self.loader = training_loader(data, settings, seed=seed, rank=self.rank, replicas=self.replicas)
        self.mixup = (
            Mixup(mixup_alpha=settings.mixup, label_smoothing=settings.label_smoothing, num_classes=data.num_classes)
            if mixing
            else None
        )
        self.criterion: nn.Module = (
            SoftTargetCrossEntropy() if mixing else nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        )
        self.optimizer = make_optimizer(self.model, settings)
        self.norms = FusedNorms(self.model, settings.norm or "torch", setting="retrain.norm")
        self.network: nn.Module = self.model
        # DDP takes the mean of the processes' gradients; weighted by their shares, that is the gradient of the batch.
        if self.replicas > 1:
            self.network = DistributedDataParallel(
                self.model, device_ids=[device.index or 0] if device.type == "cuda" else None
            )
        # Rate and averaging are functions of the update's number, so a resumed training needs no state of theirs. The
        # averaging's warm-up starts from a small decay: at 0.9999 the fresh weights would weigh in for 10,000 updates.
        self.scheduler = make_scheduler(self.optimizer, settings, updates_per_epoch=len(self.loader))
        self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        patience = settings.early_stopping
        self.stopping = (
            None if patience is None else EarlyStopping(patience, data, rank=self.rank, replicas=self.replicas)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        self.identity = {
            "format": FORMAT,
            "seed": seed,
            "images": len(getattr(data, training_part(settings))),
            "input_size": data.input_size,
            **settings.model_dump(exclude={"checkpoint_every"}),
            "deterministic": bool(settings.deterministic),
            "norm": settings.norm or "torch",
            "starting_weights": None,
            **identity,
            "teacher_network": None if teacher is None else teacher_digest(teacher),
            "data": data_digest(data),
        }

    @property
    def averaged(self) -> nn.Module:
        """The network with the weights to keep."""
        return self.model if self.ema is None else self.ema.module

    @property
    def over(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.settings.epochs or (self.stopping is not None and self.stopping.over)

    def run_epoch(self, after_update: Callable[[], None] | None = None) -> dict[str, Any]:
        """Train one epoch, or what a checkpoint has left of it, and report on it.

        Args:
            after_update: Called after each update but the last, when `state` can be gone on with.
        """
        self._started = time.perf_counter()
        cast(EpochBatches, self.loader.sampler).set_epoch(self.epoch, start=self.step)
        self.model.train()
        # From (seed, epoch) alone, or an epoch after a restart would differ. Each process has dropout and Mixup of its
        # own; the first one draws what a single process draws.
        with seeded(self.seed, 1 + self.epoch, *([self.rank] if self.rank else [])):
            if self.device.type == "cuda":
                torch.cuda.manual_seed_all(self.seed + self.epoch)
            if self._random is not None:
                set_random_state(self._random, self.device)
                self._random = None
            updates = len(self.loader)
            for step, (images, labels) in enumerate(self.loader, start=self.step + 1):
                with self.norms:
                    batch_loss, batch_correct = self._update(images, labels, number=self.epoch * updates + step)
                loss, correct, count = self.sums
                self.sums = [loss + batch_loss * len(labels), correct + batch_correct, count + len(labels)]
                self.step = step
                if after_update is not None and step < updates:
                    after_update()
        loss, correct, count = self.sums
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0, 0]
        held_out = {} if self.stopping is None else {"held_out_loss": self.stopping.look(self.averaged, self.epoch)}
        self._count_seconds()
        self._started = None
        # Each process has seen its own images only.
        if self.replicas > 1:
            sums = torch.tensor([loss, correct, count], dtype=torch.float64, device=self.device)
            distributed.all_reduce(sums)
            loss, correct, count = float(sums[0]), int(sums[1]), int(sums[2])
        return {
            "epoch": self.epoch,
            "epochs": self.settings.epochs,
            "loss": loss / count,
            "accuracy": correct / count,
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
            **held_out,
        }

    @property
    def learning_rate(self) -> float:
        """The present rate; with layer decay that of the classifier."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _count_seconds(self) -> None:
        if self._started is not None:
            now = time.perf_counter()
            self.seconds, self._started = self.seconds + now - self._started, now

    def _update(self, images: torch.Tensor, labels: torch.Tensor, *, number: int) -> tuple[float, int]:
        """Do the update of this number (1, 2, ...); return the loss, and how many images were classified right."""
        images = images.to(self.device, non_blocking=True, memory_format=self.memory_format)
        labels = labels.to(self.device, non_blocking=True)
        targets, taught = labels, None
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        precision = getattr(torch, self.settings.precision)
        with torch.autocast(self.device.type, dtype=precision, enabled=precision != torch.float32):
            logits = self.network(images)
            loss = self.criterion(logits, targets)
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(images)
                settings = self.settings
                loss = distilled(
                    loss, logits, taught, temperature=settings.teacher_temperature, weight=settings.teacher_weight
                )
        value = loss.item()
        if not math.isfinite(value):
            if taught is not None and not is_finite(taught):
                raise TrainingError(
                    f"the teacher's outputs in epoch {self.epoch + 1}, update {number} are not finite; give another "
                    "teacher, or none"
                )
            raise TrainingError(
                f"the training loss became {value} in epoch {self.epoch + 1}, update {number}, at learning rate "
                f"{self.learning_rate:.4g}: "
                + blame(
                    input_is_finite=is_finite(images),
                    largest_weight=float(largest(self.model.parameters(), self.device)),
                    largest_at_start=self.largest_at_start,
                    learning_rate=f"retrain.learning_rate (now {self.settings.learning_rate})",
                )
            )
        self.optimizer.zero_grad()
        # Small gradients vanish in float16 unless they are scaled; for other precisions the scaler is switched off.
        weight = cast(EpochBatches, self.loader.sampler).weight(self.step)
        self.scaler.scale(loss * weight).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=number)
        if self.scheduler is not None:
            self.scheduler.step_update(number)
        return value, int((logits.argmax(dim=1) == labels).sum())

    def state(self) -> dict[str, Any]:
        """Return what `resume` continues from, after an epoch or an update of one."""
        self._count_seconds()
        place: dict[str, Any] = {"epoch": self.epoch}
        if self.step:
            # Under another name: versions that know only whole epochs refuse the file, and do not begin the epoch anew.
            place = {"epoch_under_way": self.epoch, "step": self.step, **self._of_all()}
        return {
            "identity": self.identity,
            **place,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({} if self.stopping is None else {"stopping": self.stopping.state_dict()}),
        }

    def _of_all(self) -> dict[str, Any]:
        """Return what each process has of its own: the sums of its images, and its random numbers."""
        random = random_state(self.device)
        if self.replicas == 1:
            return {"sums": self.sums, "random": random}
        found = gathered((self.sums, random), self.device)
        sums = [sum(values) for values in zip(*(sums for sums, _ in found), strict=True)]
        return {"sums": sums, "random_of_each": [random for _, random in found]}

    def resume(self, path: Path) -> bool:
        """Continue from a checkpoint; False where there is none."""
        first = self.rank == 0
        if first:
            remove_leftovers(path)
        latest = latest_checkpoint(path, what=_WHAT, check=_why_not, map_location=self.device, set_aside=first)
        if latest is None:
            return False
        path, state = latest.path, latest.state
        if first and latest.warning is not None:
            print(latest.warning, flush=True)
        found = state["identity"]
        # What an older version did not write down (`data`) is no difference; it trained as `_SINCE` says.
        found_or_default = {**_SINCE, **found}
        different = [
            key for key in self.identity if key in found_or_default and found_or_default[key] != self.identity[key]
        ]
        if different:
            key = different[0]
            raise CheckpointError(
                f"the checkpoint {path} is of another retraining ({key} = {shown(found_or_default[key])} there, "
                f"{shown(self.identity[key])} here); delete it, or give another path"
            )
        if first and "data" not in found:
            print(f"{path} does not say what images it is of, as older versions wrote it: it is continued", flush=True)
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.stopping is not None:
                self.stopping.load_state_dict(state["stopping"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is of another network; delete it, or give another path"
            ) from error
        except DAMAGE as error:  # a text where weights, groups or settings of the optimiser should be
            raise CheckpointError(f"the checkpoint {path}: {why(error)}; delete it to start anew") from error
        self.seconds = state["seconds"]
        self.epoch = state["epoch_under_way"] if "step" in state else state["epoch"]
        self.step = state.get("step", 0)
        self.sums = state.get("sums", self.sums) if first else self.sums  # they are of all processes
        if self.step:
            each = state.get("random_of_each", [state.get("random")])
            self._random = each[self.rank] if len(each) == self.replicas else None
            if self._random is None and first:
                print(_OTHER_PROCESSES.format(path, len(each), self.replicas), flush=True)
        return True


def _why_not(state: Any) -> str | None:
    """Why a readable file is no checkpoint of a retraining that this version continues."""
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        return "it was written by another program"
    found = state["identity"].get("format")
    if found != FORMAT:
        return f"it was written by another version of this project: format {shown(found)}, where this one has {FORMAT}"
    random = "random_of_each" if "random_of_each" in state else "random"
    place = ("epoch_under_way", "sums", random) if "step" in state else ("epoch",)
    stopping = ("stopping",) if state["identity"].get("early_stopping") is not None else ()
    names = (*place, "seconds", "model", "ema", "optimizer", "scaler", *stopping)
    missing = [name for name in names if name not in state]
    return f"it lacks {', '.join(missing)}" if missing else None
