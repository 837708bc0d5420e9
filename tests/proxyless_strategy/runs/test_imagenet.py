"""examples/imagenet.yml: what it asks for, what it says without images, and its smoke preset on NNI itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from hardware.errors import ConfigError, DataError
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import DataConfig, SearchConfig, load_config, parse_config
from proxyless_strategy.data import imagefolder_source
from proxyless_strategy.data.drawn import draw_image_folder
from proxyless_strategy.data.images import PARTS
from proxyless_strategy.data.sources import check_data, load_data
from proxyless_strategy.runs.space_table import table_path
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.sections import DrawnImages
from proxyless_strategy.trial import main
from search_spaces import get_space
from tests.proxyless_strategy.data.samples import settle

ROOT = Path(__file__).parents[3]
EXPERIMENT = ROOT / "examples" / "imagenet.yml"
SEARCH = ROOT / "examples" / "imagenet_search.yml"
PRESETS = (None, "smoke")
LAUNCHED = ("LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK")
"""Environment of an earlier search on several processes."""
DRAW = {"classes": 3, "train": 4, "val": 2, "size": 16}


# --- the examples -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PRESETS)
def configs(request: pytest.FixtureRequest) -> list[SearchConfig]:
    return read_sweep(EXPERIMENT, preset=request.param).configs()


def test_the_experiment_sweeps_hardware_rule_and_target(configs: list[SearchConfig]) -> None:
    swept = {(config.hardware.name, config.rule, config.target) for config in configs}
    assert len(swept) == len(configs) == 12
    assert yaml.safe_load(EXPERIMENT.read_text())["maxTrialNumber"] == 12


def test_latencies_are_of_224_pixels_in_every_preset(configs: list[SearchConfig]) -> None:
    assert {config.deploy_input_size for config in configs} == {224}
    assert {config.latency_input_size for config in configs} == {224}
    assert {config.retrain is None for config in configs} == {False}


def test_the_phone_is_the_table_that_ships(configs: list[SearchConfig]) -> None:
    for config in configs:
        if config.hardware.name != "mobile":
            assert config.hardware.device != "other"
            continue
        table = LatencyTable.load(table_path(config))
        assert (table.header.device, config.hardware.device) == ("Google Pixel 1 (phone)", "other")
        costs = get_space(config.space.name, **config.space.options).costs(224, num_classes=1000)
        table.check(costs.distinct(), input_size=config.latency_input_size)


def test_the_schedule_is_the_papers() -> None:
    config = load_config(SEARCH)
    settings = config.search
    assert (settings.warmup_epochs, settings.warmup_learning_rate) == (40, 0.05)
    assert (settings.epochs, settings.learning_rate) == (120, 0.025)
    assert (settings.batch_size, settings.weight_decay, settings.label_smoothing) == (256, 4e-5, 0.1)
    assert (config.data.architecture_per_class, config.input_size) == (50, 224)
    images = 1_281_167 - 50 * 1000
    steps = images // settings.batch_size * (settings.epochs - 1) // settings.steps_between("gradient")
    assert steps == pytest.approx(1e5, rel=0.15), "the number of architecture steps that the release's rate suits"
    assert settings.architecture_learning_rate == 1e-3
    assert images // settings.batch_size // settings.steps_between("reinforce") == 300


def test_the_smoke_preset_is_the_same_space_with_fewer_blocks() -> None:
    whole, smoke = (
        get_space(c.space.name, **c.space.options) for c in (load_config(SEARCH, preset=p) for p in PRESETS)
    )
    assert {stage.width for stage in smoke.stages} == {stage.width for stage in whole.stages}
    assert [stage.stride for stage in smoke.stages] == [stage.stride for stage in whole.stages]
    built = [
        {c.hardware.table for c in read_sweep(EXPERIMENT, preset=p).configs() if c.hardware.device != "other"}
        for p in PRESETS
    ]
    assert [len(tables) for tables in built] == [2, 2]
    assert built[0].isdisjoint(built[1]), "a table of fewer operators must not pass for the whole space's"
    assert (smoke.kernels, smoke.expansions, smoke.head_width) == (whole.kernels, whole.expansions, whole.head_width)


def test_only_a_part_of_the_sweep_may_be_run() -> None:
    sweep = read_sweep(EXPERIMENT, preset="smoke", only={"hardware": "mobile", "target": 0.3})
    assert [(c.hardware.name, c.rule, c.target) for c in sweep.configs()] == [
        ("mobile", "gradient", 0.3),
        ("mobile", "reinforce", 0.3),
    ]
    assert sweep.narrowed is not None
    assert sweep.narrowed["maxTrialNumber"] == 2
    assert Path(sweep.narrowed["trialCodeDirectory"]).samefile(EXPERIMENT.parent)
    assert Path(sweep.narrowed["tuner"]["codeDirectory"]).samefile(EXPERIMENT.parent)
    assert sweep.narrowed["experimentWorkingDirectory"] == str(EXPERIMENT.parent / "../runs/nni")
    assert yaml.safe_load(EXPERIMENT.read_text())["searchSpace"]["hardware"]["_value"] == ["mobile", "cpu", "gpu"]


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ({"hardware": "watch"}, "--only hardware=watch: .* and hardware over mobile, cpu, gpu"),
        ({"seed": 3}, "--only seed=3: .* sweeps hardware, rule, target, and seed over no choice"),
    ],
)
def test_a_part_that_the_sweep_lacks_is_refused(only: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_sweep(EXPERIMENT, only=only)


# --- one search on several devices --------------------------------------------------------------------------------


def test_a_batch_is_divided_among_the_devices() -> None:
    assert parse_config({"search": {"batch_size": 256, "devices": 8}}).search.process_batch_size == 32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 256, "devices": 3}, "batch_size = 256 cannot be divided among 3 devices"),
        ({"batch_size": 4, "devices": 4}, "at least 2 images each"),
        ({"steps_per_update": {"gradient": 5}}, "must name gradient and reinforce"),
        ({"steps_per_update": 0}, "steps_per_update"),
        ({"precision": "fp16"}, "search.precision = 'fp16'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        parse_config({"search": settings})


# --- images -------------------------------------------------------------------------------------------------------


def test_drawn_pictures_are_files_that_the_loader_reads(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=tmp_path / "a", draw=DrawnImages(**DRAW), architecture_per_class=1)
    data = load_data(config, input_size=16, seed=0)
    files = sorted((tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 3 * (4 + 2)
    assert all(file.read_bytes().startswith(b"\xff\xd8\xff") for file in files)
    assert [len(getattr(data, part)) for part in PARTS] == [9, 3, 12, 6]
    draw_image_folder(tmp_path / "b", DrawnImages(**DRAW))
    again = sorted((tmp_path / "b").rglob("*.jpg"))
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert len({file.read_bytes() for file in files}) == len(files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "nothing is left beside them"


def test_drawn_classes_can_be_told_apart(tmp_path: Path) -> None:
    draw = DrawnImages(classes=4, train=8, val=4, size=16)
    data = load_data(DataConfig(name="imagefolder", root=tmp_path / "a", draw=draw), input_size=16, seed=0)
    means = {}
    for part in ("training", "test"):
        images, labels = next(iter(data.loader(part, batch_size=32)))  # type: ignore[arg-type]
        means[part] = images.mean((2, 3)), labels
    centres = torch.stack([means["training"][0][means["training"][1] == k].mean(0) for k in range(4)])
    assert (torch.cdist(means["test"][0], centres).argmin(1) == means["test"][1]).float().mean() > 0.9


def test_nothing_is_drawn_over_a_folder_that_is_there(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=tmp_path, draw=DrawnImages(**DRAW))
    with pytest.raises(DataError, match="train is no folder"):
        check_data(config)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write pictures to .*file.a: .*; choose another data.root"):
        draw_image_folder(tmp_path / "file" / "a", DrawnImages(**DRAW))


@pytest.mark.parametrize("data", [{"name": "digits", "draw": DRAW}, {"name": "imagefolder", "draw": DRAW}])
def test_drawing_needs_an_imagefolder_and_its_root(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data.draw makes an imagefolder or torchvision:CIFAR10 at data.root"):
        parse_config({"data": data})


def test_a_classifier_may_have_more_outputs_than_the_data_have_classes(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=tmp_path / "a", draw=DrawnImages(**DRAW), num_classes=1000)
    data = load_data(config, input_size=16, seed=0)
    assert (data.num_classes, data.class_names) == (1000, None)
    assert "label_names" not in data.pretrained_cfg()
    with pytest.raises(DataError, match=r"data.num_classes = 2, but imagefolder has 3 classes"):
        load_data(config.model_copy(update={"num_classes": 2}), input_size=16, seed=0)


def test_an_imagefolder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    folder = imagefolder_source.ImageFolder

    def counted(path: str) -> Any:
        listed.append(Path(path).name)
        return folder(path)

    monkeypatch.setattr(imagefolder_source, "ImageFolder", counted)
    config = DataConfig(name="imagefolder", root=tmp_path / "a", draw=DrawnImages(**DRAW))
    check_data(config, scan=False)
    assert listed == []
    settle(tmp_path / "a")
    for _ in range(2):
        check_data(config)
        load_data(config, input_size=16, seed=0)
    assert listed == ["train", "val"]
    shutil.copytree(tmp_path / "a" / "train" / "class0000", tmp_path / "a" / "train" / "new")
    shutil.copytree(tmp_path / "a" / "val" / "class0000", tmp_path / "a" / "val" / "new")
    assert load_data(config, input_size=16, seed=0).num_classes == 4
    assert np.bincount(load_data(config, input_size=16, seed=1).training.targets).tolist() == [4] * 4


# --- without images -----------------------------------------------------------------------------------------------

MISSING = "train is no folder; imagefolder expects ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"


def copied(folder: Path, *, only: dict[str, Any] | None = None, **data: Any) -> Path:
    """The example in a folder of its own; returns the nnictl config."""
    for name in ("imagenet.yml", "imagenet_search.yml", "checked_grid.py"):
        shutil.copy(ROOT / "examples" / name, folder)
    search = yaml.safe_load(SEARCH.read_text())
    search["data"] |= data
    (folder / "imagenet_search.yml").write_text(yaml.safe_dump(search))
    experiment = yaml.safe_load(EXPERIMENT.read_text())
    experiment["trialCommand"] = experiment["trialCommand"].replace("../.venv/bin/python", sys.executable)
    for name, value in (only or {}).items():
        experiment["searchSpace"][name]["_value"] = [value]
    if only:
        experiment["maxTrialNumber"] = 1
    (folder / "imagenet.yml").write_text(yaml.safe_dump(experiment))
    return folder / "imagenet.yml"


def test_the_tuner_says_what_is_missing_and_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(tmp_path, root=str(tmp_path / "none"))
    spec = importlib.util.spec_from_file_location("checked_grid", tmp_path / "checked_grid.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS", 1e6)
    with pytest.raises(SystemExit, match="2"):
        module.CheckedGridSearch("imagenet_search.yml")
    assert f"\n{tmp_path}/none/{MISSING}" in capfd.readouterr().err
    monkeypatch.setattr(module, "SECONDS", 0.0)
    module.CheckedGridSearch("imagenet_search.yml")
    monkeypatch.setattr(module, "SECONDS", 1e6)
    monkeypatch.setenv("PROXYLESS_EXPERIMENT", "checked already")
    module.CheckedGridSearch("imagenet_search.yml")


def test_a_trial_says_what_is_missing_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied(tmp_path, root="none")
    for options in ([], ["--check"]):
        assert main([str(tmp_path / "imagenet_search.yml"), *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{tmp_path}/none/{MISSING}")
        assert len(error.splitlines()) == 1


def nnictl(config: Path, **environment: str) -> str:
    """Runs plain nnictl to its end under a HOME of its own; returns what it printed."""
    home = config.parent / "home"
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", "create", "--foreground"]
    done = subprocess.run(
        [*command, "--config", str(config), "--port", str(port)],
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    return done.stdout


@pytest.mark.slow
def test_plain_nnictl_says_what_is_missing_before_any_trial_starts(tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    output = nnictl(copied(folder, root="none"))
    trials = [path.read_text() for path in tmp_path.rglob("trial.stderr")]
    for said in trials or [output]:  # trials start only where the look takes longer than NNI waits for a tuner
        assert f"{folder}/none/{MISSING}" in said
    assert not (tmp_path / "runs" / "imagenet").exists(), "no trial has started to train"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gradient", "reinforce"])
def test_the_smoke_preset_runs_on_plain_nnictl_to_a_timm_folder(tmp_path: Path, rule: str) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    config = copied(folder, only={"hardware": "mobile", "rule": rule, "target": 0.3})
    output = nnictl(config, PROXYLESS_PRESET="smoke")
    (result,) = (tmp_path / "runs" / "imagenet_smoke").glob("*/result.json")
    row = json.loads(result.read_text())
    assert row["table_ms"] <= row["target_ms"], output
    model = timm.create_model(f"local-dir:{result.parent / 'model'}", pretrained=True)
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)
    assert len(list((tmp_path / "runs" / "imagenet_smoke_images").rglob("*.jpg"))) == 320


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gradient", "reinforce"])
def test_the_smoke_preset_runs_on_two_processes(tmp_path: Path, rule: str) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    copied(folder)
    settings = ["search.devices=2", "search.accelerator=cpu", f"rule={rule}"]
    command = [sys.executable, "-m", "proxyless_strategy.cli", "search", str(folder / "imagenet_search.yml")]
    done = subprocess.run(
        [*command, "--preset", "smoke", *(word for setting in settings for word in ("--set", setting))],
        env={**{k: v for k, v in os.environ.items() if k not in LAUNCHED}, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("predicted: about") == done.stdout.count("derived ") == 1
    assert "2 x 1 CPU threads" in done.stdout
    row = json.loads((tmp_path / "runs" / "imagenet_smoke" / "row.json").read_text())
    assert row["table_ms"] <= row["target_ms"]
    assert timm.create_model(f"local-dir:{row['folder']}", pretrained=True).num_classes == 1000
