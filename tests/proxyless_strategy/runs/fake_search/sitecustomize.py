"""Puts a search that takes no time in the place of the real one, in every process started with this on PYTHONPATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

RULES = {"gradient": 0.0, "reinforce": 0.01}


class Library:
    """Finds nothing, as nothing is read."""


def prepare(config: Any, *, quiet: bool, library: Library) -> None:
    check(config)
    if not quiet:
        print(f"prepared {config.hardware.backend}", flush=True)


def check(config: Any) -> None:
    if config.rule == os.environ.get("FAKE_REFUSED_RULE"):
        from hardware.errors import TargetError

        raise TargetError(f"target {config.target} is refused; choose another")


def run_search(config: Any, *, on_epoch: Any = None) -> Any:
    check(config)
    accuracy = config.target + RULES[config.rule]
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "starts").open("a") as starts:
        starts.write("start\n")
    number = len((config.out / "starts").read_text().splitlines())
    endless = os.environ.get("FAKE_ENDLESS") or config.rule == os.environ.get("FAKE_ENDLESS_RULE")
    if endless and number <= int(os.environ.get("FAKE_ENDLESS_STARTS", "99")):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (config.out.parent / "endless").touch()
        time.sleep(600)
    if config.rule == os.environ.get("FAKE_FAILING_RULE") and number <= int(os.environ.get("FAKE_FAILURES", "99")):
        raise RuntimeError("the fake search failed as it was told to")
    for epoch in range(3):
        if on_epoch is not None:
            on_epoch({"phase": "search", "epoch": epoch, "default": accuracy * epoch / 2, "loss": float("nan")})
    row = {
        "rule": config.rule,
        "cost": "latency",
        "unit": "ms",
        "target_cost": config.target * 10,
        "subnet_cost": config.target * 9,
        "target_ms": config.target * 10,
        "table_ms": config.target * 9,
        "latency_ms": config.target * 9.1,
        "accuracy": accuracy,
        "params": 1000,
        "macs": 20000,
        "folder": Path(os.environ.get("FAKE_EXPORT", str(config.out))),
        "seconds": 0.1,
    }
    kept = ("NNI_", "PROXYLESS_", "RAY_", "OMP_NUM_THREADS")
    seen = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    (config.out / "seen.json").write_text(json.dumps({"cwd": os.getcwd(), "environment": seen}))
    return SimpleNamespace(row=lambda: row)


if os.environ.get("FAKE_MANAGER"):
    # A trial that asks another port than NNI's: of a proxy between the two.
    real, proxy = os.environ["FAKE_MANAGER"].split(",")
    url = os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", "")
    os.environ["NNI_TRIAL_COMMAND_CHANNEL"] = url.replace(f":{real}/", f":{proxy}/")

if os.environ.get("FAKE_SEARCH"):
    search, preparation = (ModuleType(f"proxyless_strategy.runs.{name}") for name in ("search", "prepare"))
    vars(search).update(run_search=run_search)
    vars(preparation).update(prepare=prepare, Library=Library)
    sys.modules |= {module.__name__: module for module in (search, preparation)}
