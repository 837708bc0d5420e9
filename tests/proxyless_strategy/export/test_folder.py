"""The export folder through timm and torch.hub, the ONNX file, and the count of a network's size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from hardware.errors import ExportError
from proxyless_strategy.export.folder import FOLDER_FILES, export_folder, load_exported
from proxyless_strategy.export.onnx import export_onnx
from proxyless_strategy.export.summary import ModelSummary, model_summary
from search_spaces import Subnet, get_space

FEEDING = {
    "input_size": [1, 32, 32],
    "mean": [0.3],
    "std": [0.4],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "num_classes": 10,
    "label_names": [f"digit {number}" for number in range(10)],
}


def a_subnet(*, stem_stride: int = 2, last: bool = False) -> Subnet:
    space = get_space("small_mbconv", stem_stride=stem_stride)
    return Subnet(space, {label: names[-1 if last else 0] for label, names in space.candidates().items()})


def a_tree() -> Subnet:
    space = get_space("cifar_tree", blocks=1, stem_width=4, alpha=8, bottleneck=2)
    return Subnet(space, space.costs(32).random_choices(1, seed=1)[0])


def a_model(subnet: Subnet) -> nn.Module:
    """A network whose batch norms have seen images, so that folding them is no identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=10, in_chans=1))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def export(folder: Path, choice: Subnet | None = None, **changes: Any) -> tuple[nn.Module, Path]:
    choice = choice or a_subnet()
    model = changes.pop("model", None) or a_model(choice)
    arguments = {
        "model_args": choice.model_args(num_classes=10, in_chans=1),
        "subnet": choice.to_dict(),
        "pretrained_cfg": FEEDING,
        "metrics": {"test_accuracy": 0.5},
        **changes,
    }
    return model, export_folder(model, folder, **arguments)


def images(channels: int = 1, size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def difference(first: nn.Module, second: nn.Module) -> float:
    with torch.inference_mode():
        return (first.eval()(images()) - second.eval()(images())).abs().max().item()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    return export(tmp_path_factory.mktemp("export") / "net", a_subnet(stem_stride=1))


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
    "subnet", [a_subnet(stem_stride=1), a_subnet(), a_tree()], ids=["stem_stride 1", "stem_stride 2", "tree"]
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


# --- ONNX ----------------------------------------------------------------------------------------------------------


def test_onnx_equals_the_network(
    exported: tuple[nn.Module, Path], tmp_path: Path, capfd: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    model, folder = exported
    result = export_onnx(folder, tmp_path / "new" / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert [path.name for path in result.path.parent.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images(batch=1).numpy()})
    with torch.inference_mode():
        expected = model.eval()(images(batch=1)).numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert 0 < result.max_abs_difference < 1e-4
    graph = onnx.load(result.path)
    onnx.checker.check_model(graph)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    assert b"site-packages" not in result.path.read_bytes()
    assert graph.opset_import[0].version == 18


def test_onnx_of_a_network_in_memory(tmp_path: Path) -> None:
    model = a_model(a_subnet()).train()
    result = export_onnx(model, tmp_path / "net.onnx", input_shape=(1, 28, 28), batch=3)
    assert model.training
    shape = onnx.load(result.path).graph.input[0].type.tensor_type.shape
    assert [dimension.dim_value for dimension in shape.dim] == [3, 1, 28, 28]


def test_a_difference_above_the_tolerance(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    out.write_text("an earlier file")
    with pytest.raises(ExportError, match=r"differs by .* from PyTorch, more than the tolerance 0;.*opset \(now 18\)"):
        export_onnx(a_model(a_subnet()), out, input_shape=(1, 32, 32), tolerance=0.0)
    assert out.read_text() == "an earlier file"


def test_weights_that_are_not_finite_are_no_parity(tmp_path: Path) -> None:
    model = a_model(a_subnet())
    nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(ExportError, match="differs by nan from PyTorch"):
        export_onnx(model, tmp_path / "net.onnx", input_shape=(1, 32, 32))
    assert not list(tmp_path.iterdir())


class Unexportable(nn.Module):
    """Decides by a value, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else torch.from_numpy(x.numpy() * 2)


def test_a_network_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Unexportable cannot be exported to ONNX opset 18"):
        export_onnx(Unexportable(), tmp_path / "net.onnx", input_shape=(1, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*choose another place"):
        export_onnx(nn.Conv2d(1, 1, 1), tmp_path / "file" / "net.onnx", input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("shape", "message"), [(None, "input size of a Conv2d is not known"), ((1, 8), "give C, H and W")]
)
def test_an_unknown_input_shape(tmp_path: Path, shape: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(nn.Conv2d(1, 1, 1), tmp_path / "net.onnx", input_shape=shape)


# --- size ----------------------------------------------------------------------------------------------------------


def test_summary_in_closed_form() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    params = 27 * 8 + 16 + (25 * 8 + 8) + 90
    macs = 27 * 8 * 16 + 25 * 8 * 16 + 80
    assert model_summary(model, (3, 8, 8)) == ModelSummary(params=params, macs=macs)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("candidate", "params", "macs"),
    [("3x3_e3", 3.192, 257.42), ("3x3_e6", 4.685, 472.62), ("7x7_e6", 5.103, 606.59)],
)
def test_summary_of_the_papers_space(candidate: str, params: float, macs: float) -> None:
    space = get_space("imagenet_mbconv")
    subnet = Subnet(space, dict.fromkeys(space.candidates(), candidate))
    summary = model_summary(timm.create_model("proxylessnas", **subnet.model_args()), (3, 224, 224))
    assert round(summary.params / 1e6, 3) == params
    assert round(summary.macs / 1e6, 2) == macs
