"""Retraining an export folder from its own weights, and beside a teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hardware.errors import CheckpointError, ConfigError, ExportError
from proxyless_strategy.cli.main import main
from proxyless_strategy.export.folder import WEIGHTS, load_exported
from proxyless_strategy.layout import CHECKPOINT
from proxyless_strategy.retraining.folder import retrain
from proxyless_strategy.retraining.recipe import Recipe, load_recipe
from tests.proxyless_strategy.data.samples import write_images
from tests.proxyless_strategy.export.samples import a_subnet, a_tree, export
from tests.proxyless_strategy.retraining.test_folder import TINY

STILL: dict[str, Any] = {**TINY, "epochs": 1, "learning_rate": 1e-30, "threads": 1}
"""A recipe that moves no weight, but for what is fresh: its own start is what comes out."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def learned(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of these pictures' three classes."""
    folder = export(tmp_path_factory.mktemp("export") / "net", a_subnet(stem_stride=1))[1]
    return retrain(folder, data=pictures, recipe=recipe("quick"), out=tmp_path_factory.mktemp("learned"))


def recipe(name: str = "finetune", **changes: Any) -> Recipe:
    return load_recipe(name, {**STILL, **changes})


def moved(first: nn.Module | Path, second: Path) -> set[str]:
    """Names of the weights that differ, statistics apart."""
    one = load_exported(first) if isinstance(first, Path) else first
    other = dict(load_exported(second).named_parameters())
    return {
        name
        for name, value in one.named_parameters()
        # a bias of 0 moves at any rate
        if value.shape != other[name].shape or (value - other[name]).abs().max() > 1e-12
    }


