"""Is a search ever lost? Kill it at random moments and break what it stands on; each time it must end clearly.

    .venv/bin/python -m tests.benchmarks.faults [--kills 60] [--jobs 2] [--seed 0] [--only NAME] [--keep DIR]
                                                [--faults-only | --kills-only] [--list]

A kill is SIGKILL, SIGTERM or Ctrl-C at a random moment of every phase of a small search. The same command is repeated,
and perhaps killed again, until the search is over: its result must be that of an undisturbed search, byte for byte.
Half of these searches have their `out` on another file system than TMPDIR.

A fault has one of three good endings. `refused`: a status other than 0, one sentence that names what is wrong, and
nothing lost: with the cause removed, the same command gives the undisturbed result. `resumed`: it went on to that
result. `survived`: the fault made no difference. Everything else is told in words, and makes the exit status 1.

The last line is JSON: `{kills, identical, faults: {name: ending}}`, and beside them `skipped` (what this machine cannot
play, with the reason), `broken` (the kills that were not identical), `phases` and `other_file_system` (how many kills
hit each phase, and a search whose `out` lay elsewhere). A whole run takes about an hour of CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.benchmarks.fault_cases import FAULTS
from tests.benchmarks.fault_states import Case, States, other_file_system
from tests.benchmarks.fault_subject import (
    COMMAND,
    OVER,
    PHASES,
    SPARE,
    Broken,
    Ended,
    Place,
    Process,
    Skipped,
    difference,
)

GOOD = ("refused", "resumed", "survived")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUSES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}}
EARLY_STATUSES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2, 1}}
"""In its first second, before the command itself has started, and in its last moments, once all is written, the ending
of Python itself will do: nothing is lost."""
EARLY_SECONDS = 1.0
AGAIN = 0.3
"""How often a search that was killed is killed once more."""
SHORTEST = 0.1
"""Phases of fewer seconds of CPU time are not aimed at: a process is over before it is hit."""
TRIES = 20


# ---- kills -----------------------------------------------------------------------------------------------------


@dataclass
class KilledSearch:
    """A search that was killed, perhaps several times, and repeated until it was over.

    Attributes:
        hits: What hit it, and in which phase.
        elsewhere: Whether its `out` was on another file system than TMPDIR.
        broken: What is wrong with how it ended; None where it ended as if nothing had happened.
    """

    hits: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: bool = False
    broken: str | None = None


def timeline(place: Place) -> list[float]:
    """Run a search undisturbed, and return the CPU seconds at which each of `PHASES` began, and that of its end.

    Raises:
        Broken: It failed.
    """
    process, begins, last = place.start(), [0.0], 0.0
    while process.runs:
        last = max(last, _finite(process.cpu()))
        begins += [last] * (place.phase + 1 - len(begins))
        time.sleep(0.01)
    ended = process.wait()
    if ended.status or place.phase != OVER:
        raise Broken(f"the undisturbed search failed: {ended.error.strip()[-300:]}")
    return [*begins, *[last] * (len(PHASES) + 1 - len(begins))]


def kill_search(place: Place, wanted: Path, *, number: int, seed: int, begins: Sequence[float]) -> KilledSearch:
    """Kill a search at random moments, repeat it until it is over, and compare what it ends with.

    Args:
        place: Where it runs.
        wanted: The run folder of the undisturbed one.
        number: Number of this case: it chooses the signal and the phase, so that a few cases have all of them.
        seed: Seed of the moments.
        begins: See `timeline`.
    """
    draw = random.Random(f"{seed} {number}")
    found, signal_number = KilledSearch(), SIGNALS[number % len(SIGNALS)]
    worth = [phase for phase in range(OVER) if begins[phase + 1] - begins[phase] >= SHORTEST]
    aim, wished = worth[number % len(worth)], 1 + (draw.random() < AGAIN)
    for _ in range(TRIES):
        process = place.start()
        wanted_more = len(found.hits) < wished
        hit = _strike(process, place, aim, draw, signal_number, begins) if wanted_more else None
        ended, phase = process.wait(), PHASES[place.phase][0]
        if hit is not None and ended.status != 0:
            found.hits.append((signal_number.name, phase))
            found.broken = _wrong_ending(
                ended, process, signal_number, early=hit < EARLY_SECONDS or place.phase == OVER
            )
            signal_number = draw.choice(SIGNALS)
            aim = draw.choice([one for one in worth if one >= place.phase] or worth[-1:])
        elif ended.status != 0:
            found.broken = f"the search did not go on: status {ended.status}: {ended.sentence[:300]}"
        elif place.phase != OVER:
            found.broken = (
                f"status 0 without a result, {'undisturbed' if hit is None else signal_number.name} in {phase}"
            )
        elif not found.hits:
            # It was over before it was hit.
            shutil.rmtree(place.out)
            aim = draw.choice(worth[:-1] or worth)
        else:
            found.broken = difference(place.out, wanted, extra=SPARE)
            return found
        if found.broken is not None:
            return found
    found.broken = f"not over after {TRIES} starts"
    return found


def _strike(
    process: Process, place: Place, aim: int, draw: random.Random, number: signal.Signals, begins: Sequence[float]
) -> float | None:
    """Send a signal at a random moment of a phase, and return its CPU time then; None where it was over before."""
    length = begins[aim + 1] - begins[aim]
    if place.phase >= aim > 0:
        # A search that goes on: its start is part of the phase.
        due = draw.uniform(0, begins[1] + length)
    else:
        if not process.wait_for(lambda: place.phase >= aim):
            return None
        due = process.cpu() + draw.uniform(0, length)
    if not process.wait_for(lambda: process.cpu() >= due or aim < place.phase < OVER) or not process.runs:
        return None
    then = process.cpu()
    process.send(number)
    return then


def _wrong_ending(ended: Ended, process: Process, number: signal.Signals, *, early: bool) -> str | None:
    """Say why a killed search did not end as its signal demands; None where it did."""
    if ended.status not in (EARLY_STATUSES if early else STATUSES)[number]:
        return f"{number.name} ended with status {ended.status}: {ended.sentence[:200]}"
    if number != signal.SIGKILL and not early:
        reason = ended.why_no_sentence()
        if reason is not None:
            return f"{number.name} ended with {reason}"
    left = process.session()
    return f"{number.name} left processes: {left}" if left and number != signal.SIGKILL else None


def _finite(value: float) -> float:
    return value if value < float("inf") else 0.0


# ---- running and telling ---------------------------------------------------------------------------------------


def side_by_side(jobs: int, work: Mapping[str, Callable[[], Any]]) -> Iterator[tuple[str, Any, float]]:
    """Run functions by name, so many at a time, and yield each name, result and seconds as it comes."""

    def timed(function: Callable[[], Any]) -> tuple[Any, float]:
        start = time.monotonic()
        return function(), time.monotonic() - start

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(timed, function): name for name, function in work.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            Process.end_all()
            raise


def run_kills(states: States, count: int, *, jobs: int, seed: int, elsewhere: Path | None) -> dict[str, Any]:
    """Kill so many searches, and return what the last line says of them.

    Args:
        states: Gives the places.
        count: Number of searches that are killed; some are killed twice.
        jobs: Searches at the same time.
        seed: Seed of the moments.
        elsewhere: A folder on another file system than TMPDIR, for the `out` of half of them.
    """
    place = states.place(states.work / "undisturbed")
    begins = timeline(place)
    spans = {name: round(begins[i + 1] - begins[i], 2) for i, (name, _) in enumerate(PHASES[:OVER])}
    print(f"undisturbed, in seconds of CPU time: {spans}", flush=True)

    def kill(number: int) -> KilledSearch:
        away = elsewhere is not None and number % 2 == 1
        folder = states.work / "kills" / f"{number}"
        out = Path(tempfile.mkdtemp(prefix="faults-", dir=elsewhere)) if away else folder
        try:
            there = states.place(folder, out=out / "out")
            found = kill_search(there, place.out, number=number, seed=seed, begins=begins)
        except Broken as error:
            found = KilledSearch([("", "")], broken=str(error))
        finally:
            if away:
                shutil.rmtree(out, ignore_errors=True)
        found.elsewhere = away
        if found.broken is None:
            shutil.rmtree(folder)
        return found

    kills, identical, broken, phases, away = 0, 0, {}, Counter[str](), 0
    work = {str(number): lambda number=number: kill(number) for number in range(count)}
    for name, found, seconds in side_by_side(jobs, work):
        hits = ", then ".join(f"{number} in {phase}" for number, phase in found.hits)
        there = " on another file system" if found.elsewhere else ""
        told = f"kill {name}: {hits or 'no hit'}{there}: {found.broken or 'identical'}"
        print(f"{told}, {seconds:.0f} s", flush=True)
        kills += max(1, len(found.hits))
        phases.update(phase for _, phase in found.hits)
        away += len(found.hits) if found.elsewhere else 0
        if found.broken is None:
            identical += len(found.hits)
        else:
            broken[told.partition(": ")[0]] = told.partition(": ")[2]
    return {
        "kills": kills,
        "identical": identical,
        "broken": broken,
        "phases": dict(phases),
        "other_file_system": away if elsewhere else "skipped: no other file system than TMPDIR's can be written to",
    }


def run_faults(states: States, faults: Mapping[str, Callable[[Case], str]], *, jobs: int) -> dict[str, Any]:
    """Play faults, and return what the last line says of them."""

    # Numbers, as a folder with the name of the fault would name the cause in every message.
    folders = {name: states.work / "faults" / str(number) for number, name in enumerate(faults)}

    def play(name: str) -> tuple[str, str]:
        case = Case(states, folders[name])
        try:
            outcome = faults[name](case)
        except Broken as error:
            outcome = f"broken: {error}"
        except Skipped as reason:
            outcome = f"skipped: {reason}"
        except Exception as error:  # one case that the harness cannot play must not end the others
            outcome = f"broken: {type(error).__name__}: {error}"
        finally:
            case.close()
        if outcome in GOOD:
            shutil.rmtree(case.folder, ignore_errors=True)
        return outcome, case.said

    found, skipped = {}, {}
    work = {name: lambda name=name: play(name) for name in faults}
    for name, (outcome, said), seconds in side_by_side(jobs, work):
        more = f": {said}" if outcome in GOOD and said else "" if outcome in GOOD else f", in {folders[name]}"
        print(f"fault {name}: {outcome}, {seconds:.0f} s{more}", flush=True)
        if outcome.startswith("skipped: "):
            skipped[name] = outcome.partition(": ")[2]
        else:
            found[name] = outcome
    return {"faults": {name: found[name] for name in faults if name in found}, "skipped": skipped}


def is_good(told: Mapping[str, Any]) -> bool:
    """Whether every kill was identical and every fault ended as it may."""
    return told["kills"] == told["identical"] and all(outcome in GOOD for outcome in told["faults"].values())


def main(arguments: Sequence[str] | None = None, *, command: Sequence[str] = COMMAND) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="searches that are killed, some of them twice")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="NAME", help="faults with this in their name, or like f*t")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty folder for all files; broken cases stay")
    parser.add_argument("--list", action="store_true", help="name the faults")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--faults-only", action="store_true")
    part.add_argument("--kills-only", action="store_true")
    options = parser.parse_args(arguments)
    wanted = {
        name: fault
        for name, fault in FAULTS.items()
        if options.only is None or any(fnmatch(name, f"*{part}*") for part in options.only)
    }
    if options.list:
        print("\n".join(wanted))
        return 0
    if not wanted:
        parser.error(f"no fault has {', '.join(options.only)} in its name; --list names them")

    told: dict[str, Any] = {"kills": 0, "identical": 0, "faults": {}}
    work = options.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        states = States(work, command=command)
        if not options.faults_only and options.only is None:
            elsewhere = other_file_system()
            told |= run_kills(states, options.kills, jobs=options.jobs, seed=options.seed, elsewhere=elsewhere)
        if not options.kills_only:
            told |= run_faults(states, wanted, jobs=options.jobs)
    finally:
        if options.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(told))
    return 0 if is_good(told) else 1


if __name__ == "__main__":
    # A background job ignores Ctrl-C, and so would everything that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
