"""Shards are a folder of the same pictures, bit for bit; whatever is wrong with one is one sentence."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hardware.errors import DataError, PictureError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data import shard_index, sources
from proxyless_strategy.data.batches import BatchKey
from proxyless_strategy.data.checking import check_any, check_folder
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.shard_index import Wanted, index_of
from proxyless_strategy.data.shard_names import MOST_SHARDS, expanded, shard_paths
from proxyless_strategy.data.shard_source import ShardImages
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import batches, equal, write_images, write_shard, write_shards

SIZE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "proxyless_strategy" / "shards"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all had been written long ago."""
    monkeypatch.setattr(shard_index, "SETTLED_NS", -(10**12))


def picture(value: int = 9, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (9, 7), value).save(stream, kind, **options)
    return stream.getvalue()


def samples(*labels: int, start: int = 0) -> dict[str, bytes]:
    return {
        name: content
        for number, label in enumerate(labels, start)
        for name, content in ((f"{number:03}.png", picture(number)), (f"{number:03}.cls", str(label).encode()))
    }


def small(root: Path, **members: dict[str, bytes]) -> Path:
    """Write one training and one test shard of two classes, or these in their place."""
    parts = {"train": samples(0, 1, 0, 1), "val": samples(0, 1, start=10), **members}
    for part, content in parts.items():
        write_shard(root / f"{part}-000.tar", content)
    return root


def config_of(root: Path, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "webdataset", "root": root, "options": options})


def load(root: Path, **options: Any) -> ImageData:
    return load_data(config_of(root, **options), input_size=SIZE, seed=0)


# ---- a folder's pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "crop_flip", "imagenet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_they_give_what_a_folder_of_the_same_pictures_gives(tmp_path: Path, augment: str, workers: int) -> None:
    write_shards(write_images(tmp_path / "folder"), tmp_path / "shards")
    folder, shards = (
        load_data(
            DataConfig.model_validate({"name": name, "root": tmp_path / place, "augment": augment, "workers": workers}),
            input_size=SIZE,
            seed=5,
        )
        for name, place in (("imagefolder", "folder"), ("webdataset", "shards"))
    )
    assert shards.class_names == folder.class_names == ("a", "b", "c")
    for part in PARTS:
        assert getattr(shards, part).targets == getattr(folder, part).targets
        assert np.array_equal(getattr(shards, part).indices, getattr(folder, part).indices)
        for arguments in ({"epoch": 0}, {"epoch": 2}, {"rank": 1, "replicas": 2, "rand_augment": "rand-m9"}):
            assert equal(*(batches(data, part, batch_size=4, **arguments) for data in (folder, shards))), part


MODES: dict[str, tuple[str, Any]] = {
    "turned by EXIF": ("jpg", None),
    "16 bits": ("png", Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000)),
    "palette": ("png", Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).convert("P")),
    "grey": ("png", Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9))),
    "grey and alpha": ("png", Image.new("LA", (9, 7), (50, 100))),
    "alpha": ("webp", Image.new("RGBA", (9, 7), (10, 200, 30, 77))),
    "four inks": ("jpg", Image.new("CMYK", (9, 7), (10, 200, 30, 40))),
    "TIFF": ("tiff", Image.new("RGB", (9, 7), (10, 200, 30))),
}


def test_pictures_of_all_modes_are_read_as_from_files(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "folder" / part / name).mkdir(parents=True)
            for number, (ending, image) in enumerate(MODES.values()):
                turned = Image.Exif()
                turned[0x0112] = 6
                extra = {"exif": turned} if image is None else {"lossless": True} if ending == "webp" else {}
                made = Image.fromarray(np.arange(189, dtype=np.uint8).reshape(7, 9, 3)) if image is None else image
                made.save(tmp_path / "folder" / part / name / f"{number}.{ending}", **extra)
    write_shards(tmp_path / "folder", tmp_path / "shards")
    data = [
        load_data(
            DataConfig(name=name, root=tmp_path / place, background="#204060", architecture_fraction=0.5),
            input_size=SIZE,
            seed=0,
        )
        for name, place in (("imagefolder", "folder"), ("webdataset", "shards"))
    ]
    for index, mode in enumerate(MODES):
        files, members = (one.training.source[index][0] for one in data)
        assert (files.mode, files.size, files.tobytes()) == (members.mode, members.size, members.tobytes()), mode
        assert torch.equal(data[0].training[index][0], data[1].training[index][0]), mode