def test_it_starts_from_the_folders_weights(
    learned: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = retrain(learned, data=pictures, recipe=recipe(), out=tmp_path / "tuned")
    assert moved(learned, tuned) == set(), "the classifier's too"
    assert f"starting from the weights of {learned}\n" in capsys.readouterr().out
    fresh = retrain(learned, data=pictures, recipe=recipe(weights="fresh", seed=7), out=tmp_path / "fresh")
    assert {"conv_stem.weight", "classifier.weight"} <= moved(learned, fresh)


def test_a_recipe_that_says_nothing_reads_no_weights(learned: Path, pictures: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(learned, tmp_path / "bare"))
    (bare / WEIGHTS).unlink()
    with pytest.raises(ExportError, match=r"bare has no model\.safetensors"):
        retrain(bare, data=pictures, recipe=recipe(), out=tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    assert retrain(bare, data=pictures, recipe=recipe("quick"), out=tmp_path / "fresh").exists()


@pytest.mark.parametrize("make", [a_subnet, a_tree])
def test_another_number_of_classes_gets_a_fresh_classifier(
    make: Any, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = export(tmp_path / "net", make())
    tuned = retrain(folder, data=pictures, recipe=recipe(channels=1, input_size=32), out=tmp_path / "tuned")
    heads = {name for name in moved(model, tuned) if model.state_dict()[name].shape[0] == 10}
    assert moved(model, tuned) == heads, "all but the classifier"
    assert len(heads) == 2
    assert ", with a fresh classifier" in capsys.readouterr().out


def test_other_channels_adapt_the_first_convolution(pictures: Path, tmp_path: Path) -> None:
    model, folder = export(tmp_path / "net", a_subnet(stem_stride=1))
    tuned = load_exported(retrain(folder, data=pictures, recipe=recipe(), out=tmp_path / "tuned"))
    grey, colour = model.conv_stem.weight, tuned.conv_stem.weight
    assert colour.shape[1] == 3
    torch.testing.assert_close(colour.sum(1), grey.sum(1))


def test_as_many_classes_of_other_names_get_a_fresh_classifier(learned: Path, pictures: Path, tmp_path: Path) -> None:
    named = Path(shutil.copytree(learned, tmp_path / "named"))
    config = json.loads((named / "config.json").read_text())
    config["label_names"] = config["label_names"][::-1]
    (named / "config.json").write_text(json.dumps(config))
    tuned = retrain(named, data=pictures, recipe=recipe(), out=tmp_path / "tuned")
    assert moved(learned, tuned) == {"classifier.weight", "classifier.bias"}


def test_weights_that_were_replaced_meanwhile_are_missed(learned: Path, pictures: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(learned, tmp_path / "net")), tmp_path / "out"
    retrain(folder, data=pictures, recipe=recipe(), out=out)
    state = torch.load(out / CHECKPOINT, weights_only=True)
    assert state["identity"]["starting_weights"] is not None
    other = retrain(learned, data=pictures, recipe=recipe("quick", seed=5), out=tmp_path / "other")
    shutil.copy(other / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"another retraining \(starting_weights = "):
        retrain(folder, data=pictures, recipe=recipe(), out=out)


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": None, "unit": "ms", "target_cost": 3.0, "subnet_cost": 2.9, "weights": "random"},
        {"accuracy": None, "unit": "ms", "target_cost": 3.0, "subnet_cost": 2.9},  # of older versions
    ],
)
def test_a_derived_folder_has_no_weights_to_start_from(metrics: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    folder = export(tmp_path / "net", a_subnet(stem_stride=1), metrics=metrics)[1]
    for tuned, words in (
        (recipe(), "are random ones, which nothing is inherited from; retrain it by another recipe than finetune"),
        (recipe("quick", teacher=str(folder)), "has random weights; give a network that was trained"),
    ):
        with pytest.raises(ConfigError, match=words):
            retrain(folder, data=pictures, recipe=tuned, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_knows_no_supernet() -> None:
    with pytest.raises(ConfigError, match="weights = supernet is for the retraining of a search; give inherited or"):
        recipe(weights="supernet")


def test_the_shipped_recipe_tunes_gently() -> None:
    found = load_recipe("finetune")
    quick = load_recipe("quick")
    assert found.weights == "inherited"
    assert found.learning_rate < quick.learning_rate
    assert found.epochs < quick.epochs
    assert found.label_smoothing == found.mixup == found.dropout == 0


# ---- a teacher -------------------------------------------------------------------------------------------------------


def test_a_teacher_of_the_command_line_teaches(
    learned: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where teacher and network are one, and the teacher alone counts, nothing is to be learned."""
    command = ["retrain", str(learned), "--data", str(pictures), "--recipe", "finetune", "--out", str(tmp_path / "out")]
    command += [f"--set={key}={value}" for key, value in {**STILL, "learning_rate": 0.1}.items()]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--teacher", str(learned), "--set=teacher_weight=1.0", "--set=layer_decay=0.5"])
    assert ended.value.code == 0
    state = torch.load(tmp_path / "out" / CHECKPOINT, weights_only=True)
    assert state["identity"]["teacher"] == str(learned)
    assert state["identity"]["teacher_network"] is not None
    assert state["identity"]["layer_decay"] == 0.5
    metrics = json.loads((tmp_path / "out" / "model" / "metrics.json").read_text())
    assert metrics["recipe"]["teacher_weight"] == 1.0


def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(
    learned: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["retrain", str(learned), "--data", str(pictures), "--recipe", "finetune", "--out", str(tmp_path / "out")]
    for more, words in (
        (["--teacher", "mobilenetv2_100"], "teacher = mobilenetv2_100 has 1000 classes, but the data have 3"),
        (["--teacher", "mobilenet"], "teacher = mobilenet is no model of timm"),
        (["--teacher", str(tmp_path)], "is no export folder"),
        (["--teacher", "a", "--set", "teacher=b"], "--teacher a and --set teacher=b are both given; keep one"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_teacher_in_a_recipe_file_counts_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    for written, expected in (("./net", tmp_path / "net"), ("local-dir:net", tmp_path / "net"), ("none", "none")):
        file.write_text(f"teacher: {written}\n")
        assert load_recipe(file).teacher == str(expected)
    assert load_recipe(file, {"teacher": "./net"}).teacher == "./net"


@pytest.mark.slow
def test_two_processes_learn_from_one_teacher(learned: Path, pictures: Path, tmp_path: Path) -> None:
    tuned = recipe(learning_rate=0.05, teacher=str(learned), early_stopping=1, epochs=3, batch_size=4)
    folder = retrain(learned, data=pictures, recipe=tuned, out=tmp_path / "two", devices=2)
    assert load_exported(folder).num_classes == 3
    state = torch.load(tmp_path / "two" / CHECKPOINT, weights_only=True)
    assert state["identity"]["teacher_network"] is not None
    assert state["stopping"]["best_epoch"] >= 1
