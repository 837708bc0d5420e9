"""A sweep on machines by SSH, made one of local trials: each is sent to a machine, and comes home.

NNI's own remote service cannot be relied on, see examples/README.md. So its manager starts each trial on this machine,
where `away` sends it on; tuners, assessors, the web page and what follows an experiment are the same as for local ones.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pydantic import Field, NonNegativeInt, StrictBool, ValidationError
from rich.console import Console

from hardware.errors import ConfigError, ProxylessError
from hardware.files import write_atomically
from hardware.reading import DAMAGE, Kind, Unreadable, cut, read_json, reading

from ..layout import FLEET_FILE, SENT_FOLDER
from ..validation import Section, validation_sentence
from .machines import MARK_PATTERN, Machine, ask
from .rows import say
from .sweep import Sweep

_NOT_SENT = {".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "node_modules"}
_CODE_MIB = 64
FLEET = Kind("the machines of the experiment", "repeat the command with --resume", ConfigError)


@dataclass(frozen=True)
class Place:
    """A machine as an experiment uses it.

    Attributes:
        machine: It.
        work: The experiment's folder there.
        shared: Whether it sees this machine's folder of the experiment.
        slots: The GPUs of each trial that it has room for; None: the trial is told of none.
    """

    machine: Machine
    work: str
    shared: bool
    slots: list[list[int] | None]

    @property
    def key(self) -> str:
        """What tells it from the experiment's other machines."""
        machine = self.machine
        return f"{machine.user or ''}@{machine.host}:{machine.port}"

    def runs(self, out: Path) -> str:
        """Where a trial's folder lies there."""
        return str(out) if self.shared else f"{self.work}/runs"

    def code(self, out: Path) -> str:
        """Where the code lies there: at one place where the folder is shared, as paths belong to a search."""
        return str(out / SENT_FOLDER / "code") if self.shared else f"{self.work}/code"


@dataclass
class Fleet:
    """The machines of an experiment.

    Attributes:
        sweep: The sweep, as its file says it.
        mark: The experiment's.
        places: Its machines.
    """

    sweep: Sweep
    mark: str
    places: list[Place] = field(default_factory=list)

    def prepare(self, console: Console) -> None:
        """Reach every machine, bring the code there, and check every trial on it.

        Raises:
            ProxylessError: A machine cannot be reached, lacks something, or refuses a trial.
        """
        code = _packed(self.sweep)
        # Only a machine that has the same disk sees this.
        self._save(retries=0)
        with ThreadPoolExecutor(len(self.sweep.machines)) as pool:
            self.places = list(pool.map(self._probed, self.sweep.machines))
            self._save(retries=0)  # so that what goes there can be taken away, see `clear_earlier`
            room = sum(len(place.slots) for place in self.places)
            wanted = int(self.sweep.config.get("trialConcurrency", 1))
            if wanted > room:
                raise ConfigError(
                    f"{self.sweep.path}: trialConcurrency is {wanted}, but the machines have room for {room} trials; "
                    "lower it, or give more machines or gpuIndices"
                )
            # Those that share the folder get it once.
            getting = {place.code(self.sweep.out) if place.shared else place.key: place for place in self.places}
            list(pool.map(lambda each: self._send(each, code), getting.values()))
            done = pool.map(self._prepared, self.places)
            for place, said in zip(self.places, done, strict=True):
                machine = place.machine.title
                kept = "its folder is this one's" if place.shared else f"its folder {place.work} comes home"
                console.print(
                    f"{machine}: room for {len(place.slots)} trials at a time; {kept}", markup=False, soft_wrap=True
                )
                for line in said:
                    say(console)(f"{machine}: {line}")

    def local(self, *, retries: int) -> Sweep:
        """Return the sweep of local trials that go to the machines.

        Args:
            retries: How many lost machines a trial outlives.
        """
        self._save(retries=retries)
        words = [sys.executable, "-m", "proxyless_strategy.trial", str(self.sweep.search_path)]
        words += ["--machines", str(self.sweep.out / FLEET_FILE)]
        return self.sweep.locally(shlex.join(words))

    def clear(self) -> None:
        """Remove what the experiment has left on its machines; what cannot be reached stays."""
        for place in self.places:
            with suppress(ProxylessError):
                _forget(place.machine, self.mark)
        shutil.rmtree(self.sweep.out / SENT_FOLDER, ignore_errors=True)

    def _probed(self, machine: Machine) -> Place:
        request = {"do": "probe", "work": machine.workFolder, "mark": self.mark, "out": str(self.sweep.out)}
        found = ask(machine, request)
        ours = version("proxyless-strategy")
        if found["version"] not in (None, ours):
            raise ConfigError(
                f"{machine.title} has version {cut(str(found['version']))} of this project and this machine {ours}; "
                "install the same on both"
            )
        gpus = self.sweep.config.get("trialGpuNumber")
        if gpus is not None and (not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 0):
            raise ConfigError(f"{self.sweep.path}: trialGpuNumber is {gpus!r}; give a whole number from 0 on")
        there = int(found["gpus"])
        missing = [index for index in machine.gpuIndices or () if gpus and index >= there]
        slots = machine.slots(gpus, there)
        if missing or not slots:
            wanted = f"gpuIndices has {missing[0]}" if missing else f"a trial takes {gpus}"
            raise ConfigError(f"{machine.title} has {there} GPUs, but {wanted}; mend gpuIndices or trialGpuNumber")
        return Place(machine, found["work"], bool(found["shared"]), slots)

    def _send(self, place: Place, code: bytes) -> None:
        request = {"do": "receive", "code": place.code(self.sweep.out), "mark": self.mark}
        ask(place.machine, request, io.BytesIO(code))

    def _prepared(self, place: Place) -> list[str]:
        settings = place.machine.settings
        code = place.code(self.sweep.out)
        request = {
            "do": "prepare",
            "code": code,
            "search": f"{code}/{self.sweep.search_path.relative_to(self.sweep.code_directory)}",
            "preset": self.sweep.preset,
            "trials": [{**trial, **settings} for trial in self.sweep.trials or ({},)],
            "out": place.runs(self.sweep.out),
        }
        said: list[str] = ask(place.machine, request)["said"]
        return said

    def _save(self, *, retries: int) -> None:
        values = {
            "experiment": self.mark,
            "command": self.sweep.command,
            "preset": self.sweep.preset,
            "retries": retries,
            "places": [
                {
                    "machine": place.machine.model_dump(mode="json"),
                    "work": place.work,
                    "shared": place.shared,
                    "slots": place.slots,
                }
                for place in self.places
            ],
        }
        write_atomically(self.sweep.out / FLEET_FILE, json.dumps(values, indent=2) + "\n", error=ConfigError)


