"""The cores of this machine: how many this process may use, and how busy they are with other work."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

BUSY = 0.5
"""From this share of other work on, what is measured now says little about a quiet machine."""
SECONDS = 0.25
SILENCE = "PROXYLESS_BUSY_SILENT"
"""Environment variable that leaves the sentence about other work out, where that is meant: any value but empty."""
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Count the physical cores that this process may use: by its affinity, and by the quota of its container."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # None where the system does not tell hyper-threads from cores
    physical = psutil.cpu_count(logical=False) or affinity
    quota = cpu_quota()
    return max(1, min(affinity, physical, affinity if quota is None else round(quota)))


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Return the cores' worth of time that a container may use, as `docker --cpus` sets it; None without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / name).read_text(encoding="utf-8") for name in names).split()
            # version 2 of control groups says "max" for no limit, version 1 says -1
            return float(quota) / float(period) if float(quota) > 0 else None
        except (OSError, ValueError):
            continue
    return None


def share_of_others(seconds: float = SECONDS) -> float:
    """Measure how busy the machine is with what is not this process, 0..1; takes `seconds`."""
    process = psutil.Process()
    machine, own = psutil.cpu_times(), process.cpu_times()
    time.sleep(seconds)
    after, own_after = psutil.cpu_times(), process.cpu_times()
    # Linux counts the time of guests within the time of users too
    spent = {
        name: getattr(after, name) - getattr(machine, name)
        for name in machine._fields
        if name not in ("guest", "guest_nice")
    }
    idle = spent["idle"] + spent.get("iowait", 0.0)
    mine = own_after.user + own_after.system - own.user - own.system
    total = sum(spent.values())
    return min(1.0, max(0.0, (total - idle - mine) / total)) if total > 0 else 0.0


def say_if_busy() -> None:
    """Say on standard error that the machine is busy with other work, where it is."""
    if os.environ.get(SILENCE):
        return
    if sentence := busy_sentence(share_of_others()):
        print(sentence, file=sys.stderr, flush=True)


def busy_sentence(share: float) -> str | None:
    """Say what other work on the machine means for what is measured now; None where it leaves half of it."""
    if share <= BUSY:
        return None
    return (
        f"this machine is {share:.0%} busy with other work: a forecast holds while that lasts, and latencies measured "
        "meanwhile are less certain; end that work, or measure tables when the machine is quiet"
    )
