"""int8 exports: the images of the search, ranges of its architecture part, accuracy on its test part."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hardware.backends import get_backend
from hardware.errors import DataError, ExportError
from hardware.measuring.nets import measure_model_file, measure_model_files
from hardware.measuring.sampling import Plan
from hardware.operators.quantised import is_quantised
from hardware.tables.shipped import open_table
from proxyless_strategy.cli import main as cli
from proxyless_strategy.config import parse_config
from proxyless_strategy.layout import INT8_FILE, TABLE_FILE
from proxyless_strategy.runs import deployed
from proxyless_strategy.runs import quantised as quantised_module
from proxyless_strategy.runs.ended import finished_result
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.quantised import (
    check_int8,
    export_quantised,
    images_of,
    int8_beside,
    is_for_int8,
    onnx_accuracy,
    quantised,
    without_int8_file,
)
from proxyless_strategy.runs.search import run_search

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
    made = quantised(EXACT, tmp_path / "new" / "int8.onnx", data, batch=1, narrow=False, float_accuracy=0.5)
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
            assert len(feed["image"]) == 7
            return [np.eye(10, dtype=np.float32)[[0] * 7]]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Zeros)
    labels = [int(label) for _, batch in data.loader("test", batch_size=1) for label in batch]
    assert len(labels) % 7
    assert onnx_accuracy(EXACT, data, batch=7) == (labels.count(0) / len(labels), len(labels))


def test_too_large_a_batch_and_a_folder_of_no_search_are_refused(data, tmp_path, capsys):
    with pytest.raises(DataError, match=r"architecture part has \d+ images, fewer than the batch of 100000"):
        quantised(EXACT, tmp_path / "int8.onnx", data, batch=100_000, narrow=False)
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
    run = shutil.copytree(RUN, tmp_path / "run")
    # a network of the run that was trained on since, and has an accuracy of its own
    shutil.copytree(run / "model", run / "later")
    metrics = json.loads((run / "later" / "metrics.json").read_text())
    (run / "later" / "metrics.json").write_text(json.dumps({**metrics, "accuracy": 0.25}))
    for name, exact in (("model", read_run(RUN).row["accuracy"]), ("later", 0.25)):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["export", str(run / name), "--onnx", str(tmp_path / f"{name}.onnx"), "--dtype", "int8"])
        assert not exit_.value.code
        assert f"of {len(data.test)} test images right, in float32 {100 * exact:.2f} %" in capsys.readouterr().out
        assert is_quantised(tmp_path / f"{name}.onnx")


def test_the_runs_own_table_says_what_will_run_the_file(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        quantised_module,
        "export_onnx",
        lambda folder, out, batch: type("Export", (), {"path": shutil.copy(EXACT, out)}),
    )
    run = shutil.copytree(RUN, tmp_path / "run")
    assert read_run(run).config.hardware.backend == "onnxruntime"
    table = open_table("pixel1")
    for backend, widest in (("onnxruntime", 127), ("openvino", 64)):
        dataclasses.replace(table, header=dataclasses.replace(table.header, backend=backend)).save(run / TABLE_FILE)
        made = export_quantised(run / "model", tmp_path / f"{backend}.onnx")
        assert largest_weight(made.path) <= widest
        assert largest_weight(made.path) > 60
        assert made.accuracy > onnx_accuracy(EXACT, data, batch=1)[0] - 0.1


def largest_weight(path):
    """Return the largest of an int8 file's weights; of 7 bits it is 64 at most."""
    arrays = (onnx.numpy_helper.to_array(array) for array in onnx.load(str(path)).graph.initializer)
    return max(int(np.abs(array.astype(int)).max()) for array in arrays if array.dtype == np.int8 and array.ndim > 1)


def settings(out="runs/x", **values):
    space = {"name": "small_mbconv", "options": {"stem_stride": 1}}
    hardware = {"cost": "macs", "dtype": "int8", **values.pop("hardware", {})}
    values = {"input_size": 16, **values}
    return parse_config({"space": space, "hardware": hardware, "target": 0.5, "out": str(out), **values})


