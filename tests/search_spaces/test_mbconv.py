"""The MBConv spaces against the figures of ProxylessNAS's paper and release, and against timm."""

import itertools
import math

import pytest
import timm
import torch

from hardware.operators import primitives
from search_spaces import SPACES, Stage, Subnet, get_space
from search_spaces.mbconv import MBConvDeclaration, make_divisible

IMAGENET = get_space("imagenet_mbconv")
MBCONV = [name for name, space in SPACES.items() if isinstance(space, MBConvDeclaration)]


def uniform(space, name):
    return dict.fromkeys(space.candidates(), name)


def smallest(space):
    return {label: "skip" if "skip" in names else names[0] for label, names in space.candidates().items()}


def test_imagenet_space_has_the_published_choices():
    sizes = [len(names) for names in IMAGENET.candidates().values()]
    assert sizes == [6, 7, 7, 7] * 5 + [6]
    assert sum(sizes) == 141
    assert math.prod(sizes) == pytest.approx(2.215e17, rel=1e-3)
    assert next(iter(IMAGENET.candidates().values())) == ("3x3_e3", "3x3_e6", "5x5_e3", "5x5_e6", "7x7_e3", "7x7_e6")
    assert all(names[-1] == "skip" for names in IMAGENET.candidates().values() if len(names) == 7)


def test_imagenet_supernet_has_the_published_size():
    network = IMAGENET.build()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(16.034e6, abs=500)


@pytest.mark.parametrize(
    ("choices", "params", "macs"),
    [
        (uniform(IMAGENET, "3x3_e3"), 3.192, 257.42),
        (uniform(IMAGENET, "3x3_e6"), 4.685, 472.62),
        (uniform(IMAGENET, "7x7_e6"), 5.103, 606.59),
        (smallest(IMAGENET), 2.155, 102.53),
    ],
    ids=["3x3_e3", "3x3_e6", "7x7_e6", "smallest"],
)
def test_imagenet_subnets_have_the_published_sizes(choices, params, macs):
    model = timm.create_model("proxylessnas", **Subnet(IMAGENET, choices).model_args())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)
    chain = IMAGENET.costs(224).chain(choices)
    assert sum(primitives.macs(op) for op in chain) / 1e6 == pytest.approx(macs, abs=5e-3)


@pytest.mark.parametrize(
    ("value", "rounded"), [(32 * 0.3, 16), (24 * 1.12, 32), (16 * 0.35, 8), (320 * 1.35, 432), (3, 8)]
)
def test_widths_are_rounded_as_in_the_release(value, rounded):
    assert make_divisible(value) == rounded


def test_width_mult_scales_the_head_upwards_only():
    assert get_space("imagenet_mbconv", width_mult=0.5).head_width == 1280
    assert get_space("imagenet_mbconv", width_mult=1.35).head_width == 1728
    assert get_space("imagenet_mbconv", width_mult=1.12).stages[-1].width == 360


@pytest.mark.parametrize("name", MBCONV)
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_frozen_space_is_the_timm_network(name, stem_stride):
    torch.manual_seed(0)
    space = get_space(name, stem_stride=stem_stride)
    network = space.build(num_classes=10, in_chans=1).eval()
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(2, 1, 32, 32)
    for choices in space.costs(32).random_choices(2, seed=5):
        subnet = Subnet(space, choices)
        model = timm.create_model("proxylessnas", **subnet.model_args(num_classes=10, in_chans=1)).eval()
        model.load_state_dict(network.timm_state_dict(choices))
        frozen = network.freeze(choices).eval()
        assert (model(x) - frozen(x)).abs().max() == 0
        renamed = space.timm_names(frozen.state_dict(), choices)
        assert set(renamed) == set(model.state_dict())
        assert all(torch.equal(renamed[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MBCONV)
def test_costs_follow_the_network(name):
    """The chain's MACs, parameters and shapes are those that timm's network has."""
    from torch.utils.flop_counter import FlopCounterMode

    space = get_space(name)
    costs = space.costs(64, num_classes=7, in_chans=2)
    for choices in costs.random_choices(3, seed=1):
        model = timm.create_model("proxylessnas", **Subnet(space, choices).model_args(num_classes=7, in_chans=2)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.randn(1, 2, 64, 64))
        chain = costs.chain(choices)
        assert sum(primitives.macs(op) for op in chain) == counter.get_total_flops() // 2
        assert sum(primitives.params(op) for op in chain) == sum(p.numel() for p in model.parameters())
        assert all(a.output_shape == b.input_shape for a, b in itertools.pairwise(chain))


def test_distinct_operators_are_counted_once():
    assert len(IMAGENET.costs(224).distinct()) == 70


def test_a_stage_that_is_skipped_as_a_whole_is_left_out():
    space = MBConvDeclaration("thin", 16, 2, 16, (Stage(16, 2, 1), Stage(24, 1, 2)), head_width=64)
    choices = {"stage1_block0": "skip", "stage1_block1": "skip", "stage2_block0": "5x5_e6"}
    subnet = Subnet(space, choices)
    assert subnet.arch_def() == [["ds_r1_k3_s1_c16_noskip"], ["ir_r1_k5_s2_e6_c24"]]
    assert Subnet.from_arch_def(space, subnet.arch_def()) == subnet
    model = timm.create_model("proxylessnas", **subnet.model_args(num_classes=3)).eval()
    network = space.build(num_classes=3).eval()
    model.load_state_dict(network.timm_state_dict(choices))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), network.freeze(choices).eval()(x))


def test_supernet_initialisation_is_not_divided_by_groups():
    torch.manual_seed(0)
    network = IMAGENET.build()
    block = network.blocks[1][0]["7x7_e6"]
    assert block.conv_dw.weight.std().item() == pytest.approx(math.sqrt(2 / (49 * 96)), rel=0.05)
    assert network.conv_head.weight.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.05)
    assert network.bn1.eps == 1e-3
    assert network.bn1.momentum == 0.1
