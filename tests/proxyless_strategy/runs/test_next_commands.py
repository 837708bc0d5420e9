"""What terminal and page tell to type next is one thing, and works for every sort of space and training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from proxyless_strategy.cli.next_steps import next_commands
from proxyless_strategy.config import parse_config
from proxyless_strategy.layout import CONFIG_FILE
from proxyless_strategy.report.next_steps import next_steps
from proxyless_strategy.runs.finished import read_runs

from ..report.left import leave, result

SPACES = {
    "small_mbconv": [],
    "timm:mobilenetv2_100": [],
    "timm:local-dir:an export": ["--space", "timm:local-dir:an export"],
    "my_spaces:small": ["--space", "my_spaces:small"],
}
RECIPES: list[tuple[str, dict[str, Any], dict[str, Any] | None, int, str]] = [
    ("small_mbconv", {}, {}, 32, "cifar"),
    ("small_mbconv", {}, {}, 224, "imagenet"),
    ("small_mbconv", {}, {"weights": "supernet"}, 224, "finetune"),
    ("small_mbconv", {}, None, 32, "finetune"),
    ("timm:mobilenetv2_100", {}, {}, 224, "finetune"),
    ("timm:mobilenetv2_100", {}, {"weights": "fresh"}, 224, "imagenet"),
    ("timm:mobilenetv2_100", {"weights": "none"}, {}, 224, "imagenet"),
    ("timm:mobilenetv2_100", {}, {"weights": "inherited"}, 32, "finetune"),
]


def both(tmp_path: Path, settings: dict[str, Any]) -> list[list[list[str]]]:
    """Return the command lines of the terminal and those of the page, without their paths' folders."""
    out = tmp_path / "runs"
    leave(out, row=result())
    config = parse_config({**settings, "out": str(out)})
    (out / CONFIG_FILE).write_text(config.model_dump_json())
    (out / "model").mkdir()
    (out / "model" / "hubconf.py").write_text("")
    typed = [shlex.split(line) for line in next_commands(config)]
    (search,) = read_runs(out)
    shown = [shlex.split(text) for _, text in next_steps(search) if text.startswith("proxyless")]
    return [typed, shown]


def settings_of(space: str, options: dict[str, Any], retrain: dict[str, Any] | None, pixels: int) -> dict[str, Any]:
    return {
        "space": {"name": space, "options": options},
        "data": {"name": "imagefolder", "root": "photos"},
        "hardware": {"cost": "macs"},
        "input_size": pixels,
        "retrain": retrain,
    }


@pytest.mark.parametrize("space", SPACES)
def test_a_space_that_no_file_may_name_is_named_again(tmp_path: Path, space: str) -> None:
    for commands in both(tmp_path, settings_of(space, {}, {}, 32)):
        derive = [command for command in commands if command[1] == "derive"]
        assert derive
        for command in derive:
            at = command.index("--space") if "--space" in command else len(command)
            assert command[at : at + 2] == SPACES[space]


@pytest.mark.parametrize(("space", "options", "retrain", "pixels", "recipe"), RECIPES)
def test_the_recipe_goes_on_as_the_search_has_begun(
    tmp_path: Path, space: str, options: dict[str, Any], retrain: dict[str, Any] | None, pixels: int, recipe: str
) -> None:
    for commands in both(tmp_path, settings_of(space, options, retrain, pixels)):
        (again,) = [command for command in commands if command[1] == "retrain"]
        assert again[again.index("--recipe") + 1] == recipe
        assert again[again.index("--data") + 1] == "photos"
