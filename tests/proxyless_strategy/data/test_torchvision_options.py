"""Options of torchvision's classes, their own errors, and labels that are none of the classes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat
from torchvision.datasets.utils import verify_str_arg

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.images import PARTS
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import write_cifar, write_idx


class Own(torchvision.datasets.VisionDataset):
    """A stand-in for torchvision's own: a constructor, pictures and labels."""

    splits: tuple[str, ...] = ("train", "test")
    label = staticmethod(lambda index: index % 2)

    def __init__(self, root: str, split: str = "train", partition: int = 1, fold: str | None = None):
        super().__init__(root)
        self.split = verify_str_arg(split, "split", self.splits)
        self.partition, self.fold = partition, fold

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return Image.new("RGB", (8, 8), (10 * index, 0, 0)), self.label(index)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**held: Any) -> type:
        found = type("Own", (Own,), held)
        monkeypatch.setattr(torchvision.datasets, "Own", found, raising=False)
        return found

    return make


def load(folder: Path, name: str = "Own", /, **options: Any) -> Any:
    config = DataConfig(name=f"torchvision:{name}", root=folder, options=options)
    check_data(config)
    return load_data(config, input_size=8, seed=0)


# As torchvision's own name them: DTD, ImageNet, Places365, PCAM, CelebA, STL10, FGVCAircraft.
SPLITS = [
    ("train", "val"),
    ("train-standard", "val"),
    ("trainval", "test"),
    ("train", "valid"),
    ("train+unlabeled", "test"),
]


@pytest.mark.parametrize(("train", "test"), SPLITS)
def test_splits_of_any_name(tmp_path: Path, own: Any, train: str, test: str) -> None:
    own(splits=(train, test))
    data = load(tmp_path, split={"train": train, "test": test})
    assert (data.weights.source.split, data.test.source.split) == (train, test)
    if test == "test":
        assert load(tmp_path, split=train).weights.source.split == train
    else:
        message = rf"Own cannot be made with split = 'test': ValueError: Unknown value 'test' .*{test}.*; correct data"
        with pytest.raises(DataError, match=message):
            load(tmp_path)


def test_every_option_reaches_the_constructor(tmp_path: Path, own: Any) -> None:
    own()
    data = load(tmp_path, partition=7, fold={"train": "a", "test": "b"}, interpolation="bilinear")
    assert (data.weights.source.partition, data.test.source.partition) == (7, 7)
    assert (data.weights.source.fold, data.test.source.fold) == ("a", "b")
    assert data.interpolation == "bilinear"


def test_a_data_set_without_a_train_and_a_test_part_of_its_own(tmp_path: Path) -> None:
    sizes = {"size": {"train": 40, "test": 12}, "random_offset": {"train": 0, "test": 40}}
    data = load_data(
        DataConfig(name="torchvision:FakeData", options={**sizes, "image_size": [3, 8, 8], "num_classes": 3}),
        input_size=8,
        seed=0,
    )
    assert [len(getattr(data, part)) for part in PARTS] == [28, 12, 40, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"split = 'test' is that of the test part too"),
        ({"split": {"train": "train", "test": "train"}}, "is that of the test part too"),
        ({"train": False}, r"data.options.train = False is not an option of Own here; leave it out"),
        ({"root": "x"}, r"data.options.root = 'x' .* give data.root"),
        ({"split": "exam"}, "cannot be made with split = 'exam': ValueError: Unknown value 'exam' for argument split"),
        ({"split": 3}, "cannot be made with split = 3: ValueError: Expected type str for argument split"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, own: Any, options: dict[str, Any], message: str) -> None:
    own(splits=("train", "test"))
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, **options)
    assert "\n" not in str(error.value)
    assert "put it there" not in str(error.value)


@pytest.mark.parametrize("error", [RuntimeError("corrupted file"), ImportError("scipy is needed"), KeyError("X")])
def test_an_error_of_the_constructor_is_shown_as_it_is(tmp_path: Path, own: Any, error: Exception) -> None:
    def fail(self: Any, root: str, split: str = "train") -> None:
        raise error

    own(__init__=fail)
    words = f"{type(error).__name__}: {error}"
    with pytest.raises(DataError, match=words) as found:
        load(tmp_path)
    assert "put it there" not in str(found.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), RuntimeError("Dataset not found. You can use download=True")]
)
def test_files_that_are_not_there_are_asked_for(tmp_path: Path, own: Any, error: Exception) -> None:
    def fail(self: Any, root: str, split: str = "train") -> None:
        raise error

    own(__init__=fail)
    with pytest.raises(DataError, match=r"put it there, or set data\.options\.download: true"):
        load(tmp_path)


LABELS = {
    "listed": lambda labels: {"targets": labels},
    "listed in an array": lambda labels: {"labels": np.array(labels)},
    "of torchvision's hidden list": lambda labels: {"_labels": labels},
    "beside the paths": lambda labels: {"_samples": [("x.png", label) for label in labels]},
    "of the items": lambda labels: {},
}


