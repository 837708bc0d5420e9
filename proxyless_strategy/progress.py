"""What a run shows while it runs, on standard error: one line an epoch, and in a terminal one bar for all of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

REFRESH_SECONDS = 0.2
"""Between two drawings of the bar: a step may take a millisecond."""
WHOSE = {"warmup": "likeliest subnet", "search": "likeliest subnet"}
"""What the accuracy of a phase's epochs is of; of all others the training images."""


@dataclass(frozen=True)
class Phase:
    """A part of a run whose epochs take equally long.

    Attributes:
        name: `warmup`, `search`, `retrain`, ...
        epochs: How many there are.
        seconds: What one is predicted to take; None: unknown.
        before: Epochs of earlier phases that the user counts with these.
        after: Likewise, of later phases.
    """

    name: str
    epochs: int
    seconds: float | None = None
    before: int = 0
    after: int = 0

    @property
    def total(self) -> int:
        """Epochs that the user counts to."""
        return self.before + self.epochs + self.after


class TimeLeft:
    """How long a run will go on, by what its epochs took, and for phases to come by what was predicted of them.

    A prediction is scaled by what the epochs took so far of what was predicted of them.

    >>> left = TimeLeft([Phase("search", 10, seconds=5.0), Phase("retrain", 4, seconds=3.0)], afterwards=20.0)
    >>> left.seconds()
    82.0
    >>> left.at("search", 0, now=0.0)
    >>> left.at("search", 2, now=20.0)  # twice as slow as predicted
    >>> left.seconds()
    124.0

    Args:
        phases: In their order.
        afterwards: Seconds of what follows them.
    """

    def __init__(self, phases: Sequence[Phase], *, afterwards: float = 0.0):
        self.phases = {phase.name: phase for phase in phases}
        self.afterwards = afterwards
        self._spent = dict.fromkeys(self.phases, 0.0)
        self._done = dict.fromkeys(self.phases, 0.0)
        self._last: tuple[str, float, float] | None = None

    def at(self, name: str, place: float, *, now: float) -> None:
        """Note that so many epochs of a phase are done, an epoch under way in parts.

        A run that continues begins in the middle: what was done before its first place is no time of this start.
        """
        if name not in self.phases:
            return
        if self._last is not None and self._last[0] == name and place >= self._last[1]:
            self._done[name] += place - self._last[1]
            self._spent[name] += now - self._last[2]
        self._last = name, place, now

    def seconds(self) -> float | None:
        """Return the seconds left; None where nothing tells what a phase to come will take."""
        left = self.afterwards
        for name, epochs in self._to_do().items():
            rate = self._rate(name)
            if epochs > 0 and rate is None:
                return None
            left += epochs * (rate or 0.0)
        return left

    def share(self) -> float:
        """Return the share of the run that is done, 0..1; a phase of unknown length counts as the others' mean."""
        known = [rate for rate in map(self._rate, self.phases) if rate is not None]
        mean = sum(known) / len(known) if known else 1.0
        left = self._to_do()
        rates = {name: mean if (rate := self._rate(name)) is None else rate for name in self.phases}
        total = self.afterwards + sum(phase.epochs * rates[name] for name, phase in self.phases.items())
        done = sum((phase.epochs - left[name]) * rates[name] for name, phase in self.phases.items())
        return done / total if total > 0 else 0.0

    def _to_do(self) -> dict[str, float]:
        names = list(self.phases)
        now = -1 if self._last is None else names.index(self._last[0])
        left = {name: float(phase.epochs) * (number > now) for number, (name, phase) in enumerate(self.phases.items())}
        if self._last is not None:
            left[self._last[0]] = max(0.0, self.phases[self._last[0]].epochs - self._last[1])
        return left

    def _rate(self, name: str) -> float | None:
        """Return seconds of an epoch of this phase."""
        if self._done[name] > 0:
            return self._spent[name] / self._done[name]
        predicted = self.phases[name].seconds
        if predicted is None:
            return None
        seen = [phase for phase in self.phases.values() if phase.seconds and self._done[phase.name] > 0]
        expected = sum(self._done[phase.name] * (phase.seconds or 0.0) for phase in seen)
        spent = sum(self._spent[phase.name] for phase in seen)
        return predicted * (spent / expected if expected > 0 else 1.0)


