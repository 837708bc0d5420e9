"""The only loop that times: rounds in shuffled order over everything that is compared.

A machine is never as quiet as it was a minute ago: clocks change, other processes come and go. So nothing is timed to
the end before the next begins. A round takes one sample of everything, in an order of its own, and a slow spell falls
on all alike. What disturbs a sample only ever lengthens it, so the estimate is a low quantile of the samples.
"""

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
from ..errors import TableError
from ..files import write_atomically
from ..progress import progress_bar
from ..reading import DAMAGE, Unreadable, json_of, why

Key = TypeVar("Key")

QUANTILE = 0.05
PARTIAL_SECONDS = 5.0
SAMPLES_BYTES = 2**28
"""Most bytes of samples that are kept: every sample of a long build of a large table."""


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
        """`ms / drift`: what `ms` would have been in the state of the machine in which the table was built."""
        return self.ms / self.drift

    @classmethod
    def of(cls, samples: Sequence[float], *, quantile: float = QUANTILE) -> Measurement:
        """Summarise samples in ms."""
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


def timers_of(backend: Backend, runnables: Mapping[Key, Runnable]) -> dict[Key, Callable[[int], float]]:
    """Return what `interleaved` calls: for each runnable, from the number of runs back to back to seconds per run."""

    def timer(runnable: Runnable) -> Callable[[int], float]:
        return lambda repeats: backend.time(runnable, repeats=repeats)

    return {key: timer(runnable) for key, runnable in runnables.items()}


def interleaved(
    timers: Mapping[Key, Callable[[int], float]],
    *,
    plan: Plan,
    seed: int = 0,
    trials: int = 1,
    repeats: int | None = None,
    progress: bool = False,
    partial: PartialSamples | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Key, list[float]]:
    """Take samples of everything, in rounds of shuffled order that take one sample of each.

    Args:
        timers: From the number of runs back to back to seconds per run (`timers_of`).
        plan: How long to measure.
        seed: Seed of the orders.
        trials: Runs of each before the first round, the fastest of which says how many runs make a sample.
        repeats: What every timer is given instead, without such trials: for samples that have a length of their own.
        progress: Whether to show a progress bar.
        partial: Where samples are kept meanwhile, and found again by the next call; keys are then texts.
        clock: What tells when the plan's seconds are over.

    Returns:
        The samples of each, in ms (of timers that give joules, in mJ), in the order of the rounds.
    """
    runs = {key: _repeats(timer, plan, trials) if repeats is None else repeats for key, timer in timers.items()}
    kept = {} if partial is None else partial.load()
    samples: dict[Key, list[float]] = {key: kept.get(str(key), []) for key in timers}
    # a build that goes on continues with orders of its own; the first ones again would tie the same graphs together
    order = random.Random(f"{seed}:{_done(samples)}")
    start = saved = clock()
    try:
        with progress_bar(progress, f"measuring {len(samples)} graphs") as advance:
            while due := _due(samples, plan, lambda: clock() - start):
                order.shuffle(due)
                for key in due:
                    samples[key].append(1e3 * timers[key](runs[key]))
                if progress:
                    advance(_share(plan, _done(samples), clock() - start))
                # not after each round: the file holds all samples so far, and writing it takes as long as many of them
                if partial is not None and clock() - saved > PARTIAL_SECONDS:
                    partial.save(samples)
                    saved = clock()
    finally:
        # an interruption (Ctrl-C, an error of the backend) loses nothing but the sample that it broke off
        if partial is not None:
            partial.save(samples)
    return samples


def _repeats(timer: Callable[[int], float], plan: Plan, trials: int) -> int:
    """Return the runs that make a sample of about `plan.sample_ms`, after a warm-up that is no part of any sample.

    A clock's own cost and resolution would be a large part of a single run of a few microseconds.
    """
    timer(1)
    single_ms = 1e3 * min(timer(1) for _ in range(trials))
    # a run that the clock sees as 0 ms is repeated 1000 times, not forever
    return max(1, round(plan.sample_ms / max(single_ms, plan.sample_ms / 1000)))


def _done(samples: Mapping[Any, list[float]]) -> int:
    """Return the rounds that everything took part in."""
    return min(map(len, samples.values()), default=0)


def _due(samples: Mapping[Key, list[float]], plan: Plan, elapsed: Callable[[], float]) -> list[Key]:
    """Return what takes a sample in the next round: all until time or rounds are up, then what is noisy still."""
    if _done(samples) < plan.minimum_rounds or elapsed() <= plan.seconds:
        due = [key for key, values in samples.items() if len(values) < plan.rounds]
        if due:
            return due
    # noise that does not end must not hold up a measurement for ever: a quarter of its time more, and no longer
    return _noisy(samples, plan) if elapsed() <= 1.25 * plan.seconds else []


def _noisy(samples: Mapping[Key, list[float]], plan: Plan) -> list[Key]:
    """Return what has a spread that asks for further rounds and may still have them."""
    most = plan.rounds + plan.extra_rounds
    return [
        key
        for key, values in samples.items()
        if len(values) < most and Measurement.of(values, quantile=plan.quantile).spread > plan.noisy
    ]


def _share(plan: Plan, done: int, elapsed: float) -> float:
    """Return how much of a plan is carried out, 0..1."""
    by_time = min(elapsed / plan.seconds, done / plan.minimum_rounds) if plan.seconds else 1.0
    return min(1.0, max(done / plan.rounds, by_time))


class PartialSamples:
    """Samples of an interrupted build, taken up again only under the same settings.

    Args:
        path: The file.
        settings: What must be the same: backend, device, threads, batch, ...
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        # as they will be read back: JSON knows no tuples, and would differ from itself
        self.settings = json.loads(json.dumps(settings))

    def load(self) -> dict[str, list[float]]:
        """Return the samples that the file keeps; say so where it keeps none that can be taken up."""
        try:
            document = json_of(self.path, limit=SAMPLES_BYTES)
            settings = dict(document["settings"])
            samples = {str(name): [float(v) for v in values] for name, values in document["samples"].items()}
        except DAMAGE as error:
            if not (isinstance(error, Unreadable) and error.missing):
                self._say(f"cannot be read ({why(error)})")
            return {}
        differing = sorted(
            name for name in {*settings, *self.settings} if settings.get(name) != self.settings.get(name)
        )
        if differing:
            self._say(f"is of a build with other settings ({', '.join(differing)})")
            return {}
        return samples

    def save(self, samples: Mapping[Any, Sequence[float]]) -> None:
        """Write the samples in place of those kept before."""
        write_atomically(self.path, json.dumps({"settings": self.settings, "samples": samples}), error=TableError)

    def _say(self, reason: str) -> None:
        print(f"{self.path} {reason}; measuring anew", file=sys.stderr, flush=True)
