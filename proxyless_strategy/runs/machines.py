"""The machines of a sweep whose `trainingService.platform` is remote, and how OpenSSH reaches them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from hardware.errors import ConfigError, ExperimentError
from hardware.reading import DAMAGE, cut, expect, parse_json, shown, why

from ..validation import Section, validation_sentence

MARK = b"proxyless: "
"""Begins each line of an answer: a shell that greets its user, greets this program too."""
MARK_PATTERN = r"^[0-9a-f]{32}$"
"""What an experiment is known by, which names its folder on a machine."""
ALIVE_SECONDS = 5
"""How often ssh asks whether the machine is there; after three questions without an answer the machine is lost."""
CONNECT_SECONDS = 10
ANSWER_SECONDS = 900.0
"""How long a machine may take to prepare the trials: it reads the images once."""
_NAME = re.compile(r"[\w][\w.:%-]*")
_REFUSED = {
    "password": "OpenSSH takes none from a file; give sshKeyFile",
    "sshPassphrase": "let ssh-agent hold the key, and leave it out",
    "useActiveGpu": "GPUs are taken as gpuIndices lists them, whoever else uses them; leave it out",
}


class Machine(Section):
    """One machine of `machineList`: NNI's keys, and `settings` and `workFolder` of this project.

    Attributes:
        host: Name or address, also one of `~/.ssh/config`.
        port: Of its sshd.
        user: Who logs in; None: as OpenSSH chooses.
        sshKeyFile: The private key; None: as OpenSSH chooses.
        pythonPath: Folder of the `python` with this project; None: the one of the login's PATH.
        gpuIndices: Which GPUs trials may have; None: all.
        maxTrialNumberPerGpu: How many trials share a GPU.
        settings: What is laid over the search config on this machine: its platform, table, the place of its images.
        workFolder: Folder on the machine for code and for runs, until these have come home.
    """

    host: str
    port: int = Field(22, ge=1, le=65535)
    user: str | None = None
    sshKeyFile: Path | None = None
    pythonPath: str | None = Field(None, min_length=1)
    gpuIndices: tuple[int, ...] | None = None
    maxTrialNumberPerGpu: int = Field(1, ge=1, le=64)
    settings: dict[str, Any] = Field(default_factory=dict)
    workFolder: str = Field("~/proxyless", min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, values: Any) -> Any:
        for key, remedy in _REFUSED.items():
            if isinstance(values, Mapping) and key in values:
                raise ValueError(f"{key} cannot be had: {remedy}")
        return values

    @field_validator("host", "user")
    @classmethod
    def _no_option(cls, value: str | None) -> str | None:
        # A name that begins with a dash would be an option of ssh's.
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError("it takes letters, digits, and . : % - _ within")
        return value

    @field_validator("gpuIndices", mode="before")
    @classmethod
    def _as_nni_writes_them(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",")]
            if not all(part.isdecimal() for part in parts):
                raise ValueError("it takes numbers, as in '0, 1'")
            return tuple(int(part) for part in parts)
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("gpuIndices")
    @classmethod
    def _each_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 0 or len(set(value)) < len(value)):
            raise ValueError("it takes numbers from 0 on, each once")
        return value

    @property
    def title(self) -> str:
        """What sentences call it."""
        return self.host if self.port == 22 else f"{self.host}:{self.port}"

    @property
    def place(self) -> tuple[str, int, str | None]:
        """What no other machine of a sweep has."""
        return self.host, self.port, self.user

    def slots(self, gpus: int | None, there: int) -> list[list[int] | None]:
        """Return the GPUs of each trial that the machine has room for, None where a trial is told of none.

        Args:
            gpus: Of a trial; None: nothing is said of GPUs, and the machine has one trial at a time.
            there: How many the machine has.
        """
        if gpus is None:
            return [None]
        if gpus == 0:
            return [[]]
        found = list(range(there)) if self.gpuIndices is None else list(self.gpuIndices)
        groups = [found[start : start + gpus] for start in range(0, len(found) - gpus + 1, gpus)]
        return [list(group) for group in groups for _ in range(self.maxTrialNumberPerGpu)]

    def command(self) -> list[str]:
        """Return the command that runs `there` on it: what it reads and writes is that program's."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT_SECONDS,
            "ServerAliveInterval": ALIVE_SECONDS,
            "ServerAliveCountMax": 3,
            # NNI's own client takes any host for the one that is meant.
            "StrictHostKeyChecking": "yes",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
            "ControlPath": "none",
        }
        words = ["ssh", "-T", *(f"-o{name}={value}" for name, value in options.items()), "-p", str(self.port)]
        if self.sshKeyFile is not None:
            words += ["-i", str(self.sshKeyFile.expanduser()), "-oIdentitiesOnly=yes"]
        if self.user is not None:
            words += ["-l", self.user]
        python = "python3"
        if self.pythonPath is not None:
            # The tilde is the machine's home, so that its shell has to read it.
            home, rest = ("~/", self.pythonPath[2:]) if self.pythonPath.startswith("~/") else ("", self.pythonPath)
            python = f"{home}{shlex.quote(rest.rstrip('/') + '/python')}"
        return [*words, "--", self.host, f"exec {python} -W ignore -m {__package__}.there"]


