"""The examples of a user's own space and data: the shipped search runs to its end, and both keep their contracts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from proxyless_strategy import load_config, users_space
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.shard_names import expanded
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.shrinking.plan import check_shrink
from tests.proxyless_strategy.data.samples import batches, equal, write_images

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.slow
def test_a_users_own_space_and_data_are_searched_by_the_command_line(tmp_path: Path) -> None:
    settings = {"hardware.device": "other", "search.epochs": 2, "retrain.epochs": 2, "out": tmp_path / "run"}
    done = subprocess.run(
        [sys.executable, "-m", "proxyless_strategy.cli", "search", str(EXAMPLES / "my_search.yml")]
        + [f"--set={key}={value}" for key, value in settings.items()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(EXAMPLES), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert row["subnet_cost"] <= row["target_cost"]
    assert row["accuracy"] > 0.3
    export = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert export["label_names"] == ["0 degrees", "45 degrees", "90 degrees", "135 degrees"]
    assert export["model_args"]["num_features"] == 128


@pytest.mark.parametrize("preset", [None, "smoke"])
def test_the_search_on_a_timm_model_has_something_to_choose(preset: str | None) -> None:
    config = load_config(EXAMPLES / "timm_search.yml", preset=preset)
    space = users_space(config.space.name, **config.space.options)
    assert len(space.candidates()) == (16 if preset else 17), "the first block has no expansion"
    assert config.space.options["weights"] == ("none" if preset else "pretrained")


@pytest.mark.usefixtures("importable")
def test_options_of_the_space_are_its_functions_arguments() -> None:
    space = users_space("my_space:compact", width=24, kernels=[3])
    assert [stage.width for stage in space.stages] == [24, 48]
    assert set(space.candidates()["stage1_block1"]) == {"3x3_e2", "3x3_e4", "skip"}
    assert "skip" not in space.candidates()["stage1_block0"]


@pytest.mark.usefixtures("importable")
def test_the_datas_parts_do_not_overlap_and_are_the_same_at_every_reading() -> None:
    parts = importlib.import_module("my_data").stripes(None, count=16)
    assert [len(part) for part in parts] == [16, 8, 8]
    pictures = [np.asarray(image).tobytes() for part in parts for image, _ in part]
    assert len(set(pictures)) == 32
    assert [np.asarray(image).tobytes() for part in parts for image, _ in part] == pictures
    for part in parts:
        assert [label for _, label in part] == part.targets


@pytest.mark.usefixtures("importable")
def test_a_space_of_own_modules_is_searched_in_milliseconds() -> None:
    example = importlib.import_module("my_model_space")
    strategy = example.search(epochs=4)
    assert strategy.cost.unit == "ms"
    assert strategy.cost.labels == tuple(f"block{index}" for index in range(6))
    assert (strategy.cost.costs[:, 3] == 0).all(), "nothing runs where a block is skipped"
    assert (strategy.cost.costs[:, :3] > 0).all()
    assert strategy.derive().cost <= strategy.target


@pytest.mark.parametrize("preset", [None, "smoke"])
def test_a_timm_model_can_be_shrunk_by_a_file(preset: str | None) -> None:
    config = load_config(EXAMPLES / "shrink.yml", preset=preset)
    check_shrink(config)
    space = users_space(config.space.name, **config.space.options)
    assert config.share == 0.6
    assert len(space.candidates()) == 16


@pytest.mark.slow
def test_the_smoke_preset_of_a_shrinking_runs_to_its_end(tmp_path: Path) -> None:
    settings = {"data.root": tmp_path / "pictures", "out": tmp_path / "run"}
    done = subprocess.run(
        [sys.executable, "-m", "proxyless_strategy.cli", "search", str(EXAMPLES / "shrink.yml"), "--preset", "smoke"]
        + [f"--set={key}={value}" for key, value in settings.items()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert found["subnet"]["cost"] <= 0.6 * found["original"]["cost"]


@pytest.mark.usefixtures("importable")
def test_shards_that_the_example_writes_are_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "folder")
    (tmp_path / "folder" / "train" / "b" / "2.png").rename(tmp_path / "folder" / "train" / "b" / "2.x.png")
    importlib.import_module("write_shards").write_shards(tmp_path / "folder", tmp_path / "shards", each=4)
    folder, shards = (
        load_data(DataConfig(name=name, root=tmp_path / place), input_size=16, seed=0)
        for name, place in (("imagefolder", "folder"), ("webdataset", "shards"))
    )
    assert shards.class_names == folder.class_names
    for part in ("weights", "architecture", "training", "test"):
        assert equal(batches(shards, part), batches(folder, part))


def test_the_search_of_shards_names_what_the_example_writes() -> None:
    options = load_config(EXAMPLES / "shards_search.yml").data.options
    assert expanded(options["train"])[-1] == "train-1281.tar"
    assert len(expanded(options["val"])) == 50
