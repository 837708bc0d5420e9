"""The faults of processes, checkpoints, settings and data: see `tests.benchmarks.fault_cases`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.benchmarks.fault_states import Case
from tests.benchmarks.fault_subject import ROOT, Broken, Process, difference, names_in, row_of

MODULE = Path(__file__).parent / "fault_pictures.py"


# ---- processes -------------------------------------------------------------------------------------------------


def child_killed(case: Case, *, changes: Mapping[str, Any], which: Callable[[psutil.Process], bool]) -> str:
    """Kill a process that the search started, as the kernel does when memory runs out."""
    place = case.begin(changes=changes, beside=[MODULE])
    process = place.start()
    process.wait_for((place.out / "search.ckpt").exists)
    found: list[psutil.Process] = []
    process.wait_for(lambda: found.extend(child for child in process.children() if which(child)) or found)
    if not found:
        raise Broken(f"the search had no such process: {process.wait().sentence[:300]}")
    found[0].kill()
    return case.outcome(process.wait(), "worker|process|rank|kill", repair=lambda: None)


def is_worker(child: psutil.Process) -> bool:
    """Whether a process is one of a DataLoader, and not a helper of `multiprocessing` that nothing waits for."""
    with contextlib.suppress(psutil.Error):
        return "tracker" not in " ".join(child.cmdline())
    return False


def is_rank(child: psutil.Process) -> bool:
    """Whether a process is one that Lightning started."""
    with contextlib.suppress(psutil.Error):
        return child.environ().get("LOCAL_RANK") == "1"
    return False


def in_one_folder(case: Case, *, changes: Mapping[str, Any], at_once: bool) -> str:
    """Start two searches with the same `out`: one is refused, and the other is not disturbed."""
    place = case.begin()
    second = case.folder / "second.yml"
    place.write(second, changes)
    processes = [place.start()]
    if not at_once:
        processes[0].wait_for((place.out / "search.ckpt").exists)
    processes.append(place.start("search", str(second)))
    ended = [process.wait() for process in processes]
    if all(one.status for one in ended):
        raise Broken("both failed: " + "; ".join(one.sentence[:200] for one in ended))
    first_won = ended[0].status == 0
    if all(one.status == 0 for one in ended):
        if changes:
            raise Broken("both ended with 0, with different settings")
        case.must_be_undisturbed()
        return "survived"
    case.must_refuse(ended[1] if first_won else ended[0], re.escape(str(place.out)))
    if not first_won and not at_once:
        raise Broken("the second one drove the first one out")
    wrong = difference(place.out, case.states.finished(None if first_won else changes))
    if wrong is not None:
        raise Broken(f"the one that was not refused: {wrong}")
    return "refused"


# ---- NNI -------------------------------------------------------------------------------------------------------


def _experiment(case: Case) -> tuple[list[str], dict[str, str]]:
    case.begin()
    home = case.folder / "home"
    home.mkdir()
    case.on_close(_end_all, home)
    values = {
        "searchSpace": {"seed": {"_type": "choice", "_value": [11]}},
        "tuner": {"name": "GridSearch"},
        "trialConcurrency": 1,
        "maxTrialNumber": 1,
        "trialCommand": f"{case.states.command[0]} -m proxyless_strategy.trial search.yml",
        "trainingService": {"platform": "local"},
    }
    config = case.folder / "experiment.yml"
    config.write_text(yaml.safe_dump(values))
    return ["experiment", str(config)], {"HOME": str(home)}


def _with_home(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def _end_all(home: Path) -> None:
    for process in _with_home(home):
        with contextlib.suppress(psutil.Error):
            process.kill()


def manager(case: Case, *, number: signal.Signals) -> str:
    """Kill or freeze NNI's manager while its trial searches."""
    arguments, environment = _experiment(case)
    out = case.place.out
    process = case.place.start(*arguments, environment=environment)
    if not process.wait_for(lambda: list(out.glob("*/search.ckpt"))):
        raise Broken(f"the experiment ended before: {process.wait().sentence[:300]}")
    for found in _with_home(Path(environment["HOME"])):
        with contextlib.suppress(psutil.Error):
            if found.name() == "node" or "nni_node" in " ".join(found.cmdline()[:1]):
                found.send_signal(number)
    ended = process.wait()
    if ended.status == 0:
        _check_summary(case)
        return "survived"
    case.must_refuse(ended, "NNI|manager|experiment")
    _end_all(Path(environment["HOME"]))
    again = case.place.run(*arguments, "--resume", environment=environment)
    if again.status:
        raise Broken(f"--resume ends with {again.status}: {again.sentence[:300]}")
    _check_summary(case)
    return "resumed"


