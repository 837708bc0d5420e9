"""The ONNX file, compared with its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hardware.errors import ExportError
from proxyless_strategy.export.onnx import export_onnx
from tests.proxyless_strategy.export.samples import a_model, a_subnet, images


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


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_the_tolerance_is_a_share_of_large_outputs(tmp_path: Path, scale: float) -> None:
    model = a_model(a_subnet())
    with torch.no_grad():
        model.classifier.weight *= scale
        model.classifier.bias *= scale
    export = export_onnx(model, tmp_path / "net.onnx", input_shape=(1, 32, 32))
    assert export.max_abs_difference < 1e-4 * scale
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    with pytest.raises(ExportError, match="differs by"):
        export_onnx(model, tmp_path / "other.onnx", input_shape=(1, 32, 32))


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
