"""Splits, transforms and loaders of `proxyless_strategy.data`."""

from __future__ import annotations

import gzip
import pickle
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.utils.data import ConcatDataset, TensorDataset

from hardware.errors import ConfigError, DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.batches import EpochBatches
from proxyless_strategy.data.datasets import ItemImages, TensorImages
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.sources import check_data, load_data
from proxyless_strategy.data.split import stratified_split
from proxyless_strategy.seeds import seeded


def write_images(
    root: Path, *, parts: tuple[str, ...] = ("train", "val"), classes: str = "abc", count: int = 6
) -> Path:
    generator = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def write_idx(folder: Path, *, packed: bool, train: int = 40, test: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for start, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in ((f"{start}-images-idx3-ubyte", images), (f"{start}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            content = header + values.tobytes()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [index % 10 for index in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))
    return root


def digits(**settings: Any) -> ImageData:
    return load_data(DataConfig(name="digits", **settings), input_size=16, seed=0)


def batches(data: ImageData, which: Any = "weights", **arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(data.loader(which, **{"batch_size": 32, "shuffle": True, "seed": 3, **arguments}))


def equal(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


class Listed(torch.utils.data.Dataset):
    """(image, label) pairs, as a user's own data set might give them."""

    def __init__(self, images: list, labels: list[int]):
        self.items = list(zip(images, labels, strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module


# --- the split -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "expected"), [(0.3, [3, 6]), (0.01, [1, 1]), (0.99, [9, 19]), (0.5, [5, 10])])
def test_split_takes_the_share_of_each_class(fraction: float, expected: list[int]) -> None:
    labels = np.array([0] * 10 + [1] * 20)
    kept, taken = stratified_split(labels, fraction=fraction, seed=(0,))
    assert np.bincount(labels[taken]).tolist() == expected
    assert sorted([*kept, *taken]) == list(range(30))
    assert not set(kept) & set(taken)


def test_split_is_a_function_of_the_seed() -> None:
    labels = np.arange(100) % 4
    first, again, other = (stratified_split(labels, fraction=0.5, seed=(seed, 0))[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_split_with_an_exact_number_of_each_class() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    _, taken = stratified_split(labels, fraction=0.9, per_class=4, seed=(0,))
    assert np.bincount(labels[taken]).tolist() == [4, 4]


@pytest.mark.parametrize(("labels", "per_class"), [([0, 0, 1], None), ([0, 0, 1, 1, 1], 2)])
def test_split_refuses_a_class_that_would_be_emptied(labels: list[int], per_class: int | None) -> None:
    with pytest.raises(DataError, match=r"class 'few|class 'one") as raised:
        stratified_split(np.array(labels), fraction=0.3, per_class=per_class, seed=(0,), class_names=("few", "one"))
    assert "too few" in str(raised.value)


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits_have_disjoint_stratified_parts() -> None:
    data = digits()
    assert isinstance(data.weights, TensorImages)
    assert isinstance(data.architecture, TensorImages)
    assert isinstance(data.training, TensorImages)
    assert isinstance(data.test, TensorImages)
    weights, architecture = set(data.weights.indices.tolist()), set(data.architecture.indices.tolist())
    assert not weights & architecture
    assert weights | architecture == set(data.training.indices.tolist())
    assert len(data.training) + len(data.test) == 1797
    assert data.test.images.data_ptr() != data.training.images.data_ptr()
    for part, share in ((data.test, 0.2), (data.architecture, 0.8 * 0.3)):
        counts = np.bincount(part.targets, minlength=10)
        assert np.all(np.abs(counts - share * 179.7) < 4)


def test_digits_test_images_are_no_training_images() -> None:
    data = load_data(DataConfig(name="digits"), input_size=8, seed=0)
    seen = {image.numpy().tobytes() for image in data.training.images}
    assert not [image for image in data.test.images if image.numpy().tobytes() in seen]


def test_digits_split_follows_the_seed() -> None:
    first, again, other = (load_data(DataConfig(), input_size=8, seed=seed) for seed in (0, 0, 1))
    assert first.weights.targets == again.weights.targets
    assert torch.equal(first.test.images, again.test.images)
    assert first.test.images.shape != other.test.images.shape or not torch.equal(
        first.test.images,
        other.test.images,
    )


def test_digits_are_normalised_with_the_training_images_own_moments() -> None:
    data = digits()
    images = torch.cat([images for images, _ in batches(data, "training", shuffle=False)])
    assert images.shape[1:] == (1, 16, 16)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_architecture_per_class_overrides_the_fraction() -> None:
    data = digits(architecture_per_class=5)
    assert np.bincount(data.architecture.targets).tolist() == [5] * 10


def test_digits_as_colour_images() -> None:
    data = digits(options={"channels": 3})
    images, _ = batches(data)[0]
    assert images.shape[1] == len(data.mean) == 3
    assert torch.equal(images[:, 0], images[:, 2])


def test_single_image_equals_its_place_in_a_batch() -> None:
    data = digits()
    image, label = data.test[5]
    images, labels = batches(data, "test", shuffle=False)[0]
    assert torch.equal(image, images[5])
    assert label == labels[5]


# --- loader order --------------------------------------------------------------------------------------------------


def sampler(**arguments: Any) -> EpochBatches:
    return EpochBatches(**{"length": 10, "batch_size": 3, "shuffle": True, "drop_last": False, "seed": 0, **arguments})


def test_every_image_comes_once_an_epoch() -> None:
    assert sorted(index for key in sampler() for index in key.indices) == list(range(10))
    assert len(sampler()) == len(list(sampler())) == 4
    assert len(sampler(drop_last=True)) == len(list(sampler(drop_last=True))) == 3


def test_without_shuffling_images_come_as_they_lie() -> None:
    assert [key.indices for key in sampler(shuffle=False)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = sampler(epoch=2), sampler(), sampler(seed=1, epoch=2)
    assert list(first) != list(again)
    again.set_epoch(2)
    assert list(first) == list(again)
    assert [key.indices for key in first] != [key.indices for key in other]


def test_start_skips_batches_of_the_same_order() -> None:
    whole, rest = sampler(epoch=1), sampler()
    rest.set_epoch(1, start=2)
    assert list(rest) == list(whole)[2:]


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 2), (True, 1)])
def test_replicas_share_an_epoch(drop_last: bool, steps: int) -> None:
    whole = list(sampler(drop_last=drop_last))
    shares = [list(sampler(drop_last=drop_last, rank=rank, replicas=2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [steps, steps]
    assert [key for pair in zip(*shares, strict=True) for key in pair] == whole[: 2 * steps]


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "imagenet"])
def test_loader_ignores_and_keeps_global_randomness(augment: str) -> None:
    data = load_data(DataConfig(augment=augment), input_size=8, seed=0)
    first = batches(data, epoch=4)[:3]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    loader = data.loader("weights", batch_size=32, shuffle=True, seed=3)
    loader.sampler.set_epoch(4)
    assert equal(first, list(loader)[:3])
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert not equal(first, batches(data, epoch=5)[:3])


def test_parts_have_their_own_order_under_one_seed() -> None:
    data = digits(architecture_fraction=0.5)
    size = min(len(data.weights), len(data.architecture))
    orders = [[key.indices for key in data.loader(part, batch_size=size, shuffle=True).sampler] for part in PARTS[:2]]
    assert orders[0][0][:20] != orders[1][0][:20]


def test_items_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path), augment="imagenet")
    data = load_data(config, input_size=8, seed=0)
    alone = batches(data, batch_size=4, epoch=1)
    assert equal(alone, batches(data, batch_size=4, epoch=1, workers=2))
    unshuffled = [batches(data, batch_size=4, epoch=epoch, shuffle=False) for epoch in (1, 2)]
    assert not equal(*unshuffled)
    assert not equal(alone, batches(data, batch_size=4, epoch=2, workers=2))


def test_a_batch_that_is_larger_than_the_part() -> None:
    with pytest.raises(DataError, match=r"'test' has \d+ images.*lower the batch size"):
        digits().loader("test", batch_size=4000, drop_last=True)


def test_unknown_part() -> None:
    with pytest.raises(
        DataError, match="no part 'validation' of a data set; parts are weights, architecture, training, test"
    ):
        digits().loader("validation", batch_size=2)


def test_seeded_restores_and_depends_on_all_its_numbers() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []
    for entropy in ((1, 2), (1, 2), (1, 3)):
        with seeded(*entropy):
            draws.append((torch.rand(1).item(), random.random(), float(np.random.rand())))  # noqa: NPY002
    assert torch.equal(before, torch.get_rng_state())
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


# --- augmentation --------------------------------------------------------------------------------------------------


def marked(augment: str, count: int = 64) -> torch.Tensor:
    """Images of 16 x 16 with distinct pixels, as floats that no normalisation changes."""
    image = torch.arange(1, 257, dtype=torch.float32).view(1, 1, 16, 16)
    images = TensorImages(
        image.expand(count, -1, -1, -1), torch.zeros(count).long(), torch.arange(count), (0.0,), (1.0,), augment
    )
    return next(iter(loader_of(images, count)))[0]


def loader_of(dataset: TensorImages, batch_size: int) -> Any:
    parts = dict.fromkeys(PARTS, dataset)
    data = ImageData(2, 1, 16, (0.0,), (1.0,), "bicubic", **parts)
    return data.loader("weights", batch_size=batch_size)


def test_crop_moves_by_at_most_an_eighth() -> None:
    plain, cropped = marked("none"), marked("crop")
    offsets = set()
    for image in cropped[:, 0]:
        row, column = (image[8, 8].item() - 1) // 16 - 8, (image[8, 8].item() - 1) % 16 - 8
        offsets.add((row, column))
        shifted = torch.zeros(16, 16)
        rows = slice(max(0, -int(row)), 16 - max(0, int(row)))
        columns = slice(max(0, -int(column)), 16 - max(0, int(column)))
        source_rows = slice(max(0, int(row)), 16 - max(0, -int(row)))
        source_columns = slice(max(0, int(column)), 16 - max(0, -int(column)))
        shifted[rows, columns] = plain[0, 0, source_rows, source_columns]
        assert torch.equal(image, shifted)
    assert {offset for pair in offsets for offset in pair} == {-2, -1, 0, 1, 2}


def test_flip_turns_about_half_of_the_images() -> None:
    data = TensorImages(
        torch.arange(16 * 16).float().view(1, 1, 16, 16).expand(400, -1, -1, -1),
        torch.zeros(400).long(),
        torch.arange(400),
        (0.0,),
        (1.0,),
        "crop_flip",
    )
    images, _ = next(iter(loader_of(data, 400)))
    flipped = (images[:, 0, 8, 8] > images[:, 0, 8, 9]).sum().item()
    assert 150 < flipped < 250


def test_only_training_parts_are_augmented() -> None:
    data = digits(augment="crop")
    for part, changes in (("weights", True), ("training", True), ("architecture", False), ("test", False)):
        loader = data.loader(part, batch_size=8)
        first = next(iter(loader))[0]
        loader.sampler.set_epoch(1)
        assert torch.equal(first, next(iter(loader))[0]) != changes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ["none", "crop", "imagenet"])
def test_rand_augment_works_on_grey_and_colour(augment: Any, channels: int) -> None:
    data = digits(augment=augment, options={"channels": channels})
    plain, augmented = (batches(data, rand_augment=text)[0][0] for text in (None, "rand-m9-mstd0.5"))
    assert augmented.shape == plain.shape
    assert torch.isfinite(augmented).all()
    assert not torch.equal(augmented, plain)


def test_rand_augment_that_timm_does_not_know() -> None:
    with pytest.raises(ConfigError, match="rand_augment = 'autumn' is not timm's RandAugment"):
        digits().loader("weights", batch_size=8, rand_augment="autumn")


# --- ImageFolder ---------------------------------------------------------------------------------------------------


def test_imagefolder(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path), workers=0)
    check_data(config)
    data = load_data(config, input_size=8, seed=0)
    assert data.class_names == ("a", "b", "c")
    assert [len(getattr(data, part)) for part in PARTS] == [12, 6, 18, 18]
    assert np.bincount(data.architecture.targets).tolist() == [2, 2, 2]
    images, labels = batches(data, batch_size=5)[0]
    assert images.shape == (5, 3, 8, 8)
    assert labels.dtype == torch.long


def test_plain_transform_is_what_timm_makes_of_the_pretrained_cfg(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path), options={"crop_pct": 0.875})
    data = load_data(config, input_size=8, seed=0)
    resolved = resolve_data_config(pretrained_cfg=data.pretrained_cfg())
    path = data.test.source.samples[0][0]
    expected = create_transform(**resolved)(Image.open(path).convert("RGB"))
    assert torch.equal(data.test[0][0], expected)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_augmented_items_are_normalised_as_plain_ones(tmp_path: Path, augment: Any) -> None:
    data = load_data(DataConfig(name="imagefolder", root=write_images(tmp_path), augment=augment), input_size=8, seed=0)
    plain = {data.training.source.samples[i][0]: data.training.source[i][0] for i in range(18)}
    assert len(plain) == 18
    image, _ = data.weights[0]
    expected, _ = ItemImages(data.weights.source, data.weights.indices, data.test.transform)[0]
    assert torch.allclose(image.mean(), expected.mean(), atol=1.0)
    if augment == "none":
        assert torch.allclose(image, expected, atol=1e-6)


def test_imagefolder_without_root() -> None:
    with pytest.raises(DataError, match=r"data.root is missing; imagefolder expects ROOT/train/CLASS"):
        check_data(DataConfig(name="imagefolder"))


@pytest.mark.parametrize("parts", [(), ("train",), ("val",)])
def test_imagefolder_without_a_part(tmp_path: Path, parts: tuple[str, ...]) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path, parts=parts))
    missing = tmp_path / ("val" if "train" in parts else "train")
    for call in (check_data, lambda config: load_data(config, input_size=8, seed=0)):
        with pytest.raises(DataError, match=r"is no folder; imagefolder expects ROOT/train/CLASS") as raised:
            call(config)
        assert str(missing) in str(raised.value)


def test_imagefolder_without_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, parts=("val",))
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match=r"looked in .*train, and imagefolder expects"):
        check_data(DataConfig(name="imagefolder", root=tmp_path))