def _check_summary(case: Case) -> None:
    summary = case.place.out / "summary.json"
    if not summary.exists():
        raise Broken("no summary.json")
    rows = json.loads(summary.read_text())
    rows = rows if isinstance(rows, list) else rows.get("rows", rows.get("trials", []))
    wanted = row_of(case.states.finished() / "row.json")
    differing = [key for key, value in wanted.items() if not rows or rows[0].get(key, value) != value]
    if len(rows) != 1 or differing:
        raise Broken(f"summary.json has {len(rows)} rows, which differ in {differing}")


def port_taken(case: Case) -> str:
    """Ask for a port on which another program listens."""
    arguments, environment = _experiment(case)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        return case.must_refuse(case.place.run(*arguments, "--port", port, environment=environment), port)


# ---- clocks ----------------------------------------------------------------------------------------------------

TEN_YEARS = 10 * 365.25 * 86400
CLOCK = """
import os, time
shift = float(os.environ["CLOCK_SHIFT"])
read, read_ns = time.time, time.time_ns
time.time = lambda: read() + shift
time.time_ns = lambda: read_ns() + int(shift * 1e9)
"""


def dates(case: Case, *, years: int, state: str) -> str:
    """Date every file ten years back or ahead, and go on."""
    place = case.begin(state, own_table=True)
    then = time.time() + TEN_YEARS * (1 if years > 0 else -1)
    for path in [*place.out.rglob("*"), place.out, place.table]:
        os.utime(path, (then, then))
    return case.outcome(place.run(), "date|clock|time", well="resumed", repair=lambda: None)


def clock(case: Case, *, years: int) -> str:
    """Go on with the machine's clock ten years off, as Python sees it."""
    place = case.begin("searching")
    modules = case.folder / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(CLOCK)
    shift = str(TEN_YEARS * (1 if years > 0 else -1))
    ended = place.run(environment={"PYTHONPATH": str(modules), "CLOCK_SHIFT": shift})
    return case.outcome(ended, "date|clock|time", well="resumed", repair=lambda: None)


# ---- checkpoints of another search -----------------------------------------------------------------------------


def scaled(path: Path) -> None:
    """Make every second operator of a table dearer, in place."""
    table = yaml.safe_load(path.read_text())
    for number, entry in enumerate(table["entries"].values()):
        entry["ms"] *= 1 + number % 2
    path.write_text(yaml.safe_dump(table, sort_keys=False))


def foreign_checkpoint(case: Case, *, changes: Mapping[str, Any], names: str) -> str:
    """Put the checkpoints of another search into a run folder."""

    def other_table(folder: Path) -> Path:
        folder.mkdir(parents=True)
        path = Path(shutil.copy(case.states.table, folder / "other_table.yml"))
        scaled(path)
        return path

    other = {
        name: str(case.states.once("other table", other_table)) if value is ... else value
        for name, value in changes.items()
    }
    there = case.states.stopped("searching", other)
    place = case.begin("searching")
    own = {path: path.read_bytes() for path in place.out.glob("search*.ckpt")}
    for path in own:
        path.unlink()
    for path in there.glob("search*.ckpt"):
        shutil.copy(path, place.out)

    def repair() -> None:
        for path in place.out.glob("search*.ckpt"):
            path.unlink()
        for path, content in own.items():
            path.write_bytes(content)

    ended = place.run()
    if ended.status == 0:
        wrong = difference(place.out, case.states.finished())
        raise Broken(f"status 0 from the checkpoint of a search with another {names}: {wrong or 'the same result'}")
    return case.outcome(ended, names, repair=repair)


