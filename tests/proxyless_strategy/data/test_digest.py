"""The digest of a data set changes with its images, labels, files and split, and with nothing else."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data import digest
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.data.sources import load_data


def digits(seed=0, **changes):
    return load_data(DataConfig.model_validate({"name": "digits", **changes}), input_size=8, seed=seed)


def pictures(root):
    config = DataConfig.model_validate({"name": "imagefolder", "root": root, "draw": {"classes": 3, "train": 4}})
    return load_data(config, input_size=32, seed=0)


def image_data(weights, **changes):
    other = TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    parts = {"weights": weights, "architecture": other, "training": other, "test": other}
    return ImageData(
        **{
            "num_classes": 2,
            "channels": 1,
            "input_size": 8,
            "mean": (0.0,),
            "std": (1.0,),
            "interpolation": "bicubic",
            **parts,
            **changes,
        }
    )


def tensors(value=0.0, label=0):
    images, labels = torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
    images[3, 0, 4, 4], labels[5] = value, label
    return TensorDataset(images, labels)


def test_it_says_how_many_images_and_classes():
    first = data_digest(digits())
    assert first.startswith("1004 + 434 + 359 images of 10 classes, ")
    assert data_digest(digits()) == first


@pytest.mark.parametrize("changes", [{"seed": 1}, {"architecture_fraction": 0.4}, {"num_classes": 12}])
def test_another_split_or_number_of_classes(changes):
    assert data_digest(digits(**changes)) != data_digest(digits())


def test_how_images_are_read_is_no_part_of_it():
    assert data_digest(digits(augment="crop", workers=3)) == data_digest(digits())


def test_what_a_reader_caches_is_no_part_of_it():
    data = digits()
    before = data_digest(data)
    assert data.weights.targets
    assert data_digest(data) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files[0].write_bytes(files[0].read_bytes() + b"\0"),
        lambda files: files[0].rename(files[0].with_stem("another")),
        lambda files: files[-1].unlink(),
    ],
    ids=["size", "name", "gone"],
)
def test_files_of_a_folder(tmp_path, change):
    before = data_digest(pictures(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert data_digest(pictures(tmp_path / "moved")) == before
    change(sorted((tmp_path / "moved" / "train").glob("*/*")))
    digest_after = data_digest(pictures(tmp_path / "moved"))
    assert digest_after != before


def test_of_many_files_a_part_is_asked_for_its_size(tmp_path, monkeypatch):
    data, asked = pictures(tmp_path / "data"), []
    monkeypatch.setattr(digest, "SIZED_FILES", 4)
    monkeypatch.setattr(digest, "_size", lambda path: asked.append(path) or 1)
    data_digest(data)
    assert len(asked) <= 2 * 4  # of training and test files


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.bool])
def test_one_number_of_a_tensor(dtype):
    def of(value):
        images = torch.zeros(6, 1, 8, 8)
        images[3, 0, 4, 4] = value
        return data_digest(image_data(TensorDataset(images.to(dtype), torch.zeros(6, dtype=torch.long))))

    assert of(1) != of(0)
    assert of(1) == of(1)


def test_labels_and_class_names():
    plain = data_digest(image_data(tensors()))
    assert data_digest(image_data(tensors(label=1))) != plain
    assert data_digest(image_data(tensors(), class_names=("a", "b"))) != data_digest(
        image_data(tensors(), class_names=("a", "c"))
    )


@pytest.mark.parametrize("wrap", [lambda d: Subset(d, [0, 3]), lambda d: ConcatDataset([tensors(), d])])
def test_data_sets_within_data_sets(wrap):
    assert data_digest(image_data(wrap(tensors(1)))) != data_digest(image_data(wrap(tensors())))


def test_of_a_large_array_a_part_is_hashed(monkeypatch):
    monkeypatch.setattr(digest, "HASHED_BYTES", 4 * 64 * 2)
    assert data_digest(image_data(tensors(1))) != data_digest(image_data(tensors()))  # row 3 of 0, 3
    monkeypatch.setattr(digest, "HASHED_BYTES", 4 * 64)
    assert data_digest(image_data(tensors(1))) == data_digest(image_data(tensors()))


class Own(Dataset):
    """A user's data set, with torchvision's names or without."""

    def __init__(self, length=5, **held):
        self.length = length
        self.__dict__.update(held)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise AssertionError("the digest reads no image")


def test_a_data_set_of_the_users_own():
    assert data_digest(image_data(Own(5))) != data_digest(image_data(Own(6)))
    assert data_digest(image_data(Own(targets=[1, 0]))) != data_digest(image_data(Own(targets=[0, 0])))
    assert data_digest(image_data(Own(data=np.arange(3)))) != data_digest(image_data(Own(data=np.ones(3))))
    assert data_digest(image_data(Own(samples=["a.png"]))) != data_digest(image_data(Own(samples=["b.png"])))
    strange = {"data": {"a": 1}, "targets": ["x"], "samples": None, "source": 3, "labels": [[1], [2, 3]]}
    assert data_digest(image_data(Own(**strange))) == data_digest(image_data(Own()))
