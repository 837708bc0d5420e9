"""Whatever a user's data set yields becomes images and classes where there is one right way, else one sentence."""

from __future__ import annotations

import pickle
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig, load_config
from proxyless_strategy.data.datasets import TensorImages, class_number
from proxyless_strategy.data.sources import load_data
from tests.proxyless_strategy.data.samples import Listed, batches, tensors

SIZE = 8
Named = namedtuple("Named", "image target")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
FLOATS = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


class Yields:
    """A data set of any items."""

    def __init__(self, items: list[Any], **held: Any):
        self.items = items
        self.__dict__.update(held)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def three(make: Any, *, count: int = 4, **held: Any) -> tuple[Yields, ...]:
    return tuple(Yields([make(index) for index in range(count)], **held) for _ in range(3))


def load(user_module: Any, returned: Any, **settings: Any) -> Any:
    user_module.data = lambda root: returned
    return load_data(DataConfig(name="my_data:data", **settings), input_size=SIZE, seed=0)


ITEMS = {
    "a tuple of three with a mapping": lambda i: (PICTURE, i % 2, {"path": "x.png"}),
    "a tuple of three with a text of bytes": lambda i: (PICTURE, i % 2, b"x.png"),
    "a list": lambda i: [PICTURE, i % 2],
    "the label first": lambda i: (i % 2, PICTURE),
    "a named tuple": lambda i: Named(PICTURE, i % 2),
    "a mapping": lambda i: {"image": PICTURE, "label": i % 2},
    "a mapping of other names": lambda i: {"img": PICTURE, "fine": i % 2},
    "a mapping with a number": lambda i: {"id": 7 + i, "pixels": PICTURE, "label": i % 2},
    "a text": lambda i: (PICTURE, ("cat", "dog")[i % 2]),
    "a bool": lambda i: (PICTURE, bool(i % 2)),
    "numpy's number": lambda i: (PICTURE, np.int32(i % 2)),
    "a tensor of no dimension": lambda i: (PICTURE, torch.tensor(i % 2)),
    "a tensor of one number": lambda i: (PICTURE, torch.tensor([i % 2])),
    "a whole float": lambda i: (PICTURE, float(i % 2)),
    "one-hot": lambda i: (PICTURE, torch.eye(2)[i % 2]),
    "numpy's one-hot": lambda i: (PICTURE, np.eye(2)[i % 2]),
    "8 bits H x W x C": lambda i: (PIXELS, i % 2),
    "8 bits C x H x W": lambda i: (PIXELS.transpose(2, 0, 1), i % 2),
    "8 bits in a tensor": lambda i: (torch.from_numpy(PIXELS).permute(2, 0, 1), i % 2),
    "8 bits of grey": lambda i: (PIXELS[..., 0], i % 2),
    "floats of 64 bits": lambda i: (FLOATS.double(), i % 2),
    "floats of 16 bits": lambda i: (FLOATS.half(), i % 2),
    "numpy's floats": lambda i: (FLOATS.numpy(), i % 2),
    "floats without a channel": lambda i: (FLOATS[0], i % 2),
}


@pytest.mark.parametrize("form", ITEMS)
def test_one_right_way(user_module: Any, form: str) -> None:
    data = load(user_module, three(ITEMS[form]))
    images, labels = batches(data, "training", batch_size=8, shuffle=False)[0]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == [0, 1] * 4
    plain = load(user_module, three(lambda i: (as_wanted(form), i % 2)))
    assert torch.equal(images, batches(plain, "training", batch_size=8, shuffle=False)[0][0])
    assert data.channels == plain.channels


def as_wanted(form: str) -> Any:
    if "floats" in form:
        return FLOATS[:1] if "without" in form else FLOATS.half().float() if "16" in form else FLOATS
    return Image.fromarray(PIXELS[..., 0]) if "grey" in form else PICTURE


