"""The comparison of networks: what is counted in closed form, and one run from end to end."""

import contextlib
import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from torch import nn

from hardware.child_process import MALLOC_TUNABLES
from hardware.errors import BackendError, ConfigError, ExportError
from hardware.measuring.sampling import Measurement, Plan, interleaved
from proxyless_strategy.benchmark import picture
from proxyless_strategy.benchmark import run as benchmark
from proxyless_strategy.benchmark.activation_memory import LiveBytes, peak_activation_bytes
from proxyless_strategy.benchmark.models import DEFAULT_MODELS, build_model, settle, source_of
from proxyless_strategy.benchmark.picture import draw
from proxyless_strategy.benchmark.published import OWN_IMAGES, PUBLISHED, Accuracy
from proxyless_strategy.benchmark.result import Row
from proxyless_strategy.benchmark.run import OPPONENTS, run_benchmark
from proxyless_strategy.cli import main as cli
from proxyless_strategy.export.folder import export_folder
from proxyless_strategy.report.drawing import spread_out

QUICK = Plan(rounds=2, minimum_rounds=1, seconds=0.0)
TINY = {
    "arch_def": [["ds_r1_k3_s1_c8_noskip"], ["ir_r1_k3_s2_e3_c16", "ir_r1_k5_s1_e3_c16"]],
    "stem_size": 8,
    "num_features": 24,
    "num_classes": 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return export_folder(
        timm.create_model("proxylessnas", **TINY),
        tmp_path_factory.mktemp("exports") / "tiny",
        model_args=TINY,
        subnet={},
        pretrained_cfg={"input_size": [3, 32, 32], "num_classes": 5},
        metrics={},
    )


@pytest.fixture
def no_export(monkeypatch):
    """Refuses every export to ONNX, which takes seconds."""

    def refuse(*_, **__):
        raise ExportError("no ONNX today")

    monkeypatch.setattr(benchmark, "export_onnx", refuse)


@pytest.fixture(autouse=True)
def no_lock(monkeypatch):
    """Waits for no other measurement on this machine: nothing here asserts a time."""
    monkeypatch.setattr(benchmark, "measuring_lock", contextlib.nullcontext)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = x.view(x.shape)
        return y + self.conv(x)


# Bytes of a feature map of C channels at batch 2 on 4 x 4 pixels: 128 C. The image (3 channels) lives to the end.
@pytest.mark.parametrize(
    ("model", "channels_at_the_peak"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)), 3 + 8 + 8),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)), 3 + 8 + 2),
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 9, 1)), 3 + 8 + 9),
        (Residual(), 3 + 3 + 3),
        (nn.Identity(), 3),
    ],
    ids=["relu", "in place", "earlier maps are gone", "views count once", "the image alone"],
)
def test_peak_activation_memory_is_what_lives_at_once(model, channels_at_the_peak):
    assert peak_activation_bytes(model, (3, 4, 4), batch=2) == 128 * channels_at_the_peak
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_peak_activation_memory_grows_with_the_batch_and_ignores_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 1000))
    one, eight = (peak_activation_bytes(model, (3, 8, 8), batch=batch) for batch in (1, 8))
    assert eight == 8 * one == 8 * 4 * (3 * 64 + 4 * 64 + 1000)


@pytest.mark.parametrize("name", ["proxylessnas_gpu", "shufflenet_v2_x1_5"])
def test_peak_activation_memory_is_that_of_a_forward_pass_that_really_runs(name):
    model = build_model(name)
    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers()]) as live:
        model(torch.empty(2, 3, 64, 64))
    assert peak_activation_bytes(model, (3, 64, 64), batch=2) == live.peak
    assert live.now <= live.peak


@pytest.mark.parametrize("name", [*DEFAULT_MODELS, *OPPONENTS, "proxylessnas_mobile_14"])
def test_every_named_model_exists(name):
    assert source_of(name) == ("torchvision" if name.startswith("shufflenet") else "timm")


