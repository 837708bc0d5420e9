"""What benchmarks share: many jobs in several processes, and what a result says of its making."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any, TypeVar

import torch

from hardware.backends.base import cpu_name
from proxyless_strategy.signals import Stopped

Job = TypeVar("Job")
Result = TypeVar("Result")


def one_thread() -> None:
    """Let torch compute in one thread, so that the processes of a pool do not fight for cores."""
    torch.set_num_threads(1)


def run_jobs(
    run: Callable[[Job], Result],
    jobs: Sequence[Job],
    processes: int,
    *,
    prepare: Callable[[], None] = one_thread,
    in_order: bool = False,
) -> Iterator[tuple[Result, str]]:
    """Run every job, and yield each result as it comes with how far they are: `3 of 12, 4.5 minutes left`.

    Args:
        run: A function of a module, as it and the jobs are pickled on their way to another process.
        jobs: Its arguments.
        processes: How many run at the same time.
        prepare: Called once in every process, before its first job.
        in_order: Yield results in the order of the jobs.
    """
    if not jobs:
        return
    start = time.monotonic()
    told = functools.partial(_told, run)
    # Spawned, not forked: a forked process inherits torch's thread pools without their threads, and waits for them.
    with multiprocessing.get_context("spawn").Pool(processes, initializer=prepare) as pool:
        # One by one (`chunksize` is 1): jobs differ in length, and each result is to be kept as soon as it is there.
        results = (pool.imap if in_order else pool.imap_unordered)(told, jobs)
        for done, result in enumerate(results, start=1):
            left = (time.monotonic() - start) / done * (len(jobs) - done)
            yield result, f"{done} of {len(jobs)}, {left / 60:.1f} minutes left"


def _told(run: Callable[[Job], Result], job: Job) -> Result:
    """Run a job; one that means to end its process is an error: a pool loses such a job, and waits for it for ever.

    Not so where the pool ends the process, because another job failed: it would wait for this one as long.
    """
    try:
        return run(job)
    except Stopped:
        raise
    except SystemExit as error:
        raise RuntimeError(f"{job} ended its process: {error}") from error


def origin(command: str) -> dict[str, Any]:
    """Say what a committed result was made with: command, day and machine."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
    }
