"""How well predictions agree with measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import TableError


def affine_fit(raw: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return scale `a` and offset `b` that minimise `sum(((a * raw + b - measured) / measured)^2)`, the relative error.

    Raises:
        TableError: The nets do not determine the two, or the scale is not positive.
    """
    x, y = np.asarray(raw, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) <= 1e-9 * np.max(np.abs(x), initial=0.0) or np.any(y <= 0):
        raise TableError(
            f"{len(x)} nets with sums from {np.min(x, initial=np.inf):.4g} to {np.max(x, initial=0.0):.4g} ms do not "
            "determine a calibration; give nets of different depth"
        )
    design = np.stack([x / y, 1.0 / y], axis=1)
    (scale, offset), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
    if scale <= 0:
        raise TableError(
            f"the measured nets get faster as their sum grows (scale {scale:.3g}); measure on a quieter machine"
        )
    return float(scale), float(offset)


@dataclass(frozen=True)
class ContextFit:
    """`net = scale * sum + operators * per_operator_ms + params * per_param_ms + offset_ms`, in ms."""

    scale: float
    per_operator_ms: float
    per_param_ms: float
    offset_ms: float


def context_fit(
    raw: Sequence[float] | np.ndarray,
    operators: Sequence[int] | np.ndarray,
    params: Sequence[int] | np.ndarray,
    measured: Sequence[float] | np.ndarray,
    *,
    least_ms: float,
) -> ContextFit:
    """Fit how operators inside a net differ from operators alone, on a few whole nets.

    Alone, an operator pays for taking its input and giving its output in the runtime's outer memory layout
    (`per_operator_ms`, negative, as a net pays for it once), and it finds its weights in a nearer cache than it does
    inside a net (`per_param_ms`, positive). Relative least squares; as a few nets determine four numbers badly, each
    is held near its neutral value as if it had been observed there once, with the deviations of `_PRIORS`.

    Measurements on a busy machine disagree by more than `_RESIDUAL`. The nets' own residual then says how little they
    are worth against the neutral values. Small nets keep weights in a cache that large ones do not fit: that is an
    offset below zero, of up to a fifth of a net, beside a larger `per_param_ms`.

    Args:
        raw: Overhead and sum of the operators of each net, measured alone, in ms.
        operators: Number of operators of each net.
        params: Weights of each net.
        measured: Latency of each net in ms.
        least_ms: Latency of the cheapest operator, which must stay positive.

    Raises:
        TableError: The nets do not determine the scale, or contradict the operators' sum.
    """
    # for its errors: nets that cannot give two numbers give no four
    affine_fit(raw, measured)
    y = np.asarray(measured, dtype=np.float64)
    columns = np.stack([np.asarray(c, dtype=np.float64) for c in (raw, operators, params, np.ones_like(y))], axis=1)
    design = columns / y[:, None]
    fit = _held_fit(design, _RESIDUAL, least_ms)
    # four numbers take four degrees of freedom
    residual = float(np.sqrt(np.sum((design @ fit - 1.0) ** 2) / (len(y) - len(fit)))) if len(y) > len(fit) else 0.0
    if residual > _RESIDUAL:
        fit = _held_fit(design, residual, least_ms)
    missed = float(np.sqrt(np.mean((design @ fit - 1.0) ** 2)))
    share = float(np.median(1 / design[:, 0]))
    # a scale or, where an offset makes up for it, the nets themselves
    if min(fit[0], share) <= _LEAST_SCALE * (1 + 1e-6) or missed > _MOST_MISSED:
        raise TableError(
            f"whole nets take {share:.3g} times what their operators take alone, and no "
            "calibration explains it; measure on a quieter machine or with more rounds"
        )
    return ContextFit(*(float(v) for v in fit))


def _held_fit(design: np.ndarray, residual: float, least_ms: float) -> np.ndarray:
    """Return the four numbers of a `ContextFit` that fit `design @ numbers = 1`, held by `_PRIORS` and by bounds.

    Args:
        design: Nets x 4: what each number is multiplied with, over the net's latency.
        residual: Relative error of a net.
        least_ms: Latency of the cheapest operator.
    """
    # slow to import, and needed only where something is calibrated
    from scipy.optimize import lsq_linear

    # One row a number, as if it had been observed once at its neutral value, as uncertain as `_PRIORS` says against the
    # residual of a net. Without these rows, ten nets of similar depth could give large numbers of opposite sign.
    held = np.diag(residual / np.array([deviation for _, deviation in _PRIORS]) * design.mean(axis=0))
    neutral = held @ np.array([value for value, _ in _PRIORS])
    # An operator pays less inside a net than alone, but it must not be free: entries of 0 or below would make the
    # cheapest operators the choice of every search. An entry becomes `ms + per_operator / scale`, so the bound is on
    # `per_operator + 0.9 * least * scale`, which takes per_operator's place among the unknowns. Weights never make a
    # net faster. The scale divides what is added to an entry, and near 0 it would blow the entry up.
    unknowns = np.eye(len(_PRIORS))
    unknowns[1, 0] = -0.9 * least_ms
    stacked = np.vstack([design, held]) @ unknowns
    norms = np.linalg.norm(stacked, axis=0)
    low = np.array([_LEAST_SCALE, 0.0, 0.0, -np.inf]) * norms
    solution = lsq_linear(stacked / norms, np.concatenate([np.ones(len(design)), neutral]), bounds=(low, np.inf))
    return unknowns @ (solution.x / norms)


_RESIDUAL = 0.007
"""Relative error of a net that remains when all is fitted."""

_LEAST_SCALE = 0.2
"""Least scale. An operator alone takes more than inside a net, but not five times as much."""

_MOST_MISSED = 1.0
"""Most by which calibrated sums may miss the nets, as the root of the mean squared relative error."""

_PRIORS = ((1.0, 0.2), (0.0, 0.1), (0.0, 0.1), (0.0, 0.1))
"""Neutral value of scale, per_operator_ms, per_param_ms and offset_ms, and deviation in units of a net's latency."""


def figures(predicted: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return RMSE and bias in ms, MAPE as a fraction, and the rank correlations of Spearman and Kendall."""
    # slow to import, and needed only where something is compared
    from scipy import stats

    p, m = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    return {
        "rmse_ms": float(np.sqrt(np.mean((p - m) ** 2))),
        "mape": float(np.mean(np.abs(p - m) / m)),
        "bias_ms": float(np.mean(p - m)),
        "spearman": float(stats.spearmanr(p, m).statistic),
        "kendall": float(stats.kendalltau(p, m).statistic),
    }


def raw_and_calibrated(
    raw: Sequence[float] | np.ndarray,
    calibrated: Sequence[float] | np.ndarray,
    measured: Sequence[float] | np.ndarray,
) -> dict[str, dict[str, float]]:
    """Return the `figures` of a table's two predictions, as headers keep them."""
    return {"raw": figures(raw, measured), "calibrated": figures(calibrated, measured)}
