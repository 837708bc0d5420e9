"""A trial that ends with the process that follows it, also where that one is killed.

A trial that outlived it would write into its folder while another start of it, perhaps on another machine, does too.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

LEASH_VARIABLE = "PROXYLESS_LEASH"
"""Environment variable with the id and the start time of the process that a trial must not outlive."""
_POLL_SECONDS = 0.5


def leash() -> str:
    """Return the value of `LEASH_VARIABLE` for trials of this process."""
    return f"{os.getpid()} {psutil.Process().create_time()}"


def hold() -> None:
    """Stop this process by SIGTERM, as a user would, once the one that its environment names is gone."""
    value = os.environ.get(LEASH_VARIABLE)
    if value is not None:
        pid, started = value.split()
        threading.Thread(target=_watch, args=(int(pid), float(started)), daemon=True, name="leash").start()


def _watch(pid: int, started: float) -> None:
    while _lives(pid, started):
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # The number may have gone to another process since.
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
