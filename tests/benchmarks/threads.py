"""What sleeping threads, and trying how many, are worth: seconds of a small search alone and beside a busy process.

.venv/bin/python -m tests.benchmarks.threads

Each search is a process of its own, as `proxyless search` starts it: `ours` with an environment that says nothing of
threads; `spinning` as OpenMP waits by itself, on every core; `one_thread` as the settings can ask for. The last line
has the ratios to `ours`. A search that lasts longer than the limit is ended: it has no seconds and no ratio, only a
least one where `ours` has ended in time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from hardware.child_process import PASSIVE, WAITING
from hardware.processor import cores, share_of_others

SEARCH = {
    "space": {
        "name": "small_mbconv",
        "options": {
            "stages": [{"width": 16, "depth": 2, "stride": 2}, {"width": 24, "depth": 2, "stride": 2}],
            "head_width": 64,
        },
    },
    "data": "digits",
    "input_size": 16,
    "hardware": {"cost": "macs", "device": "other"},
    "target": 0.5,
    "search": {"warmup_epochs": 1, "epochs": 2, "batch_size": 64, "steps_per_update": 2},
    "retrain": {"epochs": 1, "batch_size": 64},
}
CHOSEN = (*PASSIVE, WAITING, "GOMP_SPINCOUNT", "KMP_LIBRARY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environments() -> dict[str, tuple[dict[str, str], dict[str, int]]]:
    """Return the environment and the further settings of each way to start a search."""
    plain = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    # OpenMP's default number of spins, said aloud, so that nothing else is set.
    spinning = {**plain, "GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(cores())}
    return {
        "spinning": (spinning, {}),
        "one_thread": (plain, {"search.threads": 1, "retrain.threads": 1}),
        "ours": (plain, {}),
    }


def seconds_of(folder: Path, environment: dict[str, str], settings: dict[str, int], limit: float) -> float | None:
    """Run one search in a fresh folder, and return its seconds; None where it was ended at the limit."""
    path = folder / "search.yml"
    path.write_text(yaml.safe_dump({**SEARCH, "out": "run"}), encoding="utf-8")
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    command = [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.cli", "search", str(path), *options]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1000:]}")
    return round(time.perf_counter() - start, 1)


@contextmanager
def busy_process(*, running: bool) -> Iterator[None]:
    """Keep one core busy inside the context."""
    command = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command) if running else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=40.0, help="seconds after which a search is ended")
    arguments = parser.parse_args()
    print(json.dumps({"cores": cores(), "busy_with_others": round(share_of_others(1.0), 2), "limit": arguments.limit}))
    found: dict[str, dict[str, float | None]] = {}
    for place in ("alone", "beside"):
        found[place] = {}
        for name, (environment, settings) in environments().items():
            with tempfile.TemporaryDirectory() as folder, busy_process(running=place == "beside"):
                found[place][name] = seconds_of(Path(folder), environment, settings, arguments.limit)
            load = psutil.getloadavg()[0]
            print(json.dumps({"place": place, "start": name, "seconds": found[place][name], "load": load}), flush=True)
    ratios: dict[str, float | None] = {}
    for place, times in found.items():
        ours = times["ours"]
        for name, seconds in times.items():
            if name != "ours":
                word = "at_least_" if seconds is None and ours is not None else ""
                least = seconds if seconds is not None else arguments.limit
                ratios[f"{word}{place}_{name}"] = None if ours is None else round(least / ours, 2)
    print(json.dumps({"seconds": found, "ratios": ratios}))


if __name__ == "__main__":
    main()
