"""The fuzzer itself: it sees every fault that is planted in a reader, goes on after it, and calls a good one good."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hardware.errors import DataError, ProxylessError
from tests.benchmarks import fuzz, fuzz_workers
from tests.benchmarks.fuzz_cases import Case, Judge, Target, case_of, specials
from tests.benchmarks.fuzz_formats import PAYLOADS, json_text, key_text, pictures, yaml_text
from tests.benchmarks.fuzz_mutations import MARK, changed_tree, tree_of, values_of
from tests.benchmarks.fuzz_targets import targets
from tests.benchmarks.fuzz_texts import alias_bomb, flow, shrunk
from tests.benchmarks.fuzz_weights import read_exported

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")

GOOD = {"name": "a", "sizes": [1, 2, 3], "options": {"deep": True}}


def write_good(folder: Path) -> None:
    (folder / "file.json").write_text(json.dumps(GOOD))


def read_good(folder: Path) -> Any:
    path = folder / "file.json"
    try:
        if not path.is_file() or path.stat().st_size > 10**6:
            raise ValueError("no file of a usual size")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no mapping")
        return values
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"cannot read {path.name}: {' '.join(str(error).split())[:100]}; give another") from error


def reader(read: Callable[[Path], Any] = read_good, **options: Any) -> Target:
    return Target("planted", write_good, "file.json", read, json_text, **options)


def badly(act: Callable[[Path, dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """A good reader that does something bad with most of what it takes."""

    def read(folder: Path) -> Any:
        values = read_good(folder)
        if values != GOOD:
            act(folder, values)

    return read


def say(words: str) -> Callable[[Path, Any], Any]:
    def act(folder: Path, values: Any) -> None:
        raise ProxylessError(words)

    return act


def leave(folder: Path, values: Any) -> None:
    (folder / "file.json.lock").touch()


def overwrite(folder: Path, values: Any) -> None:
    (folder / "file.json").write_text("{}")


def unpickle(folder: Path, values: Any) -> None:
    pickle.loads(f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode())


def fill_memory(folder: Path, values: Any) -> None:
    bytearray(2**31)


def refuse_for_memory(folder: Path, values: Any) -> None:
    try:
        bytearray(2**31)
    except MemoryError as error:
        raise DataError("file.json is too large") from error


def spin() -> None:
    while True:
        pass


BAD: dict[str, tuple[Callable[[Path, Any], Any], str]] = {
    "raises": (lambda folder, values: values["no such key"], "KeyError"),
    "exits": (lambda folder, values: exit(3), "SystemExit"),
    "says too much": (say("file.json " + "x" * 700), "has 710 characters"),
    "names no file": (say("it is wrong"), "does not name 'file.json'"),
    "says two lines": (say("file.json\nis wrong"), "more than one line"),
    "leaves a file": (leave, "file.json.lock"),
    "changes its input": (overwrite, "left or changed file.json"),
    "runs a payload": (unpickle, MARK),
    "dies": (lambda folder, values: os.kill(os.getpid(), signal.SIGSEGV), "status -11"),
    "fills memory": (fill_memory, "more than 1 GB"),
    "asks for memory, and refuses": (refuse_for_memory, "more than 1 GB"),
    "computes without end": (lambda folder, values: spin(), "more than 10 s"),
    "waits without end": (lambda folder, values: time.sleep(100), "more than 10 s"),
}
HANGING = ("fills memory", "asks for memory, and refuses", "computes without end", "waits without end")


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fuzz planted readers; return the exit status, the last line and the lines before."""
    monkeypatch.setattr(fuzz_workers, "HANG_SECONDS", 0.3)
    monkeypatch.setattr(fuzz_workers, "STILL_SECONDS", 1.5)

    def run(target: Target, *arguments: str) -> tuple[int, dict[str, Any], str]:
        status = fuzz.main(["--engine", "plain", "--jobs", "1", *arguments], targets=[target])
        *before, last = capfd.readouterr().out.splitlines()
        return status, json.loads(last), "\n".join(before)

    return run


def test_a_good_reader_is_called_good(told: Any) -> None:
    status, last, _ = told(reader(), "--executions", "150")
    assert (status, last) == (0, {"executions": 150, "crashes": 0, "hangs": 0, "targets": {"planted": 150}})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "waits without end")) for name in BAD]
)
def test_a_bad_reader_is_told(name: str, told: Any, tmp_path: Path) -> None:
    act, words = BAD[name]
    count = 14 if name in ("hangs", "dies") else 40
    status, last, before = told(reader(badly(act)), "--executions", str(count), "--keep", str(tmp_path))
    assert status == 1
    assert last["hangs" if name in HANGING else "crashes"] > 0, before
    assert last["crashes" if name in HANGING else "hangs"] == 0, before
    assert words in before
    assert last["targets"]["planted"] == count, "it goes on after each"
    kept = [path for path in tmp_path.iterdir() if path.suffix == ".json"]
    assert len(kept) == 1
    assert words in kept[0].with_suffix(".why").read_text()
    assert json.loads(kept[0].read_text()) != GOOD


def test_inputs_that_are_no_files_are_told(told: Any) -> None:
    def read(folder: Path) -> None:
        (folder / "file.json").read_text()

    # One that is missing, a folder, a link to itself; a pipe; two of more than 1 GB.
    status, last, before = told(reader(read), "--executions", "8")
    assert (status, last["crashes"], last["hangs"]) == (1, 3, 3), before


def test_a_reader_that_refuses_a_good_file_is_told(told: Any) -> None:
    def refuse(folder: Path) -> None:
        raise DataError("file.json is no good")

    status, _, before = told(reader(refuse), "--executions", "20")
    assert status == 1
    assert "it refuses a good file" in before


