"""What a shrinking does with what the user has not set, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hardware.errors import ConfigError, DataError, ExportError, ProxylessError, SpaceError, TargetError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.data.feeding import fed
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.retraining.recipe import load_recipe
from proxyless_strategy.runs.early_checks import USED_BY_SENSITIVITY
from proxyless_strategy.shrinking.plan import (
    Model,
    check_shrink,
    epochs_for,
    planned,
    read_model,
    sized,
    subnet_epochs,
)
from proxyless_strategy.shrinking.story import check_all, run_shrink, search_config
from tests.search_spaces.from_timm.samples import with_weights

from .samples import NAME, settings


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_weights(NAME, tmp_path_factory.mktemp("weights"))[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures") / "drawn"


def plan(config: SearchConfig, **of_model: Any) -> SearchConfig:
    """Plan a shrinking, of a model of which some is known."""
    found = read_model(config)
    model = Model(**{**vars(found), **of_model})
    data = load_data(fed(sized(config, model).data, model.space.feeding()), input_size=32, seed=0)
    return planned(config, model, data)


def bare(root: Path, out: Path, **changes: Any) -> SearchConfig:
    """Return what the command line gives: a model, data, a target and a folder."""
    return parse_config(
        {
            "space": {"name": f"timm:{NAME}", "options": {"weights": "none"}},
            "data": {"name": "imagefolder", "root": str(root), "draw": {"classes": 3, "train": 12, "size": 32}},
            "target": "0.6x",
            "shrink": {},
            "out": str(out),
            **changes,
        }
    )


# ---- what is not set -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked_weights", [{}, {"weights": "inherited"}, {"weights": "supernet"}, {"weights": None}])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shrink": {"epochs": 4}},
        {"shrink": {"epochs": 9}},
        {"shrink": {"epochs": 100}},
        {"shrink": {"start_epochs": 0}},
        {"shrink": {"epochs": 20, "start_epochs": 3}},
        {"search": {"epochs": 7}},
        {"search": {"warmup_epochs": 3}, "retrain": {"epochs": 2}},
    ],
)
def test_both_networks_are_trained_equally_long(
    root: Path, weights: Path, tmp_path: Path, changes: dict[str, Any], asked_weights: dict[str, Any]
) -> None:
    # null is what a search of such a space does by default
    kept = asked_weights.get("weights", "inherited") != "inherited"
    space = {"name": f"timm:{NAME}", "options": {"weights": str(weights)}}
    given = {**changes, "retrain": {**changes.get("retrain", {}), **asked_weights}}
    config = plan(bare(root, tmp_path / "out", space=space, **given))
    assert config.retrain.weights == asked_weights.get("weights", "inherited")
    searched = config.search.warmup_epochs + config.search.epochs
    subnet = config.retrain.epochs + (searched if kept else 0)
    assert subnet_epochs(config) == config.shrink.original_epochs == subnet
    asked = changes.get("shrink", {}).get("epochs")
    if asked and "search" not in changes:
        assert config.shrink.start_epochs + subnet == asked
    for section, values in changes.items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(("epochs", "finalists"), [(4, 3), (8, 4), (16, 4), (40, 8)])
def test_finalists_are_trained_for_a_fifth_and_no_longer_than_the_subnet(
    root: Path, weights: Path, tmp_path: Path, epochs: int, finalists: int
) -> None:
    space = {"name": f"timm:{NAME}", "options": {"weights": str(weights)}}
    config = plan(bare(root, tmp_path / "out", space=space, shrink={"epochs": epochs}))
    assert config.search.finalists_epochs == finalists <= config.retrain.epochs
    kept = plan(bare(root, tmp_path / "out", space=space, shrink={"epochs": epochs}, retrain={"weights": "supernet"}))
    assert kept.search.finalists_epochs == 0


def test_a_network_without_weights_keeps_those_of_the_search(root: Path, tmp_path: Path) -> None:
    config = plan(bare(root, tmp_path, shrink={"epochs": 9}))
    assert config.retrain.weights == "supernet"
    assert config.shrink.start_epochs + config.search.epochs + config.retrain.epochs == 9


def test_what_is_set_stays(root: Path, tmp_path: Path) -> None:
    given = {
        "input_size": 40,
        "space": {"name": f"timm:{NAME}", "options": {"weights": "none", "kernels": [5]}},
        "search": {"learning_rate": 0.3, "steps_per_update": 4, "batch_size": 6, "warmup_learning_rate": None},
        "retrain": {"ema_decay": 0.5, "learning_rate": 0.2},
        "hardware": {"table": None, "threads": 2},
    }
    config = plan(bare(root, tmp_path, **given))
    assert (config.input_size, config.space.options["kernels"], config.space.options["expansions"]) == (40, [5], [2, 4])
    assert (config.search.learning_rate, config.search.steps_per_update, config.search.batch_size) == (0.3, 4, 6)
    assert config.search.warmup_learning_rate is None
    assert (config.retrain.ema_decay, config.retrain.learning_rate) == (0.5, 0.2)
    assert (config.hardware.table, config.hardware.threads) == (None, 2), "null is a setting too"


def test_the_rule_that_trains_no_supernet_leaves_all_epochs_to_the_fine_tuning(root: Path, tmp_path: Path) -> None:
    found = plan(bare(root, tmp_path / "out", rule="sensitivity"))
    assert found.shrink is not None
    assert found.retrain is not None
    assert subnet_epochs(found) == found.retrain.epochs
    assert found.shrink.original_epochs == found.retrain.epochs == epochs_for(36) - (found.shrink.start_epochs or 0)
    assert found.search.model_fields_set <= USED_BY_SENSITIVITY, "it has no use for others, and would say so"


def test_a_search_starts_from_what_the_weights_say_where_there_are_any(
    root: Path, weights: Path, tmp_path: Path
) -> None:
    given = {"name": f"timm:{NAME}", "options": {"weights": str(weights)}}
    assert plan(bare(root, tmp_path / "out", space=given)).search.start == "sensitivity"
    assert plan(bare(root, tmp_path / "out", space=given, search={"start": "uniform"})).search.start == "uniform"
    assert plan(bare(root, tmp_path / "out")).search.start == "uniform", "fresh weights say nothing"


def test_what_is_not_set_follows_from_the_model(root: Path, tmp_path: Path) -> None:
    config = plan(bare(root, tmp_path), input_size=48)
    assert (config.input_size, config.data.augment) == (48, "crop_flip")
    assert config.hardware.table == tmp_path / "table.yml"
    assert config.search.channels_last
    recipe = load_recipe("finetune").settings
    assert (config.retrain.optimizer, config.retrain.learning_rate) == (recipe.optimizer, recipe.learning_rate)
    assert plan(bare(root, tmp_path, hardware={"cost": "macs"})).hardware.table is None
    assert plan(bare(root, tmp_path), channels=1).data.options["channels"] == 1


def test_images_are_read_alike_whatever_the_weights(root: Path, weights: Path, tmp_path: Path) -> None:
    for given, mean in (("none", [0.485, 0.456, 0.406]), (str(weights), [0.5, 0.5, 0.5])):
        config = plan(bare(root, tmp_path, space={"name": "timm:tf_efficientnet_lite0", "options": {"weights": given}}))
        # other weights say otherwise how images are read, and are not asked
        feeding = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7), "interpolation": "nearest", "range": [0, 9]}
        own, other = config.data, fed(config.data, feeding | {"crop_pct": 0.3, "crop_mode": "border"})
        assert own == other
        assert config.data.options["mean"] == mean


def test_a_platform_is_still_known_after_planning(root: Path, tmp_path: Path) -> None:
    platforms = {"desk": {"cost": "macs"}, "phone": {"cost": "params"}}
    config = plan(bare(root, tmp_path, hardware={"name": "phone"}, platforms=platforms))
    assert (config.hardware.name, config.hardware.cost) == ("phone", "params")


@pytest.mark.parametrize(
    ("names", "classes", "start"),
    [
        (("class0000", "class0001", "class0002"), 3, 0),
        (None, 3, 0),
        (("a", "b", "c"), 3, 1),
        (None, 4, 1),
        (None, None, 1),
    ],
)
def test_a_model_of_the_same_classes_is_not_fine_tuned_first(
    root: Path, tmp_path: Path, names: tuple[str, ...] | None, classes: int | None, start: int
) -> None:
    given = bare(root, tmp_path, space={"name": f"timm:{NAME}", "options": {}})
    config = plan(given, class_names=names, num_classes=classes)
    assert min(config.shrink.start_epochs, 1) == start


def test_weights_of_a_file_are_none_of_the_folders(root: Path, tmp_path: Path, weights: Path) -> None:
    given = bare(root, tmp_path, space={"name": f"timm:{NAME}", "options": {"weights": str(weights)}})
    assert plan(given, num_classes=3).shrink.start_epochs > 0


def test_the_search_starts_from_the_start_and_learns_from_the_original(root: Path, tmp_path: Path) -> None:
    config = plan(bare(root, tmp_path))
    search = search_config(config, start=tmp_path / "start")
    assert search.space.options["weights"] == str(tmp_path / "start" / "model.safetensors")
    assert (search.retrain.teacher, search.out, search.shrink) == (
        str(tmp_path / "original"),
        tmp_path / "search",
        None,
    )
    probing = search_config(config, start=None, probing=True)
    assert (probing.retrain.teacher, probing.space.options["weights"]) == ("none", "none")
    own = plan(bare(root, tmp_path, retrain={"teacher": "none"}))
    assert search_config(own, start=None).retrain.teacher == "none"


# ---- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": "small_mbconv", "target": 0.5}, "space = small_mbconv has no original to shrink; name a model"),
        ({"target": None}, "nothing says how small the network must get; give a target, such as 0.6x"),
        ({"retrain": None}, "retrain = null leaves the subnet as the search left it"),
        ({"search": {"devices": 2}}, r"search\.devices = 2, but a shrinking works in one process"),
        (
            {"retrain": {"optimizer": "sgd"}},
            r"= sgd without retrain\.learning_rate: the recipe's 0\.002 is for adamw; give a rate too",
        ),
    ],
)
def test_settings_with_nothing_to_shrink_are_refused(
    root: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_shrink(bare(root, tmp_path, **changes))


@pytest.mark.parametrize("asked", [{"optimizer": "adamw"}, {"optimizer": "sgd", "learning_rate": 0.01}])
def test_another_optimiser_comes_with_its_rate(root: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    given = bare(root, tmp_path, retrain=asked)
    check_shrink(given)
    planned = plan(given).retrain
    assert {name: getattr(planned, name) for name in asked} == asked


def half(weights: Path, folder: Path) -> Path:
    found = load_file(weights)
    kept = dict(sorted(found.items())[: len(found) // 2])
    save_file(kept, folder / "half.safetensors")
    return folder / "half.safetensors"


def of_another(folder: Path) -> Path:
    return with_weights("mobilenetv2_050", folder)[1]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda w, f: {"space": {"name": "timm:mobilenetv2_035x"}}, SpaceError, "timm has no model .*close ones are"),
        (
            lambda w, f: {"space": {"name": "timm:resnet18"}},
            SpaceError,
            "has no InvertedResidual .* families that have",
        ),
        (lambda w, f: {"space": {"name": f"timm:local-dir:{f}"}}, (SpaceError, ExportError), "config.json"),
        (
            lambda w, f: {"space": {"options": {"weights": str(f / "none.safetensors")}}},
            SpaceError,
            r"none\.safetensors cannot be read",
        ),
        (lambda w, f: {"space": {"options": {"weights": str(of_another(f))}}}, SpaceError, "of shape .* not"),
        (lambda w, f: {"space": {"options": {"weights": str(half(w, f))}}}, SpaceError, "lack .* and .* more"),
        (
            lambda w, f: {
                "space": {"options": {"weights": str(w), "kernels": [3], "expansions": []}},
                "target": "0.01x",
            },
            TargetError,
            r"target = 0\.01x of the original of .* the least share is 0\.\d+x",
        ),
        (lambda w, f: {"data": {"root": str(f), "draw": None}}, DataError, "is no folder; imagefolder expects"),
        (lambda w, f: {"hardware": {"cost": "latency", "backend": "tpu"}}, ProxylessError, "tpu"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    change: Any, error: Any, words: str, root: Path, weights: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(error, match=words):
        run_shrink(settings(root, weights, tmp_path / "out", **change(weights, elsewhere)))
    assert not (tmp_path / "out").exists()


# ---- said before -----------------------------------------------------------------------------------------------


def test_the_whole_is_predicted_before_it_begins(
    root: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = check_all(settings(root, weights, tmp_path / "out"))
    output, notices = capsys.readouterr()
    assert output.count("predicted for all: about ") == 1
    assert "what the weights say 0." in output
    assert "of the original 1 + 2 epochs, of the subnet 1 + 2" in output
    assert "grey" not in notices
    assert ready.prepared.original is not None
    assert not (tmp_path / "out").exists(), "nothing is begun"


def test_grey_pictures_on_a_colour_model_are_said_once(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for part in ("train", "val"):
        for name in "ab":
            folder = tmp_path / "grey" / part / name
            folder.mkdir(parents=True)
            for number in range(20):
                Image.effect_noise((32, 32), 40 + number).save(folder / f"{number}.png")
    given = {"root": str(tmp_path / "grey"), "draw": None}
    ready = check_all(settings(tmp_path, weights, tmp_path / "out", data=given))
    said = capsys.readouterr().err
    assert (ready.data.channels, said.count("three equal channels, as timm does")) == (3, 1)
    one = {**given, "options": {"channels": 1}}
    ready = check_all(settings(tmp_path, weights, tmp_path / "out", data=one))
    said = capsys.readouterr().err
    assert (ready.data.channels, said.count("weights are summed over the colours, as timm does")) == (1, 1)


def test_another_shrinkings_folder_is_refused(root: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "shrink.json").write_text(json.dumps({"target": "0.5x"}))
    with pytest.raises(ConfigError, match=r"holds a shrinking with other settings \(.*; choose another out"):
        run_shrink(settings(root, weights, tmp_path))