def table_changed(case: Case) -> str:
    """Change the table between two starts."""
    place = case.begin("searching", own_table=True)
    whole = place.table.read_bytes()
    scaled(place.table)
    return case.outcome(place.run(), "table", repair=lambda: place.table.write_bytes(whole))


OWN_DATA = {"data.name": f"{MODULE.stem}:digits"}


def data_changed(case: Case) -> str:
    """Change one pixel between two starts."""
    place = case.begin("searching", OWN_DATA, beside=[MODULE])
    pixel = spoil(case, 0, 0.5)
    return case.outcome(place.run(), "data", repair=pixel.unlink)


def spoil(case: Case, part: int, value: float) -> Path:
    """Give one pixel of the case's own data another value."""
    pixel = case.folder / "pixel.json"
    pixel.write_text(json.dumps({"part": part, "value": value}))
    return pixel


# ---- settings and data that cannot work ------------------------------------------------------------------------


def impossible(case: Case, *, changes: Mapping[str, Any], names: str) -> str:
    """Ask for what cannot work: it is refused before the first step, and `out` stays free."""
    place = case.begin(changes=changes)
    case.must_refuse(place.run(), names)
    left = sorted(names_in(place.out)) if place.out.exists() else []
    if left:
        raise Broken(f"refused, but `out` holds {left}")
    return "refused"


def diverging(case: Case) -> str:
    """Learn too fast."""
    return case.must_refuse(case.begin(changes={"search.learning_rate": 1e6}).run(), "learning_rate")


def nan_pixel(case: Case, *, part: int) -> str:
    """Put a pixel there that is no number."""
    place = case.begin(changes=OWN_DATA, beside=[MODULE])
    spoil(case, part, float("nan"))
    return case.must_refuse(place.run(), "image|input|pixel")


# ---- Lightning's own limits ------------------------------------------------------------------------------------

EARLY_END = """
from pytorch_lightning import Callback
from tests.proxyless_strategy import tiny


class Stop(Callback):
    def on_train_batch_end(self, trainer, *rest):
        trainer.should_stop = trainer.global_step >= 15


strategy = tiny.searched(epochs={epochs}, callbacks=[Stop()] if {stop} else [], trainer={trainer})
print(strategy.export())
"""


def early_end(case: Case, *, epochs: int, trainer: Mapping[str, Any], stop: bool = False) -> str:
    """Let the user's Trainer end the search before its plan: the strategy must say so, or refuse."""
    place = case.begin()
    script = EARLY_END.format(epochs=epochs, trainer=dict(trainer), stop=stop)
    environment = {**place.environment, "PYTHONPATH": str(ROOT)}
    ended = Process([place.command[0], "-c", script], folder=case.folder, environment=environment).wait()
    case.said = ended.sentence
    if ended.status == 0:
        told = [line for line in (ended.error + ended.output).splitlines() if "architecture step" in line]
        if not told:
            raise Broken("ended early with status 0, and not a word of the architecture steps that it did not do")
        case.said = told[0].strip()
        return "survived"
    # In a script of the user's own the error is an exception, whose last line is the sentence.
    if not ended.sentence.startswith("hardware.errors."):
        raise Broken(f"status {ended.status}: {ended.sentence[:300]}")
    return "refused"


# ---- all of them -----------------------------------------------------------------------------------------------