def test_without_a_background_transparency_is_refused_by_shard_and_name(tmp_path: Path) -> None:
    clear = {"5.png": picture((1, 2, 3, 4), "RGBA"), "5.cls": b"0"}
    root = small(tmp_path / "data", train={**samples(0, 1, 0, 1), **clear})
    with pytest.raises(PictureError, match=r"train-000\.tar: 5\.png has transparent pixels; set data\.background"):
        for _ in load(root).loader("training", batch_size=5):
            pass


def test_one_epoch_can_begin_at_any_batch(tmp_path: Path) -> None:
    data = load(write_shards(write_images(tmp_path / "folder"), tmp_path / "shards"))
    whole = batches(data, "training", batch_size=4, epoch=3)
    loader = data.loader("training", batch_size=4, shuffle=True, seed=3, workers=2)
    loader.sampler.set_epoch(3, start=2)
    assert equal(list(loader), whole[2:])


def test_processes_started_either_way_read_the_same(tmp_path: Path) -> None:
    data = load(write_shards(write_images(tmp_path / "folder"), tmp_path / "shards"))
    expected = [data.training[BatchKey(0, 0, number, [3 * number, 17])] for number in range(4)]
    keys = [BatchKey(0, 0, number, [3 * number, 17]) for number in range(4)]
    for method in ("fork", "spawn"):
        loader = DataLoader(data.training, batch_size=None, sampler=keys, num_workers=2, multiprocessing_context=method)
        assert equal(list(loader), expected), method


def test_no_file_stays_open(tmp_path: Path) -> None:
    source = load(small(tmp_path / "data")).training.source
    before = psutil.Process().num_fds()
    held = [source[number][0] for number in range(len(source))]
    assert psutil.Process().num_fds() == before
    assert len(held) == 4


def test_the_same_pictures_in_shards_of_another_size_are_the_same_data(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "folder")
    digests = {data_digest(load(write_shards(folder, tmp_path / str(each), each=each))) for each in (1, 5, 100)}
    assert len(digests) == 1


