"""Every picture of a data set read once, before a search: what is wrong, and what there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hardware.errors import DataError

from ..config import DataConfig
from .imagefolder_source import check_imagefolder, left_aside
from .other_kinds import other_kind
from .picture_folder import SUFFIXES, ImageFolder, class_names, files_below, is_picture, suffix_of
from .pictures import picture_options
from .reading import PictureProblem, Reader, background_colour, is_turned, open_picture, picture_error, shown
from .sources import load_data
from .unreadable import Problem, all_problems, threads_for


class Seen(NamedTuple):
    """What reading one file showed.

    Attributes:
        problem: Why it is of no use; None where it is of use.
        mode: Pillow's mode, where it could be decoded.
        size: Width and height, likewise.
        turned: Whether its EXIF orientation turns it.
        flat: Whether it has one value throughout.
    """

    problem: Problem | None
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    flat: bool = False


@dataclass(frozen=True)
class Checked:
    """A data set that was read once.

    Attributes:
        pictures: How many there are.
        problems: What is wrong, a sentence each: with the folder, then with pictures.
        remarks: What is not wrong and yet worth knowing.
    """

    pictures: int
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def check_folder(config: DataConfig) -> Checked:
    """Read all pictures of a folder: of `train` and `val` where it has them, else whatever lies in it.

    Args:
        config: Its root, and how pictures are read.

    Raises:
        DataError: There is no such folder, it holds no pictures, or an option is impossible.
    """
    root = config.root
    options = picture_options(config, channels=3)
    reader = Reader(options.channels, background_colour(config.background), options.range)
    if root is None or not root.is_dir():
        raise DataError(f"{root} is no folder; give the root of a data set, or a search config")
    problems, remarks = [], []
    parts = [root / name for name in ("train", "val") if (root / name).is_dir()]
    if parts:
        try:
            check_imagefolder(config, scan=False)
        except DataError as error:
            problems.append(str(error))
        for folder in (part / name for part in parts for name in class_names(part)):
            if not any(map(is_picture, _below(folder))):
                problems.append(f"{folder} holds no picture; put some there, or remove the folder")
    everything = [path for folder in parts or [root] for path in _below(folder)]
    files = list(filter(is_picture, everything))
    remarks.append(left_aside(root, Counter(suffix_of(path) for path in everything if not is_picture(path))))
    if not files:
        other = other_kind(root)
        if other:
            raise DataError(f"{root} holds {other}; give such a config, or `--set name=...` as there")
        raise DataError(f"{root} holds no pictures ({', '.join(SUFFIXES)}); give the root of a data set")
    seen = list(_seen(files, reader))
    problems += [str(one.problem) for one in seen if one.problem is not None]
    remarks += _remarks(seen, files)
    return Checked(len(files), tuple(problems), tuple(filter(None, remarks)))


def check_any(config: DataConfig, *, input_size: int, seed: int) -> Checked:
    """Read all items of a data set of any kind.

    Raises:
        DataError: It cannot be loaded.
    """
    if config.name == "imagefolder":
        return check_folder(config)
    data = load_data(config.model_copy(update={"skip_unreadable": False}), input_size=input_size, seed=seed)
    verdicts = all_problems(data)
    problems = sorted(str(problem) for problem in verdicts.values() if problem is not None)
    counts = {part: len(getattr(data, part)) for part in ("weights", "architecture", "test")}
    remark = f"{data.num_classes} classes, {data.channels} channel{'s' * (data.channels > 1)}: " + ", ".join(
        f"{count} images in {part}" for part, count in counts.items()
    )
    return Checked(sum(counts.values()), tuple(problems), (remark,))


def _below(folder: Path) -> list[str]:
    try:
        return files_below(str(folder))[0]
    except OSError as error:
        raise DataError(f"cannot list {error.filename}: {error.strerror}; let it be read, or remove it") from error


def _seen(files: Sequence[str], reader: Reader) -> Iterator[Seen]:
    def see(path: str) -> Seen:
        try:
            image = open_picture(path)
            plain = reader(image)
        except PictureProblem as error:
            return Seen(Problem(shown(path), picture_error(shown(path), error, path=path)))
        low = plain.getextrema()
        pairs = low if isinstance(low[0], tuple) else (low,)
        return Seen(None, image.mode, image.size, is_turned(image), all(pair[0] == pair[1] for pair in pairs))

    with ThreadPoolExecutor(threads_for(ImageFolder)) as pool:
        yield from pool.map(see, files)


def _remarks(seen: Sequence[Seen], files: Sequence[str]) -> list[str]:
    good = [one for one in seen if one.problem is None]
    if not good:
        return []
    modes = ", ".join(f"{count} {mode}" for mode, count in Counter(one.mode for one in good).most_common())
    widths, heights = zip(*(one.size for one in good), strict=True)
    remarks = [
        f"{len(good)} pictures can be used ({modes}), of {min(widths)} x {min(heights)} to {max(widths)} x "
        f"{max(heights)} pixels"
    ]
    turned = sum(one.turned for one in good)
    if turned:
        remarks.append(f"{turned} are turned upright, as their EXIF orientation says")
    flat = [path for path, one in zip(files, seen, strict=True) if one.flat]
    if 2 * len(flat) > len(good):
        remarks.append(
            f"{len(flat)} of {len(good)} have one value throughout, such as {shown(flat[0])}; look at how they were "
            "written"
        )
    return remarks