def test_published_accuracies_are_those_of_the_tables():
    top1 = {name: accuracy.top1 for name, accuracy in PUBLISHED.items()}
    assert top1 == {
        "proxylessnas_cpu": 75.29,
        "proxylessnas_gpu": 75.08,
        "proxylessnas_mobile": 74.59,
        "proxylessnas_mobile_14": 76.7,
        "mobilenetv1_100": 70.6,
        "mobilenetv2_100": 72.0,
        "mnasnet_100": 74.0,
        "shufflenet_v2_x1_5": 72.6,
        "resnet34": 73.3,
    }
    assert all(accuracy.source for accuracy in PUBLISHED.values())


@pytest.mark.parametrize("name", ["proxylessnas_cpu", "shufflenet_v2_x1_5"])
def test_a_registered_model_is_built_alike_each_time(name):
    state = torch.get_rng_state()
    first, again = (build_model(name, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(next(iter(build_model(name, seed=4).parameters())), next(iter(first.values())))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"models": ["proxylesnas_cpu"]},
            ConfigError,
            "unknown model 'proxylesnas_cpu'.*did you mean proxylessnas_cpu",
        ),
        ({"models": ["fasterrcnn_resnet50_fpn"]}, ConfigError, "unknown model"),
        ({"models": ["."]}, ConfigError, "no export folder"),
        ({"models": []}, ConfigError, "no model to benchmark"),
        ({"backends": ["inductor"]}, BackendError, "'inductor' is not offered.*onnxruntime or torch"),
        ({"batches": [1, 0]}, ConfigError, "batch = 0"),
        ({"threads": 0}, ConfigError, "threads = 0"),
        ({"input_size": 0}, ConfigError, "input_size = 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(arguments, error, words):
    with pytest.raises(error, match=words) as refusal:
        run_benchmark(**arguments)
    assert len(str(refusal.value).splitlines()) == 1


def test_rounds_take_one_sample_of_each_in_changing_order():
    calls = []

    def timer(name, seconds):
        def time(repeats):
            calls.append((name, repeats))
            return seconds

        return time

    timers = {"slow": timer("slow", 2.0), "fast": timer("fast", 1e-4), "middle": timer("middle", 5e-4)}
    samples = interleaved(timers, plan=Plan(rounds=12, sample_ms=1.0, seconds=60.0), seed=1)
    rounds = [calls[i : i + 3] for i in range(6, len(calls), 3)]
    assert len(rounds) == 12
    assert all(dict(round_) == {"slow": 1, "fast": 10, "middle": 2} for round_ in rounds)
    assert len({tuple(name for name, _ in round_) for round_ in rounds}) > 2
    assert samples == {"slow": [2000.0] * 12, "fast": [0.1] * 12, "middle": [0.5] * 12}


def test_rounds_end_with_the_time_but_not_before_their_minimum():
    ticks = iter(range(1000))
    plan = Plan(rounds=100, minimum_rounds=3, seconds=5.0)
    assert len(interleaved({"a": lambda _: 1.0}, plan=plan, clock=lambda: next(ticks))["a"]) == 8
    late = iter(range(0, 100_000, 100))
    assert len(interleaved({"a": lambda _: 1.0}, plan=plan, clock=lambda: next(late))["a"]) == 3
    assert interleaved({}, plan=plan) == {}


def test_a_network_that_never_saw_an_image_is_settled_and_a_trained_one_is_not(folder):
    fresh = build_model("proxylessnas_mobile")
    settle(fresh, (3, 64, 64))
    assert not torch.equal(fresh.bn2.running_var, torch.ones(1280))
    assert fresh.bn2.momentum == 0.1
    assert not any(module.training for module in fresh.modules())
    trained = build_model("proxylessnas_mobile")
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(7)
    settle(trained, (3, 64, 64))
    assert torch.equal(trained.bn2.running_var, torch.ones(1280))


def test_a_model_that_cannot_be_exported_says_so_and_the_others_go_on(no_export, folder):
    lines = []
    result = run_benchmark(
        [str(folder), str(folder)], backends=["onnxruntime"], batches=[1], plan=QUICK, say=lines.append
    )
    (row,) = result.rows
    assert row.latency == {}
    assert row.notes == ["onnxruntime, batch 1: no ONNX today"]
    assert row.notes[0] in lines
    assert "no ONNX today" in result.to_csv()
    assert result.to_dict()["models"][0]["latency"] == {}


def test_published_accuracy_counts_at_the_published_input_size_only(no_export):
    for size, top1 in ((None, 72.0), (224, 72.0), (64, None)):
        (row,) = run_benchmark(
            ["mobilenetv2_100"], backends=["onnxruntime"], batches=[1], input_size=size, plan=QUICK
        ).rows
        assert (row.accuracy and row.accuracy.top1) == top1
        assert any("72.0 is published for 224 px, not for 64" in note for note in row.notes) == (size == 64)
        assert row.params == 3_504_872


def test_a_size_that_a_model_cannot_take_is_one_sentence(no_export):
    with pytest.raises(ConfigError, match=r"densenet121 does not run on images of shape \(3, 8, 8\)"):
        run_benchmark(["densenet121"], backends=["onnxruntime"], batches=[1], input_size=8, plan=QUICK)


def test_the_torch_backend_measures_under_the_malloc_settings_and_reports_its_death(monkeypatch, folder):
    seen = {}

    def run(command, *, env, check):
        seen.update(env)
        return benchmark.subprocess.CompletedProcess(command, 9)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    with pytest.raises(BackendError, match="died with code 9"):
        run_benchmark([str(folder)], backends=["torch"], plan=QUICK)
    assert seen["GLIBC_TUNABLES"].endswith(MALLOC_TUNABLES)


def test_one_run_from_end_to_end(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--models", str(folder), "--backends", "onnxruntime", "torch", "--batch", "1", "2"]
    with pytest.raises(SystemExit) as status:
        cli.main(["benchmark", *arguments, "--seconds", "0", "--out", str(out)])
    assert not status.value.code
    shown = capsys.readouterr().out
    assert "onnxruntime" in shown
    assert str(out / "benchmark.csv") in shown
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.csv", "benchmark.json", "benchmark.png"]
    document = json.loads((out / "benchmark.json").read_text())
    assert document["format"] == "proxyless-benchmark/1"
    assert {"onnxruntime", "torch", "python"} <= set(document["versions"])
    (model,) = document["models"]
    assert (model["source"], model["input_shape"], model["top1"]) == ("export", [3, 32, 32], None)
    assert model["params"] == sum(p.numel() for p in timm.create_model("proxylessnas", **TINY).parameters())
    assert model["peak_activation_bytes"]["2"] == 2 * model["peak_activation_bytes"]["1"]
    assert {name: set(figures) for name, figures in model["latency"].items()} == {
        "onnxruntime": {"1", "2"},
        "torch": {"1", "2"},
    }
    assert all(figure["ms"] > 0 for figures in model["latency"].values() for figure in figures.values())
    (line,) = csv.DictReader((out / "benchmark.csv").open())
    assert line["model"] == str(folder)
    assert float(line["torch_batch2_ms"]) == pytest.approx(model["latency"]["torch"]["2"]["ms"], abs=1e-6)
    assert line["top1"] == ""
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "models", "batches"),
    [
        (["--models", "a", "b", "--batch", "4"], ["a", "b"], [4]),
        (["--batch", "1", "8", "--models", "a", "--models", "b"], ["a", "b"], [1, 8]),
        ([], list(DEFAULT_MODELS), [1, 8]),
    ],
)
def test_options_take_several_values(monkeypatch, tmp_path, given, models, batches):
    seen = {}

    def run(names, **options):
        seen.update(options, models=names)
        raise ConfigError("enough")

    monkeypatch.setattr(benchmark, "run_benchmark", run)
    with pytest.raises(SystemExit) as status:
        cli.main(["benchmark", *given, "--out", str(tmp_path), "--threads", "2"])
    assert status.value.code == 2
    assert (list(seen["models"]), list(seen["batches"]), seen["threads"]) == (models, batches, 2)


