"""Recipes of a retraining: their schema, and those that ship."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from hardware.errors import ConfigError
from hardware.reading import SETTINGS_BYTES, Kind, read_yaml, shown
from search_spaces.from_timm.paths import FOLDER, is_folder

from ..config import MOST_SEED, RetrainSettings
from ..data.picture_options import PICTURE_OPTIONS
from ..sections import MOST_PIXELS, MOST_WORKERS, Decoder
from ..validation import validation_sentence

RECIPES = Path(__file__).with_name("recipes")


class Recipe(RetrainSettings):
    """How to train; nothing of it comes from a search's settings.

    `weights: inherited` starts from those of the export folder, `fresh` (and nothing) from fresh ones.
    """

    augment: Literal["none", "crop", "crop_flip", "imagenet"] = "none"
    """none, crop, crop_flip or imagenet, as `data.augment` of a search."""
    workers: int = Field(0, ge=0, le=MOST_WORKERS)
    """Processes that read images, for each training process."""
    input_size: int | None = Field(None, ge=8, le=MOST_PIXELS)
    """Height and width of the images; None: what the network was exported for."""
    seed: int = Field(0, ge=0, le=MOST_SEED)
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (colour); None: what the network was searched with."""
    background: str | None = None
    """Colour beneath transparent pixels; None: what the network was searched with."""
    decoder: Decoder = "pillow"
    """What decodes training pictures, as `data.decoder` of a search."""
    skip_unreadable: bool = False
    """Read all pictures before the training, and leave out those that cannot be read."""
    source_options: dict[str, Any] = Field(default_factory=dict)
    """What the source of the images takes of its own, as `data.options` of a search: `{label: json.class}`."""

    @model_validator(mode="after")
    def _no_supernet(self) -> Recipe:
        if self.weights == "supernet":
            raise ValueError("weights = supernet is for the retraining of a search; give inherited or fresh")
        read = [name for name in self.source_options if name in PICTURE_OPTIONS]
        if read:
            raise ValueError(
                f"source_options: {read[0]} is how pictures are read, which the export folder says; remove it"
            )
        return self

    @property
    def settings(self) -> RetrainSettings:
        """What the loop needs of it."""
        return RetrainSettings(**{name: getattr(self, name) for name in RetrainSettings.model_fields})


def recipe_names() -> tuple[str, ...]:
    """List the recipes that ship."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yml")))


def load_recipe(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe by its name or from a YAML file, with `overrides` laid over it.

    Example:
        >>> recipe = load_recipe("cifar", {"epochs": 600, "drop_path": 0.2})
        >>> recipe.optimizer, recipe.epochs, recipe.cutout
        ('sgd', 600, 16)

    Args:
        recipe: One of `recipe_names()`, or the path of a YAML file.
        overrides: Values by the recipe's keys. A teacher's folder counts from the current one here, and in the file
            from its own.

    Raises:
        ConfigError: There is none, it is no mapping, a key is unknown, or a value is impossible.
    """
    path = RECIPES / f"{recipe}.yml" if str(recipe) in recipe_names() else Path(recipe)
    kind = Kind(
        "the recipe",
        "mend it, or give another YAML file",
        ConfigError,
        limit=SETTINGS_BYTES,
        holds="a mapping of settings",
        missing=f"there is no recipe {shown(str(recipe))}: No such file or directory; give a YAML file or one of "
        f"{', '.join(recipe_names())}",
    )
    values = read_yaml(path, kind)
    teacher = values.get("teacher")
    if isinstance(teacher, str) and is_folder(teacher):
        values["teacher"] = os.path.normpath(path.absolute().parent / Path(teacher.removeprefix(FOLDER)).expanduser())
    try:
        return Recipe.model_validate({**values, **(overrides or {})})
    except ValidationError as error:
        raise ConfigError(f"the recipe {recipe}: {validation_sentence(error, Recipe)}") from error