def test_imagefolder_with_an_empty_class(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        check_data(DataConfig(name="imagefolder", root=tmp_path))


def test_imagefolder_with_different_classes(tmp_path: Path) -> None:
    write_images(tmp_path, parts=("train",), classes="abc")
    write_images(tmp_path, parts=("val",), classes="abd")
    with pytest.raises(DataError, match="only one of them has c, d"):
        check_data(DataConfig(name="imagefolder", root=tmp_path))


def test_imagefolder_that_is_too_small_to_split(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path, count=1))
    with pytest.raises(DataError, match="class 'a' has 1 training images, too few"):
        load_data(config, input_size=8, seed=0)


def test_imagefolder_with_a_broken_image(tmp_path: Path) -> None:
    write_images(tmp_path)
    broken = tmp_path / "val" / "a" / "0.png"
    broken.write_bytes(b"no image")
    data = load_data(DataConfig(name="imagefolder", root=tmp_path), input_size=8, seed=0)
    with pytest.raises(DataError, match=r"cannot read .*0\.png") as raised:
        batches(data, "test", shuffle=False)
    assert str(broken) in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colours": 3}, "unknown data option 'colours'; .* takes channels, mean, std, interpolation, crop_pct"),
        ({"channels": 2}, "channels = 2; it must be 1"),
        ({"mean": 0.5}, "mean = 0.5; give one number for each of the 3 channels"),
        ({"std": [0.5, 0.5]}, "give one number for each of the 3 channels"),
        ({"std": [0.5, "wide", 0.5]}, "give one number for each of the 3 channels"),
        ({"interpolation": "magic"}, "interpolation = 'magic'; use one of nearest, bilinear"),
        ({"crop_pct": 1.5}, "crop_pct = 1.5; it must be above 0"),
        ({"crop_pct": "all"}, "crop_pct = 'all'; it must be above 0"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path, count=2), options=options)
    with pytest.raises(DataError, match=message):
        check_data(config)
    with pytest.raises(DataError, match=message):
        load_data(config, input_size=8, seed=0)


