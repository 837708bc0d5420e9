"""The state of the fake phone: what it was told to be, in `plan.json`, and what has happened to it, in `state.json`.

Its storage and its kernel's files are folders beside these. A run of a program heats it, and after a look at it it
cools; where it throttles it slows down, and says so or lowers what its cores may reach. All its times come from a
formula that the test knows: `figures`, in ms, a tenth more in each further run of a graph.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HOME = Path(os.environ.get("FAKE_PHONE", "/nowhere"))  # a test makes phones, and is none
CORES = {**dict.fromkeys(range(4), 1_800_000), **dict.fromkeys(range(4, 7), 2_400_000), 7: 2_850_000}
PLAN = {
    "devices": {"R3CT10": "device"},
    "abi": "arm64-v8a,armeabi-v7a,armeabi",
    "celsius": 25.0,
    "heat": 0.0,
    "cooling": 0.5,
    "throttled": [],  # runs in which it throttles; a look at it shows that, the third one after that no more
    "says": "status",  # or "frequency": how it shows that it throttles
    "thermalservice": True,
    "lost_at": [],  # runs in the middle of which the cable falls out
    "away": 3,  # calls of adb for which it stays so
    "storage": "free",  # or "full", or "short": files arrive cut, and adb says nothing
    "cuts": [],  # commands that end without a word, though the phone is there
    "output": "whole",
    "figures": {},
}


def make(folder: Path, **changes: object) -> None:
    unknown = set(changes) - set(PLAN)
    assert not unknown, unknown
    (folder / "storage").mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({**PLAN, **changes}))
    if not (folder / "state.json").exists():
        write(
            folder,
            {
                "celsius": changes.get("celsius", PLAN["celsius"]),
                "runs": 0,
                "away": 0,
                "hot": 0,
                "seen": {},
                "shells": [],
            },
        )
    dump = folder / "dump"
    dump.mkdir(exist_ok=True)
    (dump / "ro.product.manufacturer").write_text("Formula\n")
    (dump / "ro.product.model").write_text("One\n")
    (dump / "ro.build.version.release").write_text("14\n")
    (dump / "ro.product.cpu.abilist").write_text(f"{changes.get('abi', PLAN['abi'])}\n")
    for core, khz in CORES.items():
        frequencies = folder / "cpu" / f"cpu{core}" / "cpufreq"
        frequencies.mkdir(parents=True, exist_ok=True)
        for name in ("cpuinfo_max_freq", "scaling_max_freq", "scaling_cur_freq"):
            (frequencies / name).write_text(f"{khz}\n")


def plan() -> dict:
    return json.loads((HOME / "plan.json").read_text())


def read() -> dict:
    return json.loads((HOME / "state.json").read_text())


def write(folder: Path, state: dict) -> None:
    (folder / "state.json").write_text(json.dumps(state))


def look() -> None:
    """Write what the phone's services and its kernel say of its heat; then it cools a while, to room temperature."""
    state, planned, dump = read(), plan(), HOME / "dump"
    (dump / "battery").write_text(
        "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  status: 2\n  level: 83\n"
        f"  voltage: 4123\n  temperature: {round(10 * state['celsius'])}\n  technology: Li-ion\n"
    )
    status = 2 if state["hot"] and planned["says"] == "status" else 0
    if planned["thermalservice"]:
        (dump / "thermalservice").write_text(
            f"IsStatusOverride: false\nThermalEventListeners:\n\tcallbacks: 1\nThermal Status: {status}\n"
            f"Cached temperatures:\n\tTemperature{{mValue={state['celsius'] + 3:.1f}, mType=3, mName=SKIN, mStatus=0}}"
            "\nHAL Ready: true\n"
        )
    for core, khz in CORES.items():
        reach = khz // 2 if state["hot"] and planned["says"] == "frequency" else khz
        (HOME / "cpu" / f"cpu{core}" / "cpufreq" / "scaling_max_freq").write_text(f"{reach}\n")
    state["hot"] = max(0, state["hot"] - 1)
    state["celsius"] = max(25.0, state["celsius"] - planned["cooling"])
    write(HOME, state)


def run(graph: str) -> tuple[float, str]:
    """Run a graph; return its time in ms, and what becomes of the output."""
    assert Path(graph).is_file(), graph
    state, planned = read(), plan()
    state["runs"] += 1
    name = Path(graph).stem
    turn = state["seen"].get(name, 0)
    throttled, lost = state["runs"] in planned["throttled"], state["runs"] in planned["lost_at"]
    state["celsius"] += planned["heat"]
    if throttled:
        state["hot"] = 3
    else:
        state["seen"][name] = turn + 1
    if lost:
        state["away"] = planned["away"]
    write(HOME, state)
    ms = planned["figures"][name] * (1 + 0.1 * turn) * (1.7 if throttled else 1.0)
    return ms, "cut" if lost else planned["output"]


def say(text: str, output: str) -> None:
    """Print a program's output as the plan wants it."""
    if output == "cut":
        sys.stdout.write(text[: len(text) // 2])
    elif output == "silent":
        pass
    else:
        print(text, flush=True)