NONSENSE: dict[str, tuple[Any, str]] = {
    "two numbers": (
        lambda i: (PICTURE, i % 2, 17),
        r"tuple of \(a PIL image of 12 x 12, the number 0, the number 17\)",
    ),
    "two images": (lambda i: (PICTURE, PICTURE, 0), "more than one image or class"),
    "an image alone": (lambda i: PICTURE, "is a PIL image of 12 x 12; give PIL images"),
    "no class": (lambda i: (PICTURE, None), "no class to be told"),
    "a soft label": (lambda i: (PICTURE, torch.tensor([0.3, 0.7])), "no class to be told"),
    "several labels": (lambda i: (PICTURE, torch.tensor([1, 1, 0])), "no class to be told"),
    "half a class": (lambda i: (PICTURE, 0.5), "label 0.5 is no class number"),
    "not a number": (lambda i: (PICTURE, float("nan")), "label nan is no class number"),
    "a path": (lambda i: ("x.png", i % 2), "gives images as str 'x.png'"),
    "16 bits": (lambda i: (torch.zeros(1, 8, 8, dtype=torch.int16), 0), r"gives images as torch.int16 of \(1, 8, 8\)"),
    "channels anywhere": (
        lambda i: (np.zeros((3, 5, 3), np.uint8), 0),
        r"gives images as numpy's uint8 of \(3, 5, 3\)",
    ),
    "an object": (lambda i: object(), "item 0 of weights is object"),
    "mixed items": (lambda i: (PICTURE, 0) if i < 2 else {"a": PICTURE, "b": 0}, "unlike item 0 of weights"),
    "mixed images": (lambda i: (PICTURE, 0) if i < 2 else (FLOATS, 0), "give all images in one form"),
    "mixed sizes": (lambda i: (FLOATS if i < 2 else FLOATS[:1], 0), "give all images in one form"),
    "no finite images": (lambda i: (FLOATS * float("nan"), i % 2), "are not finite"),
    "a negative class": (lambda i: (PICTURE, i - 1), r"label of weights is outside 0\.\.2: image 0 has -1"),
}


@pytest.mark.parametrize("form", NONSENSE)
def test_no_right_way(user_module: Any, form: str) -> None:
    make, message = NONSENSE[form]
    with pytest.raises(DataError, match=message) as error:
        load(user_module, three(make))
    assert "my_data:data" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_an_item_that_raises_is_named(user_module: Any) -> None:
    class Broken(Yields):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("image")

    with pytest.raises(DataError, match=r"my_data:data: item 0 of weights raised KeyError: 'image'; mend"):
        load(user_module, tuple(Broken([0] * 4) for _ in range(3)))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_part_is_looked_at(user_module: Any, part: int) -> None:
    parts = list(three(lambda i: (PICTURE, i % 2)))
    parts[part] = Yields([("x", 0)] * 4)
    with pytest.raises(DataError, match=r"gives images as str 'x'"):
        load(user_module, parts)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("count", [3, 5])
def test_too_few_or_too_many_labels(user_module: Any, kind: Any, count: int) -> None:
    parts = three(lambda i: (PICTURE, i % 2), targets=kind([0, 1, 0, 1, 0][:count]))
    with pytest.raises(DataError, match=rf"lists {count} labels \(`targets`\) for 4 images; give one for each"):
        load(user_module, parts)


def test_listed_labels_in_another_order_than_the_items(user_module: Any) -> None:
    with pytest.raises(DataError, match=r"item 0 of weights has the class 0, but the data set lists 1 for it"):
        load(user_module, three(lambda i: (PICTURE, i % 2), targets=[1, 0, 1, 0]))


def test_classes_in_words(user_module: Any) -> None:
    words = ("dog", "cat", "cat", "eel")
    data = load(user_module, three(lambda i: (PICTURE, words[i])))
    assert data.class_names == ("cat", "dog", "eel")
    assert data.weights.targets == [1, 0, 0, 2]
    data = load(
        user_module, three(lambda i: (PICTURE, words[i]), classes=["eel", "dog", "cat"], targets=np.array(words))
    )
    assert data.class_names == ("eel", "dog", "cat")
    assert data.weights.targets == [1, 2, 2, 0]
    with pytest.raises(DataError, match=r"label 'dog', which is none of its classes \(eel, cat\)"):
        load(user_module, three(lambda i: (PICTURE, words[i]), classes=["eel", "cat"]))


def test_parts_by_name(user_module: Any) -> None:
    weights, architecture, test = three(lambda i: (PICTURE, i % 2))
    data = load(user_module, {"test": test, "weights": weights, "architecture": architecture})
    assert data.test.source.dataset is test
    with pytest.raises(DataError, match="but returned dict"):
        load(user_module, {"train": weights, "test": test})


