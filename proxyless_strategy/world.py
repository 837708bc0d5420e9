"""Which processes a run is made of, and which of them this one is: as the settings say, and a launcher that is there.

Clusters leave numbers in the environment that look as if somebody had started several processes: `SLURM_NTASKS` in an
interactive job, `RANK` and `WORLD_SIZE` of an earlier torchrun, `OMPI_*`, `PMI_*`, `JSM_*`. Lightning and torch follow
them. Here they count only where the settings ask for as many processes.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from hardware.errors import ConfigError

LAUNCHED_BY = "PROXYLESS_LAUNCHED_BY"
"""Environment variable with the process that starts the further ones of its machine."""
_OF_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What Lightning's first process sets for those that it starts, and leaves in its own environment."""
NAMES = ("search.devices", "search.nodes")

Launcher = Literal["none", "here", "torchrun", "srun", "variables"]
"""`here`: the first process starts the others. `variables`: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are given to
each process, as Kubeflow's PyTorchJob does."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is.

    Attributes:
        size: How many there are.
        rank: Number of this one.
        local_size: How many there are on each host.
        local_rank: Number of this one on its host.
        nodes: Hosts.
        launcher: Who starts the processes.
        address: Where they meet; None where torch or the first process decides.
        port: Of that address.
        note: What the environment says and is not followed.
    """

    size: int = 1
    rank: int = 0
    local_size: int = 1
    local_rank: int = 0
    nodes: int = 1
    launcher: Launcher = "none"
    address: str | None = None
    port: int | None = None
    note: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks, writes, and goes on alone after a search."""
        return self.rank == 0

    @property
    def launched(self) -> bool:
        """Whether a launcher has started all processes, so that they are there from the beginning."""
        return self.launcher not in ("none", "here")

    def sentence(self) -> str:
        """Say how many processes there are, who starts them, and what else the environment says."""
        if self.size == 1:
            return "one process" + (f", as {self.note}" if self.note else "")
        hosts = "this machine" if self.nodes == 1 else f"{self.nodes} hosts"
        by = "" if self.launcher == "here" else f", of {self.launcher}"
        return f"process {self.rank} of {self.size} on {hosts}{by}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Claim:
    """What the environment says of one launcher.

    Attributes:
        launcher: Its name.
        world: The processes by its numbers.
        uneven: How many it has started on each host where these are not alike.
        direct: Whether it has started this very process: what was inherited from a parent may be another run's.
        joinable: Whether its processes can be joined to one run.
    """

    launcher: str
    world: World
    uneven: str | None
    direct: bool
    joinable: bool = True


_current: World | None = None
# State of the process: there is one run in it at a time, and signals and notices must know whether it speaks for all.


def current() -> World:
    """Return the processes of the run that this process is in; outside of one, this process alone."""
    return _current or World()


def is_first() -> bool:
    """Return whether this is the process that speaks and writes."""
    return current().first


@contextmanager
def entered(world: World) -> Iterator[World]:
    """Be one of these processes inside the context; say so first where the environment says otherwise."""
    global _current
    before, _current = _current, world
    starts = world.launcher == "here" and world.first
    kept = {name: os.environ.get(name) for name in (LAUNCHED_BY, *_OF_LIGHTNING)} if starts else {}
    if starts:
        # By their parent's number its processes know themselves; what a shell exports is not taken for it.
        os.environ[LAUNCHED_BY] = str(os.getpid())
    if world.note is not None and world.first and before is None:
        print(world.sentence(), file=sys.stderr, flush=True)
    try:
        yield world
    finally:
        _current = before
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def find_world(
    devices: int = 1,
    nodes: int = 1,
    *,
    names: tuple[str, str] = NAMES,
    adopts: bool = False,
    environ: Mapping[str, str] | None = None,
) -> World:
    """Return the processes that the settings ask for, with what a launcher has started.

    Args:
        devices: Processes on each host.
        nodes: Hosts.
        names: Of these settings.
        adopts: Whether one process by the settings is as many as torchrun has started.
        environ: The environment; None: this process's.

    Raises:
        ConfigError: A launcher has started another number of processes, or none has, and there are several hosts.
    """
    environ = os.environ if environ is None else environ
    asked = f"{names[0]} = {devices} and {names[1]} = {nodes}"
    size = devices * nodes
    child = _child(environ, size)
    if child is not None:
        return child
    found = claims(environ)
    several = [claim for claim in found if claim.world.size > 1 or claim.world.rank > 0]
    torchrun = next((claim for claim in several if claim.launcher == "torchrun" and claim.direct), None)
    if size == 1 and torchrun is not None:
        if not adopts:
            there = torchrun.world
            raise ConfigError(
                f"torchrun has started {there.size} processes, but {asked} ask for one; set {names[0]} = "
                f"{there.local_size} and {names[1]} = {there.nodes}, or start it without torchrun"
            )
        return _accepted(torchrun, torchrun.world.local_size, torchrun.world.nodes, names)
    if size == 1:
        return World(note=_unheeded(several, asked))
    for claim in found:
        # On one machine bare variables are what somebody has left there: the first process starts the others.
        if claim.world.size == size and claim.joinable and (claim.launcher != "variables" or nodes > 1):
            return _accepted(claim, devices, nodes, names)
    direct = next((claim for claim in several if claim.direct and claim.launcher != "variables"), None)
    if direct is not None and (nodes > 1 or direct.world.size != size or not direct.joinable):
        how = "" if direct.joinable else ", whose processes cannot be joined; start it by torchrun or srun"
        raise ConfigError(
            f"{direct.launcher} has started {direct.world.size} processes, but {asked} ask for {size}{how}"
            + ("" if how else "; let them be the same")
        )
    if nodes > 1:
        raise ConfigError(
            f"{names[1]} = {nodes}, but no launcher has started {size} processes; start it on every host by `torchrun "
            f"--nnodes={nodes} --nproc-per-node={devices} --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT --no-python "
            "COMMAND`, or by srun"
        )
    return World(size=size, local_size=devices, launcher="here", note=_unheeded(several, asked))


def unused_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def planned(devices: int, nodes: int) -> World:
    """Return the processes that settings ask for, where it does not matter yet who starts them."""
    size = devices * nodes
    return World(size=size, local_size=devices, nodes=nodes, launcher="none" if size == 1 else "here")


# ---- what the environment says ---------------------------------------------------------------------------------


def claims(environ: Mapping[str, str]) -> list[Claim]:
    """Return what each launcher says, the innermost one first; what nobody can join comes last."""
    torchrun, srun, variables = _torchrun(environ), _srun(environ), _variables(environ)
    found = [torchrun, srun, variables, *_message_passing(environ)]
    if torchrun is None and variables is None:
        size, rank = (_number(environ.get("WORLD_SIZE")), _number(environ.get("RANK", environ.get("LOCAL_RANK"))))
        found.append(Claim("torch", World(size or 1, rank or 0), None, direct=False, joinable=False))
    if srun is None:
        size = _number(environ.get("SLURM_NTASKS"))
        found.append(Claim("Slurm", World(size or 1), None, direct=False, joinable=False))
    return [claim for claim in found if claim is not None]


def _accepted(claim: Claim, devices: int, nodes: int, names: tuple[str, str]) -> World:
    there = claim.world
    if claim.uneven or (there.local_size, there.nodes) != (devices, nodes):
        each = claim.uneven or f"{there.local_size} on each of {there.nodes}"
        raise ConfigError(
            f"{claim.launcher} has started processes on hosts as {each}, but {names[0]} = {devices} and {names[1]} = "
            f"{nodes}; let it start {devices} on each of {nodes}"
        )
    if there.port is None:
        raise ConfigError("MASTER_PORT is no number; set it to a free port of the first host, or remove it")
    return there


def _unheeded(claimed: list[Claim], asked: str) -> str | None:
    """Say of what is not followed that it is not; None where there is nothing."""
    if not claimed:
        return None
    names = {"variables": "RANK and WORLD_SIZE"}
    said = ", ".join(f"{names.get(claim.launcher, claim.launcher)} ({claim.world.size} processes)" for claim in claimed)
    return f"{asked} say; what the environment holds of {said} is not followed"


def _child(environ: Mapping[str, str], size: int) -> World | None:
    """Return the place of a process that the first one of this run has started."""
    if not _is_ancestor(_number(environ.get(LAUNCHED_BY))):
        return None
    numbers = _numbers(environ, "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    if numbers is None:
        return None
    rank, started, port = numbers
    if size == 1:
        # The script's search before the one on several processes, which has ended: its first process writes.
        return World(rank=rank, launcher="here")
    if started != size:
        # It must not take itself for the first one, which starts further ones.
        raise ConfigError(
            f"the first process of this run has started {started} in all, but the settings ask for {size}"
        )
    return World(size=size, rank=rank, local_size=size, local_rank=rank, launcher="here", port=port)


def _is_ancestor(pid: int | None) -> bool:
    """Return whether a process has started this one, by itself or through an interpreter's launcher."""
    if pid is None or pid == os.getppid():
        return pid is not None
    import psutil

    return pid in [parent.pid for parent in psutil.Process().parents()]