class Told:
    """Tells the user how a run goes; as a context it shows the bar, where standard error is a terminal.

    Args:
        phases: What is to be done, in its order; `plan` may say it later.
        unit: Unit of the expected cost.
        target: What the expected cost goes to; None where it has no target.
        shown: Whether this process tells anything: of several only the first.
        clock: Seconds of any origin.
    """

    def __init__(
        self,
        phases: Sequence[Phase] = (),
        *,
        unit: str = "ms",
        target: float | None = None,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.unit = unit
        self.target = target
        self.shown = shown
        self._clock = clock
        self._left = TimeLeft(phases)
        self._phase: str | None = None
        self._bar: Progress | None = None
        self._task: Any = None
        self._drawn = -1e9

    def plan(self, phases: Sequence[Phase], *, afterwards: float = 0.0) -> None:
        """Say what is to be done, before the first epoch: see `TimeLeft`."""
        self._left = TimeLeft(phases, afterwards=afterwards)

    def __enter__(self) -> Told:
        if self.shown and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %"),
                TextColumn("{task.fields[left]}"),
            )
            # Drawn where the run calls, by no thread: data workers are forked, and one that was forked while a thread
            # holds the terminal's lock waits for it for ever. What is printed meanwhile goes above the bar; only to a
            # terminal, as a file is to get standard output alone.
            self._bar = Progress(
                *columns,
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task("starting", total=1.0, left="")
            self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def say(self, sentence: str) -> None:
        """Print a line."""
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def at(self, name: str, place: float) -> None:
        """Note that so many epochs of a phase are done, an epoch under way in parts; cheap enough for each step."""
        if not self.shown:
            return
        if name != self._phase:
            self._enter(name, place)
        self._left.at(name, place, now=self._clock())
        self._draw(name, place)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the line of an epoch that has ended; see `epoch_line`."""
        if not self.shown:
            return
        name, number = str(row["phase"]), int(row["epoch"])
        phase = self._left.phases.get(name)
        self._left.at(name, number - (phase.before if phase else 0), now=self._clock())
        self._phase = name
        left = self._left.seconds() if phase is not None else None
        self.say(epoch_line(row, total=phase.total if phase else None, target=self.target, left=left))

    def stage(self, title: str) -> None:
        """Say what is done after the last epoch; the bar shows what stands before a colon."""
        self.say(title)
        if self._bar is not None:
            self._bar.update(self._task, description=title.partition(":")[0], left="")
            self._bar.refresh()

    def _enter(self, name: str, place: float) -> None:
        phase = self._left.phases.get(name)
        goes_on = place > 0 or (self._phase is None and phase is not None and phase.before > 0)
        self._phase = name
        if phase is not None and goes_on and place < phase.epochs:
            number = phase.before + int(place) + 1
            what = "the retraining " if name == "retrain" else ""
            self.say(f"continuing {what}at epoch {number} of {phase.total}")

    def _draw(self, name: str, place: float) -> None:
        now = self._clock()
        if self._bar is None or now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        phase, seconds = self._left.phases.get(name), self._left.seconds()
        number = f" {min(phase.total, phase.before + int(place) + 1)}/{phase.total}" if phase else ""
        left = "" if seconds is None else f"{duration(seconds)} left"
        self._bar.update(self._task, completed=self._left.share(), description=f"{name}{number}", left=left)
        self._bar.refresh()


def epoch_line(
    row: Mapping[str, Any], *, total: int | None = None, target: float | None = None, left: float | None = None
) -> str:
    """Say in a line what an epoch gave; what the row lacks is left out.

    >>> row = {"phase": "search", "epoch": 12, "loss": 1.5, "default": 0.31, "expected": 3.4, "unit": "ms"}
    >>> epoch_line({**row, "entropy": 1.2}, total=50, target=3.0, left=260.0)
    'search 12/50: loss 1.5000, accuracy 31.0 % (likeliest subnet), E[LAT] 3.4 -> 3 ms, entropy 1.200, 4 min left'
    >>> epoch_line({**row, "unit": "mJ"}, target=3.0)
    'search 12: loss 1.5000, accuracy 31.0 % (likeliest subnet), E[energy] 3.4 -> 3 mJ'

    Args:
        row: `phase`, `epoch`, `loss`, `default` (the accuracy, 0..1), `expected`, `unit`, `entropy`.
        total: Epochs that `epoch` counts to.
        target: What `expected` goes to.
        left: Seconds that the whole run has left.
    """
    unit = str(row.get("unit") or "")
    parts = [] if row.get("loss") is None else [f"loss {row['loss']:.4f}"]
    if row.get("default") is not None:
        parts.append(f"accuracy {100 * row['default']:.1f} % ({WHOSE.get(str(row['phase']), 'training images')})")
    if row.get("expected") is not None:
        name = "E[LAT]" if unit.startswith("ms") else "E[energy]" if unit.startswith("mJ") else "E[cost]"
        aim = "" if target is None else f" -> {target:.4g}"
        parts.append(f"{name} {row['expected']:.4g}{aim} {unit}")
    if row.get("entropy") is not None:
        parts.append(f"entropy {row['entropy']:.3f}")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return f"{row['phase']} {row['epoch']}{'' if total is None else f'/{total}'}: {', '.join(parts)}"


def epochs_in_words(epochs: int) -> str:
    """Say a number of epochs.

    >>> epochs_in_words(1), epochs_in_words(2)
    ('1 epoch', '2 epochs')
    """
    return f"{epochs} epoch{'s' * (epochs != 1)}"


def duration(seconds: float) -> str:
    """Say a duration in the two units that matter.

    >>> [duration(seconds) for seconds in (8.4, 260, 3 * 3600 + 1200, 200_000)]
    ['8 s', '4 min', '3 h 20 min', '2 d 8 h']
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