def test_what_a_command_does_next_need_not_name_the_file(told: Any) -> None:
    def further() -> None:
        raise DataError("the numbers fit nothing")

    def read(folder: Path) -> Any:
        return further if read_good(folder) != GOOD else None

    assert told(reader(read), "--executions", "40")[0] == 0
    assert told(reader(badly(lambda folder, values: further())), "--executions", "40")[0] == 1


def test_only_what_was_taken_may_be_written_over(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "file.json").write_text("new")
        if read_good_text == "refused":
            raise DataError("file.json is refused")

    (tmp_path / "good").mkdir()
    write_good(tmp_path / "good")
    judge = Judge(reader(write, writes=True), tmp_path / "good", tmp_path / "case")
    read_good_text = "taken"
    assert judge(Case(b"{}")) is None
    read_good_text = "refused"
    assert "left or changed file.json" in str(judge(Case(b"{}")))


def test_the_input_that_is_kept_is_short(told: Any, tmp_path: Path) -> None:
    def act(folder: Path, values: Any) -> None:
        if "options" not in values:
            raise KeyError

    told(reader(badly(act)), "--executions", "300", "--keep", str(tmp_path))
    (kept,) = [path for path in tmp_path.iterdir() if path.suffix == ".json"]
    assert len(kept.read_text()) < 20


def test_no_more_time_than_given(told: Any) -> None:
    status, last, _ = told(reader(), "--executions", "100000000", "--minutes", "0.01")
    assert status == 0
    assert last["executions"] < 100_000_000


def test_a_pattern_chooses_targets(told: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert told(reader(), "--executions", "9", "--only", "pl*")[1]["executions"] > 0
    with pytest.raises(SystemExit):
        told(reader(), "--only", "nothing")
    assert "no target is called nothing" in capfd.readouterr().err


# ---- inputs -----------------------------------------------------------------------------------------------------


def test_the_seed_decides_on_the_cases() -> None:
    seeds = [json.dumps(GOOD).encode()]
    first, again, other = ([case_of(reader(), seeds, number, seed=seed) for number in range(60)] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[0].content == seeds[0]
    assert {case.special for case in first[1:8]} == {case.special for case in specials(reader())}


def test_most_inputs_differ_and_many_are_still_documents() -> None:
    content, rng = json.dumps(GOOD).encode(), random.Random(0)
    made = [json_text(content, rng) for _ in range(300)]

    def is_document(data: bytes) -> bool:
        try:
            return isinstance(json.loads(data), dict)
        except (ValueError, RecursionError):
            return False

    assert len(set(made)) > 200
    assert 100 < sum(map(is_document, made)) < 280


@pytest.mark.parametrize("make", [json_text, yaml_text, key_text], ids=lambda make: make.__name__)
def test_any_content_can_be_changed_further(make: Any) -> None:
    content, rng = b"", random.Random(1)
    for _ in range(150):
        content = make(content, rng)[:2000]


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_an_input_that_does_harm_is_changed_unharmed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is guided by coverage changes its own inputs anew, and what runs then is no reader's doing."""
    monkeypatch.chdir(tmp_path)
    yaml = f"a: !!python/object/apply:os.system ['touch {MARK}']".encode()
    for content in (*PAYLOADS, yaml):
        for seed in range(30):
            with suppress(Exception):
                target.format(content, random.Random(seed))
    assert list(tmp_path.iterdir()) == []


def test_a_tree_is_written_as_it_was_read() -> None:
    assert values_of(tree_of(GOOD)) == GOOD
    assert json.loads(flow(tree_of(GOOD), yaml=False)) == GOOD
    tree = tree_of(GOOD)
    for number in range(50):
        changed_tree(tree, random.Random(number))
    assert values_of(tree) == GOOD, "a change is made in a copy"


def test_a_key_stands_twice_now_and_then() -> None:
    texts = [flow(changed_tree(tree_of(GOOD), random.Random(number))) for number in range(300)]
    assert any(text.count('"name":') == 2 for text in texts)


def test_an_alias_bomb_is_small() -> None:
    assert len(alias_bomb()) < 1000


def test_what_is_not_needed_is_removed() -> None:
    assert shrunk(b"one\ntwo, three\nfour", lambda data: b"r" in data and b"w" in data) == b"wr"


def test_pictures_are_of_every_common_mode() -> None:
    assert len(pictures()) >= 20


# ---- targets ----------------------------------------------------------------------------------------------------

KINDS = (
    *("search YAML", "sweep YAML", "recipe", "preset", "settings of --set", "latency table", "table of ProxylessNAS"),
    *("table of Once-for-all", "kit", "results of a kit", "learned latency model", "partial samples", "subnet.json"),
    *("search.json", "row.json", "config.json of a search", "released config", "released checkpoint", "picture"),
    *("config.json of an export", "safetensors of an export", "IDX images", "IDX labels", "packed IDX images"),
    *("CIFAR batch", "checkpoint of a retraining", "checkpoint of a search", "supernet.pt", "key of an operator"),
)


def test_every_kind_of_reader_is_a_target() -> None:
    names = [target.name for target in targets()]
    assert len(names) == len(set(names))
    assert set(KINDS) <= set(names)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_target_reads_its_good_file(target: Target, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    target.prepare(good)
    content = (good / target.file).read_bytes() if target.file else target.seeds(good)[0]
    assert Judge(target, good, tmp_path / "case")(Case(content), good=True) is None
    rng = random.Random(0)
    assert any(target.format(content, rng) != content for _ in range(5))


def test_an_export_is_read_whole(tmp_path: Path) -> None:
    """A target that reads less than a command would find nothing."""
    with pytest.raises(ProxylessError):
        read_exported(tmp_path)
