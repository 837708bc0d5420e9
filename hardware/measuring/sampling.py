"""The only loop that times: rounds in shuffled order over everything that is compared."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..backends import Backend, Runnable
from ..files import write_atomically
from ..progress import progress_bar

Key = TypeVar("Key")


def interleaved(
    timers: Mapping[Key, Callable[[int], float]],
    *,
    plan: Plan,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Key, list[float]]:
    """Samples in ms of everything, in rounds of shuffled order that take one sample of each.

    Args:
        timers: From the number of runs back to back to seconds per run.
        plan: `rounds` at most, until `seconds` are over and `minimum_rounds` are done.
        seed: Seed of the orders.
        clock: What tells when `seconds` are over.
    """
    repeats = {}
    for key, timer in timers.items():
        timer(1)
        repeats[key] = max(1, round(plan.sample_ms / max(1e3 * timer(1), plan.sample_ms / 1000)))
    samples: dict[Key, list[float]] = {key: [] for key in timers}
    order, generator = list(timers), random.Random(seed)
    start = clock()
    for done in range(plan.rounds if timers else 0):
        if done >= plan.minimum_rounds and clock() - start > plan.seconds:
            break
        generator.shuffle(order)
        for key in order:
            samples[key].append(1e3 * timers[key](repeats[key]))
    return samples


QUANTILE = 0.05


PARTIAL_SECONDS = 5.0


@dataclass(frozen=True)
class Measurement:
    """One operator's or net's time.

    Attributes:
        ms: The estimate: the low quantile of the samples, in ms.
        median_ms: Their median.
        p20_ms: Their 20th percentile.
        spread: `median / low quantile - 1`.
        samples: All samples in ms, in the order of the rounds.
        drift: How much slower the machine was than when a table was built; 1 where no table was given.
    """

    ms: float
    median_ms: float
    p20_ms: float
    spread: float
    samples: tuple[float, ...]
    drift: float = 1.0

    @property
    def settled_ms(self) -> float:
        """What `ms` would have been in the state of the machine in which the table was built: `ms / drift`."""
        return self.ms / self.drift

    @classmethod
    def of(cls, samples: Sequence[float], *, quantile: float = QUANTILE) -> Measurement:
        """Summarises samples in ms."""
        low, p20, median = (float(v) for v in np.quantile(samples, [quantile, 0.2, 0.5]))
        return cls(low, median, p20, median / low - 1.0 if low > 0 else 0.0, tuple(samples))


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: Most rounds.
        minimum_rounds: Rounds before `seconds` may end the measurement.
        seconds: Time after which no further round starts.
        sample_ms: A sample repeats a short operator until it lasts about this long.
        quantile: Which quantile of the samples is the estimate.
        noisy: Operators whose spread exceeds this get further rounds.
        extra_rounds: Most further rounds for noisy operators.
    """

    rounds: int = 200
    minimum_rounds: int = 20
    seconds: float = 30.0
    sample_ms: float = 0.5
    quantile: float = QUANTILE
    noisy: float = 0.15
    extra_rounds: int = 50


def _sample(
    device: Backend,
    runnables: Mapping[str, Runnable],
    *,
    plan: Plan,
    seed: int,
    progress: bool,
    partial: _Partial | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Samples in ms of every runnable, in interleaved rounds of shuffled order."""
    names = list(runnables)
    repeats = {name: _repeats(device, runnables[name], plan) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    if partial is not None:
        samples |= {name: values for name, values in partial.load().items() if name in samples}
    order = random.Random(f"{seed}:{min(map(len, samples.values()), default=0)}")
    start = saved = clock()
    try:
        with progress_bar(progress, f"measuring {len(names)} graphs") as advance:
            while names:
                done, elapsed = min(map(len, samples.values())), clock() - start
                due = _due(samples, plan, done=done, elapsed=elapsed)
                if not due:
                    break
                order.shuffle(due)
                for name in due:
                    samples[name].append(1e3 * device.time(runnables[name], repeats=repeats[name]))
                advance(_share(plan, done + 1, elapsed))
                if partial is not None and clock() - saved > PARTIAL_SECONDS:
                    partial.save(samples)
                    saved = clock()
    finally:
        if partial is not None:
            partial.save(samples)
    return samples


def _due(samples: Mapping[str, list[float]], plan: Plan, *, done: int, elapsed: float) -> list[str]:
    """Names that take a sample in the next round: all until time or rounds are up, then the noisy ones."""
    if elapsed <= plan.seconds or done < plan.minimum_rounds:
        due = [name for name, values in samples.items() if len(values) < plan.rounds]
        if due:
            return due
    return _noisy(samples, plan) if elapsed <= 1.25 * plan.seconds else []


def _share(plan: Plan, done: int, elapsed: float) -> float:
    """How much of a plan is carried out, 0..1."""
    by_time = min(elapsed / plan.seconds, done / plan.minimum_rounds) if plan.seconds else 1.0
    return min(1.0, max(done / plan.rounds, by_time))


def _repeats(device: Backend, runnable: Runnable, plan: Plan) -> int:
    """Runs per sample, after a warm-up that is no part of any sample."""
    device.time(runnable, repeats=2)
    single_ms = 1e3 * min(device.time(runnable, repeats=1) for _ in range(3))
    return max(1, round(plan.sample_ms / max(single_ms, plan.sample_ms / 1000)))


def _noisy(samples: Mapping[str, list[float]], plan: Plan) -> list[str]:
    """Names whose spread asks for further rounds and that still may have them."""
    most = plan.rounds + plan.extra_rounds
    return [
        name
        for name, values in samples.items()
        if len(values) < most and Measurement.of(values, quantile=plan.quantile).spread > plan.noisy
    ]


class _Partial:
    """Samples of an interrupted build, taken up again only under the same settings."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))

    def load(self) -> dict[str, list[float]]:
        """The samples that the file keeps; says so where it keeps none that can be taken up."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            settings = dict(document["settings"])
            samples = {str(name): [float(v) for v in values] for name, values in document["samples"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._say(f"cannot be read ({type(error).__name__})")
            return {}
        differing = sorted(
            name for name in {*settings, *self.settings} if settings.get(name) != self.settings.get(name)
        )
        if differing:
            self._say(f"is of a build with other settings ({', '.join(differing)})")
            return {}
        return samples

    def _say(self, reason: str) -> None:
        print(f"{self.path} {reason}; measuring anew", file=sys.stderr, flush=True)

    def save(self, samples: Mapping[str, Sequence[float]]) -> None:
        write_atomically(self.path, json.dumps({"settings": self.settings, "samples": samples}))
