"""From a picture of any of Pillow's modes to 8 bits of grey or colour: what would be lost on the way is refused."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError
from torch.utils.data import ConcatDataset, Dataset, Subset

from hardware.errors import DataError, PictureError
from hardware.reading import Unreadable, opened

PIL_MODES = {1: "L", 3: "RGB"}
"""Pillow's mode by number of channels."""
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes without colour; a palette may hold colours."""
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_PREMULTIPLIED = ("La", "RGBa")
_REASON = 200
MOST_CONVERTED = 50_000_000
"""Most pixels of a picture that must be converted: it is in memory several times then, and a file of a kilobyte can
have more."""
"""Characters of a decoder's own words that a message shows."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""

Colour = tuple[int, int, int]


class PictureProblem(ValueError):
    """Why a picture cannot be used, without its name, which the data set around it knows.

    Args:
        reason: Follows the picture's name in a sentence.
        remedy: Closes that sentence, where a setting may say how such a picture is to be read.
    """

    def __init__(self, reason: str, remedy: str | None = None):
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Reader:
    """Make 8 bits of grey or colour of a PIL image, upright as its EXIF orientation says.

    An object with a name and not a closure, as worker processes unpickle it.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        background: What lies beneath transparent pixels; None: a picture that has some is refused.
        value_range: Values of black and white in pictures of more than 8 bits; None: as the file's format says.
    """

    channels: int
    background: Colour | None = None
    value_range: tuple[float, float] | None = None

    def __call__(self, image: Any) -> Image.Image:
        """Convert an image.

        Raises:
            PictureProblem: It cannot be decoded, or something of it would be lost.
        """
        if not isinstance(image, Image.Image):
            raise PictureProblem(f"it is a {type(image).__name__}, no PIL image like the others")
        check_one_frame(image)
        pixels = image.width * image.height
        if pixels > MOST_CONVERTED and image.mode not in ("RGB", "L"):
            raise PictureProblem(
                f"has {pixels} pixels of mode {image.mode}, more than the {MOST_CONVERTED} that are converted",
                "save it smaller, or as RGB",
            )
        try:
            image.load()  # a user's own data set may give files that are opened and not read yet
        except Exception as error:
            raise PictureProblem(reason_of(error)) from error
        turn = _turn(image)
        plain = self._eight_bits(image)
        if turn is not None:
            plain = plain.transpose(turn)
        mode = PIL_MODES[self.channels]
        return plain if plain.mode == mode else plain.convert(mode)

    def settings(self) -> dict[str, Any]:
        """Return what a setting says of the pictures' modes, in plain values."""
        found: dict[str, Any] = {}
        if self.background is not None:
            found["background"] = "#{:02x}{:02x}{:02x}".format(*self.background)
        if self.value_range is not None:
            found["range"] = list(self.value_range)
        return found

    def _eight_bits(self, image: Image.Image) -> Image.Image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            return self._scaled(image)
        if image.mode in ALPHA or image.has_transparency_data:
            return self._composed(image)
        if image.mode in ("RGB", "L"):
            return image
        try:
            return image.convert("L" if image.mode in GREY else "RGB")
        except (ValueError, ImportError) as error:  # Pillow without LittleCMS has no LAB
            raise PictureProblem(f"Pillow cannot convert its mode {image.mode}") from error

    def _scaled(self, image: Image.Image) -> Image.Image:
        """Map the range of values to 0..255, rounding to the nearest; Pillow itself would cut off all above 255."""
        values = np.asarray(image)
        given = self.value_range or _stated_range(image)
        if given is None:
            raise PictureProblem(
                f"has values of Pillow's mode {image.mode}, of which the file does not say which are black and white",
                "set data.options.range to those two, or save it with 8 or 16 bits",
            )
        (black, white), least, greatest = given, float(values.min()), float(values.max())
        if not min(given) <= least <= greatest <= max(given):
            raise PictureProblem(
                f"has values from {least:g} to {greatest:g}, outside {min(given):g} to {max(given):g}",
                "set data.options.range to those of black and white",
            )
        grey = np.rint((values.astype(np.float64) - black) * (255 / (white - black))).astype(np.uint8)
        key = image.info.get("transparency")
        if isinstance(key, int) and (values == key).any():
            return self._over([grey], np.where(values == key, 0, 255))
        return Image.fromarray(grey)

    def _composed(self, image: Image.Image) -> Image.Image:
        """Lay a picture with an alpha channel, or with colours that stand for nothing, on the background."""
        key = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            raise PictureProblem("its transparent colour has 16 bits a channel, of which Pillow keeps 8")
        if image.mode in _PREMULTIPLIED:
            bands = np.asarray(image)
        else:
            try:
                bands = np.asarray(image.convert("LA" if image.mode in GREY else "RGBA"))
            except ValueError as error:  # a pixel of a colour that the palette lacks
                raise PictureProblem(reason_of(error)) from error
        *colours, alpha = np.moveaxis(bands, -1, 0)
        return self._over(list(colours), alpha, premultiplied=image.mode in _PREMULTIPLIED)

    def _over(self, bands: list[np.ndarray], alpha: np.ndarray, *, premultiplied: bool = False) -> Image.Image:
        if alpha.min() < 255:
            if self.background is None:
                raise PictureProblem(
                    "has transparent pixels", "set data.background to what lies beneath, such as white"
                )
            if len(bands) == 1:
                bands = bands * (1 if len(set(self.background)) == 1 else 3)
            opaque = alpha.astype(np.int64)
            # c = a F + (1 - a) B. No multiple of 1/255 lies halfway between two numbers: adding 127 rounds to nearest.
            bands = [
                (np.minimum(255 * band.astype(np.int64), 255 * opaque) if premultiplied else band * opaque)
                + beneath * (255 - opaque)
                for band, beneath in zip(bands, self.background, strict=False)
            ]
            bands = [((band + 127) // 255).astype(np.uint8) for band in bands]
        return Image.fromarray(bands[0] if len(bands) == 1 else np.stack(bands, axis=-1))


def channels_of(image: Image.Image, background: Colour | None = None) -> int:
    """Return the channels that a picture needs: 1 where it is grey and lies on nothing coloured, else 3."""
    coloured = background is not None and len(set(background)) > 1
    return 3 if image.mode not in GREY or (coloured and image.has_transparency_data) else 1


def background_colour(text: str | None) -> Colour | None:
    """Read `data.background`.

    Raises:
        DataError: Pillow knows no such colour.
    """
    if text is None:
        return None
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError as error:
        raise DataError(f"data.background = {text!r} is no colour; write white, black or '#808080'") from error
    return red, green, blue


def check_one_frame(image: Image.Image) -> None:
    """Refuse a picture of which all but the first frame would be dropped.

    Raises:
        PictureProblem: It has several.
    """
    # A camera's MPO holds the photograph first, and then a smaller copy or a depth map of it.
    if image.format == "MPO":
        return
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # its file is closed: whoever closed it has chosen a frame
        return
    if several:
        raise PictureProblem(f"it has {getattr(image, 'n_frames', 'several')} frames, and one alone is a picture")


def open_picture(path: str) -> Image.Image:
    """Open and decode a file, in the mode that it has.

    Raises:
        PictureProblem: It cannot be read, whatever its decoder raises.
    """
    try:
        with opened(path) as file:
            return picture_in(file)
    except Unreadable as error:
        raise PictureProblem(error.reason) from error


def picture_in(stream: BinaryIO) -> Image.Image:
    """Decode the picture that a stream holds from its start on, in the mode that it has.

    Raises:
        PictureProblem: It cannot be read, whatever its decoder raises.
    """
    try:
        with Image.open(stream) as image:
            check_one_frame(image)
            image.load()
            return image
    except PictureProblem:
        raise
    except Exception as error:
        raise PictureProblem(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """Say in a few words of one line what a decoder, or a data set, raised."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that Pillow knows"
    if isinstance(error, Unreadable):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())[:_REASON]
    if isinstance(error, OSError | PictureProblem | SyntaxError | Image.DecompressionBombError) and words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def shown(path: str) -> str:
    """Return a path as a message shows it, on one line and with nothing that a terminal cannot print."""
    return path if path.isprintable() else repr(path)


def picture_error(name: str, error: BaseException, *, path: str | None = None) -> PictureError:
    """Say in one sentence what is wrong with a picture of a data set."""
    reason = reason_of(error)
    if isinstance(error, PictureProblem) and error.remedy is not None:
        return PictureError(f"{name} {reason}; {error.remedy}", path, reason=reason, unclear=True)
    return PictureError(
        f"cannot read {name}: {reason}; replace or remove it, or set skip_unreadable to true "
        "(`proxyless data check` lists all such)",
        path,
        reason=reason,
    )


class NamedItems(Dataset):
    """A data set of pictures that are no files of their own, and that threads may read side by side."""

    def __len__(self) -> int:
        raise NotImplementedError

    def item_name(self, index: int) -> str:
        """Return how a message names an item."""
        raise NotImplementedError


def item_of(dataset: Any, index: int) -> tuple[Any, int]:
    """Return the innermost data set that an item comes from, and its index there."""
    if isinstance(dataset, Subset):
        return item_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        which = bisect.bisect_right(dataset.cumulative_sizes, index)
        return item_of(dataset.datasets[which], index - (dataset.cumulative_sizes[which - 1] if which else 0))
    return dataset, index


def name_in(dataset: Any, index: int) -> tuple[str, str | None]:
    """Return how a message names an item of a data set, and the path of its file where the data set lists files."""
    dataset, index = item_of(dataset, index)
    if isinstance(dataset, NamedItems):
        return dataset.item_name(index), None
    for attribute in ("samples", "_samples", "_image_files", "imgs"):  # torchvision's classes use them all
        files = getattr(dataset, attribute, None)
        if isinstance(files, Sequence) and len(files) == len(dataset):
            entry = files[index]
            path = entry[0] if isinstance(entry, tuple | list) else entry
            if isinstance(path, str | os.PathLike):
                return shown(os.fspath(path)), os.fspath(path)
    return f"image {index}", None


def _stated_range(image: Image.Image) -> tuple[float, float] | None:
    if image.mode == "I":
        # Pillow has 16 bits of these in 32; the PPM decoder scales every maximum to that.
        return (0, 65535) if image.format in ("PNG", "PPM") else None
    if image.mode == "F" or image.format == "FITS":
        return None
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))
    white = 2 ** min(16, bits[0] if isinstance(bits, tuple) else bits) - 1
    # 0: the file's zeros are white. Pillow turns that round for 8 bits, not for 16.
    return (white, 0) if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else (0, white)


def is_turned(image: Image.Image) -> bool:
    """Say whether a picture's EXIF orientation turns it."""
    return _turn(image) is not None


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of damaged EXIF data; the pixels are whole
        return None


def read_range(given: Any) -> tuple[float, float] | None:
    """Read `data.options.range`.

    Raises:
        DataError: It is not two different numbers.
    """
    if given is None:
        return None
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or len(given) != 2
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in given)
        or given[0] == given[1]
    ):
        raise DataError(f"data.options.range = {given!r}; give the values of black and white, such as [0, 4095]")
    return float(given[0]), float(given[1])
