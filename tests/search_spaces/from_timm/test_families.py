"""Every timm model of the families becomes a space: its original path is the model, its subnets are timm networks."""

from __future__ import annotations

import ast
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from nni.nas.nn.pytorch import LayerChoice

from hardware.operators import primitives
from proxyless_strategy.export.folder import export_folder, load_exported
from proxyless_strategy.export.summary import model_summary
from search_spaces import Subnet, get_space
from tests.search_spaces.from_timm.samples import FAMILIES, NAMES, images, varied, with_weights

CLASSES = 7
SOME = sorted(FAMILIES.values())
# Of each way to build a network: plain, squeeze-and-excitation, SAME padding, edge residuals, pooled heads.
QUICK = ("mobilenetv2_050", "semnasnet_050", "tf_efficientnet_lite0", "efficientnet_es", "mobilenetv3_small_050")
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NAMES]
FEEDING = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": CLASSES}


def largest(space):
    """The choice of every block's largest kernel and expansion."""

    def size(block):
        return (-1, -1) if block is None else (block.hidden, block.kernel)

    return {edge.label: max(edge.candidates, key=lambda n: size(edge.candidates[n])) for edge in space.edges()}


@contextmanager
def doubles():
    """Make networks of 64 bits."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def along(network, choices, x):
    """Run one path; NNI's `freeze` would copy the whole space for it."""
    for name, module in network.named_children():
        for layer in [block for stage in module for block in stage] if name == "blocks" else [module]:
            x = (layer[choices[layer.label]] if isinstance(layer, LayerChoice) else layer)(x)
    return x


def test_each_family_has_its_model():
    assert set(QUICK) <= set(SOME) <= set(NAMES)
    assert len(NAMES) > 80


@pytest.mark.parametrize("name", EACH)
def test_a_model_is_its_spaces_original_path_and_subnets_are_timm_networks(name, tmp_path):
    model, weights = with_weights(name, tmp_path, num_classes=CLASSES)
    # Half of a space of the largest ones would not fit into a small machine's memory.
    large = sum(p.numel() for p in model.parameters()) > 2e7
    space = get_space(f"timm:{name}", kernels=[5], expansions=[] if large else [3, 8], weights=str(weights))
    network = space.build(num_classes=CLASSES).eval()
    x = images()

    found = network.timm_state_dict(space.original())
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    with torch.inference_mode():
        expected = model(x)
        assert (along(network, space.original(), x) - expected).abs().max() == 0.0
        # Larger kernels and expansions compute what the model does, but for rounding: in 64 bits, weights too, as deep
        # networks of random weights make much of a little.
        with doubles():
            doubled = space.build(num_classes=CLASSES).eval()
        exact = along(doubled, space.original(), x.double())
        grown = along(doubled, largest(space), x.double())
        assert (grown - exact).abs().max() <= 1e-6 * exact.abs().max()

    costs = space.costs(64, num_classes=CLASSES)
    subnet = Subnet(space, costs.random_choices(1, seed=3)[0])
    assert Subnet.from_dict(json.loads(json.dumps(subnet.to_dict()))) == subnet
    built = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=CLASSES)).eval()
    built.load_state_dict(network.timm_state_dict(subnet.choices))
    with torch.inference_mode():
        assert (built(x) - along(network, subnet.choices, x)).abs().max() == 0.0

    for choices, whole in ((space.original(), model), (subnet.choices, built)):
        chain, summary = costs.chain(choices), model_summary(whole, (3, 64, 64))
        assert sum(map(primitives.macs, chain)) == summary.macs
        assert sum(map(primitives.params, chain)) == summary.params
        assert primitives.check_chain(chain) == chain


def test_a_frozen_space_is_the_timm_network():
    space = get_space("timm:mobilenetv3_small_050", weights="none")
    network = varied(space.build(num_classes=CLASSES))
    subnet = Subnet(space, {k: "skip" if "skip" in names else names[0] for k, names in space.candidates().items()})
    assert len(subnet.arch_def()) < len(space.stages), "a stage is gone and later ones are renumbered"
    frozen = network.freeze(dict(subnet.choices)).eval()
    built = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=CLASSES)).eval()
    built.load_state_dict(space.timm_names(frozen.state_dict(), subnet.choices))
    assert all(
        torch.equal(value, network.timm_state_dict(subnet.choices)[k]) for k, value in built.state_dict().items()
    )
    with torch.inference_mode():
        assert (built(images()) - frozen(images())).abs().max() == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_050",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SOME if name != "mobilenetv3_small_050"),
    ],
)
def test_a_subnet_is_read_back_by_timm_alone(name, tmp_path):
    _, weights = with_weights(name, tmp_path, num_classes=CLASSES)
    space = get_space(f"timm:{name}", weights=str(weights))
    choices = space.costs(64).random_choices(1, seed=5)[0]
    subnet = Subnet(space, choices)
    arguments = subnet.model_args(num_classes=CLASSES)
    built = timm.create_model(subnet.timm_name, **arguments)
    built.load_state_dict(space.build(num_classes=CLASSES).timm_state_dict(choices))
    folder = export_folder(
        built,
        tmp_path / "model",
        model_args=arguments,
        subnet=subnet.to_dict(),
        pretrained_cfg=FEEDING,
        metrics={},
    )
    assert Subnet.load(folder / "subnet.json") == subnet
    # The hub's file is run here, in this process, to save its start; that it needs nothing of ours is read from it.
    text = (folder / "hubconf.py").read_text()
    imported = {
        n.module if isinstance(n, ast.ImportFrom) else n.names[0].name
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in imported} <= {"functools", "json", "pathlib", "safetensors", "timm", "torch"}
    alone = torch.hub.load(str(folder), "model", source="local").eval()
    x = images()
    with torch.inference_mode():
        assert (alone(x) - built.eval()(x)).abs().max() == 0.0
        assert load_exported(folder, num_classes=3)(x).shape == (2, 3)
        assert load_exported(folder, in_chans=1)(images(channels=1)).shape == (2, CLASSES)
        features = load_exported(folder, features_only=True)
        maps = features(x)
    assert [found.shape[1] for found in maps] == features.feature_info.channels()
    assert [64 // found.shape[2] for found in maps] == features.feature_info.reduction()


def test_an_exported_folder_is_a_model_again(tmp_path):
    from search_spaces import users_space

    space = get_space("small_mbconv", stem_stride=1)
    first = Subnet(space, {label: names[0] for label, names in space.candidates().items()})
    arguments = first.model_args(num_classes=CLASSES)
    model = timm.create_model(first.timm_name, **arguments).eval()
    folder = export_folder(
        model,
        tmp_path / "a folder",
        model_args=arguments,
        subnet=first.to_dict(),
        pretrained_cfg=FEEDING,
        metrics={},
    )
    again = users_space(f"timm:local-dir:{folder}", expansions=[2])
    network = again.build(num_classes=CLASSES).eval()
    with torch.inference_mode():
        assert (network.freeze(again.original()).eval()(images()) - model(images())).abs().max() == 0.0
    assert again.stem_stride == 1
    assert Path(again.model.removeprefix("local-dir:")) == folder
