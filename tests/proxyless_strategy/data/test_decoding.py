"""Batches that the training process decodes, against those of Pillow's workers: same draws, same pictures, same labels.

The engine takes a device, so everything but that device is tested on the CPU, whose decoder is libjpeg as Pillow's is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from hardware.errors import ConfigError, DataError, PictureError
from proxyless_strategy.config import DataConfig, RetrainSettings
from proxyless_strategy.data import decoding
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.encoded import EncodedImages
from proxyless_strategy.data.images import AUGMENTED, PARTS, ImageData
from proxyless_strategy.data.sources import check_data, load_data
from proxyless_strategy.retraining.setup import check_training
from proxyless_strategy.strategy.loaders import SeededLoader, lone_image_batch

from .samples import batches, equal
from .test_jpeg_header import OTHER, PLAIN

LEVEL = 1 / 255
SIZE = 32


def photographs(root: Path, *, count: int = 6) -> Path:
    """Write parts of two photographs, of many sizes, as JPEG files of several kinds."""
    drawn = np.random.default_rng(0)
    kinds: Any = ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 60, "subsampling": 1})
    for part in ("train", "val"):
        for name in ("china", "flower"):
            (root / part / name).mkdir(parents=True)
            pixels = load_sample_image(f"{name}.jpg")
            for number in range(count):
                height, width = drawn.integers(40, 300, 2)
                top, left = drawn.integers(0, 427 - height), drawn.integers(0, 640 - width)
                image = Image.fromarray(pixels[top : top + height, left : left + width])
                if number == 4:
                    image = image.convert("L")
                image.save(root / part / name / f"{number}.jpg", **kinds[number % len(kinds)])
    return root


def load(root: Path, **settings: Any) -> ImageData:
    config = DataConfig.model_validate({"name": "imagefolder", "root": root, **settings})
    return load_data(config, input_size=SIZE, seed=0)


def both(root: Path, **settings: Any) -> tuple[ImageData, ImageData]:
    """The data by Pillow, and decoded in batches on the CPU."""
    return load(root, **settings), replace(load(root, decoder="nvjpeg", **settings), decodes_on="cpu")


def images_of(data: ImageData, **arguments: Any) -> Tensor:
    return torch.cat([images for images, _ in batches(data, **arguments)])


def undone(images: Tensor, data: ImageData) -> Tensor:
    """Take the normalisation back: pixels in 0..1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return images * std + mean


@pytest.mark.parametrize(
    ("augment", "options"),
    [
        ("none", {"crop_pct": 0.875}),
        ("crop", {"interpolation": "bilinear"}),
        ("crop_flip", {"crop_mode": "squash", "crop_pct": 0.9}),
        ("crop_flip", {"channels": 1}),
        ("imagenet", {}),
        ("imagenet", {"channels": 1, "interpolation": "bilinear", "crop_mode": "border"}),
    ],
)
def test_batches_are_pillows(tmp_path: Path, augment: str, options: dict[str, Any]) -> None:
    pillow, ours = both(photographs(tmp_path), augment=augment, options=options)
    for part in AUGMENTED:
        for epoch in (0, 3):
            arguments: Any = {"which": part, "batch_size": 5, "epoch": epoch}
            expected, found = batches(pillow, **arguments), batches(ours, **arguments)
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(expected, found, strict=True))
            away = torch.cat(
                [
                    (undone(a - b, replace(pillow, mean=(0.0,) * pillow.channels))).abs()
                    for (a, _), (b, _) in zip(expected, found, strict=True)
                ]
            )
            # Colours are rounded four times more, and a hue by one of 256 is up to 6 levels.
            assert float(away.max()) <= (10 if augment == "imagenet" else 1.01) * LEVEL
            assert float(away.mean()) <= (0.3 if augment == "imagenet" else 0.1) * LEVEL
    assert float(undone(images_of(ours), ours).min()) >= -1e-6


def test_parts_without_augmentation_are_pillows_bit_for_bit(tmp_path: Path) -> None:
    pillow, ours = both(photographs(tmp_path), augment="imagenet")
    for part in PARTS:
        same = equal(batches(pillow, part, batch_size=4), batches(ours, part, batch_size=4))
        assert same == (part not in AUGMENTED), part
    assert data_digest(pillow) == data_digest(ours), "the images are the same, whoever decodes them"


