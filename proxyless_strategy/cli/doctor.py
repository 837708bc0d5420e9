"""`proxyless doctor`: what searches and measurements need, whether it is here, and what to do where it is not."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hardware.errors import ProxylessError
from hardware.reading import cut

from .answers import Answer, answers

PROJECT = "proxyless-strategy"
PORT = 8080
"""Of NNI's page, where no other is asked for."""
LEAST_BYTES = 2 * 2**30
"""Free on the disk: a search of ImageNet's kind keeps two checkpoints of its supernet."""
DRIVER = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]

State = Literal["ok", "warning", "bad"]


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        state: `bad` is what keeps a search or an experiment from running.
        about: What was looked at.
        found: What was found.
        remedy: What to do; empty where all is well.
    """

    state: State
    about: str
    found: str
    remedy: str = ""


@answers
def doctor(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA_FOLDER]", help="A folder of pictures, each of which is read.")
    ] = None,
) -> Answer:
    """Look at versions, NNI, ports, GPUs, threads, disks and latency tables; status 1 where something is bad."""
    found = []
    for finding in examined(data):
        found.append(finding)
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        typer.echo(f"{finding.state:8} {finding.about:9} {finding.found}{remedy}")
    worst = any(finding.state == "bad" for finding in found)
    return Answer({"findings": [asdict(finding) for finding in found], "ok": not worst}, status=int(worst))


def examined(data: Path | None = None) -> Iterator[Finding]:
    """Look at everything, one after the other; what fails where nobody expected it is bad, and ends nothing."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", python),
        ("packages", packages),
        ("nni", nni),
        ("port", port),
        ("gpu", gpu),
        ("threads", threads),
        ("launcher", launcher),
        ("disk", disk),
        ("tables", tables),
    ]
    if data is not None:
        checks.append(("data", lambda: pictures(data)))
    for about, check in checks:
        try:
            yield from check()
        except Exception as error:
            reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), 200)
            yield Finding("bad", about, f"could not be looked at ({reason})", "mend that, or report it")


def python() -> Iterator[Finding]:
    """Compare the interpreter with the tested range."""
    from packaging.specifiers import SpecifierSet

    tested = metadata.metadata(PROJECT)["Requires-Python"]
    here = platform.python_version()
    if SpecifierSet(tested).contains(here, prereleases=True):
        yield Finding("ok", "python", f"{here} on {sys.platform}, {platform.machine()}")
    else:
        yield Finding("bad", "python", f"{here} is not {tested}", "make the environment with such a Python")


def packages() -> Iterator[Finding]:
    """Compare installed versions with the ranges that are tested, of extras too as far as they are installed."""
    from packaging.requirements import Requirement

    inside = 0
    for text in metadata.requires(PROJECT) or []:
        wanted = Requirement(text)
        extra = "extra" in str(wanted.marker or "")
        if extra and not _is_of_users(wanted):
            continue
        if not extra and wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            here = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            if not extra:
                yield Finding("bad", "packages", f"{wanted.name} is missing", f"`pip install '{_plain(wanted)}'`")
            continue
        if wanted.specifier.contains(here, prereleases=True):
            inside += 1
        else:
            found = f"{wanted.name} {here} is outside of the tested {wanted.specifier}"
            yield Finding("warning", "packages", found, f"`pip install '{_plain(wanted)}'`")
    yield Finding("ok", "packages", f"{inside} are within the tested ranges")


def _is_of_users(wanted: Any) -> bool:
    return not any(wanted.marker.evaluate({"extra": name}) for name in ("dev", "fuzz"))


def _plain(wanted: Any) -> str:
    return f"{wanted.name}{wanted.specifier}"