@pytest.mark.parametrize("stray", [["surplus"], ["--threads", "1", "2"]])
def test_a_stray_argument_is_refused(tmp_path, stray):
    with pytest.raises(SystemExit) as status:
        cli.main(["benchmark", "--out", str(tmp_path), *stray])
    assert status.value.code == 2


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "run_benchmark", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as status:
        cli.main(["benchmark", "--out", str(tmp_path / "file" / "out")])
    assert status.value.code == 2
    assert "choose another folder" in capsys.readouterr().err


def test_badges_part_until_they_touch_and_others_stay():
    points = np.array([[0.0, 0.0], [6.0, 0.0], [100.0, 0.0], [100.0, 11.0]])
    np.testing.assert_allclose(spread_out(points, least=10), [[-2, 0], [8, 0], [100, 0], [100, 11]])


@pytest.mark.parametrize("count", [2, 12])
def test_a_heap_of_badges_is_spread_out(count):
    spread = spread_out(np.zeros((count, 2)), least=10)
    distances = np.hypot(*(spread[:, None] - spread).T) + 1e9 * np.eye(count)
    assert distances.min() >= 10 * (1 - 1e-6)
    assert np.abs(spread).max() < 10 * count


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"accuracy": 0.98765, "top5": 0.999}, (98.77, 99.9)),
        ({"accuracy": 0.5}, (50.0, None)),
        ({"accuracy": None, "top5": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_accuracy_of_an_export_is_its_own(metrics, found, no_export, folder, tmp_path):
    export = tmp_path / "export"
    shutil.copytree(folder, export)
    (export / "metrics.json").unlink()
    if metrics is not None:
        (export / "metrics.json").write_text(json.dumps(metrics))
    quick = {"backends": ["onnxruntime"], "batches": [1], "plan": QUICK}
    result = run_benchmark([str(export)], **quick)
    (row,) = result.rows
    assert (row.accuracy and (row.accuracy.top1, row.accuracy.top5)) == found
    if found:
        assert result.to_dict()["models"][0]["accuracy_source"] == "the export's own test images, metrics.json"
        (other,) = run_benchmark([str(export)], input_size=48, **quick).rows
        assert other.accuracy is None
        assert f"top-1 {found[0]} is of the export for 32 px, not for 48" in other.notes


@pytest.mark.parametrize("metrics", ["{", "[]", '{"accuracy": "high"}', '{"accuracy": 98.9}', '{"top5": -1}'])
def test_metrics_that_are_none_are_one_sentence(metrics, folder, tmp_path):
    export = tmp_path / "export"
    shutil.copytree(folder, export)
    (export / "metrics.json").write_text(metrics)
    with pytest.raises(ExportError, match=r"the metrics .*metrics\.json: .*; put them back, or remove them") as refusal:
        run_benchmark([str(export)], plan=QUICK)
    assert len(str(refusal.value).splitlines()) == 1


def axes_drawn(monkeypatch, accuracies):
    """The panel of a picture of networks with these accuracies."""
    rows = [
        Row(str(number), "timm", (3, 224, 224), 1, 1, {1: 1}, accuracy, {("torch", 1): Measurement.of([1.0 + number])})
        for number, accuracy in enumerate(accuracies)
    ]
    kept = []
    monkeypatch.setattr(picture, "figure_bytes", lambda figure, kind: kept.append(figure) or b"")
    draw(benchmark.Benchmark(tuple(rows), {"device": "a device", "threads": 1}, ("torch",), (1,)))
    return kept[0].axes[0]


def test_the_picture_has_no_axis_of_accuracies_that_nobody_knows(monkeypatch):
    own, published = Accuracy(98.9, None, OWN_IMAGES), PUBLISHED["mobilenetv2_100"]
    for accuracies, label, ticks in (
        ([None, None], "no accuracy known", False),
        ([published, None], "published ImageNet top-1, %", True),
        ([own, None], "top-1 on own test images, %", True),
        ([own, published], "top-1, %: published, or on own images", True),
    ):
        panel = axes_drawn(monkeypatch, accuracies)
        assert panel.get_ylabel() == label
        assert bool(len(panel.get_yticks())) == ticks


@pytest.mark.parametrize("top1", [None, 72.0])
def test_the_picture_is_drawn_with_and_without_published_accuracy(top1):
    accuracy = None if top1 is None else PUBLISHED["mobilenetv2_100"]
    rows = [
        Row(name, "timm", (3, 224, 224), 1, 1, {1: 1}, accuracy, {("torch", 1): Measurement.of([ms])})
        for name, ms in (("a", 1.0), ("b", 100.0))
    ]
    header = {"device": "a device", "threads": 1}
    assert draw(benchmark.Benchmark(tuple(rows), header, ("torch",), (1,))).startswith(b"\x89PNG")
    rows[0].latency.clear()
    assert draw(benchmark.Benchmark(tuple(rows), header, ("torch",), (1,))).startswith(b"\x89PNG")
