"""The settings of a shrinking: what the model says of itself, and schedules by the number of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from hardware.errors import ConfigError
from search_spaces import users_space
from search_spaces.from_timm.declaration import TimmDeclaration
from search_spaces.from_timm.paths import FOLDER, NONE, PREFIX, PRETRAINED

from ..config import SearchConfig, ShrinkSettings, parse_config
from ..data.images import ImageData
from ..data.sources import is_function, reads_pictures
from ..export.folder import read_export
from ..retraining.folder import INHERITED
from ..retraining.recipe import load_recipe
from .layout import TABLE_FILE

IMAGES_SEEN = 50_000
"""Images times epochs that each network is trained with by default: on two cores minutes at 128 pixels, not hours."""
FEWEST_EPOCHS, MOST_EPOCHS = 8, 60
START, SEARCH = 0.25, 0.35
"""Share of all epochs that the original has before the search, and length of the search as such a share."""
FINALISTS, FEWEST_FINALIST_EPOCHS = 0.2, 4
"""Length of each finalist's training as such a share, and the least: after two epochs losses still tell how near a
subnet is to the original, which those of most multiply-accumulates are not, rather than what it can learn."""
ARCHITECTURE_STEPS = 150
"""That a search has where there are images enough."""
OPTIONS = {"kernels": [3], "expansions": [2, 4]}
"""Candidates beside each block's own: few, as each of them learns in its share of a short search alone."""
SEARCH_SETTINGS: dict[str, Any] = {"learning_rate": 0.02, "weight_paths": "sampled", "channels_last": True}
"""A search that starts from trained weights, in all that does not follow from the number of images. Its weight steps go
where alpha leads: they then train what is likely to be chosen, rather than each candidate in its small share."""
SUPERNET = "supernet"
"""Weights that a subnet is not fine-tuned from unless asked: what it inherits serves it better than what the search has
made of it, a share of whose steps it has had (row `supernet_weights` of `tests/benchmarks/shrink.py`)."""
RECIPE = "finetune"
_OF_THE_SHRINKING = {"epochs", "batch_size", "warmup_epochs", "weights", "teacher", "threads", "checkpoint_every"}
"""What the recipe does not decide here."""


@dataclass(frozen=True)
class Model:
    """What a model says of itself.

    Attributes:
        space: The space that it becomes.
        input_size: Side of the images that it was made for.
        channels: Channels of them.
        class_names: Its classes, where it is an export folder that names them.
        num_classes: Their number, where it is an export folder.
    """

    space: TimmDeclaration
    input_size: int
    channels: int
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None

    def knows(self, data: ImageData) -> bool:
        """Whether it is trained already on classes such as these."""
        if self.space.weights != PRETRAINED or self.num_classes != data.num_classes:
            return False
        return None in (self.class_names, data.class_names) or self.class_names == data.class_names


def check_shrink(config: SearchConfig) -> None:
    """Refuse settings under which there is nothing to shrink or to compare.

    Raises:
        ConfigError: The space has no original, nothing says how small, or the subnet is not to be trained, or at the
            rate of another optimiser.
    """
    if not config.space.name.startswith(PREFIX):
        raise ConfigError(
            f"space = {config.space.name} has no original to shrink; name a model, as {PREFIX}mobilenetv2_100"
        )
    if config.target is None and config.target_ms is None and config.target_cost is None:
        raise ConfigError("nothing says how small the network must get; give a target, such as 0.6x")
    if config.retrain is None:
        raise ConfigError(
            "retrain = null leaves the subnet as the search left it, which is no match for a fine-tuned original; "
            "remove it"
        )
    asked = config.retrain.model_fields_set
    if "optimizer" in asked and "learning_rate" not in asked:
        recipe = load_recipe(RECIPE).settings
        if config.retrain.optimizer != recipe.optimizer:
            raise ConfigError(
                f"retrain.optimizer = {config.retrain.optimizer} without retrain.learning_rate: the recipe's "
                f"{recipe.learning_rate:g} is for {recipe.optimizer}; give a rate too"
            )
    if config.hardware.cost == "energy":
        raise ConfigError(
            "hardware.cost energy shrinks no model, as original and subnet are compared by latency; shrink by latency, "
            "or run `proxyless search` without the section shrink"
        )
    for name in ("devices", "nodes"):
        if getattr(config.search, name) > 1:
            raise ConfigError(
                f"search.{name} = {getattr(config.search, name)}, but a shrinking works in one process; remove it, or "
                "run `proxyless search` without the section shrink"
            )


def read_model(config: SearchConfig) -> Model:
    """Read what a config's model says of itself.

    Raises:
        SpaceError: It is unknown, or has no block to choose at.
        ExportError: It is a folder, but no export.
    """
    space = users_space(config.space.name, **_under(dict(config.space.options), OPTIONS))
    assert isinstance(space, TimmDeclaration)
    if not space.model.startswith(FOLDER):
        known = timm.get_pretrained_cfg(space.model, allow_unregistered=True)
        channels, *_, side = known.input_size if known is not None else (3, 224, 224)
        return Model(space, side, channels)
    found = read_export(Path(space.model.removeprefix(FOLDER)))
    channels, *_, side = found["pretrained_cfg"]["input_size"]
    names = found.get("label_names")
    classes = found["pretrained_cfg"].get("num_classes")
    return Model(space, side, channels, tuple(names) if isinstance(names, list) else None, classes)


def sized(config: SearchConfig, model: Model) -> SearchConfig:
    """Fill in what says how images are read, so that they can be counted."""
    return _filled(config, _reading(config, model))


