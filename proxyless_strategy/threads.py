"""How many threads train: as the settings say, as a run began, or the fastest of a few that are tried.

Sums on another number of threads are rounded otherwise, and a search that goes on must end as one that was never
stopped. So the number of a run is kept in its folder, and whoever goes on takes it from there.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.processor import cores
from hardware.reading import Kind, is_there, read_json, shown

from .layout import THREADS_FILE
from .seeds import isolated_seed

Phase = Literal["search", "retrain"]
Step = Callable[[], None]

TIMED_PIXELS = 8 * 224**2
"""Pixels of the batch that is timed on a CPU, where time and memory grow with the batch; a GPU times a whole batch."""
ROUNDS = 5
SECONDS = 3.0
"""No further round of tries starts after this."""
AS_FAST = 1.05
"""Fewer threads are taken where they are as fast up to this factor: they leave cores to others, and vary less."""
_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Threads:
    """The threads of one phase in one process.

    Attributes:
        number: How many.
        reason: Why so many.
        tried: Median seconds of a training step by number of threads, where several were tried.
        kept: Whether torch is left with the number that it has.
    """

    number: int
    reason: str
    tried: Mapping[int, float] = field(default_factory=dict)
    kept: bool = False

    def sentence(self) -> str:
        """Return number and reason in words."""
        seconds = ", ".join(f"{seconds:.3g} s on {number}" for number, seconds in self.tried.items())
        return f"{_count(self.number)}: {self.reason}" + (f" (a step takes {seconds})" if seconds else "")

    @contextmanager
    def used(self) -> Iterator[None]:
        """Train with this number inside the context; the caller has its own number back afterwards."""
        if self.kept:
            yield
            return
        before, variable = torch.get_num_threads(), os.environ.get(_VARIABLE)
        # Also where the number is the same: by this call MKL stops to take fewer threads as it sees fit, and a search
        # would else be rounded otherwise than before it was stopped.
        torch.set_num_threads(self.number)
        # Lightning gives the processes of a search numbers of its own choice, unless this says how many.
        os.environ[_VARIABLE] = str(self.number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if variable is None:
                os.environ.pop(_VARIABLE, None)
            else:
                os.environ[_VARIABLE] = variable


def settle(
    phase: Phase,
    folder: Path,
    asked: int | None,
    *,
    step: Callable[[], Step],
    begun: bool = False,
    processes: int = 1,
    on_gpu: bool = False,
    first: bool = True,
) -> Threads:
    """Decide on the threads of a phase, and keep the number in the run's folder.

    Args:
        phase: What is trained.
        folder: The run's; `threads.json` in it holds the number of each phase that has begun.
        asked: The setting; None: as `threads.json` says, else as `OMP_NUM_THREADS` says, else the fastest of a few.
        step: Makes a training step to try them with; called only where there is a choice.
        begun: Whether the phase has a checkpoint. Without a number beside it, it is of a version that left the number
            to torch, and goes on so.
        processes: How many share the cores of this machine.
        on_gpu: Whether a GPU trains: threads are then of little account.
        first: Whether this is the first of the processes, which tries and writes.

    Raises:
        ConfigError: `threads.json` is damaged.
    """
    kept = read_threads(folder).get(phase)
    if begun and kept is None and asked is None:
        return Threads(torch.get_num_threads(), f"as torch counts, as it began without {THREADS_FILE}", kept=True)
    if asked is not None:
        found = Threads(asked, f"{phase}.threads")
    elif kept is not None:
        here = f", though there are {cores()} cores here" if kept * processes > cores() else ""
        found = Threads(kept, f"as it began, by {folder / THREADS_FILE}{here}")
    elif _VARIABLE in os.environ:
        found = Threads(torch.get_num_threads(), f"as {_VARIABLE} says")
    elif on_gpu:
        found = Threads(max(1, torch.get_num_threads() // processes), "a GPU does the work")
    elif processes > 1:
        found = Threads(max(1, _most() // processes), f"{_most()} cores among {processes} processes")
    else:
        found = _fastest(step)
    # Not once it has begun: a checkpoint refuses another number, and whoever goes on then needs the one it has.
    if first and not begun and kept != found.number:
        keep_threads(folder, {phase: found.number})
    return found


def candidates(most: int) -> list[int]:
    """Return the numbers of threads to try: one, two, half of the cores and all of them."""
    return sorted({1, min(2, most), max(1, most // 2), most})


def time_threads(
    step: Step,
    numbers: Sequence[int],
    *,
    use: Callable[[int], object] = torch.set_num_threads,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Return the median seconds of a step for each number of threads.

    Numbers take turns, forwards and backwards, so that a busy spell of the machine falls on all alike.

    Args:
        step: One training step.
        numbers: Of threads.
        use: Sets the number.
        clock: Tells seconds.
    """
    for number in numbers:  # the first step chooses kernels and starts threads
        use(number)
        step()
    samples: dict[int, list[float]] = {number: [] for number in numbers}
    begun = clock()
    for turn in range(ROUNDS):
        for number in numbers if turn % 2 == 0 else reversed(numbers):
            use(number)
            start = clock()
            step()
            samples[number].append(clock() - start)
        if clock() - begun > SECONDS:
            break
    return {number: statistics.median(values) for number, values in samples.items()}


