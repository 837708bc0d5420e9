"""Does any input do harm? Every reader of this project on files that are nearly right.

    .venv/bin/python -m tests.benchmarks.fuzz [--executions 200000] [--minutes M] [--jobs 2] [--seed 0] [--only NAME]
                                              [--keep DIR] [--engine plain|atheris] [--list]

An input may be refused by an error of this project, in one line of at most 700 characters that names the file, or be
read. Everything else counts. A crash: any other exception, another message, a process that dies, a file that appears
or changes beside the input. A hang: more than 10 seconds, or more than 1 GB. A payload that runs leaves a file, and so
is a crash.

The plain engine changes real files of each kind, and its cases are a function of `--seed` alone. Where atheris is
installed (`make fuzz`), the changes are also guided by which lines of this project they reach. `--keep` keeps the
shortest input of each fault, made shorter where that is quick. The last line is JSON: `{executions, crashes, hangs,
targets: {name: executions}}`; the exit status is 1 where there is a crash or a hang.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.benchmarks.fuzz_cases import Case, Fault, Judge, Target, case_of, of_special
from tests.benchmarks.fuzz_texts import shrunk
from tests.benchmarks.fuzz_workers import At, Chunk, Worker, chunks, findings, plainly

CHUNK = 1000
"""Cases of a process; fewer for slow targets, so that every target has its turn."""
SHRINK_SECONDS = 5.0


@dataclass
class Result:
    """What was found.

    Attributes:
        executions: Cases by target.
        counts: Faulty cases by target and signature.
        worst: The fault and the shortest case of each.
    """

    executions: dict[str, int] = field(default_factory=lambda: collections.defaultdict(int))
    counts: dict[tuple[str, str], int] = field(default_factory=lambda: collections.defaultdict(int))
    worst: dict[tuple[str, str], tuple[Fault, Case]] = field(default_factory=dict)

    def add(self, target: str, fault: Fault, case: Case | None) -> None:
        key = (target, fault.signature)
        self.counts[key] += 1
        known = self.worst.get(key)
        if case is not None and (known is None or len(case.content) < len(known[1].content)):
            self.worst[key] = (fault, case)

    def of_kind(self, kind: str) -> int:
        return sum(count for key, count in self.counts.items() if self.worst[key][0].kind == kind)


# ---- carrying out ---------------------------------------------------------------------------------------------


@dataclass
class Fuzzing:
    """The chunks that are left, and the processes that are at some.

    Attributes:
        place: A folder in memory.
        jobs: Processes at a time.
        seed: Of the cases.
        deadline: When to stop, by the monotonic clock.
        work: What a process does with a chunk.
    """

    place: Path
    jobs: int
    seed: int
    deadline: float
    work: Callable[[Chunk, Path, int, At], None] = plainly
    result: Result = field(default_factory=Result)

    def run(self, queue: collections.deque[Chunk]) -> Result:
        """Carry out chunks until there is none left, or the time is up."""
        going: list[Worker] = []
        started = 0
        try:
            while going or (queue and time.monotonic() < self.deadline):
                while queue and len(going) < self.jobs and time.monotonic() < self.deadline:
                    started += 1
                    going.append(Worker(queue.popleft(), self.place / f"w{started}", seed=self.seed, work=self.work))
                for worker in list(going):
                    status = worker.ended()
                    if status is None and time.monotonic() > self.deadline:
                        worker.kill()
                        status = 0
                    if status is not None:
                        going.remove(worker)
                        self._gather(worker, status, queue)
                time.sleep(0.02)
        finally:
            for worker in going:
                worker.kill()
        return self.result

    def _gather(self, worker: Worker, status: int, queue: collections.deque[Chunk]) -> None:
        chunk, name, number = worker.chunk, worker.chunk.target.name, worker.number
        for fault, case, _ in findings(worker):
            self.result.add(name, fault, case)
        self.result.executions[name] += min(number, chunk.stop) - chunk.start
        if status != 0:
            self.result.executions[name] += 1
            case = self._case(worker, number)
            self.result.add(name, of_special(_ending(status), case), case)
            if number + 1 < chunk.stop:
                queue.appendleft(Chunk(chunk.target, chunk.seeds, chunk.good, number + 1, chunk.stop))
        shutil.rmtree(worker.place, ignore_errors=True)

    def _case(self, worker: Worker, number: int) -> Case:
        """Return the case that a process died at: what it had written down, or what the number stands for."""
        written = worker.place / "current"
        if written.exists():
            return Case(written.read_bytes())
        return case_of(worker.chunk.target, worker.chunk.seeds, number, seed=self.seed)


def _ending(status: int) -> Fault:
    if status == -14:
        return Fault("hang", "time", "it took more than 10 s")
    if status == -9:
        return Fault("hang", "killed", "it was killed, perhaps for its memory")
    return Fault("crash", f"died {status}", f"its process ended with status {status}")


# ---- inputs that are kept ---------------------------------------------------------------------------------------


def shorter(target: Target, good: Path, place: Path, fault: Fault, case: Case) -> Case:
    """Return a shorter case with the same fault; found in this process, so not for those that hang or die."""
    if case.special or fault.kind == "hang" or fault.signature.startswith("died"):
        return case
    judge, end = Judge(target, good, place), time.monotonic() + SHRINK_SECONDS

    def still(content: bytes) -> bool:
        if time.monotonic() > end:
            return False
        found = judge(Case(content))
        return found is not None and found.signature == fault.signature

    content = case.content
    if len(content) < 200_000 and still(content):
        content = shrunk(content, still)
    shutil.rmtree(place, ignore_errors=True)
    return Case(content)


def keep(folder: Path, target: Target, fault: Fault, case: Case) -> Path:
    """Write an input to a folder, with what it does beside it; return the input's file."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{target.name} {fault.signature}").strip("-")[:120]
    suffix = Path(target.file).suffix or ".txt"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{suffix}"
    path.write_bytes(case.content)
    special = f"\nthe input is {case.special}" if case.special else ""
    (folder / f"{name}.why").write_text(f"{target.name}: {fault.kind}: {fault.sentence}{special}\n", encoding="utf-8")
    return path


