"""How SIGTERM, Ctrl-C and a closed terminal end a command: unwound, with everything that it started, and one sentence.

So does SIGUSR1, by which a cluster says that a job's time is nearly over. The exit status is a shell's, 128 and the
signal's number: 143, 130, 129, 138.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from hardware.errors import ProxylessError

from .world import is_first

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 30.0
"""What a stopped command has to unwind; then it is ended, as when it waits in a collective for a dead process."""
HOLD_SECONDS = 10.0
"""What of these a loop has to come to where it can save its state; then it is stopped where it is."""
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Stopped(SystemExit):
    """A signal ends the command.

    Not `KeyboardInterrupt`: Lightning answers that one itself, with exit status 1.
    """


class _State:
    def __init__(self) -> None:
        self.number: int | None = None
        self.speaks = True
        """Whether this is the first process of its run, which says that it has stopped."""
        self.handled: dict[int, Any] = {}
        """The handlers of before, by signal."""
        self.holds = 0
        self.saving = False
        self.overdue = False
        """Whether a loop that holds stops has had its time."""
        self.lost = False
        self.over = threading.Event()


_state: _State | None = None


@contextmanager
def stopped_in_order(remedy: str = "repeat the command to continue") -> Iterator[None]:
    """End the command by `Stopped` when a signal comes, then every process that it started, and say so.

    A signal that the parent has set to be ignored stays so: nohup, a background job of a script. Further signals while
    the command stops are ignored. Inside another such context, and outside the main thread, it does nothing.

    Args:
        remedy: What the sentence advises.
    """
    global _state
    if _state is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = state = _State()
    failed = False
    with _watched(state):
        try:
            _install(state)
            yield
        except BaseException:
            if state.number is None:
                raise
            failed = True  # by the signal, or by what it did to a data worker or another rank
        finally:
            if not failed:
                _restore(state)
            _state = None
        if failed:
            _leave(state, remedy)


@contextmanager
def held() -> Iterator[None]:
    """Put a stop off until `leave_if_asked`, or until the end of the context, for `HOLD_SECONDS` at most.

    For a loop that can save its state between two steps, and not within one.
    """
    state = _state
    if state is None:
        yield
        return
    state.holds += 1
    try:
        yield
    finally:
        state.holds -= 1
    leave_if_asked()


def leave_if_asked(save: Callable[[], object] | None = None) -> None:
    """Stop here if a signal asked for it while stops were `held`; call `save` first, and say why where that fails.

    Raises:
        Stopped: One did.
    """
    state = _state
    if state is not None and state.number is not None:
        number, state.saving = state.number, True
        if save is not None:
            try:
                save()
            except ProxylessError as error:
                # The last checkpoint stands, so that the sentence of the stop is true all the same.
                _say(str(error))
        raise Stopped(128 + number)


def asked() -> int:
    """Return the number of the signal that has asked this process to stop while stops were `held`; 0 for none."""
    return 0 if _state is None or _state.number is None else _state.number


def ask(number: int) -> None:
    """Stop by a signal that another process of the run has got, where this one has got none."""
    if _state is not None and _state.number is None:
        _state.number, _state.speaks = number, is_first()


def reclaim() -> None:
    """Take the signals back from a library that put handlers of its own over ours."""
    if _state is not None and threading.current_thread() is threading.main_thread():
        for number in _state.handled:
            signal.signal(number, _on_signal)


# ---- handlers --------------------------------------------------------------------------------------------------


def _install(state: _State) -> None:
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            state.handled[number] = signal.signal(number, _on_signal)


def _restore(state: _State) -> None:
    for number, handler in state.handled.items():
        signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    state = _state
    if state is None or state.number is not None:
        return
    state.number, state.speaks = number, is_first()
    if not state.holds or state.overdue:
        raise Stopped(128 + number)


def _unraisable(unraisable: Any, then: Callable[[Any], object]) -> None:
    if _state is not None and isinstance(unraisable.exc_value, Stopped):
        _state.lost = True
    else:
        then(unraisable)


def _in_a_forked_child() -> None:
    """Give a data worker the default handlers: its parent ends it by SIGTERM, also where it waits for a disk."""
    global _state
    if _state is not None:
        for number in _state.handled:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _state = None


def last_through(worker: int) -> None:
    """Let a data worker outlive a signal that reaches all processes of a job, until its own has saved its state.

    torch gives a worker a handler of SIGTERM that ends it at once where its parent has not sent the signal. A second
    one, as by the parent that has saved, ends it.

    Args:
        worker: Its number, which torch tells.
    """
    for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
        signal.signal(number, _last_a_while)


def _last_a_while(number: int, frame: FrameType | None) -> None:
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if hasattr(signal, "alarm"):
        signal.alarm(int(GRACE_SECONDS))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_child)


# ---- the end ---------------------------------------------------------------------------------------------------


@contextmanager
def _watched(state: _State) -> Iterator[None]:
    """Have a thread see to it that a stop arrives: Python's handlers wait for the main thread to leave C code."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    hook = sys.unraisablehook
    # An exception in a `__del__` goes no further; a stop that is raised there must be raised again.
    sys.unraisablehook = lambda unraisable: _unraisable(unraisable, hook)
    thread = threading.Thread(target=_watch, args=(reader, state), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        state.over.set()
        os.close(writer)


def _watch(reader: int, state: _State) -> None:
    # Open to the end: further signals are written too, and a pipe that nobody reads from is an error.
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        number = None
        while number is None:
            caught = pipe.read(64)
            if not caught:
                return
            number = next((byte for byte in caught if byte in state.handled), None)
        asked = time.monotonic()
        while time.monotonic() < asked + GRACE_SECONDS:
            if state.over.wait(0.2):
                return
            late = state.holds > 0 and not state.saving and time.monotonic() > asked + HOLD_SECONDS
            if state.lost or (late and not state.overdue):
                state.lost, state.number, state.overdue = False, None, state.overdue or late
                os.kill(os.getpid(), number)
        _end_children()
        _say(f"{_name(number)}: ended, as it did not stop within {GRACE_SECONDS:.0f} s")
        os._exit(128 + number)


def _leave(state: _State, remedy: str) -> NoReturn:
    number = state.number
    assert number is not None
    for other in state.handled:
        signal.signal(other, signal.SIG_IGN)  # until the process has ended: no traceback of a second Ctrl-C
    if hasattr(signal, "SIGCHLD"):
        # torch raises where a data worker ends by a signal, as each of them is about to
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ended = _end_children()
    if state.speaks:
        _say(f"{'interrupted' if number == signal.SIGINT else _name(number)}: stopped; {remedy}")
    if ended:
        # Lightning's thread that watches over the ranks would kill this process for their end.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        _free_semaphores()
        os._exit(128 + number)
    raise Stopped(128 + number) from None


def _end_children() -> bool:
    """End data workers and ranks, which the same signal may not have reached; return whether there were any."""
    import psutil  # slow, and only at the end

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # multiprocessing's tracker frees what the others left, and ends with this process
            if "resource_tracker" not in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    _end(found)
    return bool(found)


def _end(processes: list[psutil.Process]) -> None:
    import psutil

    for seconds in (0.1, 0):  # twice, as a data worker outlives the first one
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        time.sleep(seconds)
    _, alive = psutil.wait_procs(processes, timeout=3)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()


@functools.cache
def end_workers_at_exit() -> None:
    """See to it that data workers which are still there end with this process.

    An exception that has left a loop keeps them. multiprocessing would end them by one signal, which they outlive, and
    wait.
    """
    atexit.register(_end_workers)


def _end_workers() -> None:
    left = [child.pid for child in multiprocessing.active_children() if child.daemon]
    if not left:
        return
    import psutil

    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises where one ends by a signal
    found = []
    for pid in left:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    _end(found)


def _free_semaphores() -> None:
    """Do what multiprocessing does at exit, as its tracker complains of semaphores that outlive their process."""
    run = multiprocessing.util._run_finalizers  # type: ignore[attr-defined]  # its atexit handler needs it too
    finalizers = threading.Thread(target=run, args=(0,), daemon=True)
    finalizers.start()
    finalizers.join(3)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        os.write(2, f"{sentence}\n".encode())


def _name(number: int) -> str:
    return signal.Signals(number).name