CHANGES = {
    "content": lambda members: members | {"002.png": picture(77)},
    "label": lambda members: members | {"000.cls": b"1", "001.cls": b"0"},
    "name": lambda members: {name.replace("002", "x02"): content for name, content in members.items()},
    "order": lambda members: dict(sorted(members.items(), reverse=True)),
    "more": lambda members: members | samples(1, start=4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_pictures_are_other_data(tmp_path: Path, change: str, settled: None) -> None:
    before = data_digest(load(small(tmp_path / "data")))
    assert data_digest(load(small(tmp_path / "data"))) == before
    assert data_digest(load(small(tmp_path / "data", train=CHANGES[change](samples(0, 1, 0, 1))))) != before


def test_labels_may_be_a_field_of_json_and_pictures_have_an_ending_of_their_own(tmp_path: Path) -> None:
    def members(*labels: int) -> dict[str, bytes]:
        found = {}
        for number, label in enumerate(labels):
            found[f"k{number}.json"] = json.dumps({"class": label, "other": "text"}).encode()
            found[f"k{number}.seg.png"] = picture(200)
            found[f"k{number}.Rgb.PNG"] = picture(number)
        return found

    root = small(tmp_path / "data", train=members(0, 1, 0, 1), val=members(1, 0))
    data = load(root, label="json.class", image="rgb.png")
    assert data.training.targets == [0, 1, 0, 1]
    assert data.test.targets == [1, 0]
    assert np.asarray(data.training.source[3][0])[0, 0].tolist() == [3, 0, 0]


def test_what_plain_tar_writes_is_read(tmp_path: Path) -> None:
    """With `./` before the names, folders, long names, hidden files, and all labels behind all pictures."""
    folder = tmp_path / "files"
    deep = folder / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    for number in range(4):
        (deep / f"ü{number}.JPEG").write_bytes(picture(number, kind="JPEG"))
        (deep / f"ü{number}.cls").write_text(f" {number % 2}\n")
    (folder / "._hidden.jpg").write_bytes(b"of a Mac")
    root = tmp_path / "data"
    root.mkdir()
    for part in ("train", "val"):
        for style in ("gnu", "pax"):
            subprocess.run(
                ["tar", f"--format={style}", "--sort=name", "-cf", str(root / f"{part}-{style}.tar"), "."],
                cwd=folder,
                check=True,
            )
    data = load(root)
    assert data.training.targets == [0, 1, 0, 1] * 2
    assert data.training.source.index.files.path(1) == f"{'d' * 90}/{'e' * 90}/ü1.JPEG"


# ---- the kept index ------------------------------------------------------------------------------------------------


def test_the_index_is_kept_and_read_again_without_the_shards_being_read(
    tmp_path: Path, cache: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shards(write_images(tmp_path / "folder"), tmp_path / "shards")
    first = load(root)
    assert len(list(cache.glob("*.npz"))) == 2

    def refused(*_: Any) -> Any:
        raise AssertionError("the shards were read again")

    monkeypatch.setattr(shard_index, "_read", refused)
    again = load(root)
    assert data_digest(again) == data_digest(first)
    kept, made = again.training.source.index, first.training.source.index
    assert all(np.array_equal(kept.arrays()[name], array) for name, array in made.arrays().items())
    assert {name: array.dtype for name, array in kept.arrays().items()} == {
        name: array.dtype for name, array in made.arrays().items()
    }
    with pytest.raises(AssertionError, match="read again"):
        load(root, label="json.label")


def test_just_written_shards_have_no_kept_index(tmp_path: Path, cache: Path) -> None:
    load(small(tmp_path / "data"))
    assert not cache.exists()


@pytest.mark.parametrize("how", ["time", "size", "another file"])
def test_a_changed_shard_is_read_again(tmp_path: Path, settled: None, how: str) -> None:
    root = small(tmp_path / "data")
    load(root)
    shard = root / "train-000.tar"
    status = shard.stat()
    content = samples(1, 0, 1, 0) if how != "size" else samples(1, 0, 1, 0, *[1] * 20)
    if how == "another file":
        shard.rename(root / "old")
    write_shard(shard, content)
    if how != "time":
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(root).training.targets[:4] == [1, 0, 1, 0]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"x" * 3000])
def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path, settled: None, content: bytes) -> None:
    root = small(tmp_path / "data")
    before = data_digest(load(root))
    for path in cache.glob("*.npz"):
        path.write_bytes(content)
    assert data_digest(load(root)) == before
    assert all(path.stat().st_size != len(content) for path in cache.glob("*.npz"))


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(small(tmp_path / "data")).training) == 4


@pytest.mark.parametrize("how", ["replaced", "gone", "cut"])
def test_a_shard_that_changes_under_a_search_is_named_and_never_read_wrongly(tmp_path: Path, how: str) -> None:
    root = small(tmp_path / "data")
    source = load(root).training.source
    shard = root / "train-000.tar"
    if how == "replaced":
        write_shard(shard, {"more.txt": b"0", **samples(1, 0, 0, 1, 1)})
    elif how == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:2000])
    words = {"gone": "cannot read the shard"}.get(how, "another one than when it was read first: '003.png'")
    with pytest.raises(DataError, match=words) as raised:
        source[3]
    assert not isinstance(raised.value, PictureError), "it would be left out"
    assert str(shard) in str(raised.value)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_twenty_thousand_pictures_are_a_few_arrays(tmp_path: Path) -> None:
    """All shared with processes that read images: Python's garbage collector, and so its counts, sees no object more
    for more pictures."""
    count, names = 20_000, [f"n{number % 1000:08d}/n{number % 1000:08d}_{number:06d}" for number in range(20_000)]
    with tarfile.open(tmp_path / "big.tar", "w") as tar:
        content = io.BytesIO(b"0")
        for name in names:
            for ending in ("jpg", "cls"):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = 1
                content.seek(0)
                tar.addfile(member, content)
    del tar, member
    gc.collect()
    before = len(gc.get_objects())
    source = ShardImages(index_of([str(tmp_path / "big.tar")], Wanted()))
    gc.collect()
    assert len(gc.get_objects()) - before < 1000
    assert len(source) == count
    assert source.item_name(count - 1).endswith(f"{names[-1]}.jpg")
    held = sum(array.nbytes for array in source.index.arrays().values())
    each = len(names[0]) + 4 + 4 * 8 + 4  # the name; its end, label, offset, size; the check
    assert held <= count * each + 100
    assert len(pickle.dumps(source)) < 1.01 * held + 10_000


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("a-{0..010}.tar", [f"a-{number:03}.tar" for number in range(11)]),
        ("{x,yz}/a-{0,2}", ["x/a-0", "x/a-2", "yz/a-0", "yz/a-2"]),
        ("a-{5..5}", ["a-5"]),
    ],
)
def test_braces_are_written_out_as_by_a_shell(name: str, names: list[str]) -> None:
    assert expanded(name) == names
    shell = subprocess.run(["bash", "-c", f"echo {name}"], capture_output=True, text=True, check=True)
    if name != "a-{5..5}":
        assert shell.stdout.split() == names


