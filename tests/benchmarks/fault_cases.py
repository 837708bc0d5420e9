"""The faults of `tests.benchmarks.faults`: each a small function that plays one and returns how it ended.

Here are those of files and disks, and the table of all of them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.fault_processes import PROCESS_FAULTS
from tests.benchmarks.fault_states import Case, changed, fill, other_file_system, remove
from tests.benchmarks.fault_subject import Broken, Ended, Place, Skipped, content_of, limit_file_size, names_in

TARGET = "0.0185"
"""Of `derive`: another subnet than the search's own."""
FULL = r"space|full|room"
DENIED = r"permi|read-only|writ"


# ---- damaged files ---------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    """Leave the first half."""
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Leave nothing."""
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    """Put as many random bytes there."""
    path.write_bytes(random.Random(path.name).randbytes(path.stat().st_size))


def a_list(path: Path) -> None:
    """Put something there that is well written, but of another kind."""
    path.write_text("[]\n")


def a_directory(path: Path) -> None:
    """Put a folder there."""
    path.unlink()
    path.mkdir()


DAMAGES = (truncated, empty, garbage, a_list, a_directory)
BARE = {"retrain": None}
READ_BY = {
    "config.json": {"search": "searching", "derive": "finished", "report": "finished"},
    "search.json": {"search": "retraining", "derive": "finished", "report": "finished"},
    "row.json": {"search": "finished", "derive": "finished", "report": "finished"},
    "starts.json": {"search": "searching"},
    "threads.json": {"search": "searching"},
    "search.ckpt": {"search": "searching"},
    "retrain.ckpt": {"search": "retraining"},
    "supernet.pt": {"search": "finished"},
    "model/config.json": {"search": "finished", "derive": "finished"},
    "model/model.safetensors": {"search": "finished"},
    "model/subnet.json": {"search": "finished"},
    "model.onnx": {"search": "finished"},
    "table": {"search": "searching", "derive": "finished"},
}
"""Which command reads or replaces a file of a run folder, and the state of the folder then."""


def damaged(case: Case, *, name: str, damage: Callable[[Path], None], command: str) -> str:
    """Damage one file, and run a command that reads it."""
    table = name == "table"
    place = case.begin(READ_BY[name][command], BARE if name == "supernet.pt" else None, own_table=table)
    path = place.table if table else place.out / name
    if not path.exists():
        raise Skipped(f"this version writes no {name}")
    whole = path.read_bytes()
    damage(path)

    def repair() -> None:
        remove(path)
        path.write_bytes(whole)

    before = content_of(place.out)
    if command != "search":
        return _reader(case, command, path, repair)
    ended = place.run()
    # What a refused start did not touch is not lost.
    if ended.status and content_of(place.out) == before:
        return case.must_refuse(ended, path.name)
    well = "survived" if READ_BY[name][command] == "finished" else "resumed"
    return case.outcome(ended, path.name, well=well, repair=repair)


def _reader(case: Case, command: str, path: Path, repair: Callable[[], None]) -> str:
    """Run a command that reads a finished search, and judge it by what it gives from a whole one."""
    read = READERS[command]
    wanted = case.states.once(f"undisturbed {command}", lambda folder: read(_copied(case, folder))[1])
    before = content_of(case.place.out)
    ended, found = read(case.place)
    if ended.status == 0:
        if found != wanted:
            raise Broken(f"{command} gives something else, with status 0")
        return "survived"
    case.must_refuse(ended, path.name)
    if content_of(case.place.out) != before:
        repair()
        if read(case.place)[1] != wanted:
            raise Broken(f"after the repair {command} gives something else")
    return "refused"


def _copied(case: Case, folder: Path) -> Place:
    shutil.copytree(case.states.finished(), folder / "out")
    return case.states.place(folder)


def derived(place: Place) -> tuple[Ended, Any]:
    """Run `derive`, and return what it wrote."""
    out = place.out.with_name("derived")
    ended = place.run("derive", str(place.out), "--target", TARGET, "--out", str(out))
    if ended.status:
        return ended, names_in(out) if out.exists() else None
    return ended, {name: (out / name).read_bytes() for name in ("subnet.json", "config.json", "model.safetensors")}


def reported(place: Place) -> tuple[Ended, Any]:
    """Run `report`, and return its page without its place."""
    page = place.out / "report.html"
    ended = place.run("report", str(place.out))
    return ended, page.read_text().replace(str(place.out), "") if page.exists() else None


READERS = {"derive": derived, "report": reported}


# ---- disks -----------------------------------------------------------------------------------------------------


def disk_full(
    case: Case, *, state: str, file: str | None, without: Sequence[str] = (), leave: Sequence[str] = ()
) -> str:
    """Fill the disk of `out` in mid-run.

    Args:
        case: The case.
        state: The run folder's.
        file: It is full as soon as this file is written anew; None: before the start.
        without: See `Case.begin`.
        leave: There is room for these files still.
    """
    disk = case.disk()
    place = case.begin(state, out=disk / "out", without=without)
    page = os.sysconf("SC_PAGE_SIZE")
    room = sum(-(-(case.states.finished() / name).stat().st_size // page) * page for name in leave)
    if file is None:
        filler = fill(disk)
        return case.outcome(place.run(), FULL, repair=filler.unlink)
    path = place.out / file
    before, process = changed(path), place.start()

    def reached() -> bool:
        # A folder may be claimed without its settings being written again.
        claimed = file == "config.json" and re.search("^(predicted|derived)", process.output, re.MULTILINE)
        return bool(claimed) or changed(path) not in (before, None)

    if not process.wait_for(reached):
        raise Broken(f"the search ended before it wrote {file}: {process.wait().sentence[:300]}")
    filler = fill(disk, leave=room)
    return case.outcome(process.wait(), FULL, repair=filler.unlink)


def reader_on_a_full_disk(case: Case, *, command: str) -> str:
    """Let `derive` and `report` write to a full disk."""
    disk = case.disk()
    case.begin("finished", out=disk / "out")
    filler = fill(disk)
    ended, _ = READERS[command](case.place)
    case.must_refuse(ended, FULL)
    filler.unlink()
    if READERS[command](case.place)[0].status:
        raise Broken(f"with room again, {command} fails")
    return "refused"


def table_on_a_full_disk(case: Case) -> str:
    """Measure a table into a full disk."""
    disk = case.disk()
    place, table = case.begin(), disk / "table.yml"
    options = place.config.read_text()
    stages = json.loads(options)["space"]["options"]
    arguments = ["latency", "build", "--space", "small_mbconv", "--input-size", "16", "--out", str(table)]
    arguments += [part for key, value in stages.items() for part in ("--space-option", f"{key}={json.dumps(value)}")]
    arguments += ["--classes", "10", "--channels", "1", "--nets", "8", "--seconds", "0.1"]
    filler = fill(disk)
    case.must_refuse(place.run(*arguments), FULL)
    filler.unlink()
    ended = place.run(*arguments)
    if ended.status or not table.is_file():
        raise Broken(f"with room again, the table is not built: {ended.sentence[:300]}")
    return "refused"


def full_tmpdir(case: Case) -> str:
    """Fill TMPDIR alone: `out` has room."""
    disk = case.disk()
    place = case.begin(environment={"TMPDIR": str(disk)})
    filler = fill(disk)
    return case.outcome(place.run(), FULL, repair=filler.unlink)


def file_too_large(case: Case) -> str:
    """Limit the size of a file, as a quota does, to less than a checkpoint takes."""
    size = (case.states.finished() / "search.ckpt").stat().st_size
    place = case.begin()
    ended = place.run(before=limit_file_size(size // 2))
    return case.outcome(ended, "search.ckpt", repair=lambda: None)


def read_only(case: Case, *, file: str, state: str) -> str:
    """Take away the right to write to `out` in mid-run; root has it anyway, but for the attribute `immutable`."""
    place = case.begin(state)
    process, path = place.start(), place.out / file
    before = changed(path) if state != "nothing" else None
    process.wait_for(lambda: changed(path) not in (before, None))
    try:
        lock(place.out)
    except Skipped:
        process.end()
        raise
    case.on_close(unlock, place.out)
    return case.outcome(process.wait(), DENIED, repair=partial(unlock, place.out))


def read_only_from_the_start(case: Case) -> str:
    """Let `out` be a folder that cannot be written to."""
    place = case.begin()
    place.out.mkdir()
    lock(place.out)
    case.on_close(unlock, place.out)
    return case.outcome(place.run(), DENIED, repair=partial(unlock, place.out))


def lock(folder: Path) -> None:
    """Take away the right to write to a folder.

    Raises:
        Skipped: Root keeps it.
    """
    if os.getuid() != 0:
        folder.chmod(0o500)
    elif status := os.spawnlp(os.P_WAIT, "chattr", "chattr", "+i", str(folder)):
        raise Skipped(f"root may write to every folder, and chattr +i ends with {status}")


def unlock(folder: Path) -> None:
    """Give the right to write to a folder back."""
    if os.getuid() != 0:
        folder.chmod(0o700)
    elif folder.exists():
        os.spawnlp(os.P_WAIT, "chattr", "chattr", "-i", str(folder))


def removed(case: Case) -> str:
    """Delete `out` in mid-run."""
    place = case.begin()
    process = place.start()
    process.wait_for((place.out / "search.ckpt").exists)
    shutil.rmtree(place.out, ignore_errors=True)
    return case.outcome(process.wait(), str(place.out), repair=lambda: shutil.rmtree(place.out, ignore_errors=True))


def on_another_file_system(case: Case) -> str:
    """Move `out` to another disk between two starts, and leave a link to it."""
    other = other_file_system()
    if other is None:
        raise Skipped("no other file system than TMPDIR's can be written to")
    place = case.begin("searching")
    there = other / f"faults-{os.getpid()}-{case.folder.name}"
    shutil.move(place.out, there)
    case.on_close(shutil.rmtree, there)
    place.out.symlink_to(there)
    return case.outcome(place.run(), str(place.out), well="resumed", repair=lambda: None)


def out_is_a_file(case: Case) -> str:
    """Put a file where the run folder is to be."""
    place = case.begin()
    place.out.write_text("mine\n")
    return case.outcome(place.run(), str(place.out), repair=place.out.unlink)


# ---- all of them -----------------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[Case], str]] = {
    "disk full at config.json": partial(disk_full, state="nothing", file=None),
    "disk full at search.ckpt": partial(disk_full, state="nothing", file="config.json"),
    "disk full at the second search.ckpt": partial(disk_full, state="nothing", file="search.ckpt"),
    "disk full at search.json": partial(
        disk_full,
        state="finished",
        file="config.json",
        without=("search.json", "retrain.ckpt", "retrain.previous.ckpt", "model", "model.onnx", "row.json"),
    ),
    "disk full at retrain.ckpt": partial(disk_full, state="nothing", file="search.json"),
    "disk full at the second retrain.ckpt": partial(disk_full, state="nothing", file="retrain.ckpt"),
    "disk full at model": partial(
        disk_full, state="finished", file="config.json", without=("model", "model.onnx", "row.json")
    ),
    "disk full at model.onnx": partial(disk_full, state="retraining", file="model/config.json"),
    "disk full at row.json": partial(disk_full, state="retraining", file="model/config.json", leave=("model.onnx",)),
    "disk full at the table": table_on_a_full_disk,
    "disk full at derive": partial(reader_on_a_full_disk, command="derive"),
    "disk full at report": partial(reader_on_a_full_disk, command="report"),
    "TMPDIR full": full_tmpdir,
    "search.ckpt above the limit of a file's size": file_too_large,
    "read-only from the start": read_only_from_the_start,
    "read-only while searching": partial(read_only, state="nothing", file="search.ckpt"),
    "read-only while retraining": partial(read_only, state="nothing", file="search.json"),
    "removed while searching": removed,
    "moved to another file system": on_another_file_system,
    "out is a file": out_is_a_file,
    **PROCESS_FAULTS,
    **{
        f"{command}: {name} {damage.__name__.replace('_', ' ')}": partial(
            damaged, name=name, damage=damage, command=command
        )
        for name, commands in READ_BY.items()
        for command in commands
        for damage in DAMAGES
        if damage is not a_list or name.endswith(".json")
    },
}
