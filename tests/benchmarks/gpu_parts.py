"""What the parts of the check of a GPU share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

NO_GPU = "it needs a GPU, and this is a dry run"


class Part(NamedTuple):
    """One check.

    Attributes:
        run: Returns its figures; takes whether it is a dry run.
        seconds: Its time limit.
        figures: The keys of its figures.
        optional: Whether it is of a setting that is off by default: it is left out, and says so, where no time is left.
    """

    run: Callable[[bool], dict[str, Any]]
    seconds: float
    figures: tuple[str, ...]
    optional: bool = False


class Skipped(Exception):
    """This machine lacks what a part needs."""


class Failed(Exception):
    """What was found is not right."""


def need(right: bool, found: str) -> None:
    """Fail where something is not right, and say what was found."""
    if not right:
        raise Failed(found)


def look(step: Callable[[], Any], wall: float) -> dict[str, Any]:
    """Return the share of a step in which the GPU is busy, its kernels, and its bytes beside what lies there anyway."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    events = [e for e in seen.events() if e.device_type == DeviceType.CUDA]
    # The profiler repeats a range that torch names (an optimiser's step) on the GPU, idle time and all.
    events = [e for e in events if not getattr(e, "is_user_annotation", False)]
    spans = sorted((e.time_range.start, e.time_range.end) for e in events)
    busy, end = 0.0, float("-inf")
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return {
        # The profiler slows launches, so the time is that of a step without it.
        "busy": round(busy / 1e6 / wall, 3),
        "kernels": len(spans),
        "memory": torch.cuda.max_memory_allocated() - before,
        "skipped": None,
    }
