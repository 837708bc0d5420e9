"""The check of a GPU, as far as a machine without one can tell: its parts at toy size, and how they end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.step_cost import steps_of


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def shape(document: Any) -> Any:
    """The keys of all parts and their figures."""
    return {name: (set(part), set(part["figures"])) for name, part in document["parts"].items()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_gives_the_reason_and_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    document = last_line(capsys)
    assert "there is no GPU here" in document["skipped"]
    assert {part["status"] for part in document["parts"].values()} == {"skipped"}
    assert all(value is None for part in document["parts"].values() for value in part["figures"].values())


def fake(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another program stand for a part's process."""
    (tmp_path / "part.py").write_text(program)
    started = gpu.subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda _, **given: started([sys.executable, str(tmp_path / "part.py")], **given)
    )


@pytest.mark.parametrize(
    ("program", "limit", "status", "reason"),
    [
        ("print('noise'); print('{\"status\": \"passed\"}')", 60, "passed", None),
        ("import os; os.abort()", 60, "failed", "its process ended with -6 and no result"),
        ("print('no JSON')", 60, "failed", "its process ended with 0 and no result"),
        ("import time; time.sleep(600)", 0.5, "failed", "it took more than 0 s"),
    ],
)
def test_a_part_that_dies_or_hangs_costs_itself_alone(
    program: str, limit: float, status: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, program, monkeypatch)
    began = time.monotonic()
    result = gpu.ask("agreement", True, limit)
    assert (result["status"], result.get("reason")) == (status, reason)
    assert time.monotonic() - began < 60


def test_a_part_that_fails_makes_the_status_1_and_the_others_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(name: str, dry: bool, limit: float) -> Any:
        asked.append(name)
        return gpu.result_of(name, "failed" if name == "steps" else "passed", reason="so" if name == "steps" else None)

    monkeypatch.setattr(gpu, "ask", ask)
    assert gpu.main(["--dry-run"]) == 1
    assert asked == list(gpu.PARTS)
    assert last_line(capsys)["failed"] == ["steps"]
    assert gpu.main(["--dry-run", "--only", "table"]) == 0
    assert asked[-1] == "table"
    assert len(asked) == len(gpu.PARTS) + 1


def test_without_time_left_a_part_fails_unless_its_setting_is_off_by_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(gpu, "ask", lambda name, dry, limit: asked.append(name) or gpu.result_of(name, "passed"))
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "a GPU", "count": 1, "torch": "2", "cuda": "13"})
    monkeypatch.setattr(gpu, "SECONDS", 0)
    assert gpu.main([]) == 1
    parts = last_line(capsys)["parts"]
    optional = {name for name, part in parts.items() if part["status"] == "skipped"}
    assert optional == {"norms", "capture_agreement", "capture"}
    assert {part["status"] for name, part in parts.items() if name not in optional} == {"failed"}
    assert all(f"run it alone with --only {name}" in part["reason"] for name, part in parts.items())
    assert asked == []
    # a dry run is not timed
    assert gpu.main(["--dry-run"]) == 0
    assert asked == list(gpu.PARTS)


def test_what_a_part_finds_wrong_is_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = gpu.Part(lambda dry: gpu.need(False, "it is wrong"), 1, ("a",))
    lacking = gpu.Part(lambda dry: {}, 1, ("a",))
    monkeypatch.setattr(gpu, "PARTS", {"wrong": wrong, "lacking": lacking})
    for name, reason in (("wrong", "Failed: it is wrong"), ("lacking", "Failed: the figures are []")):
        gpu.run_part(name, True)
        found = last_line(capsys)
        assert (found["status"], found["reason"], found["figures"]) == ("failed", reason, {"a": None})


@pytest.mark.slow
@pytest.mark.parametrize("space", ["imagenet_mbconv", "cifar_mbconv"])
def test_the_steps_of_the_spaces_run(space: str) -> None:
    bench, steps = steps_of(space, 1, 32, 2, precision=torch.bfloat16, channels_last=True, stock=("nni_proxyless",))
    assert {name for name, _ in steps} >= {"base", "weight", "gradient", "reinforce", "nni_proxyless"}
    assert bench.saved["gradient", 0] < bench.saved["base", 0]
    assert bench.saved["reinforce", 0] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(gpu.PARTS))
def test_a_dry_run_passes_with_the_keys_of_a_real_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--only", name]) == 0
    document = last_line(capsys)
    assert document["parts"][name]["status"] == ("skipped" if name == "nccl" else "passed")
    monkey = {key: gpu.result_of(key, "skipped") for key in gpu.PARTS}
    assert shape(document) == shape({"parts": monkey})