def test_every_kind_of_file_is_read_as_by_pillow(tmp_path: Path) -> None:
    """Files for the decoder and for Pillow in one batch, each at its place; the latter as they are today."""
    readable, plain = [], []
    files = {**{name: content for name, (content, _) in PLAIN.items()}, **OTHER}
    for number, (name, content) in enumerate(files.items()):
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError):
            continue
        readable.append(name)
        plain.append(name in PLAIN)
        for part, label in (("train", "ab"[number % 2]), ("val", "ab"[number % 2])):
            (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / label / f"{number:02d}.jpg").write_bytes(content)
    sixteen = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "train" / "a" / "sixteen.png")
    assert {"CMYK", "Adobe's RGB", "EXIF orientation 6", "XMP orientation", "GIF", "MPO", "PNG"} <= set(readable)
    pillow, ours = both(tmp_path, augment="imagenet")
    expected, found = images_of(pillow, which="training"), images_of(ours, which="training")
    dataset = ours.loader("training", batch_size=8).dataset
    assert isinstance(dataset, EncodedImages)
    names = [Path(path).stem for path, _ in ours.training.source.samples]  # type: ignore[attr-defined]
    order = [
        index for key in ours.loader("training", batch_size=32, shuffle=True, seed=3).sampler for index in key.indices
    ]
    decoded = [dataset._plain(index) is not None for index in order]
    assert sum(decoded) == sum(plain) == len(PLAIN)
    for place, index in enumerate(order):
        if decoded[place]:
            away = (expected[place] - found[place]).abs()
            assert float(away.mean()) <= 0.02, names[index]
        else:
            assert torch.equal(expected[place], found[place]), names[index]


@pytest.mark.parametrize("augment", ["crop_flip", "imagenet"])
def test_the_rest_of_an_epoch_is_the_same_bit_for_bit(tmp_path: Path, augment: str) -> None:
    _, ours = both(photographs(tmp_path), augment=augment)

    def reading(*, rank: int = 0, replicas: int = 1) -> SeededLoader:
        loader = ours.loader("training", batch_size=2, shuffle=True, drop_last=True)
        return SeededLoader(loader, seed=3, stream=0, process=lambda: (rank, replicas))

    whole = reading()
    expected = [list(whole), list(whole)]
    begun = reading()
    for _ in zip(range(4), begun, strict=False):
        torch.rand(3)  # what the training draws changes nothing
    again = reading()
    again.load_state_dict(begun.state_dict())
    assert equal(expected[0][4:], list(again))
    assert equal(expected[1], list(again))
    assert not equal(expected[0], expected[1])
    shares = [list(reading(rank=rank, replicas=2)) for rank in (0, 1)]
    assert equal(expected[0], [batch for pair in zip(*shares, strict=True) for batch in pair])
    assert equal(expected[0], list(reading().twin(stream=0)))


def test_workers_and_the_number_of_them_change_nothing(tmp_path: Path) -> None:
    photographs(tmp_path)
    (tmp_path / "train" / "china" / "0.jpg").write_bytes(OTHER["CMYK"])
    _, ours = both(tmp_path, augment="imagenet")
    before = torch.get_rng_state()
    expected = batches(ours, batch_size=3)
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers were drawn from"
    assert equal(expected, batches(ours, batch_size=3, workers=2))


def test_a_last_batch_of_one_image_is_tried_as_images(tmp_path: Path) -> None:
    _, ours = both(photographs(tmp_path), augment="crop_flip")
    images, labels = lone_image_batch(ours.loader("training", batch_size=11))
    assert (tuple(images.shape), images.dtype, len(labels)) == ((1, 3, SIZE, SIZE), torch.float32, 1)


def test_cutout_erases_what_it_erases_by_pillow(tmp_path: Path) -> None:
    pillow, ours = both(photographs(tmp_path), augment="crop_flip")
    expected, found = (images_of(data, which="training", cutout=9) for data in (pillow, ours))
    assert torch.equal(expected == 0, found == 0)
    assert int((found == 0).sum()) == len(found) * 3 * 81


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    photographs(tmp_path)
    damaged = tmp_path / "train" / "flower" / "1.jpg"
    content = damaged.read_bytes()
    tables = content.find(b"\xff\xc4")
    damaged.write_bytes(content[: tables + 5] + b"\xff" * 16 + content[tables + 21 :])
    _, ours = both(tmp_path, augment="crop_flip")
    with pytest.raises(PictureError, match=r"cannot decode .*1.jpg: .*; replace or remove it") as raised:
        batches(ours, "training", batch_size=6)
    assert (raised.value.path, raised.value.unclear) == (str(damaged), False)
    left = replace(load(tmp_path, decoder="nvjpeg", augment="crop_flip", skip_unreadable=True), decodes_on="cpu")
    assert len(left.left_out) == 1
    assert len(images_of(left, which="training")) == 11


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0", b"no picture", None])
def test_a_file_that_pillow_cannot_read_is_named_as_today(tmp_path: Path, content: bytes | None) -> None:
    damaged = photographs(tmp_path) / "train" / "flower" / "1.jpg"
    content = damaged.read_bytes()[:-50] if content is None else content
    damaged.write_bytes(content)
    messages = []
    for data in both(tmp_path, augment="crop_flip"):
        with pytest.raises(PictureError) as raised:
            batches(data, "training", batch_size=6)
        messages.append((str(raised.value), raised.value.path))
    assert messages[0] == messages[1]


