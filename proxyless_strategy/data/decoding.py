"""`data.decoder: nvjpeg`: JPEG files decoded, cropped and coloured in batches by the process that trains.

Processes that read images then only read bytes and draw random numbers. All is a function of (seed, epoch, position),
as with Pillow, and the draws are the same ones. What the GPU's decoder may make another picture of than Pillow (see
`jpeg_header`) is left to Pillow. Parts that are not augmented are read by Pillow whatever the decoder, so that an
accuracy does not depend on it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from hardware.errors import ConfigError, DataError, PictureError

from ..config import DataConfig
from .drawn_views import Draws
from .encoded import EncodedBatch
from .jitter import jittered, luma
from .reading import name_in, picture_in, reason_of
from .resampling import resampled

Decode = Callable[[list[Tensor], ImageReadMode, torch.device], list[Tensor]]

_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
"""By components. Never `UNCHANGED`: nvJPEG's own of that name are planes of YCbCr."""
_COLOUR, _OFF = (200, 60, 20), 12


def check_decoder(config: DataConfig) -> None:
    """Refuse data that this decoder cannot feed.

    Raises:
        DataError: They are no folder of pictures, or are resized in a way that only Pillow does.
    """
    if config.decoder == "pillow":
        return
    if config.name != "imagefolder":
        raise DataError(
            f"data.decoder = {config.decoder} reads a folder of pictures, but data.name = {config.name!r}; set "
            "data.decoder to pillow, or data.name to imagefolder"
        )
    if config.augment != "imagenet" and config.options.get("crop_mode") == "border":
        raise DataError(
            f"data.decoder = {config.decoder} adds no border, which data.options.crop_mode = border asks for; set "
            "data.decoder to pillow, or crop_mode to center or squash"
        )


def try_decoder(config: DataConfig, *, trains_on_gpu: bool) -> None:
    """Decode a small picture where `data.decoder` will.

    Raises:
        ConfigError: There is no such GPU, it is not what trains, or it has no nvJPEG.
    """
    if config.decoder == "pillow":
        return
    if not trains_on_gpu:
        raise ConfigError(
            f"data.decoder = {config.decoder} decodes on the NVIDIA GPU that trains, and here none does; set "
            "data.decoder to pillow"
        )
    device = decoding_device("cuda")
    try:
        right = _decodes_right(decoded, device)
    except RuntimeError as error:
        raise ConfigError(
            f"data.decoder = {config.decoder} does not work on {device}: {reason_of(error)}; set data.decoder to pillow"
        ) from error
    if not right:
        raise ConfigError(
            f"data.decoder = {config.decoder} on {device} gives other colours than were encoded; set data.decoder to "
            "pillow"
        )


def decoding_device(place: str) -> torch.device:
    """Return the device to decode on; `cuda` is the process's own GPU, which is known once its rank is.

    Raises:
        ConfigError: There is none.
    """
    if place != "cuda":
        return torch.device(place)
    if not torch.cuda.is_available():
        raise ConfigError(
            "data.decoder = nvjpeg decodes training images on an NVIDIA GPU, and torch finds none here; set "
            "data.decoder to pillow"
        )
    return torch.device("cuda", torch.cuda.current_device())


def decoded(contents: list[Tensor], mode: ImageReadMode, device: torch.device) -> list[Tensor]:
    """Decode JPEG files (uint8 vectors in CPU memory) to `C x H x W` uint8 on a device.

    Raises:
        RuntimeError: One of them cannot be decoded; which one is not said.
    """
    if device.type == "cuda":
        # torchvision decodes on a stream of its own into memory that it takes from this one. Without this line it may
        # write to memory that was given back here while kernels that still read it wait for their turn.
        torch.cuda.current_stream(device).synchronize()
    return decode_jpeg(contents, mode=mode, device=device)


