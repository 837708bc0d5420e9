"""From a released ProxylessNAS config and checkpoint to an export folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from hardware.errors import ConfigError
from search_spaces.nni_import import import_nni

from .folder import RANDOM, export_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def import_released(config: Path, checkpoint: Path | None, out: Path, *, input_size: int | None = None) -> Path:
    """Write the export folder of a released network.

    Args:
        config: The released JSON config.
        checkpoint: The released checkpoint; None leaves the network with random weights, and `metrics.json` says so.
        out: The folder to write.
        input_size: Side of an image in pixels; None takes it from the config or the file's name, else 224.

    Raises:
        ConfigError: `input_size` is no positive number.
        SubnetError: The config or the checkpoint cannot be imported.
        ExportError: The folder cannot be written.
    """
    # The release is read into a declaration of a space, which imports NNI: slow, and noisy unless it is done so.
    import_nni()
    from search_spaces.released import read_checkpoint, read_config

    if input_size is not None and input_size < 1:
        raise ConfigError(f"input_size = {input_size}; give the side of an image in pixels")
    network = read_config(config)
    size = input_size or network.input_size
    args = network.model_args()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("proxylessnas", **args)
    if checkpoint is not None:
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        model.load_state_dict(read_checkpoint(checkpoint, network, shapes))
    feeding: dict[str, Any] = {
        "input_size": [network.in_chans, size, size],
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "num_classes": network.num_classes,
    }
    weights = RANDOM if checkpoint is None else Path(checkpoint).name
    return export_folder(
        model,
        out,
        model_args=args,
        subnet=network.subnet.to_dict(),
        pretrained_cfg=feeding,
        metrics={"released_config": Path(config).name, "weights": weights},
    )