def read_machines(path: Path, config: Mapping[str, Any]) -> tuple[Machine, ...]:
    """Return the machines of an nnictl config; none where its trials are local.

    Raises:
        ConfigError: One is impossible, or there is none.
    """
    service = config.get("trainingService")
    if not isinstance(service, Mapping) or service.get("platform") != "remote":
        return ()
    other = sorted(str(key) for key in service.keys() - {"platform", "machineList", "reuseMode"})
    if service.get("reuseMode"):
        other.append("reuseMode: true")
    if other:
        raise ConfigError(f"{path}: trainingService.{', '.join(other)} cannot be had on machines by SSH; leave it out")
    listed = service.get("machineList")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}: trainingService.machineList is {shown(listed)}; list one machine or more")
    found = []
    for number, values in enumerate(listed):
        try:
            found.append(Machine.model_validate(values))
        except ValidationError as error:
            sentence = validation_sentence(error, Machine)
            raise ConfigError(f"{path}: trainingService.machineList[{number}]: {sentence}") from None
        key = found[-1].sshKeyFile
        if key is not None and not (path.parent / key.expanduser()).is_file():
            raise ConfigError(
                f"{path}: machineList[{number}].sshKeyFile is {key}, but there is no such file; make a key by "
                f"`ssh-keygen -t ed25519 -f {key}` and add it on {found[-1].title} by ssh-copy-id"
            )
        if key is not None:
            found[-1] = found[-1].model_copy(update={"sshKeyFile": path.parent / key.expanduser()})
    if len({machine.place for machine in found}) < len(found):
        raise ConfigError(f"{path}: trainingService.machineList has the same machine twice; list each once")
    if shutil.which("ssh") is None:
        raise ConfigError(f"{path} has remote machines, but this one has no ssh; install OpenSSH's client")
    return tuple(found)


def ask(machine: Machine, request: Mapping[str, Any], content: IO[bytes] | None = None) -> dict[str, Any]:
    """Have a machine do something and return its answer.

    Args:
        machine: It.
        request: What it is to do, see `there`.
        content: What follows the request.

    Raises:
        ConfigError: It refuses.
        ExperimentError: It cannot be reached, has no such program, or gives no answer.
    """
    head = json.dumps(request).encode() + b"\n"
    try:
        done = subprocess.run(
            machine.command(),
            input=head + (content.read() if content else b""),
            capture_output=True,
            env=environment(),
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExperimentError(f"{machine.title} has not answered for {ANSWER_SECONDS:.0f} s; look at it") from None
    answers = list(answers_in(machine, done.stdout.splitlines()))
    if not answers:
        raise ExperimentError(unanswered(machine, done.returncode, done.stderr))
    answer = answers[-1]
    if "error" in answer:
        raise ConfigError(f"{machine.title}: {answer['error']}")
    return {**answer, "said": done.stderr.decode(errors="replace").strip().splitlines()}


def environment() -> dict[str, str]:
    """Return the environment of ssh, without what is this trial's: its `SendEnv` may hand anything on.

    Without the experiment's mark, whoever ends its processes leaves the connection to whoever has opened it.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("PROXYLESS_", "NNI_"))}


def answers_in(machine: Machine, output: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the answers among the lines of an output.

    Raises:
        ExperimentError: One is no answer of `there`.
    """
    for line in output:
        if line.startswith(MARK):
            try:
                yield expect(parse_json(line[len(MARK) :].decode()), dict, "answer")
            except DAMAGE as error:
                raise ExperimentError(
                    f"{machine.title} answers what this project never says ({why(error)}); install the same version"
                ) from error


def unanswered(machine: Machine, status: int, error: bytes) -> str:
    """Say why a machine gave no answer."""
    lines = error.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
    reason = cut(lines[-1].strip().rstrip("."), 200)
    if status == 255:
        return (
            f"{machine.title} cannot be reached by ssh: {reason}; try `ssh {machine.title}` by hand, which also asks "
            "whether its host key is the right one"
        )
    place = machine.pythonPath or "the PATH of its logins"
    return (
        f"{machine.title} cannot run this project with the python of {place} ({reason}); install it there in the same "
        "version, and give the folder of that python as pythonPath"
    )
