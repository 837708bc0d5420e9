"""Pictures of every mode that Pillow opens become the pixels that a closed form gives, or are refused."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from hardware.errors import DataError, PictureError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data import reading
from proxyless_strategy.data.datasets import ItemImages
from proxyless_strategy.data.pictures import channels_of_all
from proxyless_strategy.data.reading import GREY, PictureProblem, Reader, channels_of, open_picture
from proxyless_strategy.data.sources import load_data
from tests.proxyless_strategy.data.samples import Listed, batches

WHITE, TEAL = (255, 255, 255), (0, 128, 64)
WIDE = np.array([[0, 257, 32896], [65535, 25700, 1]], np.uint16)
"""16 bits; 257 x n is n in 8 bits."""
NARROW = [[0, 1, 128], [255, 100, 0]]


def grey_of(colour: tuple[int, ...]) -> int:
    """ITU-R 601-2 luma, in whole numbers as Pillow has it."""
    red, green, blue = colour
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def over(colour: tuple[int, ...], alpha: int, beneath: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(round((c * alpha + b * (255 - alpha)) / 255) for c, b in zip(colour, beneath, strict=True))


def palette(alpha: Any = None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    if alpha is not None:
        image.info["transparency"] = alpha
    return image


def filled(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def keyed(mode: str, key: Any, *pixels: Any) -> Image.Image:
    image = filled(mode, *pixels)
    image.info["transparency"] = key
    return image


def floats(*values: float) -> Image.Image:
    return Image.fromarray(np.array([values], np.float32))


HALF = 128
# Mode (and what is special): the picture, its colours, and the settings that it needs.
CASES: dict[str, tuple[Callable[[], Image.Image], list[tuple[int, ...]], dict[str, Any]]] = {
    "1": (lambda: filled("1", 0, 1), [(0, 0, 0), WHITE], {}),
    "L": (lambda: filled("L", 7, 250), [(7,) * 3, (250,) * 3], {}),
    "LA": (
        lambda: filled("LA", (200, 255), (200, HALF), (9, 0)),
        [over((g,) * 3, a, WHITE) for g, a in ((200, 255), (200, HALF), (9, 0))],
        {"background": WHITE},
    ),
    "LA on a colour": (
        lambda: filled("LA", (200, HALF), (9, 0)),
        [over((200,) * 3, HALF, TEAL), TEAL],
        {"background": TEAL},
    ),
    "LA, opaque": (lambda: filled("LA", (200, 255)), [(200,) * 3], {}),
    "La": (
        lambda: filled("La", (100, HALF), (0, 0)),
        [(100 + round(255 * (255 - HALF) / 255),) * 3, WHITE],
        {"background": WHITE},
    ),
    "P": (palette, [(10, 20, 30), (200, 100, 50)], {}),
    "P, a transparent entry": (
        lambda: palette(1),
        [(10, 20, 30), TEAL],
        {"background": TEAL},
    ),
    "P, alpha by entry": (
        lambda: palette(bytes([255, HALF])),
        [(10, 20, 30), over((200, 100, 50), HALF, TEAL)],
        {"background": TEAL},
    ),
    "P, an unused transparent entry": (lambda: palette(2), [(10, 20, 30), (200, 100, 50)], {}),
    "PA": (
        lambda: palette(bytes([255, HALF])).convert("PA"),
        [(10, 20, 30), over((200, 100, 50), HALF, WHITE)],
        {"background": WHITE},
    ),
    "RGB": (lambda: filled("RGB", (10, 20, 30), TEAL), [(10, 20, 30), TEAL], {}),
    "RGB, a transparent colour": (
        lambda: keyed("RGB", (10, 20, 30), (10, 20, 30), (10, 20, 31)),
        [TEAL, (10, 20, 31)],
        {"background": TEAL},
    ),
    "L, a transparent grey": (lambda: keyed("L", 7, 7, 8), [WHITE, (8,) * 3], {"background": WHITE}),
    "1, transparent": (lambda: keyed("1", 0, 0, 1), [(255,) * 3, WHITE], {"background": WHITE}),
    "RGBA": (
        lambda: filled("RGBA", (10, 20, 30, 255), (10, 20, 30, 3), (10, 20, 30, 254)),
        [over((10, 20, 30), a, TEAL) for a in (255, 3, 254)],
        {"background": TEAL},
    ),
    "RGBA, opaque": (lambda: filled("RGBA", (10, 20, 30, 255)), [(10, 20, 30)], {}),
    "RGBa": (
        lambda: filled("RGBa", (50, 60, 70, HALF), (0, 0, 0, 0)),
        [tuple(c + round(b * (255 - HALF) / 255) for c, b in zip((50, 60, 70), TEAL, strict=True)), TEAL],
        {"background": TEAL},
    ),
    "RGBX": (lambda: filled("RGBX", (10, 20, 30, 0)), [(10, 20, 30)], {}),
    "CMYK": (
        lambda: filled("CMYK", (0, 0, 0, 0), (255, 0, 51, 0), (0, 255, 0, 51), (0, 0, 0, 255)),
        [WHITE, (0, 255, 204), (204, 0, 204), (0, 0, 0)],
        {},
    ),
    "YCbCr": (lambda: filled("YCbCr", (200, 128, 128), (0, 128, 128)), [(200,) * 3, (0, 0, 0)], {}),
    "LAB": (lambda: filled("LAB", (255, 128, 128), (0, 128, 128)), [WHITE, (0, 0, 0)], {}),
    "HSV": (
        lambda: filled("HSV", (0, 255, 255), (0, 0, 130), (85, 255, 200)),
        [tuple(int(255 * v) for v in colorsys.hsv_to_rgb(h / 255, s / 255, v / 255)) for h, s, v in
         ((0, 255, 255), (0, 0, 130), (85, 255, 200))],
        {},
    ),
    "I": (
        lambda: Image.fromarray(np.array([[0, 500, 1000]], np.int32)),
        [(0,) * 3, (round(127.5),) * 3, WHITE],
        {"value_range": (0, 1000)},
    ),
    "F": (lambda: floats(-1, 0.2, 1), [(0,) * 3, (153,) * 3, WHITE], {"value_range": (-1, 1)}),
    "F, white first": (lambda: floats(0, 1), [WHITE, (0,) * 3], {"value_range": (1, 0)}),
    "I;16, 12 bits": (
        lambda: Image.fromarray(np.array([[0, 1365, 4095]], np.uint16)),
        [(0,) * 3, (85,) * 3, WHITE],
        {"value_range": (0, 4095)},
    ),
}  # fmt: skip
for name, order in (("I;16", "<"), ("I;16L", "<"), ("I;16B", ">"), ("I;16N", "=")):
    CASES[name] = (
        lambda name=name, order=order: Image.frombytes(name, (6, 1), WIDE.astype(f"{order}u2").tobytes()),
        [(v,) * 3 for row in NARROW for v in row],
        {},
    )
CASES["I;16, a transparent grey"] = (
    lambda: keyed("I;16", 257, 257, 514), [WHITE, (2,) * 3], {"background": WHITE}
)  # fmt: skip


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    values = np.asarray(image).reshape(image.width * image.height, -1)
    return [tuple(int(value) for value in pixel) for pixel in values]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_every_mode_becomes_what_a_closed_form_gives(case: str, channels: int) -> None:
    make, expected, settings = CASES[case]
    if case == "LAB" and not features.check("littlecms2"):
        pytest.skip("Pillow without LittleCMS")
    found = pixels(Reader(channels, **settings)(make()))
    wanted = expected if channels == 3 else [(grey_of(colour),) for colour in expected]
    # LAB goes by a profile, of which 128 is not quite no colour; the others are exact.
    assert np.abs(np.array(found) - np.array(wanted)).max() <= (1 if case == "LAB" else 0), (found, wanted)


def test_every_mode_of_pillow_is_among_them() -> None:
    assert set(Image.MODES) <= {case.partition(",")[0] for case in CASES}


# Nothing in a picture of 16 bits shows that 12 are meant.
UNCLEAR = [case for case, (_, _, settings) in CASES.items() if settings and case != "I;16, 12 bits"]


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_a_setting_must_say_is_refused_without_it(case: str) -> None:
    with pytest.raises(PictureProblem) as raised:
        Reader(3)(CASES[case][0]())
    assert raised.value.remedy is not None
    assert "data." in raised.value.remedy


@pytest.mark.parametrize(
    ("image", "settings", "words"),
    [
        (lambda: floats(0, 2), {"value_range": (0, 1)}, "values from 0 to 2, outside 0 to 1"),
        (lambda: floats(0, float("nan")), {"value_range": (0, 1)}, "values from nan to nan"),
        (lambda: Image.new("I;16", (1, 1), 4096), {"value_range": (0, 4095)}, "outside 0 to 4095"),
        (lambda: keyed("RGB", (1000, 0, 0), (3, 0, 0)), {"background": WHITE}, "transparent colour has 16 bits"),
        (lambda: "text", {}, "it is a str, no PIL image"),
    ],
)
def test_what_would_be_lost_is_refused(image: Callable[[], Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PictureProblem, match=words):
        Reader(1, **settings)(image())


def test_mean_grey_of_16_bits_is_not_white() -> None:
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 65536, (16, 16), dtype=np.uint16)
    narrow = np.asarray(Reader(1)(Image.fromarray(wide)), float)
    assert np.abs(narrow - wide / 257).max() <= 0.5


# ---- files -----------------------------------------------------------------------------------------------------


def written(path: Path, image: Image.Image, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_16_bits_of_a_file(tmp_path: Path, suffix: str) -> None:
    if suffix == "jp2" and not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")
    path = written(tmp_path / f"x.{suffix}", Image.fromarray(WIDE))
    assert pixels(Reader(1)(open_picture(path))) == [(v,) for row in NARROW for v in row]


@pytest.mark.parametrize(("bits", "maximum"), [(12, 4095), (16, 65535)])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff_says_its_own_range_and_which_end_is_white(
    tmp_path: Path, bits: int, maximum: int, photometric: int
) -> None:
    image = Image.new("I;16", (2, 1))
    image.putpixel((1, 0), maximum)
    path = written(tmp_path / "x.tif", image)
    opened = open_picture(path)
    opened.tag_v2._tags_v2[258], opened.tag_v2._tags_v2[262] = (bits,), photometric
    assert pixels(Reader(1)(opened)) == ([(0,), (255,)] if photometric else [(255,), (0,)])


def test_a_graymap_with_another_maximum(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes())
    assert pixels(Reader(1)(open_picture(str(tmp_path / "x.pgm")))) == [(0,), (128,), (255,)]


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, *range(2, a.ndim)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, *range(2, a.ndim)),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("png", "I;16"), ("tif", "RGB"), ("tif", "I;16"), ("webp", "RGB")]
)
def test_pictures_are_turned_upright_once(tmp_path: Path, suffix: str, orientation: int, mode: str) -> None:
    shape = (2, 3, 3) if mode == "RGB" else (2, 3)
    small = np.random.default_rng(0).integers(0, 256, shape)
    whole = small.astype(np.uint8) if mode == "RGB" else (257 * small).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path / f"x.{suffix}", Image.fromarray(whole), exif=exif, **options)
    found = np.asarray(Reader(3 if mode == "RGB" else 1)(open_picture(path)))
    assert np.array_equal(found, TURNS[orientation](small))


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_a_picture_of_several_frames_is_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), (40 * number, 9, 9)) for number in range(3)]
    one = written(tmp_path / f"one.{suffix}", frames[1])
    path = written(tmp_path / f"x.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert open_picture(one).size == (4, 4)
    with pytest.raises(PictureProblem, match="has 3 frames"):
        open_picture(path)
    with pytest.raises(PictureProblem, match="has 3 frames"):
        Reader(3)(Image.open(path))


# ---- channels of all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Image.MODES)
def test_channels_that_a_mode_needs(mode: str) -> None:
    image = Image.new(mode, (1, 1))
    assert channels_of(image) == (1 if mode in GREY else 3)
    assert channels_of(image, (9, 9, 9)) == channels_of(image)
    assert channels_of(image, TEAL) == (3 if mode in ("LA", "La") else channels_of(image))


@pytest.mark.parametrize("coloured", [None, 0, 5, 7])
def test_the_number_of_channels_is_that_of_all_pictures(coloured: int | None) -> None:
    images = [Image.new("RGB" if index == coloured else "L", (4, 4)) for index in range(8)]
    parts = [Listed(images[:4], [0, 1, 0, 1]), Listed(images[4:], [0, 1, 0, 1])]
    assert channels_of_all(*parts) == (1 if coloured is None else 3)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_picture_in_colour_makes_a_users_data_set_coloured(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def function(root: Any) -> list[Listed]:
        grey, red = Image.new("L", (8, 8), 9), Image.new("RGB", (8, 8), (200, 0, 0))
        return [Listed([grey, grey, grey, red if number == part else grey], [0, 1, 0, 1]) for number in range(3)]

    monkeypatch.setattr("proxyless_strategy.data.function_source.import_function", lambda name: function)
    data = load_data(DataConfig(name="a:b"), input_size=8, seed=0)
    assert data.channels == 3
    dataset = (data.weights, data.architecture, data.test)[part]
    expected = (torch.tensor([200.0, 0, 0]) / 255 - torch.tensor(data.mean)) / torch.tensor(data.std)
    assert torch.allclose(dataset[3][0][:, 4, 4], expected)


# ---- in a data set ---------------------------------------------------------------------------------------------


def test_a_colour_that_the_palette_lacks_is_refused() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3])
    image.info["transparency"] = 300
    with pytest.raises(PictureProblem, match="palette index out of range"):
        Reader(3, background=(0, 0, 0))(image)


def test_a_picture_that_takes_gigabytes_to_convert_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_CONVERTED", 99)
    with pytest.raises(PictureProblem, match="has 100 pixels of mode CMYK, more than the 99 that are converted"):
        Reader(3)(Image.new("CMYK", (10, 10)))
    Reader(3)(Image.new("RGB", (10, 10)))


def folder_of(root: Path, image: Image.Image) -> Path:
    for part in ("train", "val"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                image.save(root / part / name / f"{number}.png")
    return root


def test_transparent_pictures_of_a_folder_are_refused_at_once_and_composed_on_the_users_word(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=folder_of(tmp_path, Image.new("RGBA", (8, 8), (10, 20, 30, HALF))))
    with pytest.raises(PictureError, match=r"train.*png has transparent pixels; set data\.background to") as raised:
        load_data(config, input_size=8, seed=0)
    assert "\n" not in str(raised.value)
    options = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    config = config.model_copy(update={"background": "teal", "options": options})
    images, _ = batches(load_data(config, input_size=8, seed=0), "test", workers=1)[0]
    expected = torch.tensor(over((10, 20, 30), HALF, (0, 128, 128))) / 255
    assert torch.equal(images[:, :, 3, 3], expected.expand(len(images), 3))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_their_range_in_every_part(tmp_path: Path, augment: Any, channels: int) -> None:
    root = folder_of(tmp_path, Image.fromarray(np.full((8, 8), 25700, np.uint16)))
    options = {"mean": [0.0] * channels, "std": [1.0] * channels, "channels": channels}
    data = load_data(DataConfig(name="imagefolder", root=root, augment=augment, options=options), input_size=8, seed=0)
    for part, rand_augment in (("architecture", None), ("training", None), ("training", "rand-m0-n1")):
        image = batches(data, part, shuffle=False, rand_augment=rand_augment)[0][0][0]
        assert image.shape[0] == channels
        if rand_augment is None and augment != "imagenet":  # others change brightness
            assert float(image[:, 4, 4].max()) == pytest.approx(100 / 255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"background": "octarine"}, r"data\.background = 'octarine' is no colour; write white"),
        ({"options": {"range": [0]}}, r"data\.options\.range = \[0\]; give the values of black and white"),
        ({"options": {"range": [1, 1]}}, r"data\.options\.range"),
        ({"options": {"range": "wide"}}, r"data\.options\.range"),
        ({"options": {"crop_mode": "middle"}}, r"data\.options\.crop_mode = 'middle'; use one of center"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    root = folder_of(tmp_path, Image.new("RGB", (8, 8)))
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="imagefolder", root=root, **settings), input_size=8, seed=0)


def test_a_picture_of_a_users_own_that_was_not_read_yet() -> None:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, "PNG")
    cut = Image.open(io.BytesIO(content.getvalue()[:1000]))
    with pytest.raises(PictureError, match=r"cannot read image 0: .*truncated"):
        ItemImages(Listed([cut], [0]), [0], Reader(3))[0]
