"""Processes that carry out cases: each may hang, fill its memory or die, and the fuzzing goes on after it.

A worker is a fork, which has all imports and good files already. It writes down which case it is at before it reads,
so that whoever watches it can tell what it hung on, and go on with the next one.
"""

from __future__ import annotations

import faulthandler
import json
import math
import mmap
import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tests.benchmarks.fuzz_cases import Case, Fault, Judge, Target, case_of

HANG_SECONDS = 10.0
"""Of a process's own time: on a busy machine one may stand still for longer."""
STILL_SECONDS = 90.0
"""Of the wall clock: a process that waits for something takes no time of its own."""
MEMORY = 2**30
"""Bytes that reading an input may take beside what the process has already."""
_AT = struct.Struct("<qdd")  # which case, and since when


class At(Protocol):
    """Called before each case with its number; with `idle` between two, where an engine looks for the next input."""

    def __call__(self, number: int, idle: bool = ...) -> None: ...


@dataclass(frozen=True)
class Found:
    """A fault, and the case that showed it."""

    target: str
    fault: Fault
    case: Case
    number: int


@dataclass
class Chunk:
    """Some consecutive cases of a target."""

    target: Target
    seeds: list[bytes]
    good: Path
    start: int
    stop: int


class Worker:
    """A process that carries out a chunk.

    Args:
        chunk: The cases.
        place: A folder of its own.
        seed: Of the cases.
        work: Carries out the chunk, in the process; `at` is to be called before each case.
    """

    def __init__(self, chunk: Chunk, place: Path, *, seed: int, work: Callable[[Chunk, Path, int, At], None]) -> None:
        self.chunk, self.place = chunk, place
        place.mkdir(parents=True)
        self._clock = mmap.mmap(-1, _AT.size)
        self._clock[:] = _AT.pack(chunk.start, time.monotonic(), 0.0)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                # Whatever a reader starts must go with it, and Ctrl-C is the parent's to hear.
                os.setsid()
                faulthandler.disable()
                work(chunk, place, seed, self._at)
                status = 0
            finally:
                os._exit(status)

    def _at(self, number: int, idle: bool = False) -> None:
        """Note which case comes next; `idle` where it is not yet begun, and what takes time is no reader."""
        if idle:
            _limit_memory(None)
            self._clock[:] = _AT.pack(number, math.inf, math.inf)
        else:
            # Before each: what an engine itself gathers in a process is no case's doing.
            _limit_memory(MEMORY)
            self._clock[:] = _AT.pack(number, time.monotonic(), time.process_time())

    @property
    def number(self) -> int:
        """The case that it is at."""
        return int(_AT.unpack(self._clock[:])[0])

    def ended(self) -> int | None:
        """Return how the process ended, None while it goes on; kill it when it hangs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        _, began, spent = _AT.unpack(self._clock[:])
        if time.monotonic() - began > STILL_SECONDS or _processor_seconds(self.pid) - spent > HANG_SECONDS:
            return self.kill()
        return None

    def kill(self) -> int:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return -signal.SIGALRM  # tells a hang from another death


def _processor_seconds(pid: int) -> float:
    """Return the processor time that a process has taken."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _limit_memory(beside: int | None) -> None:
    """Let this process take so many bytes beside what it has already; None: as many as it likes."""
    most = hardest = resource.getrlimit(resource.RLIMIT_AS)[1]
    if beside is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + beside
    resource.setrlimit(resource.RLIMIT_AS, (most, hardest))
    # A thousand nested brackets are no reason for a core file of a GB.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def plainly(chunk: Chunk, place: Path, seed: int, at: At) -> None:
    """Carry out a chunk's cases, which their numbers decide on."""
    judge = Judge(chunk.target, chunk.good, place / "case")
    known: dict[str, int] = {}
    with (place / "found").open("a", encoding="utf-8") as stream:
        for number in range(chunk.start, chunk.stop):
            case = case_of(chunk.target, chunk.seeds, number, seed=seed)
            at(number)
            fault = judge(case, good=number == 0)
            if fault is not None:
                note(stream, fault, case, number, known)
    at(chunk.stop)


def note(stream: object, fault: Fault, case: Case, number: int, known: dict[str, int]) -> None:
    """Write a fault down, with its case where it is the first or the shortest one of its kind."""
    shorter = len(case.content) < known.get(fault.signature, 2**62)
    if shorter:
        known[fault.signature] = len(case.content)
    line = {"fault": asdict(fault), "number": number, "special": case.special}
    line["content"] = case.content.hex() if shorter else None
    print(json.dumps(line), file=stream, flush=True)  # type: ignore[call-overload]


def findings(worker: Worker) -> Iterator[tuple[Fault, Case | None, int]]:
    """Return what a worker wrote down: faults, their cases where it kept them, and their numbers."""
    path = worker.place / "found"
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last line of one that was killed
            values = json.loads(line)
            kept = values["content"] is not None
            case = Case(bytes.fromhex(values["content"]), values["special"]) if kept else None
            yield Fault(**values["fault"]), case, values["number"]


def chunks(target: Target, seeds: list[bytes], good: Path, count: int, size: int) -> list[Chunk]:
    """Divide a number of cases into chunks."""
    starts: Sequence[int] = range(0, count, size)
    return [Chunk(target, seeds, good, start, min(start + size, count)) for start in starts]
