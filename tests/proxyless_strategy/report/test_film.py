"""The film as a GIF, and the architecture as an SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from hardware.errors import ConfigError
from proxyless_strategy.report.film import MOST_SEARCHES, draw_architecture, draw_film
from tests.proxyless_strategy.report.left import large, leave, result, with_film


def frames(path):
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(image.convert("RGB").tobytes())
        return found


def test_a_film_has_a_frame_for_each_epoch_and_ends_in_the_exported_subnet(tmp_path):
    leave(tmp_path / "run", row=result())
    with_film(tmp_path / "run")
    shown = frames(draw_film(tmp_path, tmp_path / "film.gif"))
    # what does not change is one frame that stays
    assert len(shown) == 5
    assert len(set(shown)) == 5


def test_searches_of_a_sweep_are_one_film(tmp_path):
    leave(tmp_path / "a")
    with_film(tmp_path / "a", epochs=2)
    leave(tmp_path / "b", choices=large())
    with_film(tmp_path / "b", epochs=3)
    leave(tmp_path / "old")
    assert len(frames(draw_film(tmp_path, tmp_path / "film.gif"))) == 4


def test_a_search_of_an_earlier_version_has_no_film_but_an_architecture(tmp_path):
    leave(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"keeps no probabilities by epoch.*search again"):
        draw_film(tmp_path, tmp_path / "film.gif")
    assert not (tmp_path / "film.gif").exists()
    ElementTree.parse(draw_architecture(tmp_path, tmp_path / "net.svg"))


@pytest.mark.parametrize(
    "choices", [None, large(), {"a$b": "x$y", "c<d": "skip"}], ids=["blocks", "large", "odd names"]
)
def test_the_architecture_is_drawn_alike_each_time(choices, tmp_path):
    leave(tmp_path / "run", choices=choices)
    with_film(tmp_path / "run")
    first = draw_architecture(tmp_path, tmp_path / "net.svg").read_bytes()
    assert draw_architecture(tmp_path, tmp_path / "net.svg").read_bytes() == first
    ElementTree.fromstring(first)


def test_too_many_searches_for_one_picture_are_refused(tmp_path):
    for number in range(MOST_SEARCHES + 1):
        leave(tmp_path / str(number))
    with pytest.raises(ConfigError, match=r"holds 13 searches.*give the folder of one"):
        draw_architecture(tmp_path, tmp_path / "net.svg")
