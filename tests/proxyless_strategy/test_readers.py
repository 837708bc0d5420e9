"""Every reader of files, on files with which anything may be wrong: one typed sentence each, that names the file.

A reader is added to `READERS`; a kind of damage to `DAMAGES`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError

from hardware.errors import ExportError, ProxylessError
from hardware.files import save_figure
from hardware.measuring.kit import import_results
from hardware.measuring.predictor import LearnedModel
from hardware.measuring.sampling import PartialSamples
from hardware.measuring.trtexec import import_trtexec
from hardware.tables.energy import EnergyEntry, EnergyHeader, EnergyTable
from hardware.tables.released import read_released
from hardware.tables.table import LatencyTable, plain
from proxyless_strategy.checkpoints import read_checkpoint, write_checkpoint
from proxyless_strategy.config import DataConfig, SearchConfig, key_values, load_config, parse_config
from proxyless_strategy.data.drawn import draw_cifar10
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.data.unreadable import as_begun
from proxyless_strategy.export.folder import export_folder, load_exported, read_choice, read_export
from proxyless_strategy.layout import FLEET_FILE
from proxyless_strategy.owner import _read as read_starts
from proxyless_strategy.report.page import write_page
from proxyless_strategy.report.pictures import draw_searches
from proxyless_strategy.retraining.recipe import RECIPES, load_recipe
from proxyless_strategy.runs.finished import read_losses, read_run, read_runs, read_searched, read_warnings
from proxyless_strategy.runs.fleet import read_errand
from proxyless_strategy.runs.result import write_search
from proxyless_strategy.runs.same_run import check_same_run
from proxyless_strategy.runs.sensitivity import FORMAT as SENSITIVITY
from proxyless_strategy.runs.sensitivity import read_sensitivity
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.runs.trials import Record, Trial, note_start, read_end, read_record, read_trials
from proxyless_strategy.sections import DrawnImages
from proxyless_strategy.shrinking.comparison import Compared, Comparison
from proxyless_strategy.shrinking.story import check_same_settings
from proxyless_strategy.threads import keep_threads, read_threads
from search_spaces import Subnet, get_space, users_space
from search_spaces.released import read_checkpoint as read_released_checkpoint
from search_spaces.released import read_config
from tests.proxyless_strategy.data.samples import write_idx

FIXTURE = Path(__file__).parents[1] / "data" / "run_bc6f2f8"
ROOT = Path(__file__).parents[2]
SWEEP = """
searchSpace: {rule: {_type: choice, _value: [gradient]}}
trialCommand: python -m proxyless_strategy.trial search.yml
trainingService: {platform: local}
trialConcurrency: 1
"""


def a_run(folder: Path) -> Path:
    shutil.copytree(FIXTURE / "gradient", folder / "run")
    settings = json.loads((folder / "run" / "config.json").read_text())
    settings["hardware"]["table"] = str(FIXTURE / "table.yml")
    (folder / "run" / "config.json").write_text(json.dumps(settings))
    return folder / "run"


def a_table(folder: Path) -> Path:
    return Path(shutil.copy(FIXTURE / "table.yml", folder / "table.yml"))


def an_energy_table(folder: Path) -> Path:
    header = EnergyHeader("a board", "RAPL package-0", "onnxruntime", "cpu", 1, 1, "float32", 16, 0.3)
    EnergyTable(header, {"conv-in:3x8x8-out:8x4x4-kernel:3": EnergyEntry(1.5)}).save(folder / "energy.yml")
    return folder / "energy.yml"


def a_released_table(folder: Path) -> Path:
    (folder / "released.yml").write_text("Conv-input:224x224x3-output:112x112x32: {count: 9, mean: 4.0, var: 0.2}\n")
    return folder / "released.yml"


def a_learned_model(folder: Path) -> Path:
    header = LatencyTable.load(FIXTURE / "table.yml").header
    model = LearnedModel({"dense.work": 0.1}, 0.2, {"test": {"mape": 0.1}}, 20, header)
    model.save(folder / "model.json")
    return folder / "model.json"


def a_sweep(folder: Path) -> Path:
    (folder / "search.yml").write_text("search: {epochs: 2, batch_size: 8}\n")
    (folder / "sweep.yml").write_text(SWEEP)
    return folder / "sweep.yml"


def a_config(folder: Path) -> Path:
    (folder / "search.yml").write_text("rule: gradient\npresets: {smoke: {search: {epochs: 2}}}\n")
    return folder / "search.yml"


def written(name: str, content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
        return folder / name

    return write


def saved(name: str, content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return write


def in_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: a_run(folder) / name


def a_released_network(folder: Path) -> Path:
    network = {"name": "ProxylessNASNets", "first_conv": {"name": "ConvLayer"}, "blocks": [{}, {}]}
    return written("net.json", network)(folder)


@functools.cache
def digits() -> Any:
    return load_data(DataConfig(), input_size=8, seed=0)


DRAWN = DrawnImages(classes=2, train=5, val=2, size=32)


def a_cifar(folder: Path) -> Path:
    draw_cifar10(folder / "cifar", DRAWN)
    return folder / "cifar" / "cifar-10-batches-py" / "data_batch_1"


def an_idx(folder: Path) -> Path:
    write_idx(folder, packed=False)
    return folder / "train-images-idx3-ubyte"


def a_packed_idx(folder: Path) -> Path:
    write_idx(folder, packed=True)
    return folder / "train-labels-idx1-ubyte.gz"


def of_data(name: str, up: int, draw: DrawnImages | None = None) -> Callable[[Path], Any]:
    return lambda path: load_data(DataConfig(name=name, root=path.parents[up], draw=draw), input_size=32, seed=0)


def trial_of(path: Path) -> None:
    """Whoever follows an experiment goes on; the sentence is the trial's failure."""
    raise ProxylessError(f"{path}: {read_end(path.parents[1], Trial(path.parent.name, {})).failure}")


