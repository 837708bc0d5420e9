"""The registered timm models behave as timm's own do."""

import subprocess
import sys
from itertools import pairwise

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


@pytest.mark.parametrize(
    "program",
    [
        "import proxyless_strategy\nassert 'torch' not in sys.modules\nfrom timm import create_model\nimport timm",
        "import timm.models\nimport proxyless_strategy",
        "import search_spaces.timm_models\nimport timm",
        """
import threading, time
thread = threading.Thread(target=importlib.import_module, args=["timm"])
thread.start()
while "timm" not in sys.modules:
    time.sleep(0.001)
import search_spaces, timm
""",
    ],
    ids=["ours first", "timm first", "the models' own module", "while another thread imports timm"],
)
def test_importing_the_project_and_timm_registers_the_models(program):
    check = f"assert set(timm.list_models('proxylessnas*')) == {set(MODELS)}"
    subprocess.run([sys.executable, "-c", f"import importlib, sys\n{program}\n{check}"], check=True)


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name):
    model = timm.create_model(name, features_only=True, in_chans=1).eval()
    maps = model(torch.randn(1, 1, 64, 64))
    assert len(maps) == (3 if name == "proxylessnas_cifar_tree" else 5)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [64 // m.shape[-1] for m in maps] == model.feature_info.reduction()


@pytest.mark.parametrize("name", MODELS)
def test_features_of_chosen_stages_are_those_of_all(name):
    torch.manual_seed(0)
    every = timm.create_model(name, features_only=True).eval()
    some = timm.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    some.load_state_dict(every.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        maps = every(images)
        for found, expected in zip(some(images), (maps[0], maps[2]), strict=True):
            torch.testing.assert_close(found, expected)
    assert some.feature_info.channels() == [every.feature_info.channels()[i] for i in (0, 2)]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    model = timm.create_model(name, num_classes=4)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_default_config_describes_the_model(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    config = model.default_cfg
    images = torch.empty(2, *config["input_size"], device="meta")
    weights = model.state_dict()
    assert weights[f"{config['first_conv']}.weight"].shape[1] == config["input_size"][0]
    assert weights[f"{config['classifier']}.weight"].shape == (config["num_classes"], model.num_features)
    assert model.get_classifier() is getattr(model, config["classifier"])
    assert model.num_classes == config["num_classes"]
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, *config["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(images).shape == features.shape
    model.reset_classifier(7, "max")
    model.to_empty(device="cpu")
    assert model.num_classes == model.get_classifier().out_features == 7
    assert model.get_classifier().weight.device.type == "cpu"


@pytest.mark.parametrize("name", MODELS)
def test_head_after_features_is_the_model(name):
    model = timm.create_model(name).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_head(model.forward_features(images)), model(images))


@pytest.mark.parametrize("name", MODELS)
def test_layer_decay_groups(name):
    from timm.optim import create_optimizer_v2

    with torch.device("meta"):
        model = timm.create_model(name)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.8)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(scale) == len(list(model.parameters()))
    scales = {key: scale[id(p)] for key, p in model.named_parameters()}
    classifier = model.default_cfg["classifier"]
    assert {scales[f"{classifier}.weight"], scales[f"{classifier}.bias"]} == {1.0}
    assert scales["conv_stem.weight"] == min(scales.values())
    ordered = [value for key, value in scales.items() if key.startswith(("conv_stem", "blocks.", "stages."))]
    assert ordered == sorted(ordered)
    distinct = sorted(set(scales.values()))
    assert all(later / earlier == pytest.approx(1 / 0.8) for earlier, later in pairwise(distinct))
    body = "stages" if hasattr(model, "stages") else "blocks"
    blocks = {tuple(key.split(".")[:3]) for key in scales if key.startswith(f"{body}.")}
    assert len({scales[key] for key in scales if key.startswith(f"{body}.")}) == len(blocks)
    tail = {value for key, value in scales.items() if key.startswith(("conv_head", "bn2", "norm"))}
    assert tail == {max(ordered)}


@pytest.mark.parametrize("name", MODELS)
def test_pretrained_weights_that_do_not_exist_are_refused(name):
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model(name, pretrained=True)


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
