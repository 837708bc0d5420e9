"""Data sets of Hugging Face's library: a folder's pictures, bit for bit, without a network; and what is refused."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hardware.errors import DataError, PictureError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.checking import check_folder
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.hf_source import is_of_hub
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.sources import check_data, is_function, load_data
from tests.proxyless_strategy.data.samples import batches, equal, write_images

SIZE = 16


def config_of(root: Path | None, name: str = "hfds", **options: Any) -> DataConfig:
    return DataConfig.model_validate({"name": name, "root": root, "options": options})


def load(root: Path, **options: Any) -> ImageData:
    return load_data(config_of(root, **options), input_size=SIZE, seed=0)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets .*`pip install 'proxyless-strategy\[hf\]'`"):
        check_data(config_of(tmp_path))


def test_a_colon_in_its_name_makes_it_no_function() -> None:
    assert not is_function("hfds/a:b")
    assert is_of_hub("hfds/a")
    assert not is_of_hub("hfds")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    # To name tables that are made in memory it pickles them, which fails with some versions of pyarrow.
    monkeypatch.setattr(found.arrow_dataset, "generate_fingerprint", lambda *_: os.urandom(8).hex())
    return found


def tables(library: Any, folder: Path, *, label: Any = None) -> dict[str, Any]:
    """The pictures of an ImageFolder as tables, in the folder's order."""
    names = sorted(path.name for path in (folder / "train").iterdir())
    features = library.Features(
        {
            "image": library.Image(),
            "label": label or library.ClassLabel(names=names),
            "caption": library.Value("string"),
        }
    )
    found = {}
    for part, split in (("train", "train"), ("val", "validation")):
        files = [path for name in names for path in sorted((folder / part / name).iterdir())]
        rows = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
            "label": [names.index(path.parent.name) for path in files],
            "caption": ["x"] * len(files),
        }
        found[split] = library.Dataset.from_dict(rows, features=features)
    return found