def fewest_of_the_fastest(seconds: Mapping[int, float]) -> int:
    """Return the smallest number of threads whose step is about as fast as the fastest one."""
    return min(number for number, value in seconds.items() if value <= AS_FAST * min(seconds.values()))


def training_step(
    build: Callable[[], nn.Module],
    *,
    images: int,
    channels: int,
    size: int,
    classes: int,
    channels_last: bool,
    precision: torch.dtype = torch.float32,
) -> Step:
    """Make a training step of a network on the CPU, to time it.

    Args:
        build: Makes the network.
        images: Of a batch; fewer are taken where they are large.
        channels: Of an image.
        size: Height and width.
        classes: Outputs of the network.
        channels_last: Memory format.
        precision: Of the forward pass, under autocast.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = build().train().to(memory_format=memory_format)
    images = max(2, min(images, TIMED_PIXELS // size**2))
    x = torch.randn(images, channels, size, size).contiguous(memory_format=memory_format)
    y = torch.arange(images) % classes

    def step() -> None:
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()

    return step


def crowded(
    workers: int, threads: Threads, *, settings: tuple[str, str], processes: int = 1, on_gpu: bool = False
) -> str | None:
    """Say that data workers and training want more cores than there are; None where they do not.

    Args:
        workers: Processes that read images, for each training process.
        threads: Of training.
        settings: Names of the settings of both.
        processes: Training processes.
        on_gpu: Whether a GPU trains, which leaves the cores to the workers.
    """
    training = 1 if on_gpu else threads.number
    wanted, present = processes * (workers + training), cores()
    if not workers or wanted <= present:
        return None
    share = present // processes
    remedies = [
        f"{name} = {number}"
        for name, number in zip(settings, (share - training, share - workers), strict=True)
        if number > 0 and not (on_gpu and name == settings[1])
    ]
    each = "" if processes == 1 else f" in each of {processes} processes"
    return (
        f"{settings[0]} = {workers} and {_count(training)} of training{each} want {wanted} cores, but there are "
        f"{present}, so that they wait for each other; set "
        + (
            " or ".join(remedies)
            or f"{settings[0]} = {max(0, share - 1)}" + ("" if on_gpu else f" and {settings[1]} = 1")
        )
    )


def read_threads(folder: Path) -> dict[str, int]:
    """Return the number of threads of each phase that a run folder keeps.

    Raises:
        ConfigError: The file is damaged.
    """
    path = folder / THREADS_FILE
    if not is_there(path):
        return {}
    found: dict[str, int] = read_json(path, Kind("the threads", _WITHOUT, ConfigError, holds=""))
    if not isinstance(found, dict) or not all(type(number) is int and number > 0 for number in found.values()):
        raise ConfigError(f"{path} must hold a number of threads for each phase, but holds {shown(found)}; {_WITHOUT}")
    return found


_WITHOUT = "remove it, after which the run goes on with torch's own number and may differ by rounding"


def keep_threads(folder: Path, numbers: Mapping[str, int]) -> None:
    """Keep the number of threads of some phases beside those that the folder keeps already."""
    kept = {**read_threads(folder), **numbers}
    write_atomically(folder / THREADS_FILE, json.dumps(kept, indent=2) + "\n", error=ConfigError)


def _fastest(step: Callable[[], Step]) -> Threads:
    most = _most()
    if most == 1:
        return Threads(1, "there is one core")
    before = torch.get_num_threads()
    with isolated_seed(0):
        try:
            seconds = time_threads(step(), candidates(most))
        finally:
            torch.set_num_threads(before)
    return Threads(fewest_of_the_fastest(seconds), "the fastest that was tried", seconds)


def _most() -> int:
    """Return the most threads to take: all cores, or fewer where the caller has told torch so."""
    return min(cores(), torch.get_num_threads())


def _count(number: int) -> str:
    return f"{number} thread{'s' if number != 1 else ''}"