def test_int8_is_what_the_table_or_else_the_config_says():
    assert is_for_int8(settings(), None)
    assert not is_for_int8(settings(hardware={"dtype": "float32"}), None)
    assert is_for_int8(settings(hardware={"backend": "openvino"}), None)
    assert not is_for_int8(settings(hardware={"backend": "openvino", "dtype": "float32"}), None)
    assert without_int8_file(settings(), None) is None
    assert without_int8_file(settings(hardware={"dtype": "float32"}), None) is None
    table = open_table("pixel1")
    assert without_int8_file(settings(), table) is None
    for changes, expected in (
        ({}, False),
        ({"backend": "onnxruntime", "dtype": "int8"}, True),
        ({"backend": "openvino", "dtype": "int8"}, True),
        ({"backend": "openvino", "dtype": "float32"}, False),
        ({"backend": "litert", "dtype": "int8"}, False),
    ):
        header = dataclasses.replace(table.header, **changes)
        changed = dataclasses.replace(table, header=header)
        assert is_for_int8(settings(), changed) is expected
        said = without_int8_file(settings(), changed)
        assert (said is not None) is (header.backend == "litert")
    assert said.startswith(
        "latencies are of int8, but no int8 file is made for litert: the export and its accuracy are"
    )


def test_an_untrained_network_is_quantised_without_a_look_at_the_test_part(data, tmp_path, monkeypatch):
    read = []
    loader = type(data).loader
    monkeypatch.setattr(type(data), "loader", lambda self, part, **k: read.append(part) or loader(self, part, **k))
    made = int8_beside(settings(), EXACT, tmp_path / "int8.onnx", data, accuracy=None)
    assert made.accuracy is None
    assert is_quantised(made.path)
    assert read == ["architecture"]
    assert int8_beside(settings(), EXACT, tmp_path / "int8.onnx", data, accuracy=0.5).accuracy > 0.1


def test_what_cannot_be_quantised_is_said_and_left_out(data, tmp_path, capsys):
    out = tmp_path / "int8.onnx"
    other = settings(deploy_input_size=32)
    assert int8_beside(other, EXACT, out, data, accuracy=0.5) is None
    assert (
        "deploy_input_size = 32, and the images to calibrate on have 16 pixels; its latency is"
        in capsys.readouterr().err
    )
    (tmp_path / "damaged.onnx").write_bytes(EXACT.read_bytes()[:1000])
    assert int8_beside(settings(), tmp_path / "damaged.onnx", out, data, accuracy=0.5) is None
    assert "damaged.onnx cannot be quantised: " in capsys.readouterr().err
    assert not out.exists()


def test_too_few_images_to_calibrate_on_are_refused_before_the_search(data):
    check_int8(settings(hardware={"batch": len(data.architecture)}), data)
    check_int8(settings(hardware={"batch": 60_000}, deploy_input_size=32), data)
    with pytest.raises(DataError, match=r"hardware\.batch = 60000, but int8 is calibrated on .* has \d+ images; lower"):
        check_int8(settings(hardware={"batch": 60_000}), data)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_search_for_int8_ends_with_an_int8_file_whose_latency_it_measures(backend, tmp_path, monkeypatch):
    if find_spec(backend) is None:
        pytest.skip(f"the extra {backend!r} is not installed")
    timed = []
    monkeypatch.setattr(
        deployed, "measure_model_files", lambda files, **k: timed.extend(files) or measure_model_files(files, **k)
    )
    config = settings(
        tmp_path / "run",
        hardware={"backend": backend},
        search={"epochs": 2, "warmup_epochs": 0, "finalists": 1, "threads": 1},
        retrain={"epochs": 1},
    )
    result = run_search(config)
    assert is_quantised(result.int8_onnx)
    assert not is_quantised(result.onnx)
    assert timed == [result.int8_onnx]
    # OpenVINO cannot be told to add exactly: its file's weights have 7 bits
    assert (largest_weight(result.int8_onnx) <= 64) is (backend == "openvino")
    assert result.latency_ms > 0
    assert result.int8_accuracy == onnx_accuracy(result.int8_onnx, images_of(read_run(config.out)), batch=1)[0]
    row = read_run(config.out).row
    assert (row["int8_onnx"], row["int8_accuracy"]) == (str(result.int8_onnx), result.int8_accuracy)
    assert finished_result(config).row() == result.row()
    with pytest.raises(SystemExit):
        cli.main(["report", str(config.out)])
    assert "ONNX file in int8" in (config.out / "report.html").read_text()
    # the same search for float32 has no file in int8 beside it
    exact = config.model_copy(update={"hardware": config.hardware.model_copy(update={"dtype": None})})
    assert run_search(exact).int8_onnx is None
    assert not (config.out / INT8_FILE).exists()
