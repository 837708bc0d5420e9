"""The inner product of a layer's output gradient with a difference of outputs: in memory order, without copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 17, "other": 1 << 22}
"""Elements that are cast or copied at a time: what a core's cache holds, and what keeps a GPU busy."""
_HALF = (torch.float16, torch.bfloat16)


def inner_product(gradient: Tensor, difference: Tensor) -> Tensor:
    """Return `<dL/dy, d>`, a scalar on the device: float64 of float64, else float32, in which 16 bits are added up.

    Both are read once and neither is copied as a whole, whatever their memory format. Within one run the result is the
    same each time: nothing is added up in an order that depends on the clock.

    Args:
        gradient: Of any shape, dense or not.
        difference: Of the same shape and device.
    """
    # A sum of millions of products has no digits left in 16 bits, into which autocast might cast what is added up.
    kind = gradient.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, enabled=False) if casts else nullcontext():
        flat = _in_memory_order(gradient, difference)
        if flat is not None and gradient.is_cuda and torch.float64 not in (gradient.dtype, difference.dtype):
            found = _by_kernel(*flat)
            if found is not None:
                return found
        pairs = _chunks(gradient, difference) if flat is None else _slices(*flat)
        parts = [_dot(a, b) for a, b in pairs]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return gradient.new_zeros((), dtype=_sum_type(gradient, difference))
        return torch.stack(parts).double().sum().to(parts[0].dtype)


def _sum_type(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32


def _dot(a: Tensor, b: Tensor) -> Tensor:
    kind = _sum_type(a, b)
    return torch.dot(a.to(kind), b.to(kind))


def _in_memory_order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """View both as one row each, in the order of their memory; None where it has gaps or two orders."""
    if a.is_contiguous() and b.is_contiguous():
        return a.view(-1), b.view(-1)
    # A dimension of size 1 has any stride.
    strides = sorted((s, t, n) for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True) if n != 1)
    expected = 1
    for mine, other, size in strides:
        if not mine == other == expected:
            return None
        expected *= size
    return a.as_strided((expected,), (1,)), b.as_strided((expected,), (1,))


def _limit(tensor: Tensor) -> int:
    return CHUNK["cpu" if tensor.device.type == "cpu" else "other"]


def _slices(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut two rows into chunks."""
    whole = a.device.type != "cpu" and a.dtype == b.dtype and a.dtype not in _HALF
    limit = len(a) if whole else _limit(a)
    return zip(a.split(limit), b.split(limit), strict=True) if len(a) > limit else iter([(a, b)])


def _chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut two tensors of any layout into rows of a chunk's size at most."""
    if a.numel() == 0:
        return
    limit = _limit(a)
    if a.numel() <= limit:
        yield a.reshape(-1), b.reshape(-1)
        return
    each = a.numel() // len(a)
    if each > limit:
        for inner, other in zip(a, b, strict=True):
            yield from _chunks(inner, other)
    else:
        for inner, other in zip(a.split(limit // each), b.split(limit // each), strict=True):
            yield inner.reshape(-1), other.reshape(-1)


# ---- on a GPU ----------------------------------------------------------------------------------------------------

_kernel_runs = True


@cache
def _kernel() -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        from .inner_kernel import dot  # Triton is slow to import, and not everywhere
    except ImportError:
        return None
    return dot


def _by_kernel(a: Tensor, b: Tensor) -> Tensor | None:
    """Run the Triton kernel; None where there is none, or it cannot be compiled (Triton asks for a C compiler)."""
    global _kernel_runs
    dot = _kernel() if _kernel_runs else None
    if dot is None:
        return None
    try:
        return dot(a, b)
    except Exception:
        # What runs in its place gives the same to the rounding. A GPU that has failed fails there too.
        _kernel_runs = False
        return None
