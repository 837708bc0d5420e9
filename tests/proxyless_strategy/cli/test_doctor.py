"""`proxyless doctor`: one line for each thing, and status 1 only where something is bad."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from hardware import processor
from hardware.tables import shipped
from proxyless_strategy.cli import doctor
from proxyless_strategy.cli.doctor import Finding
from proxyless_strategy.data.drawn import draw_image_folder
from proxyless_strategy.sections import DrawnImages

from .test_main import status_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "share_of_others", lambda seconds=0.0: 0.1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def only(check: Callable[[], Iterator[Finding]]) -> list[tuple[str, str]]:
    return [(finding.state, finding.found) for finding in check()]


def test_a_line_for_each_thing_and_status_0_where_nothing_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    status = status_of("doctor", "--json")
    output, said = capsys.readouterr()
    values = json.loads(output)
    assert len(said.splitlines()) == len(values["findings"])
    bad = [finding for finding in values["findings"] if finding["state"] == "bad"]
    assert status == int(bool(bad))
    assert values["ok"] == (not bad)
    looked = {finding["about"] for finding in values["findings"]}
    assert looked == {
        "python",
        "packages",
        "nni",
        "port",
        "gpu",
        "threads",
        "load",
        "disk",
        "cache",
        "tables",
        "launcher",
    }
    assert all(finding["remedy"] for finding in values["findings"] if finding["state"] != "ok")


def test_only_what_is_bad_makes_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for state, status in (("ok", 0), ("warning", 0), ("bad", 1)):
        monkeypatch.setattr(doctor, "examined", lambda data, state=state: iter([Finding(state, "x", "y", "do z")]))
        assert status_of("doctor") == status
        assert capsys.readouterr().out == f"{state:8} x         y; do z\n"


def test_a_check_that_fails_is_bad_and_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("no such luck")
        yield

    monkeypatch.setattr(doctor, "nni", broken)
    findings = list(doctor.examined())
    (one,) = [finding for finding in findings if finding.about == "nni"]
    assert one.state == "bad"
    assert "RuntimeError: no such luck" in one.found
    assert findings[-1].about == "tables"


def test_versions_are_held_against_the_tested_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"timm": "0.9.1", "torch": "2.9.0", "wandb": "0.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    wanted = [
        "timm<1.1,>=1.0.31",
        "torch<2.15,>=2.9",
        "rich<16,>=13",
        'wandb<1,>=0.17; extra == "wandb"',
        'executorch<2,>=1.5; extra == "executorch"',
        'ruff<1; extra == "dev"',
        'windows-thing<1; sys_platform == "win32"',
    ]
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    assert only(doctor.packages) == [
        ("warning", "timm 0.9.1 is outside of the tested <1.1,>=1.0.31"),
        ("bad", "rich is missing"),
        ("warning", "wandb 0.1 is outside of the tested <1,>=0.17"),
        ("ok", "1 are within the tested ranges"),
    ]


def test_a_python_that_is_not_tested_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.python)[0][0] == "ok"
    monkeypatch.setattr("platform.python_version", lambda: "3.9.2")
    ((state, found),) = only(doctor.python)
    assert state == "bad"
    assert found.startswith("3.9.2 is not")


def test_a_port_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(doctor, "PORT", server.getsockname()[1])
        assert only(doctor.port)[0][0] == "warning"
    assert only(doctor.port)[0][0] == "ok"


@pytest.mark.parametrize(
    ("driver", "usable", "state", "words"),
    [
        ([], False, "ok", "none: searches train on the CPU"),
        (["A100, 535.1, 80 GiB"], False, "warning", "A100, 535.1, 80 GiB is not used by torch"),
        (["A100, 535.1, 80 GiB"], True, "ok", "driver: A100, 535.1"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_told(
    driver: list[str], usable: bool, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(driver))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A100")
    ((found_state, found),) = only(doctor.gpu)
    assert found_state == state
    assert words in found


def test_a_busy_machine_and_too_many_threads_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    monkeypatch.setattr(processor, "share_of_others", lambda seconds=0.0: 0.9)
    assert [state for state, _ in only(doctor.threads)] == ["warning", "warning"]


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [state for state, _ in only(doctor.disk)] == ["ok", "ok"]
    monkeypatch.setattr(doctor, "LEAST_BYTES", 2**70)
    assert [state for state, _ in only(doctor.disk)] == ["warning", "warning"]
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert only(doctor.disk)[1][0] == "bad"


def test_tables_of_other_machines_and_broken_ones_are_told(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "proxyless_strategy"
    kept.mkdir(parents=True)
    text = Path(shipped.__file__).with_name("pixel1.yml").read_text()
    shutil.copy(Path(shipped.__file__).with_name("pixel1.yml"), kept / "phone.yml")
    backend = next(line for line in text.splitlines() if line.strip().startswith("backend:"))
    (kept / "other.yml").write_text(text.replace(backend, "  backend: onnxruntime"))
    (kept / "broken.yml").write_text("[")
    found = {words.split("/")[-1].split(" ")[0].rstrip(":"): state for state, words in only(doctor.tables)[:-1]}
    assert {name.split(".")[0]: state for name, state in found.items()} == {
        "broken": "bad",
        "other": "warning",
        "phone": "warning",
    }
    assert only(doctor.tables)[-1][1].startswith("0 in ")


def test_pictures_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_image_folder(tmp_path / "photos", DrawnImages(classes=2, train=2, val=1, size=8))
    assert [finding.state for finding in doctor.pictures(tmp_path / "photos")] == ["ok"]
    next(path for path in (tmp_path / "photos").rglob("*.*") if path.is_file()).write_bytes(b"no picture")
    (finding,) = doctor.pictures(tmp_path / "photos")
    assert finding.state == "bad"
    assert status_of("doctor", str(tmp_path / "photos")) == 1
    assert "1 problems with 6 pictures" in capsys.readouterr().out
    assert [finding.state for finding in doctor.pictures(tmp_path / "none")] == ["bad"]
