"""The original network, fine-tuned: before the search on the weight part, and then on all training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from hardware.errors import ExportError
from hardware.reading import Kind, is_there, read_json
from search_spaces import Subnet
from search_spaces.from_timm.declaration import TimmDeclaration
from search_spaces.from_timm.paths import NONE, PRETRAINED
from search_spaces.from_timm.weights import FOLDER_WEIGHTS, load_weights

from ..checkpoints import previous_checkpoint, short_digest
from ..config import RetrainSettings, SearchConfig
from ..data.digest import file_mark
from ..data.images import ImageData
from ..export.folder import CONFIG, METRICS, export_folder
from ..export.summary import model_summary
from ..progress import Phase, Told
from ..retraining.setup import retraining_threads
from ..retraining.trainer import RetrainResult, train
from .layout import ORIGINAL, START

_KIND = Kind("the metrics", "remove the folder to train it anew", ExportError)


def weights_of(folder: Path) -> Path:
    """Return the weights' file of an export folder."""
    return folder / FOLDER_WEIGHTS


def is_made(folder: Path) -> bool:
    """Whether an export folder is there; it appears whole or not at all."""
    return is_there(folder / CONFIG)


def metrics_of(folder: Path) -> dict[str, Any]:
    """Read what an export folder says of its network.

    Raises:
        ExportError: It cannot be read.
    """
    found: dict[str, Any] = read_json(folder / METRICS, _KIND)
    return found


def make_start(config: SearchConfig, space: TimmDeclaration, data: ImageData) -> None:
    """Fine-tune the model on the weight part alone, so that architecture steps see images that are new to all.

    Args:
        config: The planned settings.
        space: The model's space, with its own weights.
        data: The images.
    """
    # what it is tested on is the architecture part: the test images are for the end
    own = data.without_test()
    assert config.shrink is not None
    _make(config, space, own, START, epochs=config.shrink.start_epochs or 0, weights=None, part="architecture")


def make_original(config: SearchConfig, space: TimmDeclaration, data: ImageData, *, start: Path | None) -> None:
    """Train the original on all training images, from where the search starts, and test it once.

    Args:
        config: The planned settings.
        space: The model's space, with its own weights.
        data: The images.
        start: Where `make_start` left it; None: the model as it is given.
    """
    assert config.shrink is not None
    _make(config, space, data, ORIGINAL, epochs=config.shrink.original_epochs or 0, weights=start, part="test")


def _make(
    config: SearchConfig,
    space: TimmDeclaration,
    data: ImageData,
    name: str,
    *,
    epochs: int,
    weights: Path | None,
    part: str,
) -> None:
    folder, checkpoint = config.out / name, config.out / f"{name}.ckpt"
    if is_made(folder):
        return
    settings = _settings(config, epochs)
    if weights is not None:
        space = replace(space, weights=str(weights_of(weights)))
    build, subnet, arguments = _original(space, data, settings)
    print(f"{name}: the original is fine-tuned on {len(data.training)} images", flush=True)  # type: ignore[arg-type]
    begun = checkpoint.exists()
    threads = retraining_threads(settings, config.out, build, data, begun=begun)
    told = Told([Phase(name, epochs)])
    with threads.used(), told:
        trained = train(
            build,
            data,
            settings,
            seed=config.seed,
            checkpoint=checkpoint,
            on_epoch=lambda row: told.epoch({"phase": name, "default": row["accuracy"], **row}),
            on_place=lambda place: told.at(name, place),
            identity={"network": short_digest([subnet.timm_name, arguments, _source(space)])},
        )
    _export(config, data, folder, trained, subnet, arguments, part)
    for left in (checkpoint, previous_checkpoint(checkpoint)):
        left.unlink(missing_ok=True)


def _settings(config: SearchConfig, epochs: int) -> RetrainSettings:
    """Return how the original is trained: as the subnet is, for another number of epochs, all of which it gets."""
    settings = config.retraining
    assert settings is not None
    return settings.of_epochs(epochs)


def _source(space: TimmDeclaration) -> str:
    """Return what tells a space's weights from others: of a file what is in it."""
    return space.weights if space.weights in (PRETRAINED, NONE) else file_mark(space.weights)


def _original(
    space: TimmDeclaration, data: ImageData, settings: RetrainSettings
) -> tuple[Callable[[], nn.Module], Subnet, dict[str, Any]]:
    """Return what builds a space's original network with its weights, its choice, and the arguments of its export."""
    subnet = Subnet(space, space.original())
    arguments = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
    drop: dict[str, Any] = {"drop_rate": settings.dropout, "drop_path_rate": settings.drop_path}

    def build() -> nn.Module:
        model = timm.create_model(subnet.timm_name, **{**arguments, **drop})
        load_weights(model, space)
        return model

    return build, subnet, arguments


def _export(
    config: SearchConfig,
    data: ImageData,
    folder: Path,
    trained: RetrainResult,
    subnet: Subnet,
    arguments: dict[str, Any],
    part: str,
) -> None:
    summary = model_summary(trained.model, (data.channels, config.latency_input_size, config.latency_input_size))
    export_folder(
        trained.model,
        folder,
        model_args=arguments,
        subnet=subnet.to_dict(),
        pretrained_cfg=data.pretrained_cfg(),
        metrics={
            "accuracy": trained.test_accuracy,
            "part": part,
            "epochs": trained.epochs,
            "seconds": trained.seconds,
            "params": summary.params,
            "macs": summary.macs,
            **data.record(),
        },
    )
