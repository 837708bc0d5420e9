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
    assert bounded.per_operator_ms == pytest.approx(-0.9 * 0.0005 * bounded.scale, rel=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_nets_of_which_the_small_ones_fit_a_cache_are_explained_as_well_as_their_noise_allows(noise):
    missed = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        raw, operators = rng.uniform(0.3, 0.8, 24), rng.integers(14, 20, 24)
        params = (1.0 + 3.0 * raw) * 1e6 * rng.uniform(0.8, 1.2, 24)
        true = raw + np.maximum(0.0, 1.2e-7 * (params - 1.5e6))
        fit = statistics.context_fit(raw, operators, params, true * np.exp(noise * rng.normal(size=24)), least_ms=5e-3)
        found = fit.scale * raw + fit.per_operator_ms * operators + fit.per_param_ms * params + fit.offset_ms
        missed.append(np.abs(found / true - 1).mean())
    assert np.mean(missed) < 0.003 + 0.5 * noise


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.3, 1.0])
def test_noise_moves_no_entry_far_from_what_was_measured(noise):
    refused = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        operators = rng.integers(6, 9, 8)
        raw, params = 0.004 * operators * rng.uniform(0.8, 1.2, 8), rng.uniform(5e4, 9e4, 8)
        # what disturbs a sample only ever lengthens it
        measured = 1.02 * raw * np.exp(noise * np.abs(rng.normal(size=8)))
        try:
            fit = statistics.context_fit(raw, operators, params, measured, least_ms=0.002)
        except TableError:
            refused += 1
            continue
        cheapest = 0.002 + fit.per_operator_ms / fit.scale
        assert 0.3 * 0.002 <= cheapest <= 3 * 0.002
        assert 0 <= fit.per_param_ms * params.mean() / fit.scale <= raw.mean()
    assert refused <= (0 if noise <= 0.1 else 12)


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 1.5])
def test_no_entry_becomes_free_whatever_the_scale(scale):
    rng = np.random.default_rng(1)
    raw, operators = rng.uniform(0.05, 0.2, 30), rng.integers(6, 14, 30)
    measured = scale * raw - 2e-3 * operators
    fit = statistics.context_fit(raw, operators, np.zeros(30) + 1e5, measured, least_ms=1e-3)
    assert 1e-3 + fit.per_operator_ms / fit.scale == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.15])
def test_nets_that_take_next_to_nothing_beside_their_operators_are_refused(share):
    rng = np.random.default_rng(2)
    raw, operators = rng.uniform(0.05, 0.2, 30), rng.integers(6, 14, 30)
    with pytest.raises(TableError, match=f"whole nets take {share:g} times .* measure on a quieter machine"):
        statistics.context_fit(raw, operators, rng.uniform(5e4, 3e5, 30), share * raw, least_ms=1e-3)


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
