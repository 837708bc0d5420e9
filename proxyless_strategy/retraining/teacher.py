"""A teacher: a trained network whose outputs another one learns beside the labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn import functional

from hardware.errors import ConfigError
from hardware.reading import cut, shown
from search_spaces.from_timm.paths import FOLDER, is_folder
from search_spaces.from_timm.weights import pretrained_network

from ..data.images import ImageData
from ..export.folder import has_random_weights, load_exported, read_export

NO_TEACHER = "none"


def distilled(loss: Tensor, logits: Tensor, taught: Tensor, *, temperature: float, weight: float) -> Tensor:
    """Return the loss of a network that learns from labels and from a teacher (Hinton et al., arXiv 1503.02531).

    It is `(1 - w) loss + w T^2 KL(softmax(taught / T) || softmax(logits / T))`, the mean over a batch; `T^2` keeps the
    teacher's share of the gradient where another temperature is chosen.

    Args:
        loss: The loss by the labels, the mean over the batch.
        logits: `B x classes` outputs of the network.
        taught: The teacher's for the same images.
        temperature: `T`; the higher, the more the improbable classes count.
        weight: `w`, the teacher's share.
    """
    # In float32 whatever the network computes in: the tails of a distribution are what a teacher adds.
    own = functional.log_softmax(logits.float() / temperature, dim=1)
    soft = functional.log_softmax(taught.float() / temperature, dim=1)
    divergence = functional.kl_div(own, soft, log_target=True, reduction="batchmean")
    return (1 - weight) * loss + weight * temperature**2 * divergence


class Renormalised(nn.Module):
    """A network whose input is normalised anew before it: from the mean and std of one to those of another.

    Args:
        network: The network.
        seen: Mean and std of the images that it was trained on, one value a channel.
        given: Those of the images that it gets here.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        seen: tuple[Sequence[float], Sequence[float]],
        given: tuple[Sequence[float], Sequence[float]],
    ):
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in seen)
        own_mean, own_std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in given)
        self.register_buffer("scale", (own_std / std).float())
        self.register_buffer("shift", ((own_mean - mean) / std).float())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x * self.scale + self.shift)
        return found


def load_teacher(name: str, data: ImageData) -> nn.Module:
    """Load a teacher of these images, in evaluation mode, and try it on one.

    Args:
        name: timm's name of a model that has pretrained weights, or an export folder's path, which has a slash.
        data: The images. Where they are normalised by another mean and std than the teacher's, its input is
            normalised anew.

    Raises:
        ConfigError: There is no such model, it cannot be loaded, or it is one of other classes, channels or pictures.
        ExportError: The folder is no export.
    """
    if is_folder(name):
        folder = Path(name.removeprefix(FOLDER)).expanduser()
        config = read_export(folder)
        own = config["pretrained_cfg"]
        if has_random_weights(folder):
            raise ConfigError(f"teacher = {cut(name)} has random weights; give a network that was trained, or none")
        _check_sizes(name, own, data)
        _check_pictures(name, config, data)
        network = load_exported(folder)
    else:
        network, own = _pretrained(name, data)
    feeding = resolve_data_config(pretrained_cfg=dict(own))
    seen = tuple(tuple(float(value) for value in feeding[key]) for key in ("mean", "std"))
    given = (tuple(data.mean), tuple(data.std))
    if any(len(values) != data.channels for values in seen):
        raise ConfigError(
            f"teacher = {cut(name)} has mean = {shown(feeding['mean'])}, std = {shown(feeding['std'])} for images of "
            f"{data.channels} channels; give another teacher, or none"
        )
    if seen != given:
        network = Renormalised(network, seen=(seen[0], seen[1]), given=given)
    check_teacher(network, data, name=f"teacher = {cut(name)}")
    return network.eval()


def check_teacher(teacher: nn.Module, data: ImageData, *, name: str = "the teacher") -> None:
    """Try a teacher on one image.

    Raises:
        ConfigError: It cannot take images of this size, or does not return a value for each class.
    """
    found: Any = None
    parameter = next(teacher.parameters(), torch.zeros(()))
    image = torch.zeros(1, data.channels, data.input_size, data.input_size, device=parameter.device)
    was_training = teacher.training
    try:
        with torch.inference_mode():
            found = teacher.eval()(image)
    except Exception as error:
        raise ConfigError(
            f"{name} cannot take images of {data.channels} x {data.input_size} x {data.input_size}: "
            f"{cut(' '.join(str(error).split()), 200)}; give another teacher, or none"
        ) from error
    finally:
        teacher.train(was_training)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (1, data.num_classes):
        raise ConfigError(
            f"{name} gives {shape} for one image, but the data have {data.num_classes} classes; give another teacher, "
            "or none"
        )


def other_classes(export: Mapping[str, Any], data: ImageData) -> bool:
    """Return whether an export folder's classes are others than the data's: in number, or by name where both say.

    Args:
        export: Its config, see `read_export`.
        data: Images.
    """
    labels = export.get("label_names")
    if export["pretrained_cfg"].get("num_classes") != data.num_classes:
        return True
    return labels is not None and data.class_names is not None and list(labels) != list(data.class_names)


def weights_digest(weights: Mapping[str, Tensor], *more: str) -> str:
    """Digest weights, and texts that go with them, for an identity that fits into an error message."""
    digest = hashlib.sha256(repr(more).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def teacher_digest(teacher: nn.Module) -> str:
    """Digest a teacher: its weights, and what its modules are, as a stride changes no weight's shape."""
    return weights_digest(teacher.state_dict(), repr(teacher))


def _pretrained(name: str, data: ImageData) -> tuple[nn.Module, Mapping[str, Any]]:
    if not timm.is_model(name):
        raise ConfigError(
            f"teacher = {cut(name)} is no model of timm; give one, an export folder as ./{cut(name)}, or none"
        )
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.has_weights:
        raise ConfigError(f"timm has no weights of teacher = {name}; give another model, an export folder, or none")
    _check_sizes(name, known.to_dict(), data)  # before anything is fetched
    remedy = "give an export folder, or none"
    return pretrained_network(name, whose=f"teacher = {name}", remedy=remedy, error=ConfigError), known.to_dict()


def _check_sizes(name: str, own: Mapping[str, Any], data: ImageData) -> None:
    size = own.get("input_size")
    channels = size[0] if isinstance(size, list | tuple) and size else data.channels
    sizes = {"classes": (own.get("num_classes", data.num_classes), data.num_classes)}
    sizes["channels"] = (channels, data.channels)
    for what, (there, here) in sizes.items():
        if there != here:
            raise ConfigError(
                f"teacher = {cut(name)} has {shown(there)} {what}, but the data have {here}; give a teacher of the "
                "same, or none"
            )


def _check_pictures(name: str, config: Mapping[str, Any], data: ImageData) -> None:
    """Refuse a folder's network of other classes, or one whose pictures' values were read otherwise."""
    if other_classes(config, data):
        pairs = zip(config["label_names"], data.class_names or (), strict=False)
        own, wanted = next((shown(a), shown(b)) for a, b in pairs if a != b)
        raise ConfigError(
            f"teacher = {cut(name)} knows other classes than the data ({own}, not {wanted}); give a teacher of the "
            "same, or none"
        )
    there = (config.get("pictures") or {}).get("range")
    here = (data.reader.settings() if data.reader is not None else {}).get("range")
    if there != here:
        raise ConfigError(
            f"teacher = {cut(name)} reads pictures with range = {shown(there)}, the data with {shown(here)}; give a "
            "teacher of the same, or none"
        )
