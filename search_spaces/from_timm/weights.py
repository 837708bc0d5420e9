"""The weights that a space made of a timm model starts from: timm's pretrained ones, a file's, an export folder's."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load
from timm.models import adapt_input_conv
from torch import Tensor, nn

from hardware.errors import ProxylessError, SpaceError
from hardware.reading import Unreadable, bytes_of, cut

from .paths import FOLDER, NONE, PRETRAINED

if TYPE_CHECKING:
    from .declaration import TimmDeclaration

FOLDER_WEIGHTS = "model.safetensors"
STEM, CLASSIFIER = "conv_stem.weight", ("classifier.weight", "classifier.bias")
_COUNTER = "num_batches_tracked"
Loaded = Literal["nothing", "features", "everything"]
"""What weights gave a network; `features`: all but the classifier, which is of another number of classes."""


def load_weights(model: nn.Module, space: TimmDeclaration) -> Loaded:
    """Load a space's weights into its original network; other classes and image channels change it as timm does.

    Args:
        model: The network; it stays as it is where the space has no weights.
        space: The declaration.

    Returns:
        What of the network has weights now.

    Raises:
        SpaceError: The weights are missing, cannot be fetched, or are of another network.
    """
    if space.weights == NONE:
        return "nothing"
    if space.weights != PRETRAINED:
        source = f"the weights {space.weights}"
        found = _read(Path(space.weights), source)
    elif space.model.startswith(FOLDER):
        path = Path(space.model.removeprefix(FOLDER)) / FOLDER_WEIGHTS
        source = f"the weights {path}"
        found = _read(path, source)
    else:
        source = f"timm's weights of {space.model}"
        found = _fetch(space)
    return _load(model, found, source=f"{source} of the space {space.name}")


def _read(path: Path, source: str) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise SpaceError(f"{source} are no file of safetensors; give pretrained, none or FILE.safetensors")
    try:
        return load(bytes_of(path))
    except (Unreadable, SafetensorError, KeyError) as error:  # the latter: of a type of numbers that torch lacks
        reason = error.reason if isinstance(error, Unreadable) else cut(" ".join(str(error).split()))
        raise SpaceError(f"{source} cannot be read: {reason}; give another file") from error


def _fetch(space: TimmDeclaration) -> dict[str, Tensor]:
    if not space.model:
        raise SpaceError(f"the space {space.name} was read from a file, which has no weights; name it to get_space")
    config = timm.get_pretrained_cfg(space.model)
    if config is None or not config.has_weights:
        raise SpaceError(f"timm has no weights of {space.model}; give weights: FILE.safetensors, or weights: none")
    remedy = "give weights: FILE.safetensors, or weights: none"
    return pretrained_network(space.model, whose=space.model, remedy=remedy, error=SpaceError).state_dict()


def pretrained_network(model: str, *, whose: str, remedy: str, error: type[ProxylessError]) -> nn.Module:
    """Build a model of timm with its pretrained weights, from this machine or fetched.

    Args:
        model: timm's name of it, which the user has given.
        whose: The model, as the message names it.
        remedy: What to do without its weights.
        error: What is raised.

    Raises:
        ProxylessError: Of that type: they are not here, and cannot be fetched.
    """
    try:
        network: nn.Module = timm.create_model(model, pretrained=True, **without_network(model))
    except Exception as cause:
        reason = " ".join(str(cause).split()).partition(". ")[0][:200]
        raise error(
            f"timm's weights of {whose} are neither on this machine nor can they be fetched "
            f"({type(cause).__name__}: {reason}); {remedy}"
        ) from cause
    return network


def without_network(model: str) -> dict[str, Any]:
    """Return the arguments that let timm read cached weights where there is no network.

    By itself it tries for most of a minute, and says so at every attempt.

    Raises:
        OSError: There is neither a network nor a cached file.
    """
    config = timm.get_pretrained_cfg(model)
    host = urlsplit(constants.ENDPOINT).hostname
    if config is None or not config.hf_hub_id or getproxies():
        return {}
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        cached = try_to_load_from_cache(config.hf_hub_id, FOLDER_WEIGHTS)
        if not isinstance(cached, str):
            raise OSError(f"no network, {host} is unknown here") from error
        return {"pretrained_cfg_overlay": {"file": cached}}
    return {}


def _load(model: nn.Module, found: dict[str, Tensor], *, source: str) -> Loaded:
    expected = model.state_dict()
    found = dict(found)
    stem = found.get(STEM)
    if stem is not None and stem.ndim == 4 and stem.shape[1] != expected[STEM].shape[1]:
        found[STEM] = adapt_input_conv(expected[STEM].shape[1], stem, base_chans=stem.shape[1])
    classifier = found.get(CLASSIFIER[0])
    fresh: tuple[str, ...] = ()
    features = expected[CLASSIFIER[0]].shape[1:]
    if classifier is not None and classifier.shape[1:] == features and len(classifier) != model.num_classes:
        fresh = CLASSIFIER
        for key in fresh:
            found.pop(key, None)
    wanted = [key for key in expected if key not in fresh]
    missing = [key for key in wanted if key not in found and not key.endswith(_COUNTER)]
    unknown = [key for key in found if key not in expected]
    for keys, words in ((missing, "lack"), (unknown, "have")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            also = "" if words == "lack" else ", which its network has not"
            raise SpaceError(f"{source} {words} {keys[0]}{more}{also}; give those of this model")
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise SpaceError(
                f"{source} have {key} of shape {tuple(value.shape)}, not {tuple(expected[key].shape)}; give those of "
                "this model"
            )
        if not torch.isfinite(value).all():
            raise SpaceError(f"{source} have numbers in {key} that are not finite; give others")
    model.load_state_dict(found, strict=False)
    return "features" if fresh else "everything"
