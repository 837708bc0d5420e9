"""What `data.options` may say about pictures; whoever only asks for their names needs neither torch nor timm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PictureOptions:
    """What `data.options` may say about pictures."""

    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    range: tuple[float, float] | None = None


PICTURE_OPTIONS = tuple(PictureOptions.__dataclass_fields__)


def source_arguments(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return what `proxyless retrain` is told of a search's source of images; how pictures are read, the export says.

    >>> source_arguments("webdataset", {"label": "json.class", "crop_pct": 0.9})
    ['--source', 'webdataset', '--set', 'source_options={"label": "json.class"}']
    >>> source_arguments("imagefolder", {"channels": 1})
    []

    Args:
        name: `data.name`.
        options: `data.options`.
    """
    own = {key: value for key, value in options.items() if key not in PICTURE_OPTIONS}
    source = [] if name == "imagefolder" else ["--source", name]
    return source + (["--set", f"source_options={json.dumps(own)}"] if own else [])