@pytest.mark.parametrize("how", LABELS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_out_of_range_are_found_while_loading(tmp_path: Path, own: Any, how: str, part: str) -> None:
    def length(self: Any) -> int:
        return 8

    def init(self: Any, root: str, split: str = "train") -> None:
        Own.__init__(self, root, split)
        labels = [0, 1] * 4 if split != part else [0, 1, 0, 1, 0, 9, 0, 1]
        self.label = lambda index: labels[index]
        self.__dict__.update(LABELS[how](labels))

    own(__init__=init, __len__=length, classes=["a", "b"])
    with pytest.raises(DataError, match=rf"a label of the {part} part is outside 0\.\.1: image 5 has 9"):
        load(tmp_path)


@pytest.mark.parametrize("how", ["targets", "labels", "_labels"])
@pytest.mark.parametrize("count", [7, 9])
def test_too_few_or_too_many_labels(tmp_path: Path, own: Any, how: str, count: int) -> None:
    own(**{how: [0] * count})
    with pytest.raises(DataError, match=rf"train part: Own lists {count} labels \(`{how}`\) for 8 images"):
        load(tmp_path)


@pytest.mark.parametrize("label", [{"boxes": [1]}, [0, 1, 1], "cat", 0.5])
def test_targets_that_are_no_class(tmp_path: Path, own: Any, label: Any) -> None:
    own(label=staticmethod(lambda index: label))
    with pytest.raises(DataError, match=r"train part: the label .* is no class number"):
        load(tmp_path)


def test_labels_of_another_order_than_the_items(tmp_path: Path, own: Any) -> None:
    own(targets=[1, 0] * 4)
    with pytest.raises(DataError, match="item 0 has the class 0, but the data set lists 1 for it"):
        load(tmp_path)


# ---- torchvision's own classes, on generated files of their layouts ------------------------------------------------


def test_cifar_with_a_label_that_is_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_cifar(tmp_path, monkeypatch) / "cifar-10-batches-py" / "test_batch"
    content = pickle.loads(path.read_bytes())
    content["labels"][3] = 10
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"batches\.meta names 10 classes, but image 3 of test_batch has the label 10"):
        load(tmp_path, "CIFAR10")
    content["labels"] = content["labels"][:-1]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        DataError, match=r"test_batch is no file of CIFAR \(its data is uint8 of \(20, 3072\), .* for each of 19 labels"
    ):
        load(tmp_path, "CIFAR10")


def test_idx_with_too_few_labels(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:4] + (19).to_bytes(4, "big") + content[8:-1])
    with pytest.raises(
        DataError, match=r"20 x 28 x 28 of .*t10k-images-idx3-ubyte does not go with 19 of t10k-labels-idx1"
    ):
        load(tmp_path, "FashionMNIST")


def test_emnist_keeps_its_split(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False)
    data = load(tmp_path, "EMNIST", split="digits")
    assert data.class_names == tuple("0123456789")


def test_svhn_trains_on_its_extra_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    generator = np.random.default_rng(0)
    for name, count in (("extra", 40), ("test", 20)):
        pixels = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(tmp_path / f"{name}_32x32.mat", {"X": pixels, "y": 1 + np.arange(count)[:, None] % 10})
    data = load(tmp_path, "SVHN", split="extra")
    assert [len(getattr(data, part)) for part in PARTS] == [30, 10, 40, 20]
    assert data.num_classes == 10


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, count in (("train", 20), ("test", 10), ("unlabeled", 5)):
        generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            (1 + np.arange(count) % 10).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {number}" for number in range(10)))


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    write_stl10(tmp_path)
    assert load(tmp_path, "STL10").num_classes == 10
    with pytest.raises(DataError, match=r"a label of the train part is outside 0\.\.9: image 20 has -1, and 4 more"):
        load(tmp_path, "STL10", split="train+unlabeled")


def test_gtsrb(tmp_path: Path) -> None:
    training, testing = (
        tmp_path / "gtsrb" / "GTSRB" / "Training",
        tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images",
    )
    testing.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(3):
        (training / f"{number:05}").mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (9, 9), (number, index, 0)).save(training / f"{number:05}" / f"{index}.ppm")
        Image.new("RGB", (9, 9), (number, 0, 9)).save(testing / f"{number}.ppm")
        rows.append(f"{number}.ppm;9;9;0;0;8;8;{number}")
    table = tmp_path / "gtsrb" / "GT-final_test.csv"
    table.write_text("\n".join(rows))
    data = load(tmp_path, "GTSRB")
    assert [len(getattr(data, part)) for part in PARTS] == [9, 3, 12, 3]
    table.write_text("\n".join([*rows[:-1], "2.ppm;9;9;0;0;8;8;42"]))
    with pytest.raises(DataError, match=r"a label of the test part is outside 0\.\.2: image 2 has 42"):
        load(tmp_path, "GTSRB")
