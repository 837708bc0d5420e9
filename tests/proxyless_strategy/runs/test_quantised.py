"""int8 exports: the images of the search, ranges of its architecture part, accuracy on its test part."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime
import pytest

from hardware.backends import get_backend
from hardware.errors import DataError, ExportError
from hardware.measuring.nets import measure_model_file
from hardware.measuring.sampling import Plan
from hardware.operators.quantised import is_quantised
from proxyless_strategy.cli import main as cli
from proxyless_strategy.runs import quantised as quantised_module
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.quantised import export_quantised, images_of, onnx_accuracy, quantised

RUN = Path(__file__).parents[2] / "data" / "run_bc6f2f8" / "gradient"
EXACT = RUN / "model.onnx"


@pytest.fixture(scope="module")
def data():
    return images_of(read_run(RUN))


def test_the_test_part_is_the_searchs_own(data):
    """The file of the run, judged here, is as right as the run's row says of the network."""
    accuracy, count = onnx_accuracy(EXACT, data, batch=1)
    assert count == len(data.test)
    assert accuracy == pytest.approx(read_run(RUN).row["accuracy"], abs=1e-9)


def test_the_quantised_file_is_calibrated_judged_and_run_in_int8(data, tmp_path, monkeypatch):
    read = []
    loader = type(data).loader
    monkeypatch.setattr(type(data), "loader", lambda self, part, **k: read.append(part) or loader(self, part, **k))
    made = quantised(EXACT, tmp_path / "new" / "int8.onnx", data, batch=1, float_accuracy=0.5)
    assert read == ["architecture", "test"]
    assert is_quantised(made.path)
    assert made.calibration_images == min(512, len(data.architecture))
    assert made.test_images == len(data.test)
    assert made.accuracy == onnx_accuracy(made.path, data, batch=1)[0]
    assert made.accuracy > onnx_accuracy(EXACT, data, batch=1)[0] - 0.1
    with get_backend("onnxruntime", dtype="int8") as backend:
        plan = Plan(rounds=3, minimum_rounds=1, seconds=1.0, extra_rounds=0)
        assert measure_model_file(made.path, backend=backend, plan=plan).ms > 0


def test_a_last_batch_that_is_not_full_counts_its_own_images_alone(data, monkeypatch):
    class Zeros:
        """Says class 0 of every image; of the ones that fill up a batch too."""

        def __init__(self, *args, **kwargs):
            pass

        def get_inputs(self):
            return [type("Input", (), {"name": "image"})]

        def run(self, outputs, feed):
            import numpy as np

            assert len(feed["image"]) == 7
            return [np.eye(10, dtype=np.float32)[[0] * 7]]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Zeros)
    labels = [int(label) for _, batch in data.loader("test", batch_size=1) for label in batch]
    assert len(labels) % 7
    assert onnx_accuracy(EXACT, data, batch=7) == (labels.count(0) / len(labels), len(labels))


def test_too_large_a_batch_and_a_folder_of_no_search_are_refused(data, tmp_path, capsys):
    with pytest.raises(DataError, match=r"architecture part has \d+ images, fewer than the batch of 100000"):
        quantised(EXACT, tmp_path / "int8.onnx", data, batch=100_000)
    shutil.copytree(RUN / "model", tmp_path / "model")
    with pytest.raises(ExportError, match=r"model lies in no folder of a search.*give RUN/model of a search"):
        export_quantised(tmp_path / "model", tmp_path / "int8.onnx")
    with pytest.raises(SystemExit):
        cli.main(["export", str(RUN / "model"), "--onnx", str(tmp_path / "a.onnx"), "--dtype", "int4"])
    assert "--dtype int4 is no number format of an export; give float32 or int8" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]


def test_the_command_tells_both_accuracies(data, tmp_path, capsys, monkeypatch):
    # exported anew takes torch ten seconds; the run keeps the same file
    monkeypatch.setattr(
        quantised_module,
        "export_onnx",
        lambda folder, out, batch: type("Export", (), {"path": shutil.copy(EXACT, out)}),
    )
    with pytest.raises(SystemExit) as exit_:
        cli.main(["export", str(RUN / "model"), "--onnx", str(tmp_path / "a.onnx"), "--dtype", "int8"])
    assert not exit_.value.code
    said = capsys.readouterr().out
    assert f"of {len(data.test)} test images right, in float32 {100 * read_run(RUN).row['accuracy']:.2f} %" in said
    assert is_quantised(tmp_path / "a.onnx")
