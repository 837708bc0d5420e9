"""Recipes: those that ship, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.retraining.recipe import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_ships_is_whole(name: str) -> None:
    assert load_recipe(name).settings.epochs > 0


def test_the_imagenet_recipe_is_the_releases() -> None:
    recipe = load_recipe("imagenet")
    assert recipe.augment == "imagenet"
    expected = {
        "epochs": 300,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 4e-5,
        "scheduler": "cosine",
        "label_smoothing": 0.1,
        "dropout": 0.1,
        "ema_decay": None,
        "mixup": 0.0,
        "rand_augment": None,
    }
    assert {name: getattr(recipe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, r"the recipe quick: unknown key 'epoch'; did you mean epochs \(known keys: .*epochs"),
        ({"epochs": 0}, r"the recipe quick: epochs = 0: Input should be greater"),
        ({"augment": "imagenett"}, r"augment = 'imagenett'"),
    ],
)
def test_a_recipe_with_an_impossible_setting_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("quick", overrides)


def test_the_cifar_recipe_is_the_papers() -> None:
    recipe = load_recipe("cifar")
    expected = {"augment": "crop_flip", "epochs": 300, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1}
    expected |= {"momentum": 0.9, "weight_decay": 1e-4, "scheduler": "cosine", "label_smoothing": 0.0}
    expected |= {"cutout": 16}
    assert {name: getattr(recipe, name) for name in expected} == expected


def test_there_is_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"there is no recipe 'fast': .*; give a YAML file or one of cifar, finetune, imagenet, quick"
    ):
        load_recipe("fast")
    (tmp_path / "list.yml").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list.yml: it must hold a mapping of settings, but holds a list"):
        load_recipe(tmp_path / "list.yml")
