"""Candidates' weights out of a block's own: what is kept, what is copied, what is cut."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite

from search_spaces.from_timm.inheritance import chosen_channels, inherited, resized_kernel
from tests.search_spaces.from_timm.samples import varied


def block(kernel=5, hidden=24, squeeze=0, padding="", stride=1):
    se = partial(SqueezeExcite, rd_channels=squeeze) if squeeze else None
    return varied(InvertedResidual(8, 8, kernel, stride, exp_ratio=hidden / 8, se_layer=se, pad_type=padding)).double()


def made(own, **shape):
    other = block(**shape)
    other.load_state_dict(inherited(own.state_dict(), other.state_dict()))
    return other


@pytest.mark.parametrize("side", [4, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["", "same"])
@pytest.mark.parametrize(
    "grown", [{"kernel": 7}, {"hidden": 48}, {"hidden": 64}, {"squeeze": 9}, {"kernel": 9, "hidden": 40, "squeeze": 6}]
)
def test_a_larger_block_computes_the_same(grown, padding, stride, side):
    torch.manual_seed(0)
    shape = {"squeeze": 4, "padding": padding, "stride": stride}
    own = block(**shape)
    x = torch.randn(2, 8, side, side, dtype=torch.float64)
    with torch.inference_mode():
        assert (made(own, **{**shape, **grown})(x) - own(x)).abs().max() < 1e-12


def test_copies_of_a_channel_have_other_gradients():
    """Copies of equal parts would stay copies, so that the wider block could never become more than the narrow one."""
    torch.manual_seed(0)
    wide = made(block(), hidden=48)
    wide(torch.randn(2, 8, 6, 6, dtype=torch.float64)).square().sum().backward()
    gradient = wide.conv_dw.weight.grad
    copies, _ = chosen_channels(torch.ones(24), 48)
    for channel in range(24):
        first, second = gradient[copies == channel]
        assert not torch.allclose(first, second)


def test_a_smaller_kernel_is_the_centre():
    weight = torch.arange(25.0).view(1, 1, 5, 5)
    assert torch.equal(resized_kernel(weight, 3), weight[..., 1:4, 1:4])
    assert torch.equal(resized_kernel(resized_kernel(weight, 7), 5), weight)
    small = made(block(kernel=7), kernel=3)
    assert small.conv_dw.weight.shape == (24, 1, 3, 3)


def test_a_smaller_expansion_has_the_strongest_channels():
    torch.manual_seed(0)
    own = block(squeeze=4)
    with torch.no_grad():
        own.bn2.weight.fill_(-1.0)
        own.conv_pwl.weight.fill_(0.1)
        own.conv_pwl.weight[:, [3, 5, 6, 9, 10, 20, 21]] = 0.5
        own.conv_pwl.weight[:, 0] = -0.2
        own.bn2.weight[[3, 4]] = torch.tensor([0.01, 7.0], dtype=torch.float64)
    kept = [4, 5, 6, 9, 10, 20, 21, 0]  # 3 has large weights, but nothing comes through its norm
    small, kept = made(own, hidden=8, squeeze=4), sorted(kept)
    for name in ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_expand"):
        for key, value in own.get_submodule(name).state_dict().items():
            found = small.get_submodule(name).state_dict()[key]
            assert torch.equal(found, value[kept] if value.ndim else value), (name, key)
    for name in ("conv_pwl", "se.conv_reduce"):
        assert torch.equal(small.get_submodule(name).weight, own.get_submodule(name).weight[:, kept])
    assert torch.equal(small.bn3.running_var, own.bn3.running_var)


def test_the_strongest_channels_are_copied_first_and_evenly():
    copies, part = chosen_channels(torch.tensor([1.0, 3.0, 2.0]), 8)
    assert torch.bincount(copies).tolist() == [2, 3, 3]
    for channel in range(3):
        assert float(part[copies == channel].sum()) == pytest.approx(1.0)


def test_what_is_inherited_is_no_view():
    """Training one candidate must not move another."""
    own = block()
    grown = made(own, kernel=7)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.zero_()
    assert all(value.abs().sum() > 0 for key, value in own.named_parameters())
