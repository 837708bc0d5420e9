"""Fits and figures against what made the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.errors import TableError
from hardware.measuring import statistics


def test_the_context_fit_finds_what_made_the_nets():
    rng = np.random.default_rng(0)
    raw, operators = rng.uniform(0.05, 0.2, 30), rng.integers(6, 14, 30)
    params = rng.uniform(5e4, 3e5, 30)
    measured = 1.02 * raw - 1e-3 * operators + 5e-8 * params
    fit = statistics.context_fit(raw, operators, params, measured, least_ms=0.002)
    np.testing.assert_allclose(
        [fit.scale, fit.per_operator_ms, fit.per_param_ms, fit.offset_ms],
        [1.02, -1e-3, 5e-8, 0.0],
        rtol=0.02,
        atol=1e-4,
    )
    bounded = statistics.context_fit(raw, operators, params, measured, least_ms=0.0005)
    assert bounded.per_operator_ms >= -0.9 * 0.0005


def test_affine_fit_and_figures():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    scale, offset = statistics.affine_fit(x, 3 * x + 0.5)
    assert (scale, offset) == (pytest.approx(3), pytest.approx(0.5))
    figures = statistics.figures(x, x * 1.1)
    assert figures["mape"] == pytest.approx(0.1 / 1.1)
    assert figures["bias_ms"] == pytest.approx(-0.1 * x.mean())
    assert figures["spearman"] == figures["kendall"] == pytest.approx(1.0)


@pytest.mark.parametrize("raw", [[1.0, 1.0, 1.0], [1.0, 2.0], [3.0, 2.0, 1.0]])
def test_an_impossible_calibration_is_refused(raw):
    with pytest.raises(TableError):
        statistics.affine_fit(raw, [1.0, 2.0, 3.0][: len(raw)])
