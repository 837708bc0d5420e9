"""Our costs as the profiler of NNI's own strategies."""

import itertools

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty, RangeProfilerFilter
from torch import nn

from hardware.errors import ConfigError
from proxyless_strategy.profiler import CostProfiler
from tests.proxyless_strategy import tiny


@pytest.mark.parametrize("given", [True, False])
def test_a_cost_model_is_nnis_profiler(given):
    model, space = tiny.costs(), tiny.TinySpace()
    profiler = CostProfiler(model, space if given else None)
    for values in itertools.product(*model.candidates):
        sample = dict(zip(model.labels, values, strict=True))
        assert profiler.profile(sample) == pytest.approx(model.cost(sample))
    fast = dict.fromkeys(model.labels, "k1")
    slow = dict.fromkeys(model.labels, "k3")
    within = RangeProfilerFilter(profiler, max=5.0)
    assert within(fast)
    assert not within(slow)


def test_its_expectation_is_ours_and_has_a_gradient_where_probabilities_are_tensors():
    model = tiny.costs()
    alpha = torch.zeros(model.costs.shape, dtype=torch.float64, requires_grad=True)
    p = alpha.masked_fill(~torch.from_numpy(model.mask), -torch.inf).softmax(-1)
    sample = {
        label: dict(zip(names, p[row], strict=False))
        for row, (label, names) in enumerate(zip(model.labels, model.candidates, strict=True))
    }
    penalty = ExpectationProfilerPenalty(CostProfiler(model), baseline=5.0)
    expected = penalty.profile(sample)
    assert expected.item() == pytest.approx(model.expected(p).item())
    (mine,) = torch.autograd.grad(model.expected(p), alpha, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, alpha)
    assert mine.abs().max() > 0.1
    torch.testing.assert_close(mine, theirs)


def test_a_profiler_of_another_space_is_refused():
    class Other(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice({"k1": nn.Identity(), "k9": nn.Identity()}, label="edge0")

    with pytest.raises(ConfigError, match=r"k1, k9.*k1, k3"):
        CostProfiler(tiny.costs(), Other())
