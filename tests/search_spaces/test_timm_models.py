"""The registered timm models behave as timm's own do."""

import subprocess
import sys

import pytest
import timm
import torch

from hardware.errors import SubnetError
from search_spaces import Subnet, get_space, timm_models
from tests.benchmarks import published

MODELS = sorted(set(timm_models.__all__))


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_classifier(name):
    model = timm.create_model(name, num_classes=5, in_chans=2).eval()
    assert model(torch.randn(2, 2, 64, 64)).shape == (2, 5)
    model.reset_classifier(3)
    assert model(torch.randn(2, 2, 64, 64)).shape == (2, 3)
    assert model.default_cfg["first_conv"] == "conv_stem"
    assert model.default_cfg["architecture"] == name


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_published_networks_have_the_published_sizes(name):
    sizes = published.sizes(name)
    assert (sizes["params_m"], sizes["macs_m"]) == published.PUBLISHED[name]
    assert sizes["equal"]


def test_every_registered_model_is_tested():
    assert set(MODELS) == set(timm.list_models("proxylessnas*"))
    assert timm.list_pretrained("proxylessnas*") == []


def test_without_arch_strings_it_is_the_published_mobile_net():
    ours, mobile = (timm.create_model(name).state_dict() for name in ("proxylessnas", "proxylessnas_mobile"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in mobile.items()}


def test_importing_the_project_registers_the_models():
    program = f"import proxyless_strategy, timm; assert all(timm.is_model(name) for name in {MODELS})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name):
    model = timm.create_model(name, features_only=True, in_chans=1).eval()
    maps = model(torch.randn(1, 1, 64, 64))
    assert len(maps) == (3 if name == "proxylessnas_cifar_tree" else 5)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [64 // m.shape[-1] for m in maps] == model.feature_info.reduction()


@pytest.mark.parametrize("name", MODELS)
def test_layer_decay_groups(name):
    from timm.optim import create_optimizer_v2

    model = timm.create_model(name)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.8)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 5


def test_stem_stride_one_halves_the_reductions():
    space = get_space("small_mbconv", stem_stride=1)
    subnet = Subnet(space, {label: names[0] for label, names in space.candidates().items()})
    model = timm.create_model("proxylessnas", features_only=True, **subnet.model_args(in_chans=1)).eval()
    maps = model(torch.randn(1, 1, 32, 32))
    assert [32 // m.shape[-1] for m in maps] == model.feature_info.reduction()
    assert model.feature_info.reduction()[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arch_def": [["ds_r1_k3_s1_c16_noskip"], ["ir_r1_k3_s1_e3_c16", "ir_r1_k3_s2_e3_c24"]]}, "strides inside"),
        ({"arch_def": [["ds_r1_k3_s1_c16_noskip"], []]}, "stage 1 of arch_def is empty"),
        ({"stem_stride": 4}, "stem_stride = 4"),
    ],
)
def test_what_timm_would_silently_ignore_is_refused(arguments, words):
    with pytest.raises(SubnetError, match=words):
        timm.create_model("proxylessnas", **arguments)
