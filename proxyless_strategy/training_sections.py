"""Sections of settings about training: of the supernet, of the derived subnet, and of both sides of a shrinking."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from .sections import MOST_IMAGES, MOST_PIXELS, Norm
from .validation import Section, number

Rule = Literal["gradient", "reinforce"]
"""Rules that move architecture parameters."""
Change = Literal["table", "data", "target"]
"""What a search that is continued may have another one of, if it is told so."""
MOST_EPOCHS = 100_000
MOST_DECAY = 1000.0
"""Bounds stand far above every use: they keep a slip of the hand from filling memory or from never ending."""
Count = Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(number)]
Rate = Annotated[float, Field(gt=0), BeforeValidator(number)]
ThreadCount = Annotated[int, Field(ge=1, le=1024), BeforeValidator(number)]


class SearchSettings(Section):
    """Training of the supernet and of the architecture parameters."""

    epochs: int = Field(40, ge=1, le=MOST_EPOCHS)
    """Epochs after the warm-up."""
    warmup_epochs: int = Field(10, ge=0, le=MOST_EPOCHS)
    batch_size: int = Field(64, ge=2, le=MOST_IMAGES)
    """Images of one step, divided among the devices of all hosts."""
    learning_rate: float = Field(0.05, gt=0)
    """At the start of a cosine over `epochs`; the warm-up has a cosine of its own."""
    warmup_learning_rate: float | None = Field(None, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(4e-5, ge=0, le=MOST_DECAY)
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor of the learning rate from each block to the one before it, from the classifier on; 1 for one rate. None:
    as `runs.layer_rates.layer_decay` says for the space."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    architecture_learning_rate: Rate | dict[Rule, Rate] | None = None
    """None: derived from the planned number of architecture steps; for each rule, where they differ."""
    steps_per_update: Count | dict[Rule, Count] = 5
    """Weight steps between two architecture steps; for each rule, where they differ."""
    samples: int = Field(10, ge=2, le=10_000)
    """Subnets drawn in one REINFORCE step."""
    baseline: Literal["moving", "leave_one_out"] = "leave_one_out"
    """What a REINFORCE step's rewards are held against."""
    warmup_paths: Literal["uniform", "fair"] = "uniform"
    """Paths of the warm-up: drawn independently, or so that each candidate runs equally often."""
    weight_paths: Literal["sampled", "uniform"] = "uniform"
    """Paths of later weight steps: drawn from the architecture's probabilities (the paper's), or uniformly."""
    finalists: int = Field(8, ge=1, le=1000)
    """Most probable subnets on the target, of which the one with the least loss on architecture images is exported."""
    finalists_epochs: int = Field(0, ge=0, le=10_000)
    """Epochs that the best two finalists, the sensitivity knapsack and the subnet of most MACs (unless the target is in
    MACs) are each trained, as the subnet will be, before the one of least loss is exported; 0: the supernet's weights
    decide."""
    finalists_dtype: Literal["float32", "int8"] = "float32"
    """Which networks of the finalists are compared: the supernet's, or for a search for int8 files these, quantised."""
    estimator: Literal["paper", "unbiased"] = "paper"
    paths: Literal["two", "all"] = "two"
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "64-true"] = "32-true"
    devices: int = Field(1, ge=1, le=1024)
    """Processes that share every step: GPUs, where there are any; on each host."""
    nodes: int = Field(1, ge=1, le=1024)
    """Hosts; several need a launcher that starts the processes, torchrun or srun."""
    start: Literal["uniform", "sensitivity"] = "uniform"
    """Where alpha starts: all candidates alike, or by what each does to the loss of inherited weights (`timm:` spaces).
    The knapsack on these losses then joins the finalists, and the result says whether the search has beaten it."""
    start_temperature: float | None = Field(None, gt=0)
    """Difference in loss that counts one logit at such a start; None: so that half of the edges span 3 logits or less.
    No candidate starts more than 3 below its edge's best."""
    accelerator: str = "auto"
    deterministic: bool = False
    """Deterministic algorithms alone, so that a search on a GPU that is killed and continues is the same bit for bit;
    on a CPU it is so anyway."""
    channels_last: bool = False
    norm: Norm = "torch"
    """What computes batch norms with their activations; all but `torch` needs a GPU, see `norms.FusedNorms`."""
    capture: bool | Literal["auto"] = False
    """Whether a GPU replays candidates as CUDA graphs, for small images; `auto`: where there is a GPU."""
    checkpoint_every: float = Field(10.0, gt=0, le=1440, allow_inf_nan=False)
    """Minutes between two checkpoints within an epoch; each epoch's end writes one too."""
    resume_anyway: tuple[Change, ...] = ()
    """What may be another thing than when the search was stopped: its `table` of costs, its `data`, its `target`. It is
    refused otherwise, and recorded in `search.json`."""
    threads: ThreadCount | None = None
    """Threads that train in each process. None: as `OMP_NUM_THREADS` says, else the fastest of a few that the forecast
    tries, or with several processes the cores divided among them. A search that goes on keeps the number that it began
    with."""

    @property
    def processes(self) -> int:
        """Processes that share every step, on all hosts."""
        return self.devices * self.nodes

    @property
    def process_batch_size(self) -> int:
        """Images of one step in one process."""
        return self.batch_size // self.processes

    def steps_between(self, rule: Rule) -> int:
        """Weight steps between two architecture steps of this rule."""
        return self.steps_per_update if isinstance(self.steps_per_update, int) else self.steps_per_update[rule]

    def architecture_rate(self, rule: Rule) -> float | None:
        """Learning rate of the architecture parameters under this rule; None: to be derived."""
        rate = self.architecture_learning_rate
        return rate[rule] if isinstance(rate, dict) else rate

    @model_validator(mode="after")
    def _whole_batches(self) -> SearchSettings:
        if self.batch_size % self.processes or self.process_batch_size < 2:
            hosts = "" if self.nodes == 1 else f" on each of {self.nodes} hosts"
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be divided among {self.devices} devices{hosts}, at least 2 "
                "images each; choose another"
            )
        if self.start_temperature is not None and self.start != "sensitivity":
            raise ValueError(
                f"start_temperature = {self.start_temperature:g} has no part in start {self.start}; set start to "
                "sensitivity, or remove it"
            )
        for name in ("steps_per_update", "architecture_learning_rate"):
            value = getattr(self, name)
            if isinstance(value, dict) and len(value) < len(get_args(Rule)):
                raise ValueError(f"{name} = {value} must name {' and '.join(get_args(Rule))}")
        return self


