"""The export folder through timm and torch.hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from hardware.errors import ExportError
from proxyless_strategy.export.folder import FOLDER_FILES, load_exported
from proxyless_strategy.export.onnx import export_onnx
from search_spaces import Subnet
from tests.proxyless_strategy.export.samples import FEEDING, a_model, a_subnet, a_tree, difference, export, images

# --- the folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_round_trip_changes_nothing(tmp_path: Path, stem_stride: int, last: bool) -> None:
    model, folder = export(tmp_path / "net", a_subnet(stem_stride=stem_stride, last=last))
    assert difference(model, load_exported(folder)) == 0.0
    assert difference(model, timm.create_model(f"local-dir:{folder}", pretrained=True)) == 0.0


def test_what_the_folder_holds(exported: tuple[nn.Module, Path]) -> None:
    _, folder = exported
    assert {path.name for path in folder.iterdir()} == set(FOLDER_FILES) - {"model.onnx", "tree_cell_net.py"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "proxylessnas"
    assert config["model_args"]["stem_stride"] == 1
    assert config["label_names"] == FEEDING["label_names"]
    assert json.loads((folder / "metrics.json").read_text()) == {"test_accuracy": 0.5}
    assert Subnet.load(folder / "subnet.json") == a_subnet(stem_stride=1)


def test_timm_learns_how_to_feed_the_network(exported: tuple[nn.Module, Path]) -> None:
    model = load_exported(exported[1])
    resolved = resolve_data_config(model=model)
    assert tuple(resolved["input_size"]) == (1, 32, 32)
    assert list(resolved["mean"]) == FEEDING["mean"]
    assert list(resolved["std"]) == FEEDING["std"]
    assert resolved["interpolation"] == "bicubic"
    assert resolved["crop_pct"] == 1.0
    assert list(model.pretrained_cfg["label_names"]) == FEEDING["label_names"]


def test_timms_own_adaptations(exported: tuple[nn.Module, Path]) -> None:
    model, folder = exported
    other = load_exported(folder, num_classes=3)
    assert other(images()).shape == (2, 3)
    assert torch.equal(other.conv_head.weight, model.conv_head.weight)
    assert load_exported(folder, in_chans=3)(images(3)).shape == (2, 10)
    features = load_exported(folder, features_only=True)
    found = features(images())
    assert [feature.shape[1] for feature in found] == features.feature_info.channels()
    assert [32 // feature.shape[2] for feature in found] == features.feature_info.reduction()


HUB = """
import sys, torch
model = torch.hub.load({folder!r}, "model", source="local").eval()
images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    torch.save([model(images), model.pretrained_cfg["mean"], len(model.classifier.bias)], {out!r})
fresh = torch.hub.load({folder!r}, "model", source="local", pretrained=False, num_classes=4)
assert fresh.classifier.bias.shape == (4,)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"proxyless_strategy", "search_spaces", "hardware", "nni"}}, loaded
"""


def test_a_family_that_timm_lacks_round_trips_and_brings_its_file(tmp_path: Path) -> None:
    model, folder = export(tmp_path / "net", a_tree())
    assert difference(model, load_exported(folder)) == 0.0
    assert {path.name for path in folder.iterdir()} == set(FOLDER_FILES) - {"model.onnx"}
    assert json.loads((folder / "config.json").read_text())["architecture"] == "proxylessnas_cifar_tree"
    assert Subnet.load(folder / "subnet.json") == a_tree()
    assert export_onnx(folder, tmp_path / "net.onnx").max_abs_difference <= 1e-4
    features = load_exported(folder, features_only=True)
    assert [feature.shape[1] for feature in features(images())] == features.feature_info.channels()
    assert load_exported(folder, num_classes=3)(images()).shape == (2, 3)
    assert load_exported(folder, in_chans=3)(images(3)).shape == (2, 10)


@pytest.mark.parametrize(
    "subnet",
    [
        pytest.param(a_subnet(stem_stride=1), marks=pytest.mark.slow),
        a_subnet(),
        pytest.param(a_tree(), marks=pytest.mark.slow),
    ],
    ids=["stem_stride 1", "stem_stride 2", "tree"],
)
def test_hub_needs_nothing_of_this_project(tmp_path: Path, subnet: Subnet) -> None:
    model, folder = export(tmp_path / "net", subnet)
    out = tmp_path / "out.pt"
    code = HUB.format(folder=str(folder), out=str(out))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, mean, classes = torch.load(out, weights_only=True)
    with torch.inference_mode():
        assert (found - model.eval()(images())).abs().max().item() == 0.0
    assert (mean, classes) == ([0.3], 10)


def test_exporting_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    model = a_model(a_subnet()).train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(tmp_path / "net", model=model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    _, folder = export(tmp_path / "net")
    (folder / "model.onnx").write_text("of the earlier network")
    model, _ = export(folder, a_subnet(last=True))
    assert difference(model, load_exported(folder)) == 0.0
    assert not (folder / "model.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(ExportError, match=r"holds 'thesis\.tex', which is no part of an export"):
        export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("")
    with pytest.raises(ExportError, match="is in the way of the export folder"):
        export(tmp_path / "net")
    with pytest.raises(ExportError, match=r"cannot write to .*choose another folder|in the way"):
        export(tmp_path / "net" / "below")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"accuracy": float("nan")}}, r"metrics\.json cannot be written as JSON"),
        ({"subnet": {"choices": {1, 2}}}, r"subnet\.json cannot be written as JSON"),
        ({"model_args": {"act_layer": nn.ReLU6}}, "model_args cannot be written as JSON"),
        ({"model_args": a_subnet(last=True).model_args(num_classes=10, in_chans=1)}, "do not describe the network"),
        (
            {"model_args": {**a_subnet().model_args(num_classes=10, in_chans=1), "bn_eps": 0.1}},
            r"network built from model_args differs by .* give the model_args that built it",
        ),
        (
            {"model_args": a_subnet(stem_stride=1).model_args(num_classes=10, in_chans=1)},
            "network built from model_args differs by",
        ),
        ({"model": nn.Linear(2, 2)}, "Linear was not built by timm.create_model"),
    ],
)
def test_what_cannot_be_exported_leaves_no_trace(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "net", **changes)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_keeps_the_earlier_one(tmp_path: Path) -> None:
    model, folder = export(tmp_path / "net")
    with pytest.raises(ExportError):
        export(folder, model_args=a_subnet(last=True).model_args(num_classes=10, in_chans=1))
    assert difference(model, load_exported(folder)) == 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def spoil(folder: Path, name: str, content: str | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"has no config\.json, so it is no export folder"),
        ("model.safetensors", None, r"has no model\.safetensors"),
        ("config.json", "{", "cannot build the network of"),
        ("config.json", '{"architecture": "proxyless"}', "cannot build the network of"),
        ("model.safetensors", "nothing", "cannot build the network of .*export it again"),
    ],
)
def test_a_spoilt_folder(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    _, folder = export(tmp_path / "net")
    spoil(folder, name, content)
    with pytest.raises(ExportError, match=message):
        load_exported(folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no export folder; give the folder of an export"):
        load_exported(tmp_path / "nowhere")
