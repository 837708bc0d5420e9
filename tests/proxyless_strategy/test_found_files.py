"""What the fuzzer has found: kinds of files that once ended a reader in anything but one sentence about them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks.fuzz_cases import Case, Judge
from tests.benchmarks.fuzz_targets import targets

TARGETS = {target.name: target for target in targets()}
Change = Callable[[bytes], bytes]


def put(content: str | bytes) -> Change:
    return lambda good: content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")


def swapped(old: str, new: str) -> Change:
    def change(good: bytes) -> bytes:
        assert old.encode() in good
        return good.replace(old.encode(), new.encode(), 1)

    return change


def edited(edit: Callable[[dict[str, Any]], Any]) -> Change:
    def change(good: bytes) -> bytes:
        values = json.loads(good)
        edit(values)
        return json.dumps(values).encode()

    return change


def cifar(**values: Any) -> Change:
    return lambda good: pickle.dumps({**pickle.loads(good), **values})


def sparse(good: bytes) -> bytes:
    tensors = torch.load(io.BytesIO(good), weights_only=True)
    key = next(iter(tensors))
    stream = io.BytesIO()
    torch.save({**tensors, key: tensors[key].to_sparse()}, stream)
    return stream.getvalue()


class _Large:
    """An array whose pickle asks for its memory before its values."""

    def __reduce__(self) -> Any:
        return np.ndarray, ((10**10,), "u1")


LARGE = pickle.dumps({"label_names": _Large()}, protocol=2)
LATE = b"\x80\x04r\xff\xff\xff\x7f."
"""A pickle that keeps a value at the last place of a table."""
BYTES = b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"."
"""A pickle of a byte array of 8 GiB, of which none is there."""
IDX = b"\0\0\x08\x03" + struct.pack(">III", 40, 28, 28)
UNKNOWN = "{" + ", ".join(f"x{number}: 1" for number in range(9)) + "}"


def no_head(good: bytes) -> bytes:
    changed = good.replace(b"head-in:32x2x2", b"head-in:32x3x3")
    return swapped("device: ", f"device: {'x' * 3000} # ")(changed)


FOUND: dict[str, list[tuple[str, Change]]] = {
    "search YAML": [
        ("unknown keys of several sections", put(f"{{space: {UNKNOWN}, search: {UNKNOWN}, data: {UNKNOWN}}}")),
        ("a platform of no name", put("{hardware: {name: x}, platforms: {1: {}, a: {}}}")),
    ],
    "preset": [
        ("a section that is none", put("{retrain: true, presets: {smoke: {retrain: {epochs: 1}}}}")),
        ("a rule without its steps", put("presets: {smoke: {search: {steps_per_update: {gradient: 5}}}}")),
        ("presets by number", put("{presets: {x: {}, 1: {}}}")),
    ],
    "sweep YAML": [("a value that is none", swapped("_value: [", "_value: [[], "))],
    "settings of --set": [
        ("half a character", put("search.epochs=\udc80")),
        ("no value", put("x" * 500)),
    ],
    "recipe": [("unknown keys", put(UNKNOWN))],
    "latency table": [
        ("a long name of a space", swapped("space: ", f"space: {'x' * 3000} # ")),
        ("a long name of a device, and no such operator", no_head),
    ],
    "table of ProxylessNAS": [("a long key", swapped("7x7x320", "7x7" + "x320" * 500))],
    "key of a released table": [
        ("a long key", put("a" * 2000)),
        ("a long shape", put("Conv-input:" + "x" * 2000 + "-output:1x1x1")),
    ],
    "kit": [
        ("no graphs", put("{}")),
        ("a number for the graphs", put('{"graphs": 0.5}')),
        ("a deep nesting", put("[" * 100_000)),
        ("a long name", edited(lambda v: v["graphs"].update({"x" * 5000: []}))),
        ("a number that is none", edited(lambda v: v.update(batch=float("nan")))),
    ],
    "results of a kit": [
        ("lines for a count", edited(lambda v: v["graphs"]["op_000.onnx"].update(count="a\nb"))),
        ("many counts", edited(lambda v: v["graphs"]["op_000.onnx"].update(count=dict.fromkeys("abcdefgh" * 99, 1)))),
    ],
    "search.json": [
        ("a list for a unit", edited(lambda v: v["history"][2].update(unit=["ms"]))),
        ("an epoch without its number", edited(lambda v: v["history"][0].pop("epoch"))),
    ],
    "config.json of a search": [
        ("a number for the space", edited(lambda v: v.update(space=3))),
        ("no hardware", edited(lambda v: v.pop("hardware"))),
        ("a text for a rate", edited(lambda v: v["search"].update(architecture_learning_rate="hf-hub:x"))),
        ("a long stage", edited(lambda v: v["space"]["options"]["stages"][0].update(depth="x" * 5000))),
    ],
    "config.json of a search that goes on": [("a key of lines", edited(lambda v: v["search"].update({"a\nb": 1})))],
    "subnet.json": [
        ("no choices", edited(lambda v: v.update(choices={}))),
        ("a long stage", edited(lambda v: v["space"]["stages"][0].update(depth="x" * 5000))),
        ("a long name", edited(lambda v: v["space"].update(name="x" * 5000, stem_stride=9))),
    ],
    "released checkpoint": [("a sparse tensor", sparse)],
    "config.json of an export": [("an unknown key", edited(lambda v: v["pretrained_cfg"].update(true=1)))],
    "CIFAR batch": [
        ("no array", cifar(data=[[1, 2]])),
        ("an array of another shape", cifar(data=np.zeros((3, 3), np.uint8))),
        ("a label that is none", lambda good: cifar(labels=[{"x": 2}, *pickle.loads(good)["labels"][1:]])(good)),
        ("a label without a name", lambda good: cifar(labels=[255, *pickle.loads(good)["labels"][1:]])(good)),
        ("a label of many digits", lambda good: cifar(labels=[10**5000, *pickle.loads(good)["labels"][1:]])(good)),
        ("a list", put(pickle.dumps([1]))),
        ("a place in a table", put(LATE)),
        ("bytes that are not there", put(BYTES)),
    ],
    "CIFAR names": [
        ("an array that asks for memory", put(LARGE)),
        ("a number", put(pickle.dumps({"label_names": 3}))),
        ("too few names", put(pickle.dumps({"label_names": ["a", "b"]}))),
    ],
    "IDX images": [("too few", put(IDX)), ("too many", lambda good: good + b"\0"), ("no byte", put(b""))],
    "IDX labels": [("a label of no class", lambda good: good[:-1] + b"\xff"), ("one less", lambda good: good[:-1])],
    "packed IDX images": [
        ("packed bytes without end", put(gzip.compress(IDX + bytes(2**24)))),
        ("cut short", lambda good: good[:-20]),
    ],
    "IDX images of torchvision": [("no byte", put(b"")), ("too many", lambda good: good + b"\0")],
}
"""By the fuzzer's target, what is found in the file, and how a good one is changed to have it."""
SPECIAL = {
    "kit": ("a folder", "a pipe", "a link to an endless file", "2 GB of nothing"),
    "CIFAR names": ("missing", "a folder", "a pipe"),
    "IDX images": ("missing", "a folder", "a pipe", "a link to itself", "a link to an endless file"),
    "IDX labels": ("missing",),
    "packed IDX images": ("missing", "a pipe"),
    "IDX images of torchvision": ("missing", "a folder", "a pipe"),
}


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Judge, bytes]]:
    made: dict[str, tuple[Judge, bytes]] = {}

    def judge(name: str) -> tuple[Judge, bytes]:
        if name not in made:
            target, place = TARGETS[name], tmp_path_factory.mktemp("found")
            (place / "good").mkdir()
            target.prepare(place / "good")
            content = (place / "good" / target.file).read_bytes() if target.file else target.seeds(place / "good")[0]
            made[name] = (Judge(target, place / "good", place / "case"), content)
        return made[name]

    return judge


