"""How a model's own images were made, as options of the data that it is given next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import DataConfig
from .sources import is_function
from .torchvision_source import PREFIX, torchvision_channels


def fed(config: DataConfig, feeding: Mapping[str, Any]) -> DataConfig:
    """Return a data set's settings with the mean, std, ... of a model's images for those that are not given.

    A user's function takes options of its own; what it makes of images is its matter.

    Args:
        config: The settings.
        feeding: mean, std, interpolation, crop_pct, crop_mode and range, as far as they are known.
    """
    if not feeding or is_function(config.name):
        return config
    given = dict(feeding)
    for name in ("mean", "std"):
        values = given.get(name, ())
        channels = _channels(config) if values and name not in config.options else len(values)
        if len(values) != channels:
            # As timm sums a stem's weights over the colours for grey images, these are fed at the colours' mean.
            given[name] = [sum(values) / len(values)] * channels if values else None
    options = {key: value for key, value in given.items() if value is not None}
    return config.model_copy(update={"options": {**options, **config.options}})


def _channels(config: DataConfig) -> int:
    """Return the channels of the images: as the options say, else as the source makes them."""
    if "channels" in config.options:
        return int(config.options["channels"])
    if config.name.startswith(PREFIX):
        return torchvision_channels(config)
    return 1 if config.name == "digits" else 3