# ---- the command ------------------------------------------------------------------------------------------------


def _prepared(target: Target, folder: Path) -> tuple[Path, list[bytes]]:
    """Fill a folder with a target's good files; return it and the contents to begin with, the file's own first."""
    folder.mkdir(parents=True)
    target.prepare(folder)
    own = [(folder / target.file).read_bytes()] if target.file else []
    return folder, [*own, *target.seeds(folder)]


def _planned(chosen: Sequence[Target], executions: int, folder: Path) -> collections.deque[Chunk]:
    """Divide executions among targets by their shares, a chunk of each in turn."""
    total = sum(target.share for target in chosen)
    rows = []
    for number, target in enumerate(chosen):
        good, seeds = _prepared(target, folder / f"g{number}")
        count = max(len(seeds) + 8, round(executions * target.share / total))
        rows.append(chunks(target, seeds, good, count, max(20, round(CHUNK * min(1.0, target.share)))))
    most = max(map(len, rows))
    return collections.deque(row[index] for index in range(most) for row in rows if index < len(row))


def main(arguments: Sequence[str] | None = None, *, targets: Sequence[Target] | None = None) -> int:
    """Fuzz; return the exit status.

    Args:
        arguments: The command line.
        targets: Other readers than this project's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long, whatever is left")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a target, or a pattern")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep one input of each fault there")
    parser.add_argument("--engine", choices=["plain", "atheris"], default=None)
    parser.add_argument("--list", action="store_true", help="list the targets")
    options = parser.parse_args(arguments)
    guided = options.engine == "atheris" or (options.engine is None and importlib.util.find_spec("atheris") is not None)
    instrumented: Any = nullcontext()
    if guided:
        from tests.benchmarks import fuzz_guided

        instrumented = fuzz_guided.instrumented()
    with instrumented:
        if targets is None:
            from tests.benchmarks.fuzz_targets import targets as all_targets

            targets = all_targets()
        chosen = [
            target for target in targets if not options.only or any(fnmatch(target.name, p) for p in options.only)
        ]
        if options.list or not chosen:
            print("\n".join(target.name for target in targets))
            return 0 if options.list else parser.error(f"no target is called {' or '.join(options.only)}; see --list")
        # In memory: a case writes a file.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as place:
            end = time.monotonic() + 60 * options.minutes if options.minutes is not None else float("inf")
            fuzzing = Fuzzing(Path(place), options.jobs, options.seed, end)
            if guided:
                fuzzing.work = fuzz_guided.guidedly
            queue = _planned(chosen, options.executions, Path(place))
            goods = {chunk.target.name: chunk.good for chunk in queue}
            # Read once here: what readers import when they first read is then there in every process.
            for target in chosen:
                first = next(chunk for chunk in queue if chunk.target is target)
                Judge(target, first.good, Path(place) / "first")(Case(first.seeds[0]))
            result = fuzzing.run(queue)
            _tell(chosen, result, goods, Path(place), options.keep)
    crashes, hangs = result.of_kind("crash"), result.of_kind("hang")
    executions = {target.name: result.executions[target.name] for target in chosen}
    last = {"executions": sum(executions.values()), "crashes": crashes, "hangs": hangs, "targets": executions}
    print(json.dumps(last), flush=True)
    return 1 if crashes or hangs else 0


def _tell(chosen: Sequence[Target], result: Result, goods: dict[str, Path], place: Path, kept: Path | None) -> None:
    for target in chosen:
        found = sorted((key for key in result.counts if key[0] == target.name), key=lambda key: -result.counts[key])
        faulty = sum(result.counts[key] for key in found)
        print(f"{target.name}: {result.executions[target.name]} executions, {faulty} faulty", flush=True)
        for key in found:
            fault, case = result.worst[key]
            line = f"  {fault.kind}, {result.counts[key]} times: {fault.sentence}"
            if kept is not None:
                case = shorter(target, goods[target.name], place / "shorter", fault, case)
                line += f" [{keep(kept, target, fault, case)}]"
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