def test_zero_std_is_refused() -> None:
    with pytest.raises(DataError, match="must be above 0"):
        digits(options={"std": [0.0]})


# --- torchvision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["torchvision", "flat", "packed"])
def test_fashion_mnist_in_each_layout(tmp_path: Path, layout: str) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw" if layout == "torchvision" else tmp_path, packed=layout == "packed")
    config = DataConfig(name="torchvision:FashionMNIST", root=tmp_path)
    check_data(config)
    data = load_data(config, input_size=28, seed=0)
    assert (data.channels, data.num_classes, len(data.training), len(data.test)) == (1, 10, 40, 20)
    assert data.class_names is not None
    assert data.class_names[9] == "Ankle boot"
    expected = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    assert np.array_equal(data.training.images[:, 0].numpy(), expected)
    assert data.training.targets == [index % 10 for index in range(40)]


def test_grey_images_as_colour(tmp_path: Path) -> None:
    root = write_idx(tmp_path, packed=False)
    config = DataConfig(name="torchvision:FashionMNIST", root=root, options={"channels": 3})
    assert load_data(config, input_size=32, seed=0).test[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: Any) -> None:
    config = DataConfig(name="torchvision:CIFAR10", root=write_cifar(tmp_path, monkeypatch), augment=augment)
    data = load_data(config, input_size=32, seed=0)
    assert (data.channels, data.num_classes, len(data.training), len(data.test)) == (3, 10, 100, 20)
    assert isinstance(data.weights, TensorImages) == (augment == "none")
    images, _ = batches(data)[0]
    assert images.shape == (32, 3, 32, 32)
    assert images.abs().max() < 5


