"""What a space starts from: a file, timm's weights, none; with other classes and channels; and what is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hardware.errors import SpaceError
from search_spaces import get_space
from search_spaces.from_timm import weights as loading
from tests.search_spaces.from_timm.samples import images, with_weights

NAME = "mobilenetv2_035"
LITE0 = Path("/work/shared/data/tf_efficientnet_lite0.safetensors")


def space(**options):
    return get_space(f"timm:{NAME}", kernels=[5], expansions=[3], **options)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return with_weights(NAME, tmp_path_factory.mktemp("weights"))[1]


@pytest.mark.skipif(not LITE0.exists(), reason=f"the weights {LITE0} are not on this machine")
def test_real_weights_keep_their_outputs():
    own = get_space("timm:tf_efficientnet_lite0", kernels=[5], expansions=[3], weights=str(LITE0))
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(LITE0))
    with torch.inference_mode():
        found = own.build().freeze(own.original()).eval()(images())
        assert (found - model(images())).abs().max() == 0.0
    assert own.feeding() == {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
    }


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (5, 3), (5, 1), (1000, 4)])
def test_other_classes_and_channels_change_weights_as_timm_does(weights, classes, channels):
    own = space(weights=str(weights))
    found = own.build(num_classes=classes, in_chans=channels).timm_state_dict(own.original())
    model = timm.create_model(
        NAME,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(weights)},
        num_classes=classes,
        in_chans=channels,
    )
    for key, value in model.state_dict().items():
        assert found[key].shape == value.shape
        if classes == 1000 or not key.startswith("classifier"):
            assert torch.equal(found[key], value), key


def test_without_weights_every_candidate_starts_afresh():
    network = space(weights="none").build(num_classes=5)
    layer = network.blocks[1][1]
    assert not torch.equal(layer["3x3_e6"].conv_pw.weight, layer["5x5_e6"].conv_pw.weight)


def test_candidates_inherit_and_share_nothing(weights):
    network = space(weights=str(weights)).build(num_classes=5)
    layer = network.blocks[1][1]
    assert torch.equal(layer["3x3_e6"].conv_pw.weight, layer["5x5_e6"].conv_pw.weight)
    assert len({p.data_ptr() for p in network.parameters()}) == len(list(network.parameters()))
    assert all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())


def broken(folder, weights, change):
    values = load_file(weights)
    change(values)
    path = folder / "broken.safetensors"
    save_file(values, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("conv_head.weight"), "lack conv_head.weight; give those of this model"),
        (lambda v: [v.pop(k) for k in list(v) if k.startswith("blocks.3")], r"lack blocks\.3.* and \d+ more"),
        (lambda v: v.update(extra=torch.zeros(1)), "have extra, which its network has not"),
        (lambda v: v.update({"bn2.weight": torch.zeros(3)}), r"bn2.weight of shape \(3,\), not \(1280,\)"),
        (lambda v: v["bn2.weight"].fill_(torch.nan), "bn2.weight that are not finite"),
        (lambda v: v.update({"conv_stem.weight": torch.zeros(16)}), r"conv_stem.weight of shape \(16,\)"),
        (lambda v: v.update({"classifier.weight": torch.zeros(7)}), r"lack classifier|classifier.weight of shape"),
    ],
)
def test_weights_of_another_network_are_refused(weights, tmp_path, change, words):
    path = broken(tmp_path, weights, change)
    with pytest.raises(SpaceError, match=words) as refused:
        space(weights=str(path)).build()
    assert str(path) in str(refused.value)
    assert f"timm:{NAME}" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "missing.safetensors", "cannot be read: No such file|cannot be read"),
        (b"", "empty.safetensors", "cannot be read"),
        (b"x" * 100, "garbage.safetensors", "cannot be read"),
        (b"x", "weights.pth", "no file of safetensors"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, name, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpaceError, match=words):
        space(weights=str(tmp_path / name)).build()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def unknown(*address):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(loading, "getproxies", dict)
    monkeypatch.setattr(loading.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("no_network")
def test_offline_and_not_cached_is_one_sentence():
    with pytest.raises(SpaceError, match=r"timm's weights of .* \(OSError: no network, .*\); give weights: .* none$"):
        get_space("timm:mobilenetv2_050").check_weights()


def test_a_model_that_timm_has_no_weights_of_is_named():
    with pytest.raises(SpaceError, match="timm has no weights of mobilenetv2_035; give weights: FILE"):
        space().check_weights()


@pytest.mark.usefixtures("no_network")
def test_offline_and_cached_needs_no_network(tmp_path, monkeypatch):
    _, weights = with_weights("mobilenetv2_050", tmp_path)
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda repository, name: str(weights))
    own = get_space("timm:mobilenetv2_050", kernels=[3], expansions=[3])
    found = own.build().timm_state_dict(own.original())
    assert all(torch.equal(found[key], value) for key, value in load_file(weights).items())


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    monkeypatch.setattr(loading, "without_network", lambda model: {})

    def fetch(name, pretrained=False, **arguments):
        if pretrained:
            raise OSError("no\n  network")
        return create(name, **arguments)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", fetch)
    with pytest.raises(SpaceError, match=r"neither on this machine .*\(OSError: no network\); give weights: FILE"):
        get_space("timm:mobilenetv2_050").build()


def test_a_space_that_a_file_holds_has_no_weights(weights):
    own = space(weights=str(weights))
    read = type(own).from_dict(own.to_dict())
    assert read == own
    assert (read.weights, read.model) == ("none", "")
    assert str(weights) not in str(own.to_dict())