def planned(config: SearchConfig, model: Model, data: ImageData) -> SearchConfig:
    """Fill in all that the user has not set; the section `shrink` has all of its numbers then.

    Args:
        config: What the user has set.
        model: Its model.
        data: The images.
    """
    images = len(data.training)  # type: ignore[arg-type]
    batch = 32 if images >= 1000 else 16 if images >= 100 else 8
    recipe = load_recipe(RECIPE).settings.model_dump(exclude=_OF_THE_SHRINKING)
    defaults = _reading(config, model)
    if not is_function(config.data.name):
        defaults["data"]["options"] = _as_read(model, data)
    defaults["space"] = {"options": OPTIONS}
    weights = SUPERNET if model.space.weights == NONE else INHERITED
    defaults["search"] = {"batch_size": batch, **_searching(config, model)}
    defaults["retrain"] = {**recipe, "weights": weights, "batch_size": batch}
    if config.hardware.cost == "latency":
        defaults["hardware"] = {"table": config.out / TABLE_FILE}
    if config.retrain is not None and "weights" in config.retrain.model_fields_set:
        weights = config.retrain.weights or SUPERNET
    epochs = _epochs(config, images, knows=model.knows(data), keeps_weights=weights == SUPERNET)
    defaults["search"] |= epochs["search"]
    defaults["retrain"] |= epochs["retrain"]
    defaults["shrink"] = epochs["shrink"]
    filled = _filled(config, defaults)
    if config.rule == "sensitivity":
        return filled
    batches = len(data.weights) // filled.search.process_batch_size  # type: ignore[arg-type]
    steps = batches * (filled.search.epochs - (1 if filled.search.warmup_epochs else 0))
    between = max(1, min(5, steps // ARCHITECTURE_STEPS))
    return _filled(filled, {"search": {"steps_per_update": between}})


def subnet_epochs(config: SearchConfig) -> int:
    """Return how many epochs the subnet is trained after the start: the search's are its own if it keeps their weights.

    Args:
        config: The planned settings.
    """
    search, retrain = config.search, config.retrain
    assert retrain is not None
    searched = 0 if config.rule == "sensitivity" else search.warmup_epochs + search.epochs
    return retrain.epochs + (searched if retrain.weights in (None, SUPERNET) else 0)


def epochs_for(images: int) -> int:
    """Return how long each network is trained by default.

    >>> [epochs_for(images) for images in (100, 2000, 100_000)]
    [60, 25, 8]
    """
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(IMAGES_SEEN / images)))


def _epochs(config: SearchConfig, images: int, *, knows: bool, keeps_weights: bool) -> dict[str, dict[str, int]]:
    """Share the epochs out: the original's before and after, the search's, the fine-tuning's.

    Args:
        config: What the user has set.
        images: Number of training images.
        knows: Whether the model is trained on such classes already.
        keeps_weights: Whether the subnet goes on with the search's weights, so that the search's epochs are its own.
    """
    asked, search, retrain = config.shrink or ShrinkSettings(), config.search, config.retrain
    total = asked.epochs or epochs_for(images)
    start = asked.start_epochs
    if start is None:
        start = 0 if knows else max(1, round(START * total))
    schedule: dict[str, int] = {}
    if config.rule != "sensitivity":
        length = max(2, round(SEARCH * total))
        # candidates that inherit their weights need none
        warmup = search.warmup_epochs if "warmup_epochs" in search.model_fields_set else 0
        after = search.epochs if "epochs" in search.model_fields_set else max(1, length - warmup)
        schedule = {"warmup_epochs": warmup, "epochs": after}
    searched = sum(schedule.values()) if keeps_weights else 0
    tuned = max(1, total - start - searched)
    if retrain is not None and "epochs" in retrain.model_fields_set:
        tuned = retrain.epochs
    if schedule and not keeps_weights and search.finalists_dtype == "float32":
        schedule["finalists_epochs"] = min(tuned, max(FEWEST_FINALIST_EPOCHS, round(FINALISTS * total)))
    return {
        "search": schedule,
        "retrain": {"epochs": tuned},
        "shrink": {
            "start_epochs": start,
            # as many as the subnet gets, so that it is no better for having seen more
            "original_epochs": searched + tuned,
        },
    }


def _searching(config: SearchConfig, model: Model) -> dict[str, Any]:
    """Return how a search that starts from weights is made, as far as its rule has one."""
    if config.rule == "sensitivity":
        return {}
    asks_weights = {"start": "sensitivity"} if model.space.weights != NONE else {}
    return {**SEARCH_SETTINGS, **asks_weights}


def _reading(config: SearchConfig, model: Model) -> dict[str, Any]:
    reading: dict[str, Any] = {"input_size": model.input_size, "data": {"augment": "crop_flip"}}
    if model.channels == 1 and reads_pictures(config.data.name):
        reading["data"]["options"] = {"channels": 1}
    return reading


def _as_read(model: Model, data: ImageData) -> dict[str, Any]:
    """Say how the images were read: a space says so by its weights, which are others after the first training."""
    return {
        "channels": data.channels,
        "mean": list(data.mean),
        "std": list(data.std),
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct,
        "crop_mode": data.crop_mode,
        "range": model.space.feeding().get("range"),
    }


def _filled(config: SearchConfig, defaults: Mapping[str, Any]) -> SearchConfig:
    """Lay settings under those that are set; null is one."""
    values = config.model_dump(exclude_unset=True)
    # They are left out of a dump, but a name in `hardware` is looked up there.
    values["platforms"] = {name: p.model_dump(exclude_unset=True) for name, p in config.platforms.items()}
    values["shrink"] = {key: value for key, value in (values.get("shrink") or {}).items() if value is not None}
    return parse_config(_under(values, defaults))


def _under(values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    for key, default in defaults.items():
        if key not in values:
            values[key] = default
        elif isinstance(default, Mapping) and isinstance(values[key], dict):
            _under(values[key], default)
    return values