NAMES: dict[str, tuple[Any, str]] = {
    "a pipe": ("pipe:curl -s https://example.org/a.tar", "would run a command"),
    "a pipe in a list": (["train-000.tar", "PIPE: rm -r ~"], "would run a command"),
    "http": ("https://example.org/a-{00..99}.tar", "copy the shards to a disk, or mount the bucket"),
    "s3": ("s3://bucket/a.tar", "copy the shards to a disk, or mount the bucket"),
    "hf": ("hf://datasets/x/y.tar", "copy the shards to a disk"),
    "a chain": ("a::b", "copy the shards to a disk"),
    "absolute": ("/data/a.tar", "leads out of data.root"),
    "above": ("x/../../a.tar", "leads out of data.root"),
    "nothing there": ("other-*.tar", "has no file other-*.tar"),
    "one missing": ("train-{000..000}.tar", ""),
    "three missing": ("train-{000..003}.tar", r"train-001.tar and 2 more of 4 are missing"),
    "a folder of its own": ("folder.tar", "it is a folder"),
    "twice": (["train-000.tar", "train-*.tar"], "are one file"),
    "also the test's": (["train-000.tar", "val-000.tar"], "are one file"),
    "too many": ("a-{0..99999999999}.tar", f"more than {MOST_SHARDS} shards"),
    "too many in all": ("a-{0..9999}-{0..9999}.tar", f"more than {MOST_SHARDS} shards"),
    "beyond numbers": (f"a-{{0..{'9' * 400}}}.tar", "counts down or too far"),
    "down": ("a-{3..0}.tar", "counts down"),
    "open": ("a-{0..3.tar", "braces that do not close"),
    "nested": ("a-{{0,1},2}.tar", "braces"),
    "one text": ("a-{x}.tar", "neither {000..999} nor {a,b}"),
    "steps": ("a-{0..9..2}.tar", "neither {000..999} nor {a,b}"),
    "a number": (3, "give the name of a shard"),
    "empty": ([], "give the name of a shard"),
    "an empty name": ([""], "give the name of a shard"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_stands_for_no_shards_is_one_sentence(tmp_path: Path, case: str) -> None:
    given, words = NAMES[case]
    root = small(tmp_path / "data")
    (root / "folder.tar").mkdir()
    config = config_of(root, train=given)
    if not words:
        check_data(config)
        return
    with pytest.raises(DataError) as raised:
        load_data(config, input_size=SIZE, seed=0)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"data\.options\.train|it is a folder|has no file"):
        check_data(config)


def test_wildcards_are_sorted_and_a_root_may_have_any_name(tmp_path: Path) -> None:
    root = tmp_path / "[a]*"
    for name in ("b-2.tar", "b-10.tar", "b-1.tar", ".b-0.tar"):
        write_shard(root / name, samples(0))
    assert [Path(path).name for path in shard_paths(root, "b-*.tar", option="x")] == ["b-1.tar", "b-10.tar", "b-2.tar"]


def test_no_command_is_run(tmp_path: Path) -> None:
    root = small(tmp_path / "data")
    mark = tmp_path / "mark"
    with pytest.raises(DataError, match="would run a command"):
        load(root, train=f"pipe:touch {mark}")
    write_shard(root / f"train-pipe:touch {mark.name}.tar", samples(0, 1))
    load(root)
    assert not mark.exists()


# ---- what is wrong -------------------------------------------------------------------------------------------------


def raw(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def special(kind: bytes, **attributes: Any) -> bytes:
    member = tarfile.TarInfo("odd.png")
    member.type = kind
    for name, value in attributes.items():
        setattr(member, name, value)
    return raw((member, b""))


def named(name: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = 1
    return raw((member, b"x"))


def whole(**more: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in (samples(0, 1, 0, 1) | more).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def negative() -> bytes:
    content = bytearray(named("x.png"))
    content[124:136] = b"\xff" * 8 + (-4096 & 0xFFFFFFFF).to_bytes(4, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


END = len(whole().rstrip(b"\0")) // 512 * 512 + 512
FILES: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is no whole tar file: empty file"),
    "text": (b"no tar file" * 100, "is no whole tar file"),
    "only an end": (bytes(10240), "holds no picture"),
    "cut in a picture": (whole()[:600], "is no whole tar file: unexpected end of data"),
    "cut in a header": (whole()[: 2 * 512 + 100], "there is no header of a member at byte 1024"),
    "cut between members": (whole()[:END], "ends without the mark of its end"),
    "a damaged header": (whole()[:1024] + b"x" * 512 + whole()[1536:], "there is no header of a member at byte 1024"),
    "two joined": (whole() + whole(), "goes on behind its end"),
    "gzip": (
        gzip.compress(whole()),
        "is compressed (gzip), so that no place in it can be read alone; unpack it with `gu",
    ),
    "bzip2": (bz2.compress(whole()), "is compressed (bzip2)"),
    "xz": (lzma.compress(whole()), "is compressed (xz)"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "is compressed (zstd)"),
    "a link": (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "the member odd.png is a link"),
    "a hard link": (special(tarfile.LNKTYPE, linkname="other.png"), "the member odd.png is a link"),
    "a pipe": (special(tarfile.FIFOTYPE), "the member odd.png is no plain file"),
    "a device": (special(tarfile.CHRTYPE, devmajor=1, devminor=5), "the member odd.png is no plain file"),
    "out of it": (named("../../x.png"), "the member ../../x.png leads out of it"),
    "absolute": (named("/etc/x.png"), "the member /etc/x.png leads out of it"),
    "a negative size": (negative(), "no whole tar file"),
    "a size beyond the file": (whole()[:512] + whole()[512:1024], "ends without"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_shard_is_one_sentence(tmp_path: Path, case: str) -> None:
    content, words = FILES[case]
    root = small(tmp_path / "data")
    (root / "train-001.tar").write_bytes(content)
    for check in (lambda: load(root), lambda: check_data(config_of(root))):
        with pytest.raises(DataError) as raised:
            check()
        assert words in str(raised.value)
        assert str(root / "train-001.tar") in str(raised.value)
        assert "\n" not in str(raised.value)
        assert ";" in str(raised.value), "there is a remedy"


def test_every_cut_of_a_shard_is_noticed(tmp_path: Path) -> None:
    root = small(tmp_path / "data")
    content = whole()
    for length in range(1, END + 512, 256):
        (root / "train-001.tar").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"train-001\.tar"):
            load(root)


def put(**members: bytes) -> dict[str, bytes]:
    return samples(0, 1, 0, 1) | {name.replace("__", "."): content for name, content in members.items()}


def dropped(name: str) -> dict[str, bytes]:
    return {key: content for key, content in samples(0, 1, 0, 1).items() if key != name}


SAMPLES: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "no label": (dropped("002.cls"), {}, "the sample 002 has no label: there is no 002.cls with its class number"),
    "a label in JSON": (dropped("002.cls") | {"002.json": b"{}"}, {}, "set data.options.label to json.FIELD"),
    "no picture": (dropped("002.png"), {}, "the sample 002 has no picture"),
    "a dot in a name": (
        put(**{"x__v2__png": picture(), "x__v2__cls": b"0"}),
        {},
        "sample's name ends at its first dot",
    ),
    "two pictures": (put(x__png=picture(), x__jpg=picture(), x__cls=b"0"), {}, "has two pictures, png and jpg"),
    "no class number": (put(**{"000__cls": b"cat"}), {}, "the label of 000 is 'cat'; write a class number"),
    "empty": (put(**{"000__cls": b""}), {}, "the label of 000 is ''"),
    "negative": (put(**{"000__cls": b"-1"}), {}, "the label of 000 is '-1'"),
    "a fraction": (put(**{"000__cls": b"1.0"}), {}, "the label of 000 is '1.0'"),
    "beyond numbers": (put(**{"000__cls": b"9" * 5000}), {}, "write a class number"),
    "long": (put(**{"000__cls": b"1" * 2_000_000}), {}, "has 2000000 bytes"),
    "bytes": (put(**{"000__cls": b"\xff\xfe"}), {}, "the label of 000 is no text"),
    "a gap": (
        put(**{"000__cls": b"7", "002__cls": b"0"}),
        {},
        "class 2 has no training picture, but the classes are 0..7",
    ),
    "from 1 on": (samples(1, 2, 1, 2), {}, "class 0 has no training picture, but the classes are 0..2"),
    "JSON": (put(**{f"00{n}__json": b"[1]" for n in range(4)}), {"label": "json.label"}, "its JSON is no mapping"),
    "JSON without": (put(**{f"00{n}__json": b'{"a": 1}' for n in range(4)}), {"label": "json.b"}, "has a, and no b"),
    "JSON's text": (put(**{f"00{n}__json": b'{"b": "1"}' for n in range(4)}), {"label": "json.b"}, "is '1' (b)"),
    "JSON's truth": (put(**{f"00{n}__json": b'{"b": true}' for n in range(4)}), {"label": "json.b"}, "is True (b)"),
    "JSON's twice": (put(**{f"00{n}__json": b'{"b": 1, "b": 0}' for n in range(4)}), {"label": "json.b"}, "twice"),
    "no such ending": (samples(0, 1, 0, 1), {"image": "jpg"}, "has no picture jpg"),
    "no pictures": ({"a.txt": b"x"}, {}, "holds no picture"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_sample_that_is_none_is_one_sentence(tmp_path: Path, case: str) -> None:
    members, options, words = SAMPLES[case]
    root = small(tmp_path / "data", train=members)
    with pytest.raises(DataError) as raised:
        load(root, **options)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    if "classes are" not in words:
        assert "train-000.tar" in str(raised.value)


@pytest.mark.parametrize("second", ["000.png", "000.PNG", "./000.png"])
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, second: str) -> None:
    root = small(tmp_path / "data")
    with tarfile.open(root / "train-000.tar", "a") as tar:
        member = tarfile.TarInfo(second)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match=r"the sample 000 has the member png twice; give each its own name"):
        load(root)


def test_keys_count_anew_in_each_shard(tmp_path: Path) -> None:
    root = small(tmp_path / "data")
    write_shard(root / "train-001.tar", samples(1, 0))
    source = load(root).training.source
    assert [source.item_name(number).rpartition("/")[2] for number in (0, 4)] == [
        "train-000.tar: 000.png",
        "train-001.tar: 000.png",
    ]


def test_what_is_no_part_of_a_sample_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"README.txt": b"", "000.txt": b"a caption", "__meta__.json": b"{}", "__keep__": b"", "__MACOSX/a.png": b""}
    load(small(tmp_path / "data", train=samples(0, 1, 0, 1) | extra))
    assert "2 members belong to no picture (1 txt, 1 json)" in capsys.readouterr().err


CLASSES: dict[str, tuple[bytes | None, dict[str, Any], str]] = {
    "too few": (
        b"ant\n",
        {},
        r"train-000.tar: 001.png is of class 1, outside 0..0 (as the list of classes says), and 1",
    ),
    "too many": (b"ant\nbee\ncow\n", {}, "class 2 (cow) has no training picture"),
    "twice": (b"ant\nant\n", {}, "names 'ant' twice"),
    "a gap": (b"ant\n\nbee\n", {}, "has an empty line"),
    "empty": (b"\n", {}, "is empty"),
    "missing": (None, {"classes": "names.txt"}, "names.txt"),
    "bytes": (b"\xff\xfe\x00", {}, "classes.txt"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_list_of_classes_that_does_not_fit_is_one_sentence(tmp_path: Path, case: str) -> None:
    content, options, words = CLASSES[case]
    root = small(tmp_path / "data")
    if content is not None:
        (root / "classes.txt").write_bytes(content)
    with pytest.raises(DataError) as raised:
        load(root, **options)
    assert words in str(raised.value)


def test_a_label_of_the_test_part_that_train_does_not_have_is_named(tmp_path: Path) -> None:
    root = small(tmp_path / "data", val=samples(0, 5))
    with pytest.raises(
        DataError, match=r"val-000\.tar: 001\.png is of class 5, outside 0\.\.1 \(without data\.options"
    ):
        load(root)


def test_a_class_without_test_pictures_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(small(tmp_path / "data", val=samples(0, 0)))
    assert "1 of 2 classes have no test picture, such as class 1" in capsys.readouterr().err


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"tran": "a"}, "unknown data option 'tran'; webdataset takes train, val, classes, label, image"),
    "no field": ({"label": "json"}, "names no field"),
    "no field either": ({"label": "json."}, "names no field"),
    "a number": ({"label": 3}, "data.options.label = 3; give a text"),
    "both": ({"label": "png", "image": "png"}, "are both 'png'"),
    "of pictures": ({"crop_pct": 7}, "data.options.crop_pct = 7"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_impossible_option_is_one_sentence(tmp_path: Path, case: str) -> None:
    options, words = OPTIONS[case]
    with pytest.raises(DataError) as raised:
        check_data(config_of(small(tmp_path / "data"), **options), scan=False)
    assert words in str(raised.value)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    for config in (config_of(tmp_path / "nowhere"), DataConfig(name="webdataset")):
        with pytest.raises(
            DataError, match=r"(nowhere is no folder|data\.root is missing); give the folder of the shards"
        ):
            check_data(config)


def test_a_quick_check_reads_no_shard(tmp_path: Path) -> None:
    root = small(tmp_path / "data")
    (root / "train-000.tar").write_bytes(b"")
    check_data(config_of(root), scan=False)
    with pytest.raises(DataError, match="empty file"):
        check_data(config_of(root))


# ---- pictures that cannot be read ----------------------------------------------------------------------------------


def damaged(root: Path) -> Path:
    bad = {"004.png": picture()[:40], "004.cls": b"1", "005.png": b"", "005.cls": b"0"}
    return small(root, train=samples(0, 1, 0, 1) | bad | samples(0, 1, 0, 1, start=6))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_named_by_shard_and_member(tmp_path: Path, workers: int) -> None:
    data = load(damaged(tmp_path / "data"))
    words = r"cannot read .*/train-000\.tar: 00[45]\.png: .*; replace or remove it, or set skip_unreadable to true"
    with pytest.raises(PictureError, match=words) as raised:
        list(data.loader("training", batch_size=2, workers=workers))
    assert raised.value.path is None, "there is no file to be replaced by itself"


def test_unreadable_pictures_are_left_out_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(damaged(tmp_path / "data")).model_copy(
        update={"skip_unreadable": True, "architecture_fraction": 0.5}
    )
    data = load_data(config, input_size=SIZE, seed=0)
    assert [name.rpartition("/")[2].partition(": ")[2][:7] for name in data.left_out] == ["004.png", "005.png"]
    assert len(data.training) == 8
    assert "2 of 12 pictures are left out, as they cannot be read" in capsys.readouterr().err
    assert data.training.targets == [0, 1] * 4


def test_data_check_lists_them(tmp_path: Path) -> None:
    checked = check_any(config_of(damaged(tmp_path / "data")), input_size=SIZE, seed=0)
    assert checked.pictures == 12
    assert [problem.rpartition("/")[2][:22] for problem in checked.problems] == [
        "train-000.tar: 004.png",
        "train-000.tar: 005.png",
    ]


def test_a_folder_of_shards_is_told_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 tar files, which .* names by `data: \{name: webdataset"):
        check_folder(DataConfig(name="imagefolder", root=small(tmp_path / "data")))


def test_the_source_is_one_that_a_wrong_name_is_told_of() -> None:
    with pytest.raises(DataError, match=r"data\.name is digits, imagefolder, webdataset, hfds"):
        sources.check_data(DataConfig(name="wds"))


def test_it_reads_what_webdatasets_own_writer_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the library is no dependency; its files are read without it")
    (tmp_path / "data").mkdir()
    for part in ("train", "val"):
        with webdataset.ShardWriter(str(tmp_path / "data" / f"{part}-%04d.tar"), maxcount=3, verbose=0) as writer:
            for number in range(8):
                image = Image.new("RGB", (9, 7), (number, 0, 0))
                writer.write({"__key__": f"key{number}", "png": image, "cls": number % 2})
    data = load(tmp_path / "data")
    assert data.training.targets == [0, 1] * 4
    assert [np.asarray(data.training.source[n][0])[0, 0, 0] for n in range(8)] == list(range(8))
