"""How well predictions agree with measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardware.errors import TableError


def affine_fit(raw: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Scale `a` and offset `b` that minimise the relative error `sum(((a * raw + b - measured) / measured)^2)`.

    Raises:
        TableError: The nets do not determine the two, or the scale is not positive.
    """
    x, y = np.asarray(raw, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) <= 1e-9 * np.max(np.abs(x), initial=0.0) or np.any(y <= 0):
        raise TableError(
            f"{len(x)} nets with sums from {np.min(x, initial=np.inf):.4g} to {np.max(x, initial=0.0):.4g} ms do not "
            "determine a calibration; give nets of different depth."
        )
    design = np.stack([x / y, 1.0 / y], axis=1)
    (scale, offset), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
    if scale <= 0:
        raise TableError(
            f"the measured nets get faster as their sum grows (scale {scale:.3g}); measure on a quieter machine."
        )
    return float(scale), float(offset)


def figures(predicted: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> dict[str, float]:
    """RMSE and bias in ms, MAPE as a fraction, and the rank correlations of Spearman and Kendall."""
    from scipy import stats

    p, m = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    return {
        "rmse_ms": float(np.sqrt(np.mean((p - m) ** 2))),
        "mape": float(np.mean(np.abs(p - m) / m)),
        "bias_ms": float(np.mean(p - m)),
        "spearman": float(stats.spearmanr(p, m).statistic),
        "kendall": float(stats.kendalltau(p, m).statistic),
    }
