"""Batch norm with its activation as Triton kernels: for channels-last maps, with statistics in float32.

A map is a matrix here, `M x C`: a row for each pixel of each image, a column for each channel. Every pass reads it in
tiles. What programs have found is added up in one order, without atomics, so that a result is the same each time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096
"""Values of a tile: 32 for each thread, which are 4 loads of 16 bytes in 16 bits."""
WARPS = 4
REDUCING_PROGRAMS = 4
WRITING_PROGRAMS = 32
"""Programs per multiprocessor at most. Each of the former leaves a row of sums that are added up afterwards; many of
the latter even out what each has to do."""
LEAST_TILES = 4
"""Tiles of a program that reduces: with fewer, its row of sums would be much beside what it reads."""
PARTIAL_ROWS, PARTIAL_COLUMNS = 128, 32
"""The tile in which programs' moments are merged."""
_RARELY_ALIKE: Any = ["rows", "groups", "channels", "partials"]
"""Arguments that would have Triton compile anew where one is 1 or divisible by 16, of which nothing gets faster."""


# ---- arithmetic --------------------------------------------------------------------------------------------------


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """Return the activation of z; what is not a number stays so, as it does in PyTorch."""
    if ACTIVATION == "relu":
        return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        positive = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(positive, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "hardswish":
        return tl.where(z < -3.0, 0.0, tl.where(z > 3.0, z, z * (z + 3.0) * (1.0 / 6.0)))
    elif ACTIVATION == "silu":
        return z / (1.0 + tl.exp(-z))
    else:
        return z


@triton.jit
def through_activation(z, gradient, ACTIVATION: tl.constexpr):
    """Return the gradient of z from that of its activation; at kinks as PyTorch takes it."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, gradient)
    elif ACTIVATION == "relu6":
        return tl.where((z <= 0.0) | (z >= 6.0), 0.0, gradient)
    elif ACTIVATION == "hardswish":
        return tl.where(z < -3.0, 0.0, tl.where(z > 3.0, gradient, gradient * (z * (1.0 / 3.0) + 0.5)))
    elif ACTIVATION == "silu":
        share = 1.0 / (1.0 + tl.exp(-z))
        return gradient * share * (1.0 + z * (1.0 - share))
    else:
        return gradient


@triton.jit
def scale_and_offset(weight, bias, columns, held, AFFINE: tl.constexpr):
    """Return the columns' weights and biases; 1 and 0 of a norm that has none."""
    if AFFINE:
        scale = tl.load(weight + columns, mask=held, other=0.0)
        offset = tl.load(bias + columns, mask=held, other=0.0)
    else:
        scale = tl.where(held, 1.0, 0.0)
        offset = tl.zeros_like(scale)
    return scale, offset


@triton.jit
def tile_of(channels, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr):
    """Return a program's columns, which of them there are, the tile's rows, offsets in it, and from one to the next."""
    columns = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    lines = tl.arange(0, TILE_ROWS)
    within = lines[:, None] * channels + columns[None, :]
    length = tl.full((), TILE_ROWS, tl.int64) * channels  # offsets in 32 bits end at 2^31 values
    return columns, columns < channels, lines, within, length


@triton.jit
def tile_gradient(x, dy, at, mask, centre, scale, offset, ACTIVATION: tl.constexpr):
    """Return x less its mean, and dz: dL/dy times act'(z)."""
    ahead = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - centre[None, :]
    gradient = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    return ahead, through_activation(ahead * scale[None, :] + offset[None, :], gradient, ACTIVATION)


# ---- forward -----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_RARELY_ALIKE)
def partial_moments(
    x, means, squares, rows, groups, DIVISOR: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr
):
    """Write each program's mean, less the first row of all, and its sum of squared deviations; `P x C` each.

    Welford's recurrence runs in every lane (Welford 1962); a program's lanes are merged at its end (Chan, Golub and
    LeVeque 1983). A sum of squares would lose its digits to a mean that is large beside the deviation.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    # The divisor as a factor tells the compiler how rows are aligned, without which it loads value by value.
    channels = groups * DIVISOR
    columns, held, lines, within, length = tile_of(channels, TILE_ROWS, TILE_COLUMNS)
    pivot = tl.load(x + columns, mask=held, other=0.0).to(tl.float32)
    mean = tl.zeros((TILE_ROWS, TILE_COLUMNS), dtype=tl.float32)
    square = tl.zeros((TILE_ROWS, TILE_COLUMNS), dtype=tl.float32)
    seen = tl.zeros((TILE_ROWS,), dtype=tl.float32)
    for number in range(program, tl.cdiv(rows, TILE_ROWS), programs):
        inside = number * TILE_ROWS + lines < rows
        mask = inside[:, None] & held[None, :]
        value = tl.load(x + length * number + within, mask=mask, other=0.0).to(tl.float32) - pivot[None, :]
        seen += tl.where(inside, 1.0, 0.0)
        ahead = value - mean
        moved = mean + ahead * (1.0 / tl.maximum(seen, 1.0))[:, None]
        square = tl.where(mask, square + ahead * (value - moved), square)
        mean = tl.where(mask, moved, mean)
    total = tl.sum(seen, axis=0)
    merged = tl.sum(mean * seen[:, None], axis=0) / total
    ahead = mean - merged[None, :]
    spread = tl.sum(square + ahead * ahead * seen[:, None], axis=0)
    tl.store(means + program * channels + columns, merged, mask=held)
    tl.store(squares + program * channels + columns, spread, mask=held)


@triton.jit(do_not_specialize=_RARELY_ALIKE)
def merged_moments(
    x,
    means,
    squares,
    mean,
    invstd,
    running_mean,
    running_var,
    rows,
    channels,
    partials,
    tile_rows,
    momentum,
    eps,
    TRACKS: tl.constexpr,
    PARTIAL_ROWS: tl.constexpr,
    PARTIAL_COLUMNS: tl.constexpr,
):
    """Merge the programs' moments into each column's mean and 1 / standard deviation; move the running statistics."""
    columns = tl.program_id(0) * PARTIAL_COLUMNS + tl.arange(0, PARTIAL_COLUMNS)
    held = columns < channels
    lines = tl.arange(0, PARTIAL_ROWS)
    tiles = tl.cdiv(rows, tile_rows)
    missing = tiles * tile_rows - rows  # of the last tile
    # From the first program's mean, so that what is subtracted below is small: at most P times the variance.
    first = tl.load(means + columns, mask=held, other=0.0)
    one = tl.zeros((PARTIAL_COLUMNS,), dtype=tl.float32)
    two = tl.zeros((PARTIAL_COLUMNS,), dtype=tl.float32)
    for start in range(0, partials, PARTIAL_ROWS):
        program = start + lines
        inside = program < partials
        taken = tl.where(inside, (tiles - program + partials - 1) // partials, 0)
        last = inside & ((tiles - 1) % partials == program)
        count = (taken * tile_rows - tl.where(last, missing, 0)).to(tl.float32)
        mask = inside[:, None] & held[None, :]
        at = program[:, None] * channels + columns[None, :]
        ahead = tl.load(means + at, mask=mask, other=0.0) - first[None, :]
        ahead = tl.where(mask, ahead, 0.0)
        spread = tl.load(squares + at, mask=mask, other=0.0)
        one += tl.sum(ahead * count[:, None], axis=0)
        two += tl.sum(spread + ahead * ahead * count[:, None], axis=0)
    size = rows.to(tl.float32)
    share = one / size
    square = two - one * share
    square = tl.where(square < 0.0, 0.0, square)  # of rounding; a maximum would turn NaN into a number
    found = tl.load(x + columns, mask=held, other=0.0).to(tl.float32) + (first + share)
    tl.store(mean + columns, found, mask=held)
    tl.store(invstd + columns, 1.0 / tl.sqrt(square / size + eps), mask=held)
    if TRACKS:
        before = tl.load(running_mean + columns, mask=held, other=0.0)
        tl.store(running_mean + columns, (1.0 - momentum) * before + momentum * found, mask=held)
        before = tl.load(running_var + columns, mask=held, other=0.0)
        unbiased = square / (size - 1.0)
        tl.store(running_var + columns, (1.0 - momentum) * before + momentum * unbiased, mask=held)


@triton.jit(do_not_specialize=_RARELY_ALIKE)
def normalise(
    x,
    y,
    mean,
    invstd,
    weight,
    bias,
    rows,
    groups,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    DIVISOR: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Write `act((x - mean) / std * weight + bias)`."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = groups * DIVISOR
    columns, held, lines, within, length = tile_of(channels, TILE_ROWS, TILE_COLUMNS)
    centre = tl.load(mean + columns, mask=held, other=0.0)
    scale, offset = scale_and_offset(weight, bias, columns, held, AFFINE)
    scale = scale * tl.load(invstd + columns, mask=held, other=0.0)
    for number in range(program, tl.cdiv(rows, TILE_ROWS), programs):
        inside = number * TILE_ROWS + lines < rows
        mask = inside[:, None] & held[None, :]
        value = tl.load(x + length * number + within, mask=mask, other=0.0).to(tl.float32)
        z = (value - centre[None, :]) * scale[None, :] + offset[None, :]
        tl.store(y + length * number + within, activated(z, ACTIVATION).to(y.dtype.element_ty), mask=mask)


# ---- backward ----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_RARELY_ALIKE)
def partial_gradients(
    x,
    dy,
    sums,
    products,
    mean,
    invstd,
    weight,
    bias,
    rows,
    groups,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    DIVISOR: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Write each program's sums of dz and of dz times the normalised x; `P x C` each. dz is dL/dy times act'(z)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = groups * DIVISOR
    columns, held, lines, within, length = tile_of(channels, TILE_ROWS, TILE_COLUMNS)
    centre = tl.load(mean + columns, mask=held, other=0.0)
    inverse = tl.load(invstd + columns, mask=held, other=0.0)
    weights, offset = scale_and_offset(weight, bias, columns, held, AFFINE)
    scale = weights * inverse
    one = tl.zeros((TILE_ROWS, TILE_COLUMNS), dtype=tl.float32)
    two = tl.zeros((TILE_ROWS, TILE_COLUMNS), dtype=tl.float32)
    for number in range(program, tl.cdiv(rows, TILE_ROWS), programs):
        inside = number * TILE_ROWS + lines < rows
        mask = inside[:, None] & held[None, :]
        ahead, dz = tile_gradient(x, dy, length * number + within, mask, centre, scale, offset, ACTIVATION)
        one += dz
        two += dz * ahead
    tl.store(sums + program * channels + columns, tl.sum(one, axis=0), mask=held)
    tl.store(products + program * channels + columns, tl.sum(two, axis=0) * inverse, mask=held)


@triton.jit(do_not_specialize=_RARELY_ALIKE)
def input_gradient(
    x,
    dy,
    dx,
    sums,
    products,
    mean,
    invstd,
    weight,
    bias,
    rows,
    groups,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    OF_BATCH: tl.constexpr,
    DIVISOR: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Write dL/dx; where the statistics are the batch's, they depend on x too.

    `dx = weight / std * (dz - sum(dz) / M - xhat * sum(dz xhat) / M)` (Ioffe and Szegedy 2015, section 3).
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = groups * DIVISOR
    columns, held, lines, within, length = tile_of(channels, TILE_ROWS, TILE_COLUMNS)
    centre = tl.load(mean + columns, mask=held, other=0.0)
    inverse = tl.load(invstd + columns, mask=held, other=0.0)
    weights, offset = scale_and_offset(weight, bias, columns, held, AFFINE)
    scale = weights * inverse
    level = tl.zeros_like(scale)
    slope = tl.zeros_like(scale)
    if OF_BATCH:
        size = rows.to(tl.float32)
        level = tl.load(sums + columns, mask=held, other=0.0) / size
        slope = tl.load(products + columns, mask=held, other=0.0) * inverse / size
    for number in range(program, tl.cdiv(rows, TILE_ROWS), programs):
        inside = number * TILE_ROWS + lines < rows
        mask = inside[:, None] & held[None, :]
        ahead, dz = tile_gradient(x, dy, length * number + within, mask, centre, scale, offset, ACTIVATION)
        if OF_BATCH:
            dz -= level[None, :] + ahead * slope[None, :]
        tl.store(dx + length * number + within, (dz * scale[None, :]).to(dx.dtype.element_ty), mask=mask)


# ---- launches ----------------------------------------------------------------------------------------------------


@cache
def _processors(device: torch.device) -> int | None:
    if device.type != "cuda":  # Triton's interpreter
        return None
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class _Grid:
    """How a map is cut into tiles, and tiles are given to programs.

    Attributes:
        reducing: Programs of a pass that adds up, in rows and columns of tiles.
        writing: Those of a pass that writes a map.
        rows: Pixels of all images.
        groups: Channels, divided by `shape["DIVISOR"]`.
        shape: The tile, as the kernels take it.
    """

    def __init__(self, x: Tensor):
        self.rows, channels = x.numel() // x.shape[1], x.shape[1]
        divisor = next(each for each in (8, 4, 2, 1) if channels % each == 0)
        self.groups = channels // divisor
        columns = min(max(16, triton.next_power_of_2(channels)), 128)
        # Whole lines of memory of 128 bytes at least, and few columns that are none.
        if columns == 128 and triton.cdiv(channels, 64) * 64 < triton.cdiv(channels, 128) * 128:
            columns = 64
        tile_rows = TILE // columns
        self.shape = {"DIVISOR": divisor, "TILE_ROWS": tile_rows, "TILE_COLUMNS": columns}
        tiles, across = triton.cdiv(self.rows, tile_rows), triton.cdiv(channels, columns)
        processors = _processors(x.device)

        def programs(most: int, least_tiles: int) -> tuple[int, int]:
            limit = 3 if processors is None else most * processors // across
            return max(1, min(limit, triton.cdiv(tiles, least_tiles))), across

        self.reducing, self.writing = programs(REDUCING_PROGRAMS, LEAST_TILES), programs(WRITING_PROGRAMS, 1)


def _moments(
    x: Tensor, grid: _Grid, running: tuple[Tensor, Tensor] | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / standard deviation of each channel, and move the running statistics."""
    channels, partials = x.shape[1], grid.reducing[0]
    means, squares = torch.empty(2, partials, channels, dtype=torch.float32, device=x.device)
    mean, invstd = torch.empty(2, channels, dtype=torch.float32, device=x.device)
    launch: Any = partial_moments[grid.reducing]
    launch(x, means, squares, grid.rows, grid.groups, **grid.shape, num_warps=WARPS)
    merge: Any = merged_moments[(triton.cdiv(channels, PARTIAL_COLUMNS),)]
    merge(
        x,
        means,
        squares,
        mean,
        invstd,
        *(running or (mean, mean)),
        grid.rows,
        channels,
        partials,
        grid.shape["TILE_ROWS"],
        momentum,
        eps,
        TRACKS=running is not None,
        PARTIAL_ROWS=PARTIAL_ROWS,
        PARTIAL_COLUMNS=PARTIAL_COLUMNS,
        num_warps=WARPS,
    )
    if running is not None:
        # A kernel's writes are unseen by autograd, which refuses a backward pass over what has changed since.
        torch.autograd.graph.increment_version(running)
    return mean, invstd


class NormAct(torch.autograd.Function):
    """Batch norm and activation of a channels-last map; keeps its input and two values for each channel.

    Args of `apply`:
        x: `B x C x H x W`, channels last, of 16 bits or float32.
        weight: `C` in float32, or None together with bias.
        bias: The same.
        running_mean: `C` in float32; moved in training, read otherwise. None: not tracked.
        running_var: The same.
        of_batch: Whether the statistics are the batch's.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.
        activation: A name that `activated` knows, or `identity`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        of_batch: bool,
        momentum: float,
        eps: float,
        activation: str,
    ) -> Tensor:
        grid = _Grid(x)
        # Triton launches on the current device
        with torch.cuda.device_of(x):
            running = None if running_mean is None or running_var is None else (running_mean, running_var)
            if of_batch:
                mean, invstd = _moments(x, grid, running, momentum, eps)
            else:
                assert running is not None
                mean, invstd = running[0], torch.rsqrt(running[1] + eps)
            y = torch.empty_like(x)
            affine = x if weight is None else weight, x if bias is None else bias
            launch: Any = normalise[grid.writing]
            kind = {"ACTIVATION": activation, "AFFINE": weight is not None}
            launch(x, y, mean, invstd, *affine, grid.rows, grid.groups, **kind, **grid.shape, num_warps=WARPS)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.grid, ctx.kind, ctx.of_batch = grid, kind, of_batch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        grid: _Grid = ctx.grid
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = None
        sums = products = mean  # of which nothing is read where the statistics are fixed
        with torch.cuda.device_of(x):
            given = mean, invstd, x if weight is None else weight, x if bias is None else bias
            if needs_weight or needs_bias or (needs_x and ctx.of_batch):
                partials = torch.empty(2, grid.reducing[0], x.shape[1], dtype=torch.float32, device=x.device)
                launch: Any = partial_gradients[grid.reducing]
                launch(x, dy, *partials, *given, grid.rows, grid.groups, **ctx.kind, **grid.shape, num_warps=WARPS)
                sums, products = partials.sum(1)
            if needs_x:
                dx = torch.empty_like(x)
                launch = input_gradient[grid.writing]
                kind = {**ctx.kind, "OF_BATCH": ctx.of_batch}
                launch(x, dy, dx, sums, products, *given, grid.rows, grid.groups, **kind, **grid.shape, num_warps=WARPS)
        return (dx, products if needs_weight else None, sums if needs_bias else None, *[None] * 6)