def _torchrun(environ: Mapping[str, str]) -> Claim | None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE", "MASTER_PORT")
    numbers = _numbers(environ, *names)
    if numbers is None or not {"TORCHELASTIC_RUN_ID", "MASTER_ADDR"} <= set(environ):
        return None
    size, rank, local_size, local_rank, nodes, port = numbers
    if not (rank < size and local_rank < local_size):
        return None
    world = World(size, rank, local_size, local_rank, nodes, "torchrun", environ["MASTER_ADDR"], port)
    uneven = None if size == local_size * nodes else f"{size} in all, {local_size} of them here"
    return Claim("torchrun", world, uneven, _is_new("TORCHELASTIC_RUN_ID", "RANK", "MASTER_PORT", environ=environ))


def _srun(environ: Mapping[str, str]) -> Claim | None:
    """Read what srun gives to each task of a step: `SLURM_NTASKS` and others are an allocation's, and no step's."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
    numbers = _numbers(environ, *names)
    # A terminal is the first task's alone: what is started there is not the step's program. So is salloc's own shell,
    # whose step has no number of the usual kind.
    interactive = "SLURM_PTY_PORT" in environ or "SLURM_PTY_WIN_COL" in environ
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    if numbers is None or interactive or not step.isdigit() or int(step) >= 0xFFFFFFF0:
        return None
    size, rank, local_rank, nodes = numbers
    if rank >= size:
        return None
    each = _tasks(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    uneven = None if len(set(each)) == 1 else environ.get("SLURM_STEP_TASKS_PER_NODE", "unknown")
    # Steps of one job may run side by side.
    job = int(re.sub(r"\D", "", environ.get("SLURM_JOB_ID", "")) or 0) + 4999 * int(step)
    port = _number(environ["MASTER_PORT"]) if "MASTER_PORT" in environ else 15000 + job % 20000
    world = World(size, rank, each[0] if each else 1, local_rank, nodes, "srun", _first_host(environ), port)
    direct = environ.get("SLURM_TASK_PID", str(os.getpid())) == str(os.getpid())
    return Claim("srun", world, uneven, direct)


def _variables(environ: Mapping[str, str]) -> Claim | None:
    numbers = _numbers(environ, "WORLD_SIZE", "RANK", "MASTER_PORT")
    if numbers is None or "MASTER_ADDR" not in environ or "TORCHELASTIC_RUN_ID" in environ:
        return None
    size, rank, port = numbers
    (local_size, local_rank) = _numbers(environ, "LOCAL_WORLD_SIZE", "LOCAL_RANK") or (1, 0)
    if not (rank < size and local_rank < local_size):
        return None
    world = World(size, rank, local_size, local_rank, size // local_size, "variables", environ["MASTER_ADDR"], port)
    uneven = None if size == local_size * world.nodes else f"{size} in all, {local_size} of them here"
    return Claim("variables", world, uneven, _is_new("RANK", "WORLD_SIZE", environ=environ))


def _message_passing(environ: Mapping[str, str]) -> Iterator[Claim | None]:
    prefixes = [("mpirun", "OMPI_COMM_WORLD_"), ("jsrun", "JSM_NAMESPACE_")]
    # Slurm's tasks have them too, and there they are Slurm's.
    prefixes += [] if "SLURM_JOB_ID" in environ else [("mpirun", "PMI_")]
    for launcher, prefix in prefixes:
        numbers = _numbers(environ, f"{prefix}SIZE", f"{prefix}RANK")
        if numbers is not None:
            size, rank = numbers
            direct = _is_new(f"{prefix}RANK", environ=environ)
            yield Claim(launcher, World(size, rank), None, direct, joinable=False)


def _numbers(environ: Mapping[str, str], *names: str) -> tuple[int, ...] | None:
    """Return the variables as numbers; None where one is missing or none."""
    found = [_number(environ.get(name)) for name in names]
    return None if None in found else tuple(number for number in found if number is not None)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isascii() and text.strip().isdigit() else None


def _tasks(text: str) -> list[int]:
    """Read Slurm's `2(x3),1` into the tasks of each host."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        matched = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if matched is None:
            return []
        found += [int(matched[1])] * int(matched[2] or 1)
    return found


def _first_host(environ: Mapping[str, str]) -> str:
    """Return where the tasks of a step meet: as the user says, else on its first host."""
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    hosts = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else hosts)


def _is_new(*names: str, environ: Mapping[str, str]) -> bool:
    """Return whether this process was given the variables and its parent was not, as a launcher's processes are."""
    import psutil  # slow, and only where the environment names a launcher

    try:
        parent = psutil.Process().parent()
        inherited = {} if parent is None else parent.environ()
    except (psutil.Error, OSError):
        return True  # somebody else's process, as a cluster's own are
    return any(inherited.get(name) != environ.get(name) for name in names)
