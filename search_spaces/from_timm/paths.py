"""What names a timm model and its weights, and the paths in it; nothing slow is imported, as every config needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PREFIX, FOLDER = "timm:", "local-dir:"
PRETRAINED, NONE = "pretrained", "none"


def is_folder(model: str) -> bool:
    """Return whether a model is named by the path of an export folder, which has a slash, and not by timm's name.

    >>> is_folder("mobilenetv2_100.ra_in1k"), is_folder("./mine"), is_folder("local-dir:mine")
    (False, True, True)
    """
    return model.startswith(FOLDER) or "/" in model or os.sep in model


def whole_paths(name: str, options: Mapping[str, Any], folder_of: Callable[[str], Path]) -> tuple[str, dict[str, Any]]:
    """Make the paths in a space's name and options absolute; those of other spaces stay.

    Args:
        name: The space's name.
        options: Its options.
        folder_of: From a setting's dotted key to the folder that its paths count from.

    >>> whole_paths("timm:mobilenetv2_100", {"weights": "mine.safetensors"}, lambda key: Path("/data"))
    ('timm:mobilenetv2_100', {'weights': '/data/mine.safetensors'})
    """

    def whole(path: str, key: str) -> str:
        return os.path.normpath(folder_of(key) / Path(path).expanduser())

    options = dict(options)
    if name.startswith(PREFIX):
        weights = options.get("weights")
        if isinstance(weights, str) and weights not in (PRETRAINED, NONE):
            options["weights"] = whole(weights, "space.options.weights")
    if name.startswith(PREFIX + FOLDER):
        name = PREFIX + FOLDER + whole(name.removeprefix(PREFIX + FOLDER), "space.name")
    return name, options
