"""Weights for operators whose values do not matter, only their time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .primitives import AddMap, BatchNorm, Conv, Linear, Primitive, Shape, SqueezeExcite, SumHalves


def random_weights(primitives: Iterable[Primitive], *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Draw weights for each primitive, equal on every backend: `{}`, `{"weight"}` or `{"weight", "bias"}` (float32).

    Scaled so that no activation overflows or becomes denormal, either of which would change the timing: after He; less
    where no batch norm is folded in, as such convolutions stand in sums of many paths, whose norms no chain has.
    """
    made: list[dict[str, np.ndarray]] = []
    for index, primitive in enumerate(primitives):
        generator = np.random.default_rng((seed, index))
        if isinstance(primitive, Conv):
            shape: Shape = (
                primitive.out_channels,
                primitive.in_channels // primitive.groups,
                primitive.kernel,
                primitive.kernel,
            )
        elif isinstance(primitive, Linear):
            shape = (primitive.out_features, primitive.in_features)
        elif isinstance(primitive, BatchNorm):
            weight = generator.uniform(0.5, 1.5, primitive.channels).astype(np.float32)
            bias = generator.uniform(-0.1, 0.1, primitive.channels).astype(np.float32)
            made.append({"weight": weight, "bias": bias})
            continue
        elif isinstance(primitive, SqueezeExcite):
            arrays = {}
            for part, part_shape in _squeeze_shapes(primitive).items():
                scale = np.float32((2.0 / part_shape[1]) ** 0.5)
                arrays[f"{part}.weight"] = generator.standard_normal(part_shape, dtype=np.float32) * scale
                arrays[f"{part}.bias"] = generator.uniform(-0.1, 0.1, part_shape[0]).astype(np.float32)
            made.append(arrays)
            continue
        elif isinstance(primitive, AddMap):
            shape = (primitive.channels, primitive.height, primitive.width)
            made.append({"weight": 0.5 * generator.standard_normal(shape, dtype=np.float32)})
            continue
        else:
            made.append({})
            continue
        folded = not isinstance(primitive, Conv) or primitive.folded_norm
        scale = np.float32(((2.0 if folded else 0.5) / np.prod(shape[1:])) ** 0.5)
        weight = generator.standard_normal(shape, dtype=np.float32) * scale
        if not folded and not _own_bias(primitive):
            made.append({"weight": weight})
            continue
        bias = generator.uniform(-0.1, 0.1, shape[0]).astype(np.float32)
        made.append({"weight": weight, "bias": bias})
    return made


def constant_weights(primitives: Iterable[Primitive]) -> list[dict[str, np.ndarray]]:
    """Make weights of which each tensor is one number, as views of zero stride: an average of the inputs, plus 0.1.

    No two tensors have the same number, as a runtime may merge equal ones and so run a net faster than a real one.
    """
    made: list[dict[str, np.ndarray]] = []
    multiplied = halves = 0
    for index, primitive in enumerate(primitives):
        if isinstance(primitive, Conv):
            width, kernel = primitive.in_channels // primitive.groups, primitive.kernel
            shape: Shape = (primitive.out_channels, width, kernel, kernel)
        elif isinstance(primitive, Linear):
            shape = (primitive.out_features, primitive.in_features)
        elif isinstance(primitive, BatchNorm):
            shape = (primitive.channels,)
        elif isinstance(primitive, SqueezeExcite):
            arrays = {}
            for number, (part, part_shape) in enumerate(_squeeze_shapes(primitive).items()):
                own = 1.0 + 1e-3 * index + 1e-4 * (1 + number)
                arrays[f"{part}.weight"] = np.broadcast_to(np.float32(own / part_shape[1]), part_shape)
                arrays[f"{part}.bias"] = np.broadcast_to(np.float32(0.1 * own), part_shape[:1])
            made.append(arrays)
            continue
        elif isinstance(primitive, AddMap):
            shape = (primitive.channels, primitive.height, primitive.width)
            made.append({"weight": np.broadcast_to(np.float32(1e-3 * (1 + index)), shape)})
            continue
        else:
            halves += isinstance(primitive, SumHalves)
            made.append({})
            continue
        # Every second factor is below 1 and each sum of halves is halved, so that a thousand of them do not overflow.
        multiplied += 1
        own = (1.0 + 1e-3 * index) ** (-1 if multiplied % 2 == 0 else 1)
        if isinstance(primitive, Conv) and halves:
            own, halves = own / 2, halves - 1
        weight = np.broadcast_to(np.float32(own / math.prod(shape[1:])), shape)
        if isinstance(primitive, Conv) and not primitive.folded_norm and not primitive.bias:
            made.append({"weight": weight})
            continue
        made.append({"weight": weight, "bias": np.broadcast_to(np.float32(0.1 * own), shape[:1])})
    return made


def _squeeze_shapes(primitive: SqueezeExcite) -> dict[str, Shape]:
    channels, reduced = primitive.channels, primitive.reduced
    return {"reduce": (reduced, channels, 1, 1), "expand": (channels, reduced, 1, 1)}


def _own_bias(primitive: Primitive) -> bool:
    return isinstance(primitive, Conv) and primitive.bias