def told(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Make a reader that goes on without the file raise what it says; it names the file itself."""

    def reading(path: Path) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = read(path)
        assert not found
        if said.getvalue():
            raise ProxylessError(said.getvalue().strip())

    return reading


def a_comparison(folder: Path) -> Path:
    net = Compared(folder="a", onnx="b", accuracy=0.5, ms=1.0, table_ms=1.0, cost=1.0, params=1, macs=1, epochs=1)
    Comparison("timm:a", "0.6x", "ms", 1.0, {}, net, net, 1.0).save(folder)
    return folder / "comparison.json"


def a_shrinking(path: Path) -> None:
    check_same_settings(parse_config({"out": str(path.parent)}))


def some_profiles(folder: Path) -> Path:
    results = json.loads((FIXTURE / "results.json").read_text())
    for part in ("kit", "profiles"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "kit/kit.json").write_text(json.dumps({**results["kit"], "weights": "full"}))
    for name, figure in results["graphs"].items():
        times = {"timeMs": 8 * figure["ms"], "averageMs": figure["ms"], "medianMs": figure["ms"], "percentage": 100}
        path = (folder / "profiles" / name).with_suffix(".json")
        path.write_text(json.dumps([{"count": 8}, {"name": "/0/Conv", **times}]))
    return folder


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "search config": (a_config, load_config),
    "sweep": (a_sweep, read_sweep),
    "a sweep's search config": (
        lambda folder: a_sweep(folder).with_name("search.yml"),
        lambda p: read_sweep(p.with_name("sweep.yml")),
    ),
    "recipe": (lambda folder: Path(shutil.copy(RECIPES / "quick.yml", folder / "own.yml")), load_recipe),
    "table": (a_table, LatencyTable.load),
    "energy table": (an_energy_table, EnergyTable.load),
    "comparison": (a_comparison, lambda p: Comparison.load(p.parent)),
    "settings of a shrinking": (written("shrink.json", {}), a_shrinking),
    "released table": (a_released_table, read_released),
    "kit results": (lambda folder: Path(shutil.copy(FIXTURE / "results.json", folder)), import_results),
    "profile of trtexec": (
        lambda folder: some_profiles(folder) / "profiles" / "op_000.json",
        lambda p: import_trtexec(p.parent, p.parents[1] / "kit", device="a board"),
    ),
    "kit of profiles": (
        lambda folder: some_profiles(folder) / "kit" / "kit.json",
        lambda p: import_trtexec(p.parents[1] / "profiles", p.parent, device="a board"),
    ),
    "learned model": (a_learned_model, LearnedModel.load),
    "partial samples": (
        written("t.partial", {"settings": {}, "samples": {"a": [1.0]}}),
        told(lambda p: PartialSamples(p, {}).load()),
    ),
    "subnet": (lambda folder: Path(shutil.copy(FIXTURE / "gradient/model/subnet.json", folder)), Subnet.load),
    "released network": (a_released_network, read_config),
    "released checkpoint": (
        saved("net.pth", {"x": torch.zeros(3)}),
        lambda p: read_released_checkpoint(p, _Keyless(), {}),
    ),
    "export config": (in_run("model/config.json"), lambda p: read_export(p.parent)),
    "exported network": (in_run("model/config.json"), lambda p: load_exported(p.parent)),
    "exported weights": (in_run("model/model.safetensors"), lambda p: load_exported(p.parent)),
    "exported subnet": (in_run("model/subnet.json"), lambda p: read_choice(p.parent)),
    "timm model's folder": (in_run("model/config.json"), lambda p: a_timm_space(p).feeding()),
    "timm model's weights": (in_run("model/model.safetensors"), lambda p: a_timm_space(p).check_weights()),
    "search.json": (in_run("search.json"), lambda p: read_run(p.parent)),
    "search.json of a report": (in_run("search.json"), lambda p: write_page(p.parent, p.parent / "page.html")),
    "row.json": (in_run("row.json"), lambda p: read_runs(p.parent)),
    "config.json": (in_run("config.json"), lambda p: read_run(p.parent).config),
    "config.json of the same run": (in_run("config.json"), lambda p: check_same_run(SearchConfig(out=p.parent))),
    "an ended search": (in_run("search.json"), lambda p: read_searched(p.parent, get_space("small_mbconv"))),
    "an ended search's warnings": (in_run("search.json"), lambda p: read_warnings(p.parent)),
    "an ended search's losses": (in_run("search.json"), lambda p: read_losses(p.parent)),
    "sensitivity.json": (written("sensitivity.json", {"format": SENSITIVITY}), read_sensitivity),
    "threads.json": (written("threads.json", {"search": 1}), lambda p: read_threads(p.parent)),
    "starts.json": (written("starts.json", []), told(lambda p: read_starts(p, warn=True))),
    "search.ckpt": (
        saved("search.ckpt", {"state_dict": {}}),
        lambda p: read_checkpoint(p, what="a search", check=lambda state: "it is of another search"),
    ),
    "machines.json": (written(FLEET_FILE, {}), read_errand),
    "experiment.json": (written("experiment.json", {}), lambda p: read_record(p.parent)),
    "parameters.json": (written("abc/parameters.json", {}), told(lambda p: read_trials(p.parents[1], "x"))),
    "result.json": (written("abc/result.json", {}), trial_of),
    "failure.json": (written("abc/failure.json", {}), trial_of),
    "unreadable.json": (written("unreadable.json", {}), lambda p: as_begun(digits(), p.parent)),
    "CIFAR": (a_cifar, of_data("torchvision:CIFAR10", 1, DRAWN)),
    "IDX": (an_idx, of_data("torchvision:FashionMNIST", 0)),
    "packed IDX": (a_packed_idx, of_data("torchvision:FashionMNIST", 0)),
}  # fmt: skip
"""How a whole file is made, and who reads it. Not all of them are complete: it is the damage that is looked at."""


def a_timm_space(path: Path) -> Any:
    return users_space(f"timm:local-dir:{path.parent}")


class _Keyless:
    def key_map(self) -> dict[str, str]:
        return {"no such key": "x"}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


def put(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> object:
        path.unlink()
        return make(path)

    return replace


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": put(b""),
    "garbage": put(bytes(range(256)) * 4),
    "invalid UTF-8": put(b'{"a": "\xff"}'),
    "UTF-16": put('{"a": 1}'.encode("utf-16")),
    "a byte order mark alone": put(b"\xef\xbb\xbf"),
    "deep nesting": put(b"[" * 100_000),
    "closed deep nesting": put(b'{"a":' * 3000 + b"1" + b"}" * 3000),
    "alias bomb": put(BOMB.encode()),
    "a value that holds itself": put(b"&a {b: *a, a: [*a]}\n"),
    "a list": put(b"[]"),
    "a list of lists": put(b"[[1], [2]]"),
    "a text": put(b'"words"'),
    "a number": put(b"3"),
    "null": put(b"null"),
    "a key twice": put(b'{"a": 1, "a": 2}'),
    "an unknown key": put(b'{"unheard": 1}'),
    "a huge number": put(b'{"rule": 1e400, "seed": ' + b"9" * 5000 + b"}"),
    "NaN": put(b'{"rule": NaN, "target": .nan}'),
    "half a character": put(b'{"a": "\\ud800"}'),
    "NUL": put(b'{"out": "a\\u0000b"}'),
    "a folder": instead(lambda path: path.mkdir()),
    "a pipe": instead(os.mkfifo),
    "a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
    "long lines": put(b'{"' + b"x" * 50_000 + b'": "' + b"y" * 50_000 + b'"}'),
    "a tag": put(b"!!python/object/apply:os.system ['false']\n"),
}
FINE = {
    "missing": {
        "exported subnet",
        "config.json of the same run",
        "threads.json",
        "experiment.json",
        "an ended search",
        "row.json",
        "parameters.json",
        "starts.json",
        "partial samples",
        "unreadable.json",
        "settings of a shrinking",
    },
    "a list": {"starts.json"},
    # what is not looked for, and what the next export passes on
    "an unknown key": {
        "exported subnet",
        "row.json",
        "an ended search's warnings",
        "an ended search's losses",
        "threads.json",
    },
    "long lines": {
        "exported subnet",
        "row.json",
        "an ended search's warnings",
        "an ended search's losses",
        "unreadable.json",
    },
}
"""Where nothing is wrong."""


@pytest.fixture
def at_once() -> Iterator[None]:
    """End a reader that waits, or goes on for ever, with an error."""

    def stop(*_: Any) -> None:
        raise AssertionError("it took more than 10 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_wrong_with_a_file_is_one_sentence_that_names_it(
    reader: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a short path, as in a terminal
    make, read = READERS[reader]
    path = make(tmp_path)
    DAMAGES[damage](path)
    if reader in FINE.get(damage, ()):
        read(path)
        return
    with pytest.raises(ProxylessError) as error:
        read(path)
    sentence = str(error.value)
    assert path.name in sentence or path.parent.name in sentence or str(path.parent) in sentence
    # known keys and operators may be listed
    assert len(sentence.replace(str(tmp_path), "")) < 700
    assert len(sentence.splitlines()) == 1


# ---- numbers and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["yes", "NO", "on", "Off", "010", "0x1F", "0o17", "0b1", "1_000", "1:30", ".inf", "-.Inf", ".nan"]
)
def test_what_readers_of_yaml_do_not_agree_on_is_refused_with_its_key(value: str, tmp_path: Path) -> None:
    path = tmp_path / "search.yml"
    path.write_text(f"search:\n  epochs: {value}\n")
    with pytest.raises(ProxylessError, match=rf"search\.epochs = {value} at line 2 .* write .*, or quotes") as error:
        load_config(path)
    assert str(path) in str(error.value)
    with pytest.raises(ProxylessError, match=f"--set search.epochs={value}"):
        key_values([f"search.epochs={value}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("-0", 0), ("+2", 2), ("0.5", 0.5), (".5", 0.5), ("1e-3", 1e-3), ("1.5E+3", 1500.0)],
        *[("true", True), ("False", False), ("null", None), ("~", None)],
        *[("2026-01-02", "2026-01-02"), ("1.2.3", "1.2.3"), ("1:30h", "1:30h"), ("y", "y"), ("a=b", "a=b")],
        *[("'010'", "010"), ("''", "")],
    ],
)
def test_what_a_plain_word_stands_for(text: str, value: Any) -> None:
    found = key_values([f"a={text}"])["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("value", ["010", "inf", "nan", "3", "1_000"])
def test_a_text_is_no_number(value: str) -> None:
    for settings in ({"search": {"epochs": value}}, {"target_ms": value}, {"search": {"steps_per_update": value}}):
        with pytest.raises(ProxylessError, match=f"= '{value}': it takes a number, not a text"):
            parse_config(settings)


@pytest.mark.parametrize(
    "text",
    [
        "target: 0.5\nrule: gradient\ntarget: 0.7\n",
        "search: {epochs: 1}\nseed: 1\nsearch: {batch_size: 8}\n",
        "search:\n  epochs: 1\n  epochs: 2\n",
        "presets: {a: {seed: 1}, a: {seed: 2}}\n",
        "1: 2\n1: 3\n",
    ],
)
def test_a_key_twice_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "search.yml"
    path.write_text(text)
    with pytest.raises(ProxylessError, match=rf"{path}: it has the key \S+ twice, again at line \d"):
        load_config(path)


def test_two_names_of_one_value_are_two_values(tmp_path: Path) -> None:
    """Else a setting of one section would be one of the other too."""
    path = tmp_path / "search.yml"
    path.write_text("presets: {a: &a {search: {epochs: 3}}, b: *a}\nsearch: {<<: {batch_size: 8}, epochs: 4}\n")
    config = load_config(path, {"search.momentum": 0.5}, preset="b")
    assert (config.search.epochs, config.search.batch_size, config.search.momentum) == (3, 8, 0.5)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    table = LatencyTable.load(FIXTURE / "table.yml")
    words = ["1e-3", "010", "yes", "1:30", ".inf", "089", "0o17", "~", "2026-01-02", "12e4567", "=", "<<", "5"]
    header = replace(table.header, versions={word: word for word in words}, device="1e5", place="0x1F")
    LatencyTable(header, table.entries).save(tmp_path / "table.yml")
    assert LatencyTable.load(tmp_path / "table.yml") == LatencyTable(header, table.entries)
    assert plain({"spearman": float("nan")}) == {"spearman": None}


# ---- writing -------------------------------------------------------------------------------------------------------

SUBNET = Subnet.load(FIXTURE / "gradient/model/subnet.json")
WRITERS: dict[str, Callable[[Path], Any]] = {
    "table": lambda path: LatencyTable.load(FIXTURE / "table.yml").save(path),
    "learned model": lambda path: a_learned_model(path.parent),
    "subnet": lambda path: SUBNET.save(path),
    "page": lambda path: write_page(FIXTURE / "gradient", path.with_suffix(".html")),
    "picture": lambda path: draw_searches(FIXTURE / "gradient", path.with_suffix(".png")),
    "record": lambda path: Record("id", {}).save(path),
    "trial": lambda path: note_start(path, Trial("abc", {}), None),
    "threads": lambda path: keep_threads(path, {"search": 1}),
    "checkpoint": lambda path: write_checkpoint(path, {}),
    "supernet": lambda path: write_search(
        path, Subnet.load(FIXTURE / "gradient/model/subnet.json"), {}, {"a": torch.zeros(1)}
    ),
    "samples": lambda path: PartialSamples(path, {}).save({}),
    "CIFAR": lambda path: draw_cifar10(path, DRAWN),
    "figure": lambda path: save_figure(Figure(), path.with_suffix(".png")),
}


@pytest.mark.parametrize("refusal", ["a file in the way", "a full disk"])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(
    writer: str, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "there"
    if refusal == "a file in the way":
        folder.write_text("of somebody")
    else:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        folder.mkdir()
        monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ProxylessError, match=r"No space left|File exists|Not a directory") as error:
        WRITERS[writer](folder / "made")
    assert len(str(error.value).splitlines()) == 1
    assert "there" in str(error.value)
    left = [] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
    assert left == []


def test_a_full_disk_under_safetensors_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_exported(FIXTURE / "gradient" / "model")
    config = read_export(FIXTURE / "gradient" / "model")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    with pytest.raises(ExportError, match=r"cannot write .*out: .*No space left on device"):
        export_folder(
            model,
            tmp_path / "out",
            model_args=config["model_args"],
            subnet={},
            pretrained_cfg=config["pretrained_cfg"],
            metrics={},
        )
    assert list(tmp_path.iterdir()) == []
