"""Processes of a launcher: how they meet, what they say beside training, and how one that is gone is missed.

Training talks in collectives, in which each waits for all. Whatever one process does alone, as measuring a table, the
others wait for at the group's store, and a thread looks whether each still lives: a host that is cut off from the
network closes no connection, and the others would wait for as long as torch does, which is half an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import metadata
from typing import Any

import torch
from torch import distributed

from hardware.errors import ConfigError, TrainingError

from ..world import World
from .addresses import choose_interface, listening_at
from .loopback import LOOPBACK, stay_on_loopback

JOIN_SECONDS = 600.0
"""How long one waits for the others of a run to come."""
BEAT_SECONDS = 2.0
LOST_SECONDS = 30.0
"""A process that has not said for so long that it lives is gone."""
UNWIND_SECONDS = 10.0
"""What the main thread has to end by itself where it has noticed too."""
_LIBRARIES = ("proxyless-strategy", "torch", "pytorch-lightning", "timm", "numpy")
"""With other versions of these, processes may draw other gates or meet otherwise."""
_LEFT = "left"
_ENDED = "ended: "
_SILENT = (
    f"{{}} has not answered for {LOST_SECONDS:.0f} s: it has ended, or its host cannot be reached; repeat the command "
    "to continue from the last checkpoint"
)


class Meeting:
    """The store of a group of processes, as the place of what they say to each other beside training.

    Args:
        world: The processes.
        store: Their store; a client of its own, as a call that waits would hold up the thread that listens.
    """

    def __init__(self, world: World, store: Any):
        self.world = world
        self._store = store
        self._watch = _Watch(world, store.clone())

    def say(self, key: str, value: Any) -> None:
        """Leave a value of plain types for the others."""
        self._store.set(f"proxyless/{key}", json.dumps(value))

    def hear(self, key: str) -> Any:
        """Wait for what another one says; whether it lives is what the watching threads look at."""
        while not self._store.check([f"proxyless/{key}"]):
            time.sleep(0.1)
        return json.loads(self._store.get(f"proxyless/{key}"))

    def tell(self, key: str, value: Any) -> None:
        """Say something as the first process, and give the others a moment to hear it: the store may end with it."""
        self.say(key, value)
        deadline = time.monotonic() + UNWIND_SECONDS
        heard = [f"proxyless/{key}/heard/{rank}" for rank in range(1, self.world.size)]
        while not self._store.check(heard) and time.monotonic() < deadline:
            time.sleep(0.05)

    def told(self, key: str) -> Any:
        """Wait for what the first process tells."""
        value = self.hear(key)
        self.say(f"{key}/heard/{self.world.rank}", None)
        return value

    def wait(self) -> None:
        """Wait until all have come here; collectives give a process less time than a test and an export take."""
        if self.world.first:
            for rank in range(1, self.world.size):
                self.hear(f"end/{rank}")
            self.tell("end", None)
        else:
            self.say(f"end/{self.world.rank}", None)
            self.told("end")

    def watch(self) -> None:
        """Begin to look whether all live."""
        self._watch.start()

    def leave(self, error: BaseException | None = None) -> None:
        """Stop looking at the others, and say that this process is not to be missed, or why it ends."""
        self._watch.end(_LEFT if error is None else f"{_ENDED}{_sentence(error)}")


_meeting: Meeting | None = None
# As the group of `torch.distributed` it belongs to the process.


@contextmanager
def met(world: World, *, cuda: bool) -> Iterator[Meeting | None]:
    """Make the group of processes that a launcher has started; None where there is none, or it is made later.

    Args:
        world: The processes.
        cuda: Whether they train on GPUs.

    Raises:
        ConfigError: The others have not come, or cannot be reached.
    """
    global _meeting
    if not world.launched or world.size == 1:
        yield None
        return
    _meeting = _join(world, cuda=cuda)
    _meeting.watch()
    try:
        yield _meeting
    except BaseException as error:
        # The group ends with the process: taking it apart may wait for one that is gone.
        part(error)
        raise
    part()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def part(error: BaseException | None = None) -> None:
    """Leave the meeting, if there is one: from here on processes end at times of their own.

    Args:
        error: What ends this one; the others then end too.
    """
    global _meeting
    if _meeting is not None:
        _meeting.leave(error)
        _meeting = None


@contextmanager
def first_before_others(what: str) -> Iterator[None]:
    """Let the first process do what is in the context, and then the others; all alike where there is no meeting.

    Args:
        what: Its name; each is used once in a run.

    Raises:
        TrainingError: The first one could not.
    """
    meeting = _meeting
    if meeting is None:
        yield
        return
    if not meeting.world.first:
        refused = meeting.told(what)
        if refused is not None:
            raise TrainingError(f"the first process of this run has ended: {refused}")
        yield
        return
    try:
        yield
    except BaseException as error:
        meeting.tell(what, _sentence(error))
        raise
    meeting.say(what, None)


def check_alike(what: str, mine: dict[str, Any]) -> None:
    """Let every process compare what it has with what the first one has, and go on only where all are alike.

    Args:
        what: What is compared, for the error.
        mine: Values of plain types, by name.

    Raises:
        ConfigError: They differ.
    """
    meeting = _meeting
    if meeting is None:
        return
    world, here = meeting.world, socket.gethostname()
    if world.first:
        meeting.say(f"{what}/first", {"host": here, "has": mine})
        refusals = [meeting.hear(f"{what}/{rank}") for rank in range(1, world.size)]
        refusal = next((text for text in refusals if text is not None), None)
        meeting.tell(f"{what}/all", refusal)
    else:
        first = meeting.hear(f"{what}/first")
        differing = [
            f"{name} = {first['has'].get(name)} on {first['host']}, {value} on {here}"
            for name, value in json.loads(json.dumps(mine)).items()
            if first["has"].get(name) != value
        ]
        told = f"process {world.rank} has another {what} than the first one ({'; '.join(differing)})"
        remedy = "let all hosts read the same files: out, table and data on a disk that they share"
        meeting.say(f"{what}/{world.rank}", f"{told}; {remedy}" if differing else None)
        refusal = meeting.told(f"{what}/all")
    if refusal is not None:
        raise ConfigError(refusal)


def _sentence(error: BaseException) -> str:
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return f"stopped by {signal.Signals(error.code - 128).name}"
    return " ".join(str(error).split())[:1000] or type(error).__name__


# ---- how they meet ---------------------------------------------------------------------------------------------


def _join(world: World, *, cuda: bool) -> Meeting:
    waiting = timedelta(seconds=JOIN_SECONDS)
    if world.nodes == 1:
        stay_on_loopback()
    else:
        choose_interface(str(world.address))
    try:
        store = _store(world, waiting)
        _wait_for_all(store, world, cuda=cuda)
        options: dict[str, Any] = {}
        if cuda:
            torch.cuda.set_device(world.local_rank)
            options = {"device_id": torch.device("cuda", world.local_rank)}
        backend = "nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, **options)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"process {world.rank} of {world.size} has not met the others at {world.address}, port {world.port} "
            f"({reason}); see that all were started, and that hosts can reach that address"
        ) from error
    return Meeting(world, store.clone())


def _store(world: World, waiting: timedelta) -> Any:
    assert world.address is not None
    assert world.port is not None
    if world.launcher == "torchrun":
        # its agent has the store, or leaves it to the first process
        store, _, _ = next(distributed.rendezvous("env://", timeout=waiting))
        return store
    address = LOOPBACK if world.nodes == 1 else world.address
    bound: dict[str, Any] = {}
    if world.first:
        # By itself torch listens on every interface, and its store asks for no password.
        address = listening_at(address)
        family = socket.getaddrinfo(address, world.port, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server((address, world.port), family=family, backlog=128)
        bound = {"master_listen_fd": server.detach()}
    return distributed.TCPStore(
        address, world.port, world.size, is_master=world.first, wait_for_workers=False, timeout=waiting, **bound
    )


def _wait_for_all(store: Any, world: World, *, cuda: bool) -> None:
    """Wait until each has said that it is there, and refuse what cannot train together.

    A group that is made before waits without a word of who is missing, or of what differs.

    Raises:
        ConfigError: Hosts differ in their devices or versions.
        RuntimeError: One has not come, or another run has met there.
    """
    if store.add(f"proxyless/came/{world.rank}", 1) > 1:
        raise RuntimeError(f"process {world.rank} of another run has come there before; give each run its own port")
    store.set(f"proxyless/here/{world.rank}", json.dumps(_introduced(world, cuda=cuda)))
    begun, said = time.monotonic(), False
    for rank in range(world.size):
        while not store.check([f"proxyless/here/{rank}"]):
            waited = time.monotonic() - begun
            if waited > JOIN_SECONDS:
                raise RuntimeError(f"process {rank} has not come within {JOIN_SECONDS:.0f} s")
            if waited > LOST_SECONDS and world.first and not said:
                said = True
                print(f"process {rank} of {world.size} is still awaited", file=sys.stderr, flush=True)
            time.sleep(0.05)
    refusal = _unlike([json.loads(store.get(f"proxyless/here/{rank}")) for rank in range(world.size)])
    if refusal is None:
        return
    store.set(f"proxyless/refused/{world.rank}", "")
    deadline = time.monotonic() + UNWIND_SECONDS  # the store ends with the first process
    while world.first and time.monotonic() < deadline:
        if store.check([f"proxyless/refused/{rank}" for rank in range(world.size)]):
            break
        time.sleep(0.05)
    raise ConfigError(refusal)


def _introduced(world: World, *, cuda: bool) -> dict[str, Any]:
    """Say what the others must know of this process before they train with it."""
    versions = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    lacking = None
    if cuda and world.local_rank >= torch.cuda.device_count():
        lacking = (
            f"process {world.rank} of {world.size} is number {world.local_rank} on its host, but sees "
            f"{torch.cuda.device_count()} GPUs there"
        )
    return {"host": socket.gethostname(), "device": "GPUs" if cuda else "the CPU", "lacks": lacking, **versions}


def _unlike(introduced: list[dict[str, Any]]) -> str | None:
    """Say why processes cannot train together; None where they can."""
    first = introduced[0]
    for rank, found in enumerate(introduced):
        if found["lacks"] is not None:
            return (
                f"{found['lacks']} ({found['host']}); give every host a GPU for each of its processes, which all of "
                "them see (in Slurm --gpus-per-node), or start fewer"
            )
        for name, value in first.items():
            if name in ("host", "lacks") or found.get(name) == value:
                continue
            has = f"{found['host']} (process {rank}) has {name} {found.get(name)}, {first['host']} {value}"
            if name == "device":
                remedy = "train on hosts with GPUs alone, or hide these by CUDA_VISIBLE_DEVICES= on all"
            else:
                remedy = "install the same version on all hosts, as others draw and train otherwise"
            return f"{has}; {remedy}"
    return None


# ---- whether they live -----------------------------------------------------------------------------------------


class _Watch:
    """Says every few seconds that this process lives, and ends it when another one has not said so for long.

    Two threads, as a call to a store on a host that was cut off returns late or never.
    """

    def __init__(self, world: World, store: Any):
        self.world = world
        self._store = store
        self._over = threading.Event()
        now = time.monotonic()
        self._heard = now
        self._ended: str | None = None
        self._moved = {rank: now for rank in range(world.size) if rank != world.rank}
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)]

    def start(self) -> None:
        """Begin."""
        self._heard = time.monotonic()
        self._moved = dict.fromkeys(self._moved, self._heard)
        for thread in self._threads:
            thread.start()

    def end(self, word: str) -> None:
        """Stop, and leave a last word."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=UNWIND_SECONDS)
        # Where the store has gone, nobody is left who would miss this process.
        if not any(thread.is_alive() for thread in self._threads):
            with contextlib.suppress(RuntimeError):
                self._store.set(f"proxyless/beat/{self.world.rank}", word)

    def _beat(self) -> None:
        seen: dict[int, bytes] = {}
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            with contextlib.suppress(RuntimeError):
                self._store.set(f"proxyless/beat/{self.world.rank}", str(beat))
                for rank, value in self._words():
                    if value.startswith(_ENDED.encode()):
                        self._ended = f"process {rank} of {self.world.size} has {value.decode()}"
                    if value != seen.get(rank) or value == _LEFT.encode():
                        seen[rank], self._moved[rank] = value, time.monotonic()
                self._heard = time.monotonic()

    def _words(self) -> Iterator[tuple[int, bytes]]:
        """Yield what each other process has said last; all together, as a question for each would swamp the store."""
        keys = {rank: f"proxyless/beat/{rank}" for rank in self._moved}
        if not self._store.check(list(keys.values())):  # at the beginning, when some have said nothing yet
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        found = self._store.multi_get(list(keys.values())) if keys else []
        yield from zip(keys, found, strict=True)

    def _judge(self) -> None:
        while not self._over.wait(1.0):
            now = time.monotonic()
            lost = [rank for rank, at in self._moved.items() if now - at > LOST_SECONDS]
            # Without the store nothing is heard of any.
            if self._ended is not None:
                self._end_process(self._ended)
            elif now - self._heard > LOST_SECONDS:
                self._end_process(_SILENT.format("the process that keeps the store of this run"))
            elif lost:
                self._end_process(_SILENT.format(f"process {lost[0]} of {self.world.size}"))

    def _end_process(self, sentence: str) -> None:
        # What the main thread waits in may have noticed too, and then it says why.
        if self._over.wait(UNWIND_SECONDS):
            return
        import psutil

        with contextlib.suppress(OSError):
            sys.stdout.flush()
            os.write(2, f"{sentence}\n".encode())
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(2)