def write(library: Any, found: dict[str, Any], root: Path, how: str) -> Path:
    if how == "save_to_disk":
        library.DatasetDict(found).save_to_disk(str(root))
        return root
    for split, table in found.items():
        if how == "each split saved":
            table.save_to_disk(str(root / split))
        else:
            path = root / {"parquet": f"{split}.parquet"}.get(how, f"data/{split}-00000-of-00001.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(str(path))
    return root


@pytest.mark.parametrize("how", ["save_to_disk", "each split saved", "parquet", "parquet as on the hub"])
def test_they_give_what_a_folder_of_the_same_pictures_gives(tmp_path: Path, library: Any, how: str) -> None:
    folder = write_images(tmp_path / "folder")
    root = write(library, tables(library, folder), tmp_path / "data", how)
    check_data(config_of(root))
    expected = load_data(DataConfig(name="imagefolder", root=folder, augment="imagenet"), input_size=SIZE, seed=0)
    config = config_of(root).model_copy(update={"augment": "imagenet", "workers": 1})
    found = load_data(config, input_size=SIZE, seed=0)
    assert found.class_names == ("a", "b", "c")
    for part in PARTS:
        assert equal(batches(found, part, batch_size=4), batches(expected, part, batch_size=4)), part
    assert data_digest(found) == data_digest(load_data(config, input_size=SIZE, seed=0))


@pytest.mark.parametrize("change", ["content", "label"])
def test_other_pictures_are_other_data(tmp_path: Path, library: Any, change: str) -> None:
    folder = write_images(tmp_path / "folder")
    before = data_digest(load(write(library, tables(library, folder), tmp_path / "before", "save_to_disk")))
    if change == "content":
        Image.new("RGB", (12, 14), 9).save(folder / "train" / "a" / "0.png")
    else:
        first, second = folder / "train" / "a" / "0.png", folder / "train" / "b" / "0.png"
        a, b = first.read_bytes(), second.read_bytes()
        first.write_bytes(b)
        second.write_bytes(a)
    assert data_digest(load(write(library, tables(library, folder), tmp_path / "after", "save_to_disk"))) != before


def test_a_picture_that_cannot_be_read_is_named_by_its_row(tmp_path: Path, library: Any) -> None:
    folder = write_images(tmp_path / "folder")
    (folder / "train" / "b" / "2.png").write_bytes(b"none")
    data = load(write(library, tables(library, folder), tmp_path / "data", "save_to_disk"))
    with pytest.raises(PictureError, match=r"cannot read row 8 of hfds, train \(2\.png\): no format"):
        list(data.loader("training", batch_size=4))


def test_a_row_without_a_picture_is_named(tmp_path: Path, library: Any) -> None:
    found = tables(library, write_images(tmp_path / "folder"))
    empty = library.Dataset.from_dict(
        {"image": [None], "label": [1], "caption": [""]}, features=found["train"].features
    )
    found["train"] = library.concatenate_datasets([found["train"], empty])
    data = load(write(library, found, tmp_path / "data", "save_to_disk"))
    with pytest.raises(PictureError, match=r"cannot read row 18 of hfds, train: there is no picture in this row"):
        list(data.loader("training", batch_size=4))


def test_class_numbers_need_no_names(tmp_path: Path, library: Any) -> None:
    found = tables(library, write_images(tmp_path / "folder"), label=library.Value("int64"))
    root = write(library, found, tmp_path / "data", "save_to_disk")
    with pytest.raises(DataError, match=r"has 0 columns of ClassLabel \(image, label, caption\); set data\.options"):
        load(root)
    data = load(root, label="label")
    assert (data.num_classes, data.class_names) == (3, None)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such split": ({"train": "all"}, "data.options.train: hfds has no split 'all' (train, validation)"),
    "one split twice": ({"val": "train"}, "would be trained and tested on the split 'train'"),
    "no such column": ({"label": "class"}, "data.options.label: hfds has no column 'class'"),
    "no pictures": ({"image": "label"}, "the column 'label' of hfds holds no pictures"),
    "a text as label": (
        {"label": "caption"},
        "not a class number in each row; use `class_encode_column('caption')`",
    ),
    "unknown": ({"split": "x"}, "unknown data option 'split'; hfds takes train, val, image, label"),
    "a number": ({"train": 3}, "data.options.train = 3; give a text"),
    "of the hub": ({"revision": "main"}, "is of a data set on huggingface.co; remove it"),
    "of pictures": ({"range": 3}, "data.options.range = 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_impossible_option_is_one_sentence(tmp_path: Path, library: Any, case: str) -> None:
    options, words = WRONG[case]
    root = write(library, tables(library, write_images(tmp_path / "folder")), tmp_path / "data", "save_to_disk")
    with pytest.raises(DataError) as raised:
        check_data(config_of(root, **options))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_test_part_is_named_where_there_are_two(tmp_path: Path, library: Any) -> None:
    found = tables(library, write_images(tmp_path / "folder"))
    root = write(library, {**found, "test": found["validation"]}, tmp_path / "data", "save_to_disk")
    with pytest.raises(DataError, match=r"has the splits train, validation, test; set data\.options\.val"):
        check_data(config_of(root))
    assert len(load(root, val="test").test) == 18


def test_labels_of_hidden_test_pictures_are_refused(tmp_path: Path, library: Any) -> None:
    found = tables(library, write_images(tmp_path / "folder"))
    features = found["train"].features
    rows = {**found["validation"].to_dict(), "label": [-1] * 18}
    found["validation"] = library.Dataset.from_dict(rows, features=features)
    root = write(library, found, tmp_path / "data", "save_to_disk")
    with pytest.raises(DataError, match=r"a label of validation \(label\) is outside 0\.\.2: image 0 has -1"):
        check_data(config_of(root))


def test_a_folder_of_something_else_is_one_sentence(tmp_path: Path, library: Any) -> None:
    folder = write_images(tmp_path / "folder")
    with pytest.raises(DataError, match=r"holds neither .* set data\.name to imagefolder"):
        check_data(config_of(folder))
    with pytest.raises(DataError, match=r"nowhere is no folder; give a folder of `save_to_disk`"):
        check_data(config_of(tmp_path / "nowhere"))
    root = write(library, tables(library, folder), tmp_path / "data", "parquet")
    (root / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cannot load .*; give a folder of") as raised:
        check_data(config_of(root))
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"holds tables, which a search's YAML names by .*hfds"):
        check_folder(DataConfig(name="imagefolder", root=root))


def test_what_a_found_folder_says_of_other_places_is_not_asked_for(tmp_path: Path, library: Any) -> None:
    """Its card may name files elsewhere, which the library would fetch."""
    root = write(library, tables(library, write_images(tmp_path / "folder")), tmp_path / "data", "parquet")
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: https://192.0.2.1/evil.parquet\n---\n"
    )
    (root / "data.py").write_text("raise SystemExit('run')")
    assert len(load(root).training) == 18


@pytest.mark.parametrize("name", ["hfds/nobody/nothing", "hfds/nothing"])
def test_a_name_that_is_not_cached_is_one_sentence_without_a_network(library: Any, name: str) -> None:
    with pytest.raises(DataError, match=rf"cannot load {name}: .*; write its name as on huggingface\.co") as raised:
        check_data(config_of(None, name))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_name_of_the_hub_is_none_of_a_folder_here(
    tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, root, words in (
        ("hfds/mine", None, "mine is a file or folder here"),
        ("hfds/../mine", None, "is no hfds/NAME or hfds/OWNER/NAME"),
        ("hfds/https://x.org/y", None, "is no hfds/NAME"),
        ("hfds/", None, "is no hfds/NAME"),
        ("hfds/other", tmp_path, r"lies where its library keeps it \(HF_HOME\)"),
    ):
        with pytest.raises(DataError, match=words):
            check_data(config_of(root, name))


def test_grey_pictures_are_read_as_the_options_say(tmp_path: Path, library: Any) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).save(stream, "PNG")
    features = library.Features({"x": library.Image(), "y": library.ClassLabel(names=["0", "1"])})
    rows = {"x": [{"bytes": stream.getvalue(), "path": None}] * 8, "y": [0, 1] * 4}
    table = library.Dataset.from_dict(rows, features=features)
    root = write(library, {"train": table, "test": table}, tmp_path / "data", "save_to_disk")
    assert load(root, channels=1).training[0][0].shape == (1, SIZE, SIZE)
    assert load(root).training[0][0].shape == (3, SIZE, SIZE)