def nni() -> Iterator[Finding]:
    """Look for NNI and for the program that runs its experiments."""
    missing = [name for name in ("nni", "nni_node") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("bad", "nni", f"{' and '.join(missing)} cannot be imported", "`pip install nni==3.0`")
    elif shutil.which("nnictl", path=_path()) is None:
        yield Finding("warning", "nni", "nnictl is not on the path", "run experiments by `proxyless experiment`")
    else:
        yield Finding("ok", "nni", f"{metadata.version('nni')} with its page")


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def port() -> Iterator[Finding]:
    """Look whether NNI's usual port is free."""
    from ..runs.nni_server import is_free

    if is_free(PORT):
        yield Finding("ok", "port", f"{PORT} is free for NNI's page")
    else:
        remedy = "an experiment takes a free one, or that of --port"
        yield Finding("warning", "port", f"{PORT} is in use", remedy)


def gpu() -> Iterator[Finding]:
    """Compare what the driver shows with what torch can use."""
    import torch

    driver = _driver()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("ok", "gpu", f"{', '.join(names)}, CUDA {torch.version.cuda}; driver: {'; '.join(driver) or '?'}")
    elif driver:
        built = "for CPUs alone" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        remedy = "install a torch for this driver, or a newer driver; until then searches train on the CPU"
        yield Finding("warning", "gpu", f"{'; '.join(driver)} is not used by torch {torch.__version__} {built}", remedy)
    else:
        yield Finding("ok", "gpu", "none: searches train on the CPU")


def _driver() -> list[str]:
    """Return name, version of the driver and memory of each GPU that the driver shows."""
    try:
        done = subprocess.run(DRIVER, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def threads() -> Iterator[Finding]:
    """Count cores, and measure how busy they are with other work."""
    from hardware.processor import busy_sentence, cores, share_of_others

    count, variable = cores(), os.environ.get("OMP_NUM_THREADS")
    said = f"{count} cores" + (f", OMP_NUM_THREADS={variable}" if variable else "")
    if variable and variable.isdigit() and int(variable) > count:
        yield Finding("warning", "threads", said, f"lower OMP_NUM_THREADS to {count} or unset it")
    else:
        yield Finding("ok", "threads", said)
    share = share_of_others(1.0)
    if busy_sentence(share):
        remedy = "end that work before latencies are measured; forecasts hold while it lasts"
        yield Finding("warning", "load", f"{share:.0%} of this machine is busy with other work", remedy)
    else:
        yield Finding("ok", "load", f"{share:.0%} of this machine is busy with other work")


def launcher() -> Iterator[Finding]:
    """Say what the environment holds of launchers of processes; a run is of as many as its settings say."""
    from ..world import claims

    several = [claim for claim in claims(os.environ) if claim.world.size > 1 or claim.world.rank > 0]
    said = [f"{claim.launcher} (process {claim.world.rank} of {claim.world.size})" for claim in several]
    here = f"variables of {', '.join(said)}" if said else "none"
    yield Finding("ok", "launcher", f"{here}: a run has search.devices x search.nodes processes")


def disk() -> Iterator[Finding]:
    """Look whether results and tables can be written."""
    from ..layout import cache_folder

    for about, folder in (("disk", Path.cwd()), ("cache", cache_folder())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        said = f"{folder}: {free / 2**30:.1f} GiB free"
        if not there.is_dir() or not os.access(there, os.W_OK):
            remedy = "work in another folder" if about == "disk" else "set XDG_CACHE_HOME, or name hardware.table"
            yield Finding("bad", about, f"{folder} cannot be written to", remedy)
        elif free < LEAST_BYTES:
            yield Finding("warning", about, said, "make room, or choose another place for `out`")
        else:
            yield Finding("ok", about, said)


def tables() -> Iterator[Finding]:
    """Look at the tables that searches keep for this user: whether they can be read, and of whose machine they are."""
    from hardware.backends import backend_names, get_backend
    from hardware.tables.table import LatencyTable

    from ..layout import cache_folder

    mine = 0
    for path in sorted(cache_folder().glob("*.yml")):
        again = f"remove it, and `proxyless latency prepare CONFIG.yml` measures it anew: rm {path}"
        try:
            header = LatencyTable.load(path).header
        except ProxylessError as error:
            yield Finding("bad", "tables", str(error), again)
            continue
        try:
            if header.backend not in backend_names():
                yield Finding("warning", "tables", f"{path} is of the backend {cut(header.backend)}, not here", again)
                continue
            with get_backend(**header.chosen) as backend:
                here = backend.device()
        except ProxylessError as error:
            yield Finding("warning", "tables", f"{path}: {error}", "a search with it cannot measure its subnet")
            continue
        if here == header.device:
            mine += 1
        else:
            yield Finding("warning", "tables", f"{path} is of {cut(header.device)}, but this is {here}", again)
    yield Finding("ok", "tables", f"{mine} in {cache_folder()} are of this machine")


def pictures(folder: Path) -> Iterator[Finding]:
    """Read every picture of a folder."""
    from ..config import DataConfig
    from ..data.checking import check_folder

    try:
        checked = check_folder(DataConfig(name="imagefolder", root=folder))
    except ProxylessError as error:
        yield Finding("bad", "data", str(error), "give the root of a data set")
        return
    if checked.problems:
        found = (
            f"{len(checked.problems)} problems with {checked.pictures} pictures, first {cut(checked.problems[0], 160)}"
        )
        yield Finding("bad", "data", found, f"`proxyless data check {folder}` names all")
    else:
        yield Finding("ok", "data", f"all {checked.pictures} pictures of {folder} can be read")