@dataclass(frozen=True)
class Errand:
    """What a trial is told of the machines that it may go to, see `Fleet`."""

    mark: str
    command: str
    preset: str | None
    retries: int
    places: tuple[Place, ...]


class _PlaceRecord(Section):
    machine: Machine
    work: str = Field(min_length=1)
    shared: StrictBool
    slots: tuple[list[NonNegativeInt] | None, ...] = Field(min_length=1)


class _FleetRecord(Section):
    experiment: str = Field(pattern=MARK_PATTERN)
    command: str = Field(min_length=1)
    preset: str | None
    retries: int = Field(ge=0)
    places: tuple[_PlaceRecord, ...]


def read_errand(path: Path) -> Errand:
    """Read what `Fleet` has written.

    Raises:
        ConfigError: It cannot be read.
    """
    values = read_json(path, FLEET)
    with reading(path, FLEET):
        try:
            record = _FleetRecord.model_validate(values)
        except ValidationError as error:
            raise Unreadable(validation_sentence(error, _FleetRecord)) from None
        places = [Place(each.machine, each.work, each.shared, list(each.slots)) for each in record.places]
        return Errand(record.experiment, record.command, record.preset, record.retries, tuple(places))


def clear_earlier(sweep: Sweep, mark: str) -> None:
    """Remove what an experiment that is not gone on with has left on the sweep's machines, as far as they are reached.

    Its file may be anyone's: nothing but the experiment's mark is taken from it, and no other machine is spoken to.
    """
    with suppress(*DAMAGE, ProxylessError, OSError):
        errand = read_errand(sweep.out / FLEET_FILE)
        there = {place.machine.place for place in errand.places}
        for machine in sweep.machines if errand.mark != mark else ():
            if machine.place in there:
                with suppress(ProxylessError):
                    _forget(machine, errand.mark)


def _forget(machine: Machine, mark: str) -> None:
    ask(machine, {"do": "forget", "work": machine.workFolder, "mark": mark})


def _packed(sweep: Sweep) -> bytes:
    """Return the code folder as an archive, without what no trial reads."""
    folder = sweep.code_directory.resolve()
    out = sweep.out.resolve()
    if not sweep.search_path.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{sweep.path}: trialCommand names {sweep.search_path}, which is not within trialCodeDirectory, the only "
            "folder that goes to the machines; put it there"
        )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", dereference=True) as archive:
        for path in _sent(folder, out):
            archive.add(path, arcname=str(path.relative_to(folder)), recursive=False)
            if packed.tell() > _CODE_MIB * 2**20:
                raise ConfigError(
                    f"{sweep.path}: trialCodeDirectory {folder} has more than {_CODE_MIB} MiB to send; put the sweep "
                    "and its code into a folder of their own"
                )
    return packed.getvalue()


def _sent(folder: Path, out: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _NOT_SENT or path == out or path in out.parents:
            continue
        if path.is_dir() and not path.is_symlink():
            yield path
            yield from _sent(path, out)
        elif path.is_file():
            yield path
