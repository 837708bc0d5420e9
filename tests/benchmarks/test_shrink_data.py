"""The image folder that shrinkings are tried on: balanced, and the same for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proxyless_strategy.data.idx import read_idx
from tests.proxyless_strategy.data.samples import write_idx

from .shrink_data import chosen, write_folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_classes_are_equally_many_and_follow_from_the_seed() -> None:
    labels = np.repeat(np.arange(10), 30)
    found = chosen(labels, 100, seed=1)
    assert np.bincount(labels[found]).tolist() == [10] * 10
    assert len(set(found.tolist())) == 100
    assert (chosen(labels, 100, seed=1) == found).all()
    assert (chosen(labels, 100, seed=2) != found).any()
    for count in (95, 5, 310):
        with pytest.raises(SystemExit, match=f"--train {count}"):
            chosen(labels, count, seed=1)


def test_pictures_are_written_as_they_are(tmp_path: Path) -> None:
    root = write_idx(tmp_path / "idx", packed=True)
    write_folder(root, tmp_path / "a", train=20, test=20, seed=0)
    write_folder(root, tmp_path / "b", train=20, test=20, seed=0)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert len(names(tmp_path / "a" / "train")) == len(names(tmp_path / "a" / "val")) == 20
    pixels = read_idx(root, "t10k-images-idx3-ubyte")
    (path,) = (tmp_path / "a" / "val").rglob("00007.png")
    with Image.open(path) as picture:
        assert picture.mode == "L"
        assert (np.asarray(picture) == pixels[7]).all()
