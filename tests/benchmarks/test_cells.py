"""The folder of solar cells: every picture once, by what experts said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import cells

PROBABILITIES = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "package" / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(20):
        name = f"images/cell{number:04d}.png"
        (folder / name).write_bytes(bytes([number]))
        lines.append(f"{name}  {PROBABILITIES[number % 4]}    mono")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_every_picture_is_written_once_under_its_class(data: Path, tmp_path: Path) -> None:
    count = cells.write_cells(data, tmp_path / "out", train=15, seed=0)
    assert sum(count["train", name] for name in cells.CLASSES) == 15
    assert sum(count.values()) == 20
    found = {path.name: path for path in (tmp_path / "out").rglob("*.png")}
    assert len(found) == 20
    for number in range(20):
        path = found[f"cell{number:04d}.png"]
        assert path.read_bytes() == bytes([number])
        assert path.parent.name == ("sound" if number % 4 < 2 else "broken")
    assert not list(tmp_path.glob(".out*")), "nothing is left beside it"


def test_the_parts_follow_from_the_seed(data: Path, tmp_path: Path) -> None:
    def parts(name: str, seed: int) -> set[str]:
        cells.write_cells(data, tmp_path / name, train=15, seed=seed)
        return {path.name for path in (tmp_path / name / "train").rglob("*.png")}

    assert parts("a", 0) == parts("b", 0) != parts("c", 1)


@pytest.mark.parametrize("train", [0, 20])
def test_each_part_needs_pictures(data: Path, tmp_path: Path, train: int) -> None:
    with pytest.raises(SystemExit, match=rf"--train {train}, but there are 20 pictures; leave some for the test"):
        cells.write_cells(data, tmp_path / "out", train=train, seed=0)
    assert not (tmp_path / "out").exists()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="elpv-dataset is not installed"):
        cells.source()
