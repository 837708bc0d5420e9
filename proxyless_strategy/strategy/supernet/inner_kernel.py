"""The inner product as one Triton kernel, and a sum of what its programs found."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def partial_dots(a, b, partials, count, programs, BLOCK: tl.constexpr):
    """Add up every block of products that is a program's in float32; one partial sum each."""
    program = tl.program_id(0)
    within = tl.arange(0, BLOCK)
    length = tl.full((BLOCK,), BLOCK, tl.int64)  # an offset in 32 bits ends at 2^31 elements
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    blocks = count // BLOCK
    # Whole blocks have no mask, under which a thread would load one value at a time.
    for block in range(program, blocks, programs):
        at = length * block + within
        total += tl.load(a + at).to(tl.float32) * tl.load(b + at).to(tl.float32)
    if program == 0:
        at = length * blocks + within
        inside = at < count
        x = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
        total += x * tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(partials + program, tl.sum(total, axis=0))


@cache
def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 3
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two rows in float32, a scalar on their device.

    The programs' sums are added up in one order, without atomics, so that the result is the same each time.

    Args:
        a: Row of values, contiguous, of float32 or 16 bits.
        b: The same; its type may be another.
    """
    count = a.numel()
    programs = max(1, min(_most_programs(a.device), count // BLOCK))
    partials = torch.empty(programs, dtype=torch.float32, device=a.device)
    launch: Any = partial_dots[(programs,)]
    # Triton launches on the current device
    with torch.cuda.device_of(a):
        launch(a, b, partials, count, programs, BLOCK=BLOCK, num_warps=8)
    return partials.sum()