class RetrainSettings(Section):
    """Training of the derived subnet; it never inherits the search's settings."""

    weights: Literal["supernet", "inherited", "fresh"] | None = None
    """What it starts from: the subnet's weights in the searched supernet, those that a `timm:` space inherits, or fresh
    ones. None: `supernet` for a `timm:` space with weights, else `fresh`."""
    teacher: str | None = None
    """A network whose outputs are learned beside the labels: timm's name of a pretrained model, an export folder (a
    path with a slash), or `none`. None: see `runs.retrained.teacher_of`."""
    teacher_temperature: float = Field(2.0, gt=0, le=1000)
    teacher_weight: float = Field(0.5, gt=0, le=1)
    """Share of the teacher in the loss, see `retraining.teacher.distilled`."""
    epochs: int = Field(60, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(64, ge=2, le=MOST_IMAGES)
    optimizer: str = "sgd"
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(4e-5, ge=0, le=MOST_DECAY)
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor of the learning rate from each layer to the one before it, as timm counts layers."""
    early_stopping: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    """Epochs without a better loss on the architecture part after which the training ends, with the best epoch's
    weights. That part is no part of the training images then."""
    scheduler: str = "cosine"
    warmup_epochs: int = Field(0, ge=0, le=MOST_EPOCHS)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    ema_decay: float | None = Field(0.99, gt=0, lt=1)
    mixup: float = Field(0.0, ge=0, le=1000)
    rand_augment: str | None = None
    cutout: int = Field(0, ge=0, le=MOST_PIXELS)
    """Side of a square, at a random place, that every training image loses (Cutout)."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = True
    """Memory format; depthwise networks train 2 to 3 times as fast with it on a CPU."""
    deterministic: bool | None = None
    """As `search.deterministic`; None: as the search's, and without a search false."""
    norm: Norm | None = None
    """As `search.norm`; None: as the search's, and without a search `torch`."""
    threads: ThreadCount | None = None
    """Threads that train in each process; None: as for a search, whose number is taken where it was tried out."""
    checkpoint_every: float = Field(10.0, gt=0, le=1440)
    """Minutes between two checkpoints within an epoch; each epoch's end writes one too."""

    def of_epochs(self, epochs: int) -> RetrainSettings:
        """Return the same for another number of epochs, all of which are trained, and with no longer a warm-up."""
        warmup = min(self.warmup_epochs, epochs - 1)
        return self.model_copy(update={"epochs": epochs, "warmup_epochs": warmup, "early_stopping": None})

    @model_validator(mode="after")
    def _schedule_after_the_warmup(self) -> RetrainSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs} leaves none of epochs = {self.epochs}; lower it")
        return self


class ShrinkSettings(Section):
    """What `proxyless shrink` does beside the search: see `proxyless_strategy.shrinking`.

    What is not given follows from the number of images.
    """

    epochs: int | None = Field(None, ge=4, le=MOST_EPOCHS)
    """Epochs of training that each network gets in all, the original as well as the subnet."""
    start_epochs: int | None = Field(None, ge=0, le=MOST_EPOCHS)
    """Of them, those of the original before the search, on the weight part of the images."""
    original_epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    """Further epochs of the original, on all training images; by default as many as the subnet gets."""