TWO_RANKS = {"search.devices": 2}
FOREIGN: dict[str, tuple[Mapping[str, Any], str]] = {
    "seed": ({"seed": 12}, "seed"),
    "space": ({"space.options.kernels": [5, 3]}, "space"),
    "rule": ({"rule": "reinforce"}, "rule"),
    "target": ({"target": 0.4}, "target"),
    "costs": ({"hardware.table": ...}, "table|cost"),
    "data": ({"data.architecture_fraction": 0.4}, "data"),
}
"""What the checkpoint of another search differs in, and what must be named."""
IMPOSSIBLE: dict[str, tuple[Mapping[str, Any], str]] = {
    "retrain.optimizer": ({"retrain.optimizer": "sgdd"}, "optimizer"),
    "retrain.scheduler": ({"retrain.scheduler": "cosin"}, "scheduler"),
    "retrain.rand_augment": ({"retrain.rand_augment": "many"}, "rand_augment"),
    "retrain.cutout": ({"retrain.cutout": 64}, "cutout"),
    "retrain.mixup, odd batch": ({"retrain.mixup": 0.2, "retrain.batch_size": 127}, "batch"),
    "retrain.learning_rate": ({"retrain.learning_rate": float("inf")}, "learning_rate"),
    "search.learning_rate": ({"search.learning_rate": float("inf")}, "learning_rate"),
    "search.accelerator": ({"search.accelerator": "tpux"}, "accelerator"),
    "search.finalists": ({"search.finalists": 10**9}, "finalists"),
    "search.batch_size": ({"search.batch_size": 10**5}, "batch_size"),
    "data.workers": ({"data.workers": 10**6}, "workers"),
    "target_cost": ({"hardware.cost": "macs", "target": None, "target_cost": float("inf")}, "target_cost"),
}
PROCESS_FAULTS: dict[str, Callable[[Case], str]] = {
    "data worker killed": partial(
        child_killed, changes={"data.workers": 1, "data.name": f"{MODULE.stem}:digits_one_by_one"}, which=is_worker
    ),
    "rank killed": partial(child_killed, changes=TWO_RANKS, which=is_rank),
    "two equal runs in one folder": partial(in_one_folder, changes={}, at_once=False),
    "two equal runs in one folder at once": partial(in_one_folder, changes={}, at_once=True),
    "two different runs in one folder": partial(in_one_folder, changes={"seed": 12}, at_once=False),
    "two different runs in one folder at once": partial(in_one_folder, changes={"seed": 12}, at_once=True),
    "NNI's manager killed": partial(manager, number=signal.SIGKILL),
    "NNI's manager frozen": partial(manager, number=signal.SIGSTOP),
    "port taken": port_taken,
    "files dated ten years back": partial(dates, years=-10, state="searching"),
    "files dated ten years ahead": partial(dates, years=10, state="retraining"),
    "clock ten years back": partial(clock, years=-10),
    "clock ten years ahead": partial(clock, years=10),
    "table changed in place": table_changed,
    "data changed in place": data_changed,
    "learning rate 1e6": diverging,
    "NaN pixel, weights": partial(nan_pixel, part=0),
    "NaN pixel, architecture": partial(nan_pixel, part=1),
    "early end by max_time": partial(early_end, epochs=10**4, trainer={"max_time": {"seconds": 2}}),
    "early end by max_steps": partial(early_end, epochs=20, trainer={"max_steps": 15}),
    "early end by a callback": partial(early_end, epochs=20, trainer={}, stop=True),
    "early end by limit_train_batches": partial(early_end, epochs=2, trainer={"limit_train_batches": 1}),
    **{
        f"checkpoint of another {name}": partial(foreign_checkpoint, changes=changes, names=named)
        for name, (changes, named) in FOREIGN.items()
    },
    **{
        f"impossible {name}": partial(impossible, changes=changes, names=named)
        for name, (changes, named) in IMPOSSIBLE.items()
    },
}
