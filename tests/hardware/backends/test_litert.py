"""LiteRT in int8: full-integer graphs of what the float ones compute, and nothing else under that name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hardware.backends import get_backend
from hardware.backends import litert as backend_module
from hardware.backends.litert import convert, full_integer
from hardware.errors import BackendError
from hardware.op_spec import OpSpec
from hardware.operators import primitives
from hardware.testing import BackendConformance, small_ops
from tests.hardware.operators.test_quantised import ALONE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("litert_torch") is None, reason="the extra 'litert' is not installed"),
]


class TestInt8(BackendConformance):
    def make_backend(self):
        return get_backend("litert", dtype="int8")


def output(runnable, x):
    """Run what was prepared on other numbers, channels last, which are quantised as its input is; return floats."""
    interpreter = runnable.handle
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = entry["quantization"]
    if scale:
        x = np.clip(np.round(x / scale) + zero, -128, 127)
    interpreter.set_tensor(entry["index"], x.astype(entry["dtype"]))
    runnable.call()
    found = interpreter.get_tensor(result["index"]).astype(np.float64)
    scale, zero = result["quantization"]
    return scale * (found - zero) if scale else found


@pytest.mark.parametrize("batch", [1, 3])
def test_a_net_in_int8_is_nearly_the_net_in_float32(batch):
    x = np.random.default_rng(0).standard_normal((batch, 16, 16, 3), dtype=np.float32)
    with get_backend("litert", dtype="int8") as quantised, get_backend("litert") as exact:
        runnable = quantised.prepare(small_ops(), batch=batch)
        assert {entry["dtype"] for entry in runnable.handle.get_input_details()} == {np.int8}
        found, wanted = output(runnable, x), output(exact.prepare(small_ops(), batch=batch), x)
        assert quantised.versions().keys() - exact.versions().keys() == {"ai-edge-quantizer"}
    assert found.shape == wanted.shape == (batch, 10)
    # of the same weights, each map rounded to 8 bits
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "op",
    [
        *ALONE.values(),
        *(OpSpec("conv", (4, 6, 6), (8, 6, 6), kernel=3, activation=a) for a in (*primitives.ACTIVATIONS, "none")),
    ],
    ids=lambda op: op.key,
)
def test_each_kind_and_activation_computes_in_integers_alone(op, tmp_path):
    path = convert([op], tmp_path / "op.tflite", dtype="int8")
    with get_backend("litert", dtype="int8") as backend:
        interpreter = backend._interpreter(model_content=path.read_bytes())
        kinds = {entry["dtype"] for entry in interpreter.get_tensor_details()}
        assert np.int8 in kinds
        assert not {kind for kind in kinds if np.issubdtype(kind, np.floating)}


def test_a_file_of_the_other_format_is_not_measured(tmp_path):
    op = small_ops()[2]
    exact, quantised = (convert([op], tmp_path / f"{dtype}.tflite", dtype=dtype) for dtype in ("float32", "int8"))
    assert full_integer(quantised.read_bytes())
    assert not full_integer(exact.read_bytes())
    with get_backend("litert", dtype="int8") as backend:
        with pytest.raises(BackendError, match=r"float32.tflite is not full-integer, but int8 is to be measured"):
            backend.prepare_model_file(exact)
        assert backend.time(backend.prepare_model_file(quantised)) >= 0
    with get_backend("litert") as backend:
        with pytest.raises(BackendError, match=r"int8.tflite is full-integer, but float32 is to be measured"):
            backend.prepare_model_file(quantised)
        assert backend.time(backend.prepare_model_file(exact)) >= 0


def test_what_the_quantiser_leaves_in_floats_is_refused(tmp_path, monkeypatch):
    from ai_edge_quantizer import recipe

    # quantises weights, and rounds activations while the graph runs
    partly = SimpleNamespace(static_wi8_ai8=lambda: weights_alone)
    weights_alone = recipe.dynamic_wi8_afp32()
    required = backend_module.required
    monkeypatch.setattr(
        backend_module, "required", lambda name, **k: partly if name.endswith(".recipe") else required(name, **k)
    )
    path = tmp_path / "op.tflite"
    with pytest.raises(BackendError, match=r"leaves \d+ tensors of head-.* in floats, first .*; measure it in float32"):
        convert([small_ops()[-1]], path, dtype="int8")


def test_there_are_no_files_of_other_formats(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"there are no \.tflite files in 'float16'; write float32 or int8"):
        convert(small_ops(), tmp_path / "x.tflite", dtype="float16")
    with pytest.raises(BackendError, match=r"'litert' does not measure 'int4'; it measures float32, int8"):
        get_backend("litert", dtype="int4")
