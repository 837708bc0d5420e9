"""SIGTERM, Ctrl-C and a closed terminal: the exit status, one sentence, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .data.samples import write_images

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

HEAD = "import ctypes, os, signal, subprocess, sys, time\nfrom proxyless_strategy import signals\n"


def default_signals() -> None:
    """Run in a child: what a terminal's foreground process has, also where this suite runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program and wait until it prints `ready`."""
    started: list[subprocess.Popen[str]] = []

    def run(body: str, *, preexec: Callable[[], None] = default_signals) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            # from 3.12 on Python warns where a process forks that watches over signals by a thread
            [sys.executable, "-u", "-W", "ignore::DeprecationWarning", "-c", HEAD + body],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec,
        )
        started.append(process)
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != "ready":
            assert line or process.poll() is None, process.communicate()[1]
        return process

    yield run
    for process in started:
        process.kill()


def ends(process: subprocess.Popen[str], timeout: float = 30) -> tuple[int, str]:
    _, error = process.communicate(timeout=timeout)
    return process.returncode, error


WAIT = "with signals.stopped_in_order():\n    print('ready')\n    time.sleep(60)\n"


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "interrupted"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_signal_is_its_status_and_one_sentence(
    start: Callable[..., subprocess.Popen[str]], number: int, status: int, word: str
) -> None:
    process = start(WAIT)
    process.send_signal(number)
    assert ends(process) == (status, f"{word}: stopped; repeat the command to continue\n")


def test_what_the_parent_ignores_stays_ignored(start: Callable[..., subprocess.Popen[str]]) -> None:
    def background() -> None:
        default_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(WAIT, preexec=background)
    for number in (signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    assert ends(process)[0] == 143


BODIES = {
    # an exception in a destructor goes no further
    "in a destructor": """
class Slow:
    def __del__(self):
        print('ready')
        time.sleep(1)
with signals.stopped_in_order():
    Slow()
    time.sleep(60)
""",
    # a collective that waits for a dead process never returns to Python
    "in C code": """
signals.GRACE_SECONDS = 0.6
with signals.stopped_in_order():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    print('ready')
    libc.pthread_mutex_lock(mutex)
""",
    # the signal kills a data worker first, and its loader complains
    "with an error of its own": """
with signals.stopped_in_order():
    try:
        print('ready')
        time.sleep(60)
    except BaseException:
        raise RuntimeError('a worker was killed')
""",
    "while it saves between two steps": """
with signals.stopped_in_order():
    with signals.held():
        print('ready')
        for step in range(600):
            time.sleep(0.1)
            signals.leave_if_asked(lambda: print('saved'))
""",
    "while a loop that holds it does not come to an end": """
signals.HOLD_SECONDS = 0.4
with signals.stopped_in_order():
    with signals.held():
        print('ready')
        time.sleep(60)
        signals.leave_if_asked(lambda: print('saved late'))
""",
    "after a context within its own": """
with signals.stopped_in_order():
    with signals.stopped_in_order():
        pass
    print('ready')
    time.sleep(60)
""",
    "and a second one while it unwinds": """
with signals.stopped_in_order():
    try:
        print('ready')
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        print('saved')
""",
    "after a library took the signal": """
with signals.stopped_in_order():
    signal.signal(signal.SIGTERM, lambda *_: None)
    signals.reclaim()
    print('ready')
    time.sleep(60)
""",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_signal_arrives_wherever_it_finds_the_command(start: Callable[..., subprocess.Popen[str]], body: str) -> None:
    process = start(body)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in error
    assert error.startswith("SIGTERM: ")
    assert ("saved" in output) == ("'saved'" in body)


def test_children_end_with_the_command_and_a_second_ctrl_c_says_nothing(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("""
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
with signals.stopped_in_order():
    child = subprocess.Popen([sys.executable, '-c', deaf], stdout=subprocess.PIPE)
    child.stdout.readline()
    worker = os.fork()
    if not worker:
        time.sleep(60)
    print('ready')
    time.sleep(60)
""")
    time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # a terminal's second Ctrl-C, while the deaf child is waited for
    process.send_signal(signal.SIGINT)
    assert ends(process) == (130, "interrupted: stopped; repeat the command to continue\n")
    # What was killed may still be there for a moment.
    deadline = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_forked_worker_dies_by_the_default_handler(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("""
with signals.stopped_in_order():
    worker = os.fork()
    if not worker:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(worker, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
    print('ready')
""")
    assert ends(process) == (0, "")


def test_a_data_worker_outlives_the_first_signal_that_all_of_a_job_get(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("""
with signals.stopped_in_order():
    worker = os.fork()
    if not worker:
        signals.last_through(0)
        while True:
            time.sleep(1)
    time.sleep(0.5)
    os.kill(worker, signal.SIGUSR1)
    time.sleep(0.5)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM
    print('ready')
""")
    assert ends(process) == (0, "")


def test_workers_that_an_error_has_left_end_with_the_process(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Their loader is kept by the traceback; multiprocessing ends them by one signal, and waits."""
    write_images(tmp_path / "folder")
    process = start(f"""
signals.GRACE_SECONDS = 600.0
from pathlib import Path
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.sources import load_data
config = DataConfig(name='imagefolder', root=Path({str(tmp_path / "folder")!r}), workers=2)
data = load_data(config, input_size=16, seed=0)
batches = iter(data.loader('weights', batch_size=2))
next(batches)
print('ready')
raise LookupError('mine')
""")
    status, error = ends(process, timeout=60)
    assert status == 1
    assert error.splitlines()[-1] == "LookupError: mine"


def test_another_process_of_the_run_may_ask_for_the_stop(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("""
print('ready')
with signals.stopped_in_order(), signals.held():
    assert signals.asked() == 0
    signals.ask(signal.SIGUSR1)
    assert signals.asked() == signal.SIGUSR1
    signals.leave_if_asked(lambda: print('saved'))
""")
    assert ends(process) == (138, "SIGUSR1: stopped; repeat the command to continue\n")


def test_a_thread_leaves_the_signals_to_the_main_one(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("""
import threading
def work():
    with signals.stopped_in_order():
        print('worked')
thread = threading.Thread(target=work)
thread.start()
thread.join()
print('ready')
""")
    assert ends(process) == (0, "")


def test_handlers_are_put_back() -> None:
    from proxyless_strategy import signals

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with signals.stopped_in_order(), signals.stopped_in_order():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
