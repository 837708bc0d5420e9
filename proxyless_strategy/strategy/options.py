"""The options of a search, checked once, and the former names that some of them had."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, get_args

from hardware.errors import ConfigError
from hardware.model import CostModel

from ..sections import Norm
from .capturing import Capture
from .capturing import check as check_capture
from .derivation import SLACK
from .finalists import Judge
from .gates import Estimator, WarmupPaths, WeightPaths
from .rules import Baseline, GradientPaths

Rule = Literal["gradient", "reinforce"]
_ONE_OF = {
    "rule": get_args(Rule),
    "estimator": get_args(Estimator),
    "paths": get_args(GradientPaths),
    "baseline": get_args(Baseline),
    "warmup_paths": get_args(WarmupPaths),
    "weight_paths": get_args(WeightPaths),
    "norm": get_args(Norm),
}
_COUNTS = {
    "warmup_epochs": (0, 100_000),
    "steps_per_update": (1, 1_000_000),
    "samples": (2, 10_000),
    "finalists": (1, 1_000),
    "accumulate_grad_batches": (1, 1_000_000),
    "calibration_batches": (0, 1_000_000),
    "seed": (0, 2**63 - 1),
}
"""The upper bounds stand far above every use: a slip of the hand ends in a sentence."""
_ABOVE_ZERO = ("learning_rate", "gradient_clip_val", "target")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a user decides about a search; `ProxylessStrategy` explains each, as its argument of the same name.

    Raises:
        ConfigError: An option is impossible.
    """

    rule: Rule = "gradient"
    cost: CostModel | None = None
    target: float | None = None
    target_share: float | None = None
    objective: str = "target"
    objective_options: Mapping[str, float] = field(default_factory=dict)
    slack: float | None = SLACK
    warmup_epochs: int = 0
    steps_per_update: int = 5
    estimator: Estimator = "paper"
    paths: GradientPaths = "two"
    samples: int = 10
    baseline: Baseline = "leave_one_out"
    baseline_decay: float = 0.9
    warmup_paths: WarmupPaths = "uniform"
    weight_paths: WeightPaths = "uniform"
    finalists: int = 8
    learning_rate: float | None = None
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    accumulate_grad_batches: int = 1
    calibration_batches: int = 10
    inputs: Callable[[Any], Any] | None = None
    seed: int = 0
    norm: Norm = "torch"
    start: Mapping[str, Mapping[str, float]] | None = None
    contender: Mapping[str, str] | None = None
    judge: Judge | None = None
    capture: Capture = False

    def __post_init__(self) -> None:
        for name, allowed in _ONE_OF.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
                raise ConfigError(f"{name} = {value!r}; it must be at least {least} and at most {most}, an integer")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value!r}; it must be a number above 0, or None")
        check_capture(self.capture)
        if not 0 <= self.baseline_decay < 1:
            raise ConfigError(f"baseline_decay = {self.baseline_decay!r}; it must be in [0, 1)")
        if self.slack is not None and not 0 <= self.slack < 1:
            raise ConfigError(f"slack = {self.slack!r}; it must be in [0, 1), or None")
        if self.target is not None and self.target_share is not None:
            raise ConfigError(
                f"target = {self.target!r} and target_share = {self.target_share!r} are both given; keep one of them"
            )
        if self.target_share is not None and not 0 <= self.target_share <= 1:
            raise ConfigError(
                f"target_share = {self.target_share!r}; it must be in [0, 1], from the cheapest subnet to the dearest"
            )
        if self.cost is None and (self.target is not None or self.target_share is not None):
            name = "target" if self.target_share is None else "target_share"
            raise ConfigError(
                f"{name} = {getattr(self, name)!r} needs costs; give cost=LatencyModel(table, fixed=..., edges=...)"
            )

    @property
    def moves_every_candidate(self) -> bool:
        """Whether each architecture step moves every candidate of an edge, and not a pair alone."""
        return self.rule == "gradient" and (self.paths == "all" or self.estimator == "unbiased")


def renamed(old: str, former: Any, new: str, value: Any) -> Any:
    """Return the value of an argument that has a former name, and announce the new name once in this process.

    Args:
        old: The former name.
        former: What was given under it; None: nothing.
        new: Today's name.
        value: What was given under it; None: nothing.

    Raises:
        ConfigError: Both are given.
    """
    if former is None:
        return value
    if value is not None:
        raise ConfigError(
            f"{old} = {former!r} and {new} = {value!r} are both given; {old} is the former name of {new}, "
            f"so keep {new} alone"
        )
    announce(old, new)
    return former


@functools.cache
def announce(old: str, new: str) -> None:
    """Warn that a name has changed, at the line that called the function with the argument."""
    # A FutureWarning, as Python shows DeprecationWarning only where the calling line is in __main__.
    warnings.warn(f"{old} is now called {new}; {old} goes on working", FutureWarning, stacklevel=4)
