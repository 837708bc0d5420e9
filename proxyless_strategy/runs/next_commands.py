"""Command lines that go on with a finished search, in the one form that terminal and page show."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.from_timm.paths import FOLDER, NONE, PREFIX

from ..data.picture_options import source_arguments

_LARGE_IMAGES = 128
"""Pixels from which on images are trained on like ImageNet's."""


def derive_command(search: Path, *asked: str, out: Path, space: str) -> str:
    """Return the command that derives from a search again.

    >>> print(derive_command(Path("runs/s"), "--curve", out=Path("curve"), space="mine:space"))
    proxyless derive runs/s --curve --out curve --space mine:space

    Args:
        search: The search's folder.
        *asked: What to derive: `--curve`, or `--target` and its value.
        out: Where to.
        space: The search's `space.name`; one that no file may name is given again on the command line.
    """
    named = ":" in space and (not space.startswith(PREFIX) or space.startswith(PREFIX + FOLDER))
    return _line("derive", search, *asked, "--out", out, *(["--space", space] if named else []))


def retrain_command(model: Path, settings: Mapping[str, Any], *, out: Path) -> str:
    """Return the command that trains a search's network again, on the images that it was found on.

    One that was trained from weights is trained further from them, by the recipe `finetune`.

    >>> settings = {"space": {"name": "mine:space"}, "data": {"name": "imagefolder", "root": "a b"}, "input_size": 224}
    >>> print(retrain_command(Path("m"), settings | {"retrain": {"weights": "fresh"}}, out=Path("again")))
    proxyless retrain m --data 'a b' --recipe imagenet --out again
    >>> settings["space"] = {"name": "timm:mobilenetv2_100"}
    >>> print(retrain_command(Path("m"), settings | {"retrain": {}}, out=Path("again")))
    proxyless retrain m --data 'a b' --recipe finetune --out again

    Args:
        model: The exported folder.
        settings: The search's config, as its folder keeps it.
        out: Where to.
    """
    data, pixels = settings["data"], settings.get("input_size")
    root, options = data.get("root"), data.get("options")
    recipe = "imagenet" if isinstance(pixels, int) and pixels >= _LARGE_IMAGES else "cifar"
    if _from_weights(settings):
        recipe = "finetune"
    source = source_arguments(str(data["name"]), options if isinstance(options, dict) else {})
    where = root if isinstance(root, str) else "."  # of a source without files
    return _line("retrain", model, "--data", where, *source, "--recipe", recipe, "--out", out)


def _from_weights(settings: Mapping[str, Any]) -> bool:
    """Return whether the search's network started from weights, see `runs.retrained.starting_weights`."""
    retrain, space = settings.get("retrain", {}), settings["space"]
    if not isinstance(retrain, dict):
        return True
    asked, options = retrain.get("weights"), space.get("options")
    if asked is not None:
        return bool(asked != "fresh")
    of_weights = not isinstance(options, dict) or options.get("weights") != NONE
    return of_weights and str(space["name"]).startswith(PREFIX)


def benchmark_command(model: Path, *others: str, out: Path) -> str:
    """Return the command that measures a search's network beside others, timm's names or folders."""
    return _line("benchmark", "--models", model, *others, "--out", out)


def report_command(search: Path) -> str:
    """Return the command that writes a search's page."""
    return _line("report", search)


def _line(*words: object) -> str:
    return shlex.join(map(str, ("proxyless", *words)))
