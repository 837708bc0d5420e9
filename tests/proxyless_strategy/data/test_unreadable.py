"""Pictures that cannot be read: one sentence with the path, whatever is wrong; left out, listed, or replaced."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import ConcatDataset, Subset

from hardware import errors
from hardware.errors import ConfigError, DataError, PictureError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.carried import carried
from proxyless_strategy.data.digest import data_digest, file_mark
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.reading import name_in
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.data.unreadable import as_begun, noting_unreadable
from proxyless_strategy.layout import UNREADABLE_FILE
from tests.proxyless_strategy.data.samples import Listed, batches, write_images


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(side: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)


def replaced_by(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def in_the_place_of(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


PIXELS = b"IDAT", zlib.compress(b"\0\1")
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no bytes": replaced_by(b""),
    "text": replaced_by(b"no image"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:60] + b"\xff" * 40 + path.read_bytes()[100:]),
    "a bomb": replaced_by(png(header(60_000), PIXELS)),
    "a text chunk": replaced_by(
        png(header(1), (b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))), PIXELS, (b"IEND", b""))
    ),
    "no header": replaced_by(png(PIXELS)),
    "no size": replaced_by(png(header(0), PIXELS)),
    "a graymap of no grey": replaced_by(b"P5 2 2 0\n\0\0\0\0"),
    "a graymap of words": replaced_by(b"P2 two 2 255\n1 2 3 4"),
    "a graymap that is short": replaced_by(b"P5 9 9 255\n\0"),
    "a plain graymap above its maximum": replaced_by(b"P2 2 1 255\n1 999"),
    "no TIFF": replaced_by(b"II*\0\x08\0\0\0\xff\xff"),
    "frames": lambda path: Image.new("L", (9, 9)).save(
        path, "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 9)]
    ),
    "a folder": in_the_place_of(lambda path: path.mkdir()),
    "a dangling link": in_the_place_of(lambda path: path.symlink_to("nowhere")),
    "a pipe": in_the_place_of(os.mkfifo),
}


def config_of(root: Path, **settings: Any) -> DataConfig:
    return DataConfig(name="imagefolder", root=root, **settings)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_is_one_sentence_with_the_path(tmp_path: Path, damage: str) -> None:
    bad = write_images(tmp_path, count=2) / "val" / "b" / "1.png"
    DAMAGES[damage](bad)
    data = load_data(config_of(tmp_path), input_size=8, seed=0)
    with pytest.raises(PictureError) as raised:
        batches(data, "test", shuffle=False)
    sentence = str(raised.value)
    assert sentence.startswith(f"cannot read {bad}: ")
    assert "; replace or remove it" in sentence
    assert len(sentence.splitlines()) == 1
    assert not sentence.endswith(".")
    assert raised.value.path == str(bad)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["a: b.png", "a\n\udcffb PictureError: .png"])
def test_the_sentence_is_the_same_from_any_process(tmp_path: Path, workers: int, name: str) -> None:
    bad = write_images(tmp_path, count=2) / "val" / "b" / name
    bad.write_bytes(b"no image")
    data = load_data(config_of(tmp_path), input_size=8, seed=0)
    with pytest.raises(PictureError) as raised:
        batches(data, "test", shuffle=False, workers=workers)
    shown = str(bad) if str(bad).isprintable() else repr(str(bad))
    assert str(raised.value).startswith(f"cannot read {shown}: no format that Pillow knows; ")
    assert (raised.value.path, raised.value.reason) == (str(bad), "no format that Pillow knows")


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_typed_error_survives_the_way_from_a_worker(kind: type[Exception]) -> None:
    error = kind("a: b\nc; Error: d")
    try:
        raise carried(error) from error
    except Exception:
        parcel = ExceptionWrapper(where="in DataLoader worker process 0")  # as torch's loop of a worker makes it
    with pytest.raises(kind) as raised:
        parcel.reraise()
    assert type(raised.value) is kind
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError(), RuntimeError("two\nlines"), ZeroDivisionError("0")])
def test_a_users_data_set_may_raise_anything(error: Exception) -> None:
    class Own(Listed):
        def __getitem__(self, index: int) -> Any:
            if index == 2:
                raise error
            return self.items[index]

    own = Own([torch.zeros(1, 8, 8)] * 4, [0, 1] * 2)
    data = ImageData(2, 1, 8, (0.5,), (0.5,), "bicubic", *[own] * 4)
    with pytest.raises(PictureError, match=rf"^cannot read image 2: {type(error).__name__}"):
        batches(data, batch_size=4)


def test_items_of_data_sets_within_data_sets_are_named() -> None:
    class Files(Listed):
        def __init__(self, name: str):
            super().__init__([0] * 3, [0] * 3)
            self.samples = [(f"{name}{number}", 0) for number in range(3)]

    whole = ConcatDataset([Subset(Files("a"), [2, 1]), Files("b"), Listed([0] * 2, [0] * 2)])
    assert [name_in(whole, index) for index in range(7)] == [
        *((name, name) for name in ("a2", "a1", "b0", "b1", "b2")),
        ("image 0", None),
        ("image 1", None),
    ]


# ---- left out --------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path)
    whole = load_data(config_of(tmp_path), input_size=8, seed=0)
    bad = {str(tmp_path / part / "a" / f"{number}.png") for part in ("train", "val") for number in (0, 3)}
    for path, damage in zip(sorted(bad), ("text", "no bytes", "a pipe", "a folder"), strict=True):
        DAMAGES[damage](Path(path))
    data = load_data(config_of(tmp_path, skip_unreadable=True), input_size=8, seed=0)
    assert {line.rpartition(": ")[0] for line in data.left_out} == bad
    assert data.record() == {"left_out": list(data.left_out)}
    told = capsys.readouterr().err
    assert "4 of 36 pictures are left out" in told
    assert all(line in told for line in data.left_out)
    for part in PARTS:
        before, after = (
            {loaded.source.samples[index][0] for index in loaded.indices}
            for loaded in (getattr(whole, part), getattr(data, part))
        )
        assert after == before - bad, "no other picture moves to another part"
        assert sum(len(labels) for _, labels in batches(data, part)) == len(after)
    assert data_digest(data) != data_digest(whole)


def test_nothing_is_left_out_where_all_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path)
    first, second = (
        load_data(config_of(tmp_path, skip_unreadable=skip), input_size=8, seed=0) for skip in (False, True)
    )
    assert data_digest(first) == data_digest(second)
    assert (second.record(), capsys.readouterr().err) == ({}, "")


def test_a_class_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    for path in (write_images(tmp_path) / "val" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no picture of class 'b' in the part 'test' can be read"):
        load_data(config_of(tmp_path, skip_unreadable=True), input_size=8, seed=0)


def test_a_picture_that_needs_a_setting_is_not_left_out(tmp_path: Path) -> None:
    path = write_images(tmp_path, count=64) / "train" / "b" / "7.png"
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(path)
    with pytest.raises(PictureError, match=r"7.png has transparent pixels; set data.background"):
        load_data(config_of(tmp_path, skip_unreadable=True), input_size=8, seed=0)


@pytest.mark.parametrize("bad", [0, 2])
def test_items_of_a_users_data_set_are_left_out_too(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    class Own(Listed):
        targets = (0, 1, 0, 1, 0)

        def __getitem__(self, index: int) -> Any:
            if index == bad:
                raise KeyError("no such picture")
            return self.items[index]

    def function(root: Any) -> list[Own]:
        return [Own([Image.new("RGB", (8, 8), (9 * number, 0, 1))] * 5, [0, 1, 0, 1, 0]) for number in range(3)]

    monkeypatch.setattr("proxyless_strategy.data.function_source.import_function", lambda name: function)
    data = load_data(DataConfig(name="a:b", skip_unreadable=True), input_size=8, seed=0)
    assert [len(getattr(data, part)) for part in PARTS] == [4, 4, 8, 4]
    assert data.left_out == (f"image {bad}: KeyError: 'no such picture'",) * 3


# ---- replaced --------------------------------------------------------------------------------------------------


def digits() -> ImageData:
    return load_data(DataConfig(), input_size=8, seed=0)


def test_a_picture_that_was_replaced_is_no_other_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    bad, other = root / "val" / "a" / "0.png", root / "val" / "a" / "1.png"
    bad.write_bytes(b"no image")
    load = lambda: as_begun(load_data(config_of(root), input_size=8, seed=0), out)  # noqa: E731
    data = load()
    begun = data_digest(data)
    with pytest.raises(PictureError), noting_unreadable(out, data):
        batches(data, "test")
    assert data_digest(load()) == begun
    assert (load().record(), capsys.readouterr().err) == ({}, ""), "nothing was replaced yet"
    shutil.copy(other, bad)
    data = load()
    assert data_digest(data) == begun
    assert data.record() == {"replaced": [str(bad)]}
    assert f"goes on with {bad}, replaced since it could not be read" in capsys.readouterr().err
    assert len(batches(data, "test", batch_size=18)) == 1
    other.write_bytes(other.read_bytes() + b"\0")
    assert data_digest(load()) != begun, "another picture was changed, which nobody asked for"


def test_the_first_mark_of_a_picture_stays(tmp_path: Path) -> None:
    bad = tmp_path / "x.png"
    bad.write_bytes(bytes(3))
    first = file_mark(str(bad))
    for size in (3, 5):
        bad.write_bytes(bytes(size))
        with pytest.raises(PictureError), noting_unreadable(tmp_path, digits()):
            raise PictureError("cannot read it", str(bad))
    assert json.loads((tmp_path / UNREADABLE_FILE).read_text()) == {str(bad): first}


@pytest.mark.parametrize("cut", [0, 9])
def test_a_picture_that_was_damaged_since_the_digest_is_noted_as_it_was_then(tmp_path: Path, cut: int) -> None:
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    bad = root / "val" / "b" / "4.png"
    data = load_data(config_of(root), input_size=8, seed=0)
    begun, mark = data_digest(data), file_mark(str(bad))
    bad.write_bytes(bytes(bad.stat().st_size - cut))
    with pytest.raises(PictureError), noting_unreadable(out, data):
        batches(data, "test")
    assert json.loads((out / UNREADABLE_FILE).read_text()) == {str(bad): mark}
    shutil.copy(root / "val" / "b" / "3.png", bad)
    again = load_data(config_of(root), input_size=8, seed=0)
    assert data_digest(again) != begun
    assert data_digest(as_begun(again, out)) == begun


@pytest.mark.parametrize("error", [PictureError("no file"), PictureError("see data.background", "/x", unclear=True)])
def test_what_no_replacing_mends_is_not_noted(tmp_path: Path, error: PictureError) -> None:
    with pytest.raises(PictureError), noting_unreadable(tmp_path, digits()):
        raise error
    assert not (tmp_path / UNREADABLE_FILE).exists()


@pytest.mark.parametrize("content", ["{", "[]", "\udcff", '{"x.png": 3}'])
def test_a_damaged_note_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / UNREADABLE_FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    data = load_data(config_of(write_images(tmp_path / "data")), input_size=8, seed=0)
    with pytest.raises(ConfigError, match=r"cannot read .*unreadable.json \(.*\); remove it"):
        as_begun(data, tmp_path)


# ---- pictures that no one could want -----------------------------------------------------------------------------


@pytest.mark.parametrize(("flat", "told"), [(12, False), (20, True), (36, True)])
@pytest.mark.parametrize("skip", [False, True])
def test_pictures_of_one_value_are_warned_about_where_most_are(
    tmp_path: Path, flat: int, told: bool, skip: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(write_images(tmp_path).glob("*/*/*"))
    order = np.random.default_rng(1).permutation(len(paths))
    for index in order[:flat]:
        Image.new("RGB", (8, 8), (255, 255, 255)).save(paths[index])
    load_data(config_of(tmp_path, skip_unreadable=skip), input_size=8, seed=0)
    assert ("have one value throughout, such as" in capsys.readouterr().err) == told


def test_grey_digits_that_lie_in_memory_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_data(DataConfig(), input_size=8, seed=0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(
        "sklearn.datasets.load_digits",
        lambda: type("Bunch", (), {"images": np.zeros((40, 8, 8)), "target": np.arange(40) % 2, "target_names": "ab"}),
    )
    load_data(DataConfig(options={"mean": [0], "std": [1]}), input_size=8, seed=0)
    assert "have one value throughout" in capsys.readouterr().err


def test_colour_that_is_read_as_grey_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path)
    for channels in (3, 1):
        load_data(config_of(tmp_path, options={"channels": channels}), input_size=8, seed=0)
        assert ("are read as grey" in capsys.readouterr().err) == (channels == 1)