def check(judge: Judge, case: Case) -> None:
    fault = judge(case)
    assert fault is None, fault.sentence
    taken, fault = judge._read(case, good=False)
    assert not taken, "it was taken, so that nothing was judged"


@pytest.mark.parametrize(
    ("name", "change"),
    [pytest.param(name, change, id=f"{name}: {what}") for name, rows in FOUND.items() for what, change in rows],
)
def test_a_file_that_was_found_is_refused_in_one_sentence(name: str, change: Change, judges: Any) -> None:
    judge, good = judges(name)
    check(judge, Case(change(good)))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in SPECIAL.items() for kind in kinds])
def test_what_is_no_file_is_refused_in_one_sentence(name: str, kind: str, judges: Any) -> None:
    check(judges(name)[0], Case(special=kind))


@pytest.mark.parametrize("name", [*FOUND])
def test_a_good_file_is_read(name: str, judges: Any) -> None:
    """Else the tests above would find nothing."""
    judge, good = judges(name)
    assert judge(Case(good), good=True) is None


def test_no_more_memory_is_asked_for_than_a_file_has(tmp_path: Path) -> None:
    import resource

    from hardware.reading import bytes_of

    (tmp_path / "small").write_bytes(b"small")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        assert bytes_of(tmp_path / "small", limit=2**31) == b"small"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
