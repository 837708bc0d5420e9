"""The photos of the way from a folder to an ONNX file."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from tests.benchmarks.photos import write_photos


def test_photos_are_as_many_as_asked_and_the_same_by_seed(tmp_path):
    one, two = (write_photos(tmp_path / name, each=3, seed=1) for name in "ab")
    assert Counter(path.parent.name for path in one) == {"temple": 3, "flower": 3, "portrait": 3}
    assert [a.read_bytes() for a in one] == [b.read_bytes() for b in two]
    assert len({Image.open(path).size for path in one}) > 3
    with pytest.raises(SystemExit, match="is not empty; name a new folder"):
        write_photos(tmp_path / "a")