@dataclass(frozen=True, eq=False)
class Finish:
    """Make images of an encoded batch.

    Attributes:
        source: Names pictures in messages.
        draws: Size and interpolation, and whether colours are changed.
        mean: One value a channel, of pixels in 0..1.
        std: One value a channel.
        place: Where: `cuda`, or any device of torch.
        decode: What decodes.
    """

    source: Any
    draws: Draws
    mean: tuple[float, ...]
    std: tuple[float, ...]
    place: str
    decode: Decode = decoded

    @torch.no_grad()
    def __call__(self, batch: EncodedBatch) -> tuple[Tensor, Tensor]:
        """Return `B x C x H x W` float32 images on the device, and `B` class numbers in CPU memory.

        Raises:
            PictureError: A file cannot be decoded.
            DataError: The decoder fails, on no file that can be named.
        """
        device, size, channels = decoding_device(self.place), self.draws.size, len(self.mean)
        images = torch.empty(len(batch.labels), channels, size, size, device=device)
        contents = list(batch.content.split(batch.sizes)) if batch.sizes else []
        for components, mode in _MODES.items():
            which = (batch.headers[:, 2] == components).nonzero().flatten()
            if not len(which):
                continue
            numbers = which.tolist()
            pictures = self._pictures([contents[number] for number in numbers], batch, numbers, mode, device)
            if components == 3 and channels == 1:
                pictures = [luma(picture[None].float())[0].to(torch.uint8) for picture in pictures]
            found = resampled(pictures, batch.views[which], size=size, interpolation=self.draws.interpolation)
            found = found.expand(-1, channels, -1, -1).contiguous()
            if self.draws.coloured:
                found = jittered(found, batch.order[which], batch.factors[which])
            found = self._normalised(found, batch.erased[which])
            images[torch.tensor([batch.places[number] for number in numbers], device=device)] = found
        rest = sorted(set(range(len(batch.labels))) - set(batch.places))
        if rest:
            images[torch.tensor(rest, device=device)] = batch.ready.to(device)
        return images, batch.labels

    def _normalised(self, images: Tensor, erased: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        images = images.div_(255).sub_(mean).div_(std)
        if not bool(erased.any()):
            return images
        top, left, height, width = erased.to(images.device).view(-1, 4, 1).unbind(1)
        pixel = torch.arange(images.shape[-1], device=images.device)
        rows, columns = (pixel >= top) & (pixel < top + height), (pixel >= left) & (pixel < left + width)
        return images.masked_fill_((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)

    def _pictures(
        self, contents: list[Tensor], batch: EncodedBatch, numbers: list[int], mode: ImageReadMode, device: torch.device
    ) -> list[Tensor]:
        try:
            pictures = self.decode(contents, mode, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise self._failed(contents, batch, numbers, mode, device, error) from error
        for number, picture in zip(numbers, pictures, strict=True):
            rows, columns, components = batch.headers[number].tolist()
            if tuple(picture.shape) != (components, rows, columns):
                reason = f"it became {tuple(picture.shape)} and not {(components, rows, columns)} as its header says"
                raise self._undecodable(batch.numbers[number], reason)
        return pictures

    def _failed(
        self,
        contents: list[Tensor],
        batch: EncodedBatch,
        numbers: list[int],
        mode: ImageReadMode,
        device: torch.device,
        error: RuntimeError,
    ) -> DataError:
        """Find out which file of a batch it was; a decoder names none."""
        try:
            works = _decodes_right(self.decode, device)
        except RuntimeError:
            works = False
        # Where the device itself has failed, the first file would be blamed.
        for number, content in zip(numbers, contents, strict=True) if works else ():
            try:
                self.decode([content], mode, device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as alone:
                try:
                    picture_in(io.BytesIO(content.numpy().tobytes()))
                except ValueError as unreadable:
                    return self._undecodable(batch.numbers[number], reason_of(unreadable), by_pillow=False)
                return self._undecodable(batch.numbers[number], reason_of(alone))
        return DataError(
            f"data.decoder = nvjpeg failed on {device}, on no single picture: {reason_of(error)}; set data.decoder to "
            "pillow"
        )

    def _undecodable(self, number: int, reason: str, *, by_pillow: bool = True) -> PictureError:
        name, path = name_in(self.source, number)
        remedy = (
            "Pillow reads it: save it anew, or set data.decoder to pillow"
            if by_pillow
            else "replace or remove it, or set skip_unreadable to true (`proxyless data check` lists all such)"
        )
        return PictureError(f"cannot decode {name}: {reason}; {remedy}", path, reason=reason)


def _decodes_right(decode: Decode, device: torch.device) -> bool:
    """Whether a picture of one colour comes out in it."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), _COLOUR).save(stream, "JPEG")
    (picture,) = decode([torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)], _MODES[3], device)
    means: Sequence[float] = picture.float().mean((1, 2)).tolist()
    return picture.shape == (3, 32, 32) and all(abs(a - b) < _OFF for a, b in zip(means, _COLOUR, strict=True))
