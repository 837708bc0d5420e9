"""The harness that breaks searches, on a script that takes the place of one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import faults
from tests.benchmarks.fault_cases import FAULTS, READ_BY
from tests.benchmarks.fault_states import Case, States
from tests.benchmarks.fault_subject import PHASES, Broken, Ended, Skipped, difference

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SEARCH = """
import json, os, signal, sys, time
from pathlib import Path

def stop(number, frame):
    if mode == "deaf":
        os._exit(0)
    print("stopped; repeat the command to continue", file=sys.stderr, flush=True)
    sys.exit(128 + number)

mode, out = sys.argv[1], Path(json.loads(Path(sys.argv[3]).read_text())["out"])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
print("started", flush=True)

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def write(name, value):
    beside = out / ("." + name.replace("/", "."))
    beside.write_text(json.dumps(value))
    (out / name).parent.mkdir(exist_ok=True)
    beside.replace(out / name)

def train(name, steps):
    path = out / name
    state = json.loads(path.read_text()) if path.exists() else [0, 7]
    if mode == "forgetful" and path.exists():
        state[1] += 1
    for step in range(state[0], steps):
        burn(0.06)
        state = [step + 1, state[1] * 31 % 1009]
        write(name, state)
    return state[1]

burn(0.06)
out.mkdir(exist_ok=True)
if mode == "untidy" and (out / "config.json").exists():
    (out / "left").touch()
write("config.json", {})
if not (out / "search.json").exists():
    write("search.json", {"subnet": train("search.ckpt", 2)})
accuracy = train("retrain.ckpt", 2)
write("model/model.safetensors", accuracy)
burn(0.06)
write("model.onnx", accuracy)
write("row.json", {"accuracy": accuracy, "seconds": time.time()})
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the harness on the script; return its exit status and last line."""
    script = tmp_path / "search.py"
    script.write_text(SEARCH)
    # The script has its handlers sooner than a search, and its phases are shorter.
    monkeypatch.setattr(faults, "EARLY_SECONDS", 0.05)
    monkeypatch.setattr(faults, "SHORTEST", 0.03)

    def run(mode: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        command = (sys.executable, "-I", "-S", str(script), mode)
        status = faults.main(["--keep", str(tmp_path / "work"), *arguments], command=command)
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_a_search_that_is_killed_and_goes_on_is_identical(harness: Any) -> None:
    status, told = harness("good", "--kills-only", "--kills", "4")
    assert told["broken"] == {}
    assert (status, told["identical"], told["faults"]) == (0, told["kills"], {})
    assert told["kills"] >= 4
    assert sum(told["phases"].values()) == told["kills"]
    assert told["phases"].keys() <= {name for name, _ in PHASES}


@pytest.mark.parametrize(
    ("mode", "word"), [("forgetful", "another "), ("untidy", "left"), ("deaf", "status 0 without a result")]
)
def test_a_kill_that_changes_the_result_fails(harness: Any, mode: str, word: str) -> None:
    status, told = harness(mode, "--kills-only", "--kills", "4")
    assert status == 1
    assert told["identical"] < told["kills"]
    assert word in " ".join(told["broken"].values())


def test_every_ending_of_a_fault_is_told(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(case: Case) -> str:
        raise Broken("lost")

    def skipped(case: Case) -> str:
        raise Skipped("no root")

    def failing(case: Case) -> str:
        raise KeyError("own fault")

    good = {"a refused": lambda case: "refused", "a skipped": skipped}
    bad = {"b broken": broken, "b failing": failing, "b odd": lambda case: "fine"}
    monkeypatch.setattr(faults, "FAULTS", good | bad)
    status, told = harness("good", "--only", "a ", "--only", "nothing")
    assert (status, told["faults"], told["skipped"]) == (0, {"a refused": "refused"}, {"a skipped": "no root"})
    assert told.keys() >= {"kills", "identical", "faults"}
    status, told = harness("good", "--faults-only")
    assert status == 1
    assert told["faults"] == {
        "a refused": "refused",
        "b broken": "broken: lost",
        "b failing": "broken: KeyError: 'own fault'",
        "b odd": "fine",
    }
    with pytest.raises(SystemExit):
        faults.main(["--only", "nothing"])
    assert "--list" in capsys.readouterr().err


def test_there_are_faults_of_every_kind() -> None:
    assert len(FAULTS) >= 40
    for word in ("disk full", "read-only", "worker", "rank", "NNI", "port", "clock", "runs in one folder", "early end"):
        assert any(word in name for name in FAULTS), word
    assert sum(name.startswith("checkpoint of another") for name in FAULTS) == 6
    for name in READ_BY:
        for damage in ("truncated", "empty", "garbage", "a directory"):
            assert any(f"{name} {damage}" in fault for fault in FAULTS), (name, damage)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    wanted = tmp_path / "wanted"
    (wanted / "model").mkdir(parents=True)
    for name in ("search.json", "config.json", "search.ckpt"):
        (wanted / name).write_text('{"a": 1, "b": 2}')
    (wanted / "model" / "model.safetensors").write_bytes(b"weights")
    (wanted / "row.json").write_text('{"accuracy": 0.5, "seconds": 3, "folder": "here"}')
    return shutil.copytree(wanted, tmp_path / "found"), wanted


def test_equal_results_are_equal_whatever_they_took(folders: tuple[Path, Path]) -> None:
    found, wanted = folders
    (found / "row.json").write_text('{"accuracy": 0.5, "seconds": 9, "folder": "there", "starts": 2}')
    (found / "search.ckpt").unlink()
    (found / "search.damaged.ckpt").write_text("")
    assert difference(found, wanted) is None
    assert "search.damaged.ckpt" in str(difference(found, wanted, extra=()))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("search.json", '{"a": 1, "b": 3}', r"another search.json (b)"),
        ("search.json", '{"b": 2, "a": 1}', "the same values, written otherwise"),
        ("row.json", '{"accuracy": 0.6}', "another row.json (accuracy)"),
        ("row.json", None, "no row.json"),
        ("model/model.safetensors", "other", "another model/model.safetensors"),
        ("config.json", None, "lacks ['config.json']"),
        (".search.json.tmp", "", "left ['.search.json.tmp']"),
    ],
)
def test_other_results_are_told_apart(folders: tuple[Path, Path], name: str, content: str | None, word: str) -> None:
    found, wanted = folders
    if content is None:
        (found / name).unlink()
    else:
        (found / name).write_text(content)
    assert word in str(difference(found, wanted))


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (2, "a warning\ncannot read x.yml: it is empty; delete it\n", None),
        (0, "cannot read x.yml: it is empty; delete it\n", "status 0"),
        (-9, "cannot read x.yml: it is empty; delete it\n", "status -9"),
        (2, "cannot read y.yml: it is empty; delete it\n", "does not name"),
        (2, "cannot read x.yml, which is empty.\n", "no sentence"),
        (1, "Traceback (most recent call last):\nValueError: cannot read x.yml\n", "a traceback"),
        (1, "", "no sentence"),
    ],
)
def test_a_refusal_is_a_sentence_that_names_the_cause(status: int, error: str, reason: str | None) -> None:
    found = Ended(status, "", error).why_no_refusal(r"x\.yml")
    assert (found is None) if reason is None else (reason in str(found))


def test_what_a_case_starts_from_is_made_once(tmp_path: Path) -> None:
    states, made = States(tmp_path), list[Path]()
    for _ in range(2):
        states.once("key", lambda folder: made.append(folder))
    states.once("other", lambda folder: made.append(folder))
    assert len(made) == len(set(made)) == 2