def test_a_data_set_without_a_length(user_module: Any) -> None:
    with pytest.raises(DataError, match=r"returned list_iterator for weights, which has no len\(\)"):
        load(user_module, [iter([1]), iter([2]), iter([3])])


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1, 2, 0]).int(), torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0.0, 1, 2, 0])]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_tensors_stay_in_memory_whatever_their_types(user_module: Any, labels: Any, dtype: torch.dtype) -> None:
    data = load(user_module, [TensorDataset(torch.rand(4, 1, SIZE, SIZE).to(dtype), labels) for _ in range(3)])
    assert isinstance(data.training, TensorImages)
    assert (data.num_classes, data.training.targets) == (3, [0, 1, 2, 0] * 2)
    assert batches(data, "training")[0][0].dtype == torch.float32


@pytest.mark.parametrize("wrap", [lambda d: Subset(d, range(len(d))), lambda d: ConcatDataset([d])])
def test_data_sets_around_others_list_their_labels(user_module: Any, wrap: Any) -> None:
    class Unread(Yields):
        read: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

    parts = [wrap(Unread([(PICTURE, i % 2) for i in range(200)], targets=[0, 1] * 100)) for _ in range(3)]
    data = load(user_module, parts)
    assert data.weights.targets == [0, 1] * 100
    assert len(set(Unread.read)) < 200


def test_workers_get_the_same(user_module: Any) -> None:
    data = load(user_module, tuple(Listed([FLOATS] * 4, [0, 1] * 2) for _ in range(3)))
    again = pickle.loads(pickle.dumps(data.weights))
    assert torch.equal(again[1][0], data.weights[1][0])
    assert again.source.fingerprint == data.weights.source.fingerprint
    with pytest.raises(AttributeError):
        _ = again.source.nothing


def test_an_image_data_of_the_users_is_looked_at_too(user_module: Any) -> None:
    from dataclasses import replace

    whole = load_data(DataConfig(), input_size=SIZE, seed=0)
    for change, message in (
        (
            {"test": Listed([torch.zeros(1, 9, 9)] * 4, [0, 1] * 2)},
            r"first batch of test is torch.float32 of \(4, 1, 9, 9\)",
        ),
        ({"test": Listed([torch.zeros(1, 8, 8).double()] * 4, [0, 1] * 2)}, "first batch of test is torch.float64"),
        ({"test": Listed([torch.zeros(1, 8, 8)] * 4, [0, 11] * 2)}, r"label of test is outside 0\.\.9"),
        ({"test": Listed([torch.zeros(1, 8, 8), torch.zeros(1, 9, 9)], [0, 1])}, "first batch of test raised"),
        ({"weights": replace(whole.weights, labels=whole.weights.labels + 1)}, r"label of weights is outside 0\.\.9"),
        (
            {"weights": replace(whole.weights, labels=whole.weights.labels.float())},
            "labels of weights are torch.float32",
        ),
    ):
        with pytest.raises(DataError, match=message):
            load(user_module, replace(whole, **change))


def test_looking_leaves_random_numbers_as_they_were(user_module: Any) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    load(user_module, (tensors(6), tensors(4), tensors(2)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize(
    ("label", "number"), [(True, 1), (np.uint8(7), 7), ([0, 1, 0], 1), (np.array([[3]]), 3), ("b", 4), (2.0, 2)]
)
def test_class_numbers(label: Any, number: int) -> None:
    assert class_number(label, {"b": 4}) == number


@pytest.mark.parametrize("label", ["a", None, [0, 0], [1, 1], [0.5, 0.5], [0, 1, -1, 1], {"a": 1}, float("inf"), 1.5])
def test_no_class_numbers(label: Any) -> None:
    with pytest.raises(DataError, match="is no class number"):
        class_number(label, {"b": 4})


@pytest.mark.parametrize("place", ["yaml", "current"])
def test_modules_beside_the_yaml_and_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"my_data_{place}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    folder, current = tmp_path / "configs", tmp_path / "elsewhere"
    folder.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    module = "from tests.proxyless_strategy.data.samples import tensors\n"
    module += "def data(root):\n    return [tensors(4) for _ in range(3)]\n"
    ((folder if place == "yaml" else current) / f"{name}.py").write_text(module)
    (folder / "search.yml").write_text(f"data: {name}:data\ninput_size: 8\n")
    config = load_config(folder / "search.yml")
    assert load_data(config.data, input_size=8, seed=0).channels == 2
