"""`proxyless data check`: every bad picture in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from proxyless_strategy.cli.main import main
from tests.proxyless_strategy.data.samples import write_images


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", *map(str, arguments)])
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out.splitlines(), output.err


def test_a_folder_of_good_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (20, 3), 9).save(write_images(tmp_path) / "val" / "a" / "0.png")
    status, lines, errors = check(capsys, tmp_path)
    assert (status, errors) == (0, "")
    assert lines == ["36 pictures can be used (35 RGB, 1 L), of 14 x 3 to 20 x 12 pixels"]


@pytest.mark.parametrize("kind", ["folder", "config", "plain"])
def test_all_that_is_wrong_is_listed(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / "data")
    bad = [root / part / name / f"{number}.png" for part in ("train", "val") for name in "ac" for number in (0, 5)]
    for number, path in enumerate(bad):
        path.write_bytes(bytes(number))
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(root / "val" / "b" / "1.png")
    what, expected = root, {*bad, root / "val" / "b" / "1.png"}
    if kind == "config":
        what = tmp_path / "search.yml"
        what.write_text(yaml.safe_dump({"data": {"name": "imagefolder", "root": "data", "skip_unreadable": True}}))
    elif kind == "plain":
        what = root / "val"
        expected = {path for path in expected if path.is_relative_to(what)}
    status, lines, errors = check(capsys, what)
    assert status == 2
    assert {path for path in root.rglob("*.png") if any(str(path) in line for line in lines)} == expected
    assert sum("transparent pixels; set data.background" in line for line in lines) == 1
    number = 36 if kind != "plain" else 18
    assert errors.startswith(f"{len(expected)} problems with the {number} pictures of {what}: ")
    status, lines, _ = check(capsys, what, "--set", "data.background=white")
    assert not any("background" in line for line in lines)


def test_problems_of_the_folder_itself_do_not_hide_those_of_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, parts=("train",), classes="abc")
    write_images(tmp_path, parts=("val",), classes="ab")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "a" / "notes.txt").touch()
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"")
    status, lines, _ = check(capsys, tmp_path)
    assert status == 2
    for words in ("train alone has c, empty", "empty holds no picture", "val/a/0.png: no format", "(1 .txt)"):
        assert sum(words in line for line in lines) == 1, (words, lines)


def test_remarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in write_images(tmp_path, count=2).glob("*/*/*"):
        Image.fromarray(np.full((4, 6), 65535, np.uint16)).save(path, exif=exif)
    status, lines, _ = check(capsys, tmp_path)
    assert status == 0
    assert lines[0] == "12 pictures can be used (12 I;16), of 6 x 4 to 6 x 4 pixels"
    assert lines[1] == "12 are turned upright, as their EXIF orientation says"
    assert lines[2].startswith("12 of 12 have one value throughout, such as ")


def test_a_data_set_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search.yml").write_text("{data: digits, input_size: 8}")
    status, lines, _ = check(capsys, tmp_path / "search.yml")
    assert (status, lines) == (
        0,
        ["10 classes, 1 channel: 1004 images in weights, 434 images in architecture, 359 images in test"],
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.yml",), "cannot read the search config"),
        ((".", "--set", "colour=3"), "unknown key 'data.colour'"),
        ((".", "--set", "options.channels=2"), "data.options.channels = 2"),
        ((".", "--preset", "smoke"), "is of a search's YAML file"),
        ((".",), "holds no pictures"),
    ],
)
def test_what_cannot_be_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, lines, errors = check(capsys, *arguments)
    assert (status, lines, len(errors.splitlines())) == (2, [], 1)
    assert words in errors