def failing(when: Callable[[list[Tensor]], bool], reason: str) -> Any:
    """A decoder that fails as nvJPEG does, on some files."""

    def decode(contents: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
        if when(contents):
            raise RuntimeError(f"Error while decoding JPEG images: {reason}")
        return decoding.decoded(contents, mode, device)

    return decode


def test_a_picture_that_the_decoder_alone_cannot_read_has_another_remedy(tmp_path: Path) -> None:
    _, ours = both(photographs(tmp_path), augment="crop_flip")
    path = tmp_path / "train" / "china" / "2.jpg"
    size = path.stat().st_size
    loader = ours.loader("training", batch_size=12)
    batch = loader.dataset[next(iter(loader.sampler))]
    finish = replace(loader.finish, decode=failing(lambda given: size in map(len, given), "8"))  # type: ignore[attr-defined]
    with pytest.raises(PictureError, match=r"2.jpg: .*8; Pillow reads it: .*data.decoder to pillow") as raised:
        finish(batch)
    assert raised.value.path == str(path)


@pytest.mark.parametrize("always", [True, False])
def test_where_the_device_fails_no_picture_is_blamed(tmp_path: Path, always: bool) -> None:
    _, ours = both(photographs(tmp_path), augment="crop_flip")
    loader = ours.loader("training", batch_size=12)
    batch = loader.dataset[next(iter(loader.sampler))]
    finish = replace(loader.finish, decode=failing(lambda given: always or len(given) > 1, "a reason"))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"no single picture: .*a reason") as raised:
        finish(batch)
    assert not isinstance(raised.value, PictureError)


def test_a_picture_of_another_size_than_its_header_says_is_named(tmp_path: Path) -> None:
    _, ours = both(photographs(tmp_path), augment="crop_flip")
    loader = ours.loader("training", batch_size=12)
    batch = loader.dataset[next(iter(loader.sampler))]

    def turned(contents: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
        return [picture.transpose(1, 2) for picture in decoding.decoded(contents, mode, device)]

    with pytest.raises(PictureError, match=r"as its header says"):
        replace(loader.finish, decode=turned)(batch)  # type: ignore[attr-defined]


def test_out_of_memory_stays_what_it_is(tmp_path: Path) -> None:
    _, ours = both(photographs(tmp_path), augment="crop_flip")
    loader = ours.loader("training", batch_size=12)

    def full(contents: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        replace(loader.finish, decode=full)(loader.dataset[next(iter(loader.sampler))])  # type: ignore[attr-defined]


def test_other_data_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("digits", "webdataset", "torchvision:CIFAR10", "my_data:stripes", "hfds"):
        config = DataConfig.model_validate({"name": name, "root": tmp_path, "decoder": "nvjpeg"})
        with pytest.raises(DataError, match=rf"data.decoder = nvjpeg .*data.name = '{name}'"):
            check_data(config)
        with pytest.raises(DataError, match=r"data.decoder = nvjpeg"):
            load_data(config, input_size=SIZE, seed=0)
    bordered: Any = {"decoder": "nvjpeg", "options": {"crop_mode": "border"}}
    with pytest.raises(DataError, match=r"crop_mode = border"):
        load(photographs(tmp_path), **bordered)
    with pytest.raises(ValueError, match=r"decoder"):
        DataConfig.model_validate({"name": "imagefolder", "decoder": "dali"})


def test_random_augmentation_is_refused_by_name(tmp_path: Path) -> None:
    _, ours = both(photographs(tmp_path), augment="imagenet")
    with pytest.raises(DataError, match=r"there is no RandAugment; set data\.decoder to pillow"):
        ours.loader("training", batch_size=2, rand_augment="rand-m9-mstd0.5")
    with pytest.raises(DataError, match=r"RandAugment"):
        check_training(ours, RetrainSettings(batch_size=4, rand_augment="rand-m9-mstd0.5"), seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_loading_works_and_training_is_refused(tmp_path: Path) -> None:
    data = load(photographs(tmp_path), decoder="nvjpeg")
    assert len(batches(data, "test")) == 1
    with pytest.raises(ConfigError, match=r"NVIDIA GPU, and torch finds none here; set data.decoder to pillow"):
        batches(data, "weights")
    with pytest.raises(ConfigError, match=r"here none does"):
        decoding.try_decoder(DataConfig(decoder="nvjpeg"), trains_on_gpu=False)
    decoding.try_decoder(DataConfig(), trains_on_gpu=False)


def test_a_decoder_of_other_colours_is_known() -> None:
    device = torch.device("cpu")
    assert decoding._decodes_right(decoding.decoded, device)

    def swapped(*arguments: Any) -> list[Tensor]:
        return [picture.flip(0) for picture in decoding.decoded(*arguments)]

    assert not decoding._decodes_right(swapped, device)