def test_memory_and_items_give_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    config = DataConfig(name="torchvision:CIFAR10", root=write_cifar(tmp_path, monkeypatch), options=options)
    in_memory = load_data(config, input_size=24, seed=0)
    monkeypatch.setattr("proxyless_strategy.data.torchvision_source.MEMORY_LIMIT", 0)
    by_item = load_data(config, input_size=24, seed=0)
    assert isinstance(by_item.weights, ItemImages)
    for part in PARTS:
        for (a, b), (c, d) in zip(batches(in_memory, part), batches(by_item, part), strict=True):
            assert torch.allclose(a, c, atol=1e-6)
            assert torch.equal(b, d)


def test_data_sets_with_a_split_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Split(torchvision.datasets.VisionDataset):
        def __init__(self, root: str, split: str = "train", difficulty: int = 1):
            self.split, self.difficulty = split, difficulty
            self.labels = [0, 1] * (8 if split == "train" else 3)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> Any:
            return Image.new("RGB", (8, 8), (self.difficulty, 0, 0)), self.labels[index]

    monkeypatch.setattr(torchvision.datasets, "Split", Split, raising=False)
    config = DataConfig(name="torchvision:Split", root=tmp_path, options={"difficulty": 7, "mean": [0, 0, 0]})
    data = load_data(config, input_size=8, seed=0)
    assert [len(getattr(data, part)) for part in PARTS] == [12, 4, 16, 6]
    assert data.weights.source.difficulty == 7
    with pytest.raises(DataError, match=r"unknown data option 'hardness'; Split takes .*difficulty"):
        check_data(DataConfig(name="torchvision:Split", root=tmp_path, options={"hardness": 7}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:Fashion", "no data set 'Fashion'; take a class of torchvision.datasets"),
        ("torchvision:utils", "no data set 'utils'"),
        ("torchvision:CIFAR10", "cannot read torchvision's CIFAR10 in .*; put it there, or set data.options.download"),
        ("torchvision:FakeData", "FakeData has no train and test part"),
    ],
)
def test_torchvision_data_that_is_not_there(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_data(DataConfig(name=name, root=tmp_path))


def test_torchvision_without_root() -> None:
    with pytest.raises(DataError, match=r"data\.root is missing; give the folder that holds torchvision's MNIST"):
        check_data(DataConfig(name="torchvision:MNIST"))


def test_flat_files_of_which_one_is_missing(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte \(or .*gz\) is missing"):
        check_data(DataConfig(name="torchvision:FashionMNIST", root=tmp_path))


# --- module:function -----------------------------------------------------------------------------------------------


def pictures(count: int, mode: str = "RGB") -> Listed:
    return Listed([Image.new(mode, (10, 10)) for _ in range(count)], [index % 2 for index in range(count)])


def tensors(count: int, size: int = 8) -> Listed:
    return Listed([torch.full((2, size, size), float(index)) for index in range(count)], [0, 1] * (count // 2))


def test_a_function_that_returns_tensors(user_module: Any) -> None:
    user_module.data = lambda root, scale: (tensors(6), tensors(4), tensors(2))
    config = DataConfig(name="my_data:data", options={"scale": 2})
    check_data(config)
    data = load_data(config, input_size=8, seed=0)
    assert (data.channels, data.num_classes, data.mean, data.std) == (2, 2, (0.0, 0.0), (1.0, 1.0))
    assert isinstance(data.training.source, ConcatDataset)
    assert [len(getattr(data, part)) for part in PARTS] == [6, 4, 10, 2]
    images, labels = batches(data, "training", shuffle=False, batch_size=10)[0]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert labels.tolist() == [0, 1] * 5


@pytest.mark.parametrize("augment", ["none", "crop_flip", "imagenet"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_function_that_returns_pictures(user_module: Any, augment: Any, mode: str) -> None:
    user_module.data = lambda root: (pictures(6, mode), pictures(4, mode), pictures(2, mode))
    data = load_data(DataConfig(name="my_data:data", augment=augment), input_size=8, seed=0)
    assert data.channels == (1 if mode == "L" else 3)
    assert batches(data, "training", batch_size=10)[0][0].shape == (10, data.channels, 8, 8)


def test_a_function_that_returns_tensor_data_sets_is_read_by_batch(user_module: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [TensorDataset(torch.rand(n, 3, 8, 8, generator=generator), torch.arange(n) % 3) for n in (9, 6, 3)]
    user_module.data = lambda root: parts
    data = load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)
    assert all(isinstance(getattr(data, part), TensorImages) for part in PARTS)
    images, labels = batches(data, "training", shuffle=False, batch_size=15)[0]
    assert torch.equal(images, torch.cat([parts[0].tensors[0], parts[1].tensors[0]]))
    assert labels.tolist() == [0, 1, 2] * 5


def test_a_function_that_returns_image_data(user_module: Any) -> None:
    whole = load_data(DataConfig(), input_size=8, seed=0)
    user_module.data = lambda root: whole
    config = DataConfig(name="my_data:data")
    assert load_data(config, input_size=8, seed=0) is whole
    with pytest.raises(DataError, match="returned images of size 8, but input_size is 16"):
        load_data(config, input_size=16, seed=0)


def test_image_data_of_foreign_data_sets_is_seeded_too() -> None:
    class Noisy(Listed):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(1, 8, 8), index % 2

    noisy = Noisy([0] * 8, [0, 1] * 4)
    data = ImageData(2, 1, 8, (0.5,), (0.5,), "bicubic", *[noisy] * 4)
    assert equal(batches(data, batch_size=4), batches(data, batch_size=4))
    assert not equal(batches(data, batch_size=4), batches(data, batch_size=4, epoch=1))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "must return an ImageData or three data sets .*, but returned int"),
        ((tensors(2), tensors(2)), "three data sets"),
        ((tensors(2), tensors(2), tensors(0)), "returned an empty data set for test"),
        ([tensors(2)] * 3, "returned one data set twice"),
        ((tensors(2, 9), tensors(2, 9), tensors(2, 9)), "gives images of 2 x 9 x 9, but input_size is 8"),
        ((Listed(["x"], [0]), tensors(2), tensors(2)), "gives images as str; give PIL images"),
        (
            tuple(Listed([torch.zeros(1, 8, 8).byte()] * 2, [0, 1]) for _ in range(3)),
            r"gives images as torch.uint8 of \(1, 8, 8\)",
        ),
        ((tensors(2), Listed([torch.zeros(2, 8, 8)], [-1]), tensors(2)), r"label of architecture is outside 0..1"),
        (tuple(Listed([torch.zeros(1, 8, 8)], [0]) for _ in range(3)), "the data set has 1 class"),
    ],
)
def test_a_function_that_returns_nonsense(user_module: Any, returned: Any, message: str) -> None:
    user_module.data = lambda root: returned
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)


def test_tensors_cannot_be_augmented_as_pictures(user_module: Any) -> None:
    user_module.data = lambda root: (tensors(6), tensors(4), tensors(2))
    with pytest.raises(DataError, match="augment: imagenet needs PIL images"):
        load_data(DataConfig(name="my_data:data", augment="imagenet"), input_size=8, seed=0)
    data = load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)
    with pytest.raises(DataError, match="works on PIL images, but this data set gives tensors"):
        data.loader("weights", batch_size=2, rand_augment="rand-m9")


def test_a_function_that_fails(user_module: Any) -> None:
    def data(root: Path) -> None:
        raise KeyError("label")

    user_module.data = data
    with pytest.raises(DataError, match="my_data:data raised KeyError: 'label'; mend that function"):
        load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)
    with pytest.raises(DataError, match="my_data:data raised TypeError"):
        load_data(DataConfig(name="my_data:data", options={"size": 1}), input_size=8, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "unknown data set 'cifar'; data.name is digits, imagefolder, torchvision:CLASS or module:function"),
        ("no_such_module:data", "cannot load the data set 'no_such_module:data'"),
        ("my_data:absent", "cannot load the data set 'my_data:absent'"),
        (":data", "cannot load the data set ':data'"),
        ("my_data:number", "my_data:number is int, not a function"),
    ],
)
def test_unknown_data_sets(user_module: Any, name: str, message: str) -> None:
    user_module.number = 3
    for call in (check_data, lambda config: load_data(config, input_size=8, seed=0)):
        with pytest.raises(DataError, match=message):
            call(DataConfig(name=name))


# --- what goes into an export --------------------------------------------------------------------------------------


def test_pretrained_cfg_is_understood_by_timm() -> None:
    data = digits()
    config = data.pretrained_cfg()
    assert config["label_names"] == [str(number) for number in range(10)]
    model = timm.create_model("mobilenetv2_035", pretrained_cfg_overlay=config, num_classes=10, in_chans=1)
    resolved = resolve_data_config(model=model)
    assert tuple(resolved["input_size"]) == (1, 16, 16)
    assert tuple(resolved["mean"]) == data.mean
    assert tuple(resolved["std"]) == data.std
    assert resolved["crop_pct"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean = .* has 2 values for images of 1 channels"),
        ({"class_names": ("one",)}, "1 class names are given for 2 classes"),
        ({"test": Listed([], [])}, "the part 'test' of the data set is empty"),
    ],
)
def test_image_data_that_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    fields = {"mean": (0.5,), "std": (0.5,), **dict.fromkeys(PARTS, tensors(2)), **changes}
    with pytest.raises(DataError, match=message):
        ImageData(num_classes=2, channels=1, input_size=8, interpolation="bicubic", **fields)
