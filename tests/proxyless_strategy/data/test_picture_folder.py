"""What of a folder is a class and a picture, and what is said about the rest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.picture_folder import ImageFolder
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import settle, write_images


def config_of(root: Path) -> DataConfig:
    return DataConfig(name="imagefolder", root=root)


def test_it_lists_what_torchvision_lists(tmp_path: Path) -> None:
    write_images(tmp_path, parts=("train",))
    (tmp_path / "train" / "b" / "deeper").mkdir()
    for name in ("0.png", "X.JPG", "10.png", "é.png"):
        shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "train" / "b" / "deeper" / name)
    ours, theirs = (kind(str(tmp_path / "train")) for kind in (ImageFolder, torchvision_datasets.ImageFolder))
    assert (list(ours.samples), list(ours.targets)) == (theirs.samples, theirs.targets)
    assert ours.class_to_idx == theirs.class_to_idx
    assert type(ours).__name__ == type(theirs).__name__, "else runs of earlier versions would not know their data"


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "._a"])
@pytest.mark.parametrize("parts", [("train",), ("train", "val")])
def test_a_hidden_folder_is_no_class(tmp_path: Path, name: str, parts: tuple[str, ...]) -> None:
    write_images(tmp_path)
    for part in parts:
        shutil.copytree(tmp_path / part / "a", tmp_path / part / name)
        shutil.copytree(tmp_path / part / "a", tmp_path / part / "b" / name)
    data = load_data(config_of(tmp_path), input_size=8, seed=0)
    assert data.class_names == ("a", "b", "c")
    assert (len(data.training), len(data.test)) == (18, 18)


def test_a_hidden_file_is_no_picture(tmp_path: Path) -> None:
    (write_images(tmp_path) / "val" / "a" / "._0.png").write_bytes(b"AppleDouble")
    assert len(load_data(config_of(tmp_path), input_size=8, seed=0).test) == 18


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ("abc", "ab", r"\(train alone has c\)"),
        ("ab", "abc", r"\(val alone has c\)"),
        ("abc", "abd", r"\(train alone has c; val alone has d\)"),
        ("ab", "abcdefgh", r"\(val alone has c, d, e, f, g and 1 more\)"),
    ],
)
def test_the_part_that_alone_has_a_class_is_named(tmp_path: Path, train: str, val: str, words: str) -> None:
    write_images(tmp_path, parts=("train",), classes=train, count=1)
    write_images(tmp_path, parts=("val",), classes=val, count=1)
    with pytest.raises(DataError, match=words):
        check_data(config_of(tmp_path))


def test_what_is_left_aside_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path)
    for name in ("notes.txt", "more.txt", "Thumbs.db", "README"):
        (tmp_path / "train" / "a" / name).touch()
    (tmp_path / "test").mkdir()
    check_data(config_of(settle(tmp_path)))
    load_data(config_of(tmp_path), input_size=8, seed=0)
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        f"{tmp_path}: 4 files are no pictures by their names (2 .txt, 1 without a suffix, 1 .db); "
        "test is not read, as val is the test part"
    )


@pytest.mark.parametrize("suffix", ["gif", "jp2", "GIF", "tga"])
def test_pictures_of_further_formats_are_not_dropped(tmp_path: Path, suffix: str) -> None:
    path = write_images(tmp_path) / "train" / "a" / f"x.{suffix}"
    Image.open(tmp_path / "train" / "a" / "0.png").save(path)
    assert len(load_data(config_of(tmp_path), input_size=8, seed=0).training) == 19


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "a" / "again").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "b" / "self").symlink_to(tmp_path / "train" / "b")
    (tmp_path / "train" / "b" / "other").symlink_to(tmp_path / "val" / "b")
    counts = dict.fromkeys("abc", 0)
    for path, label in ImageFolder(str(tmp_path / "train")).samples:
        assert os.path.exists(path)
        counts["abc"[label]] += 1
    # `again` holds the three classes once more, of which its own is a folder above.
    assert counts == {"a": 6 + 12 + 6, "b": 12, "c": 6}


@pytest.mark.parametrize("where", ["train", "train/b", "train/b/deeper", "val/c"])
@pytest.mark.parametrize("change", ["more", "fewer"])
def test_a_list_that_is_no_longer_true_is_made_anew(tmp_path: Path, where: str, change: str) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "b" / "deeper").mkdir()
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "train" / "b" / "deeper" / "x.png")
    before = load_data(config_of(tmp_path), input_size=8, seed=0)
    folder = tmp_path / where
    for folder_of_class in [folder] if where != "train" else [tmp_path / "train" / "new", tmp_path / "val" / "new"]:
        folder_of_class.mkdir(exist_ok=True)
        if change == "more" or where == "train":
            for number in range(2):
                shutil.copy(tmp_path / "train" / "a" / "0.png", folder_of_class / f"new{number}.png")
        else:
            next(folder_of_class.glob("*.png")).unlink()
    after = load_data(config_of(tmp_path), input_size=8, seed=0)
    counts = [len(data.training) + len(data.test) for data in (before, after)]
    assert counts[1] - counts[0] == (4 if where == "train" else 2 if change == "more" else -1)


def test_a_list_that_is_true_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_data(config_of(settle(write_images(tmp_path))))
    monkeypatch.setattr("proxyless_strategy.data.picture_folder.files_below", None)
    assert len(load_data(config_of(tmp_path), input_size=8, seed=0).training) == 18
