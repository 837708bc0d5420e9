"""Who owns a run folder, and which settings a run that goes on there may change."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hardware.errors import ConfigError
from hardware.measuring.locks import table_lock
from proxyless_strategy.config import parse_config
from proxyless_strategy.layout import CHECKPOINT, CONFIG_FILE, SEARCH_FILE, STARTS_FILE
from proxyless_strategy.owner import owned
from proxyless_strategy.runs import retrained, search
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.result import claim_out
from proxyless_strategy.runs.same_run import check_same_run
from tests.proxyless_strategy.runs.test_early_checks import settings


def config_in(out: Path, **changes: Any) -> Any:
    return parse_config(settings(out, **{"hardware.device": "other", **changes}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that a search has claimed."""
    out = tmp_path / "run"
    out.mkdir()
    (out / CONFIG_FILE).write_text(json.dumps(config_in(out).identity()))
    return out


# ---- settings --------------------------------------------------------------------------------------------------


def test_every_setting_that_differs_is_named_with_both_values(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(config_in(run, seed=5, **{"search.epochs": 3, "retrain.epochs": 9}))
    assert "(search.epochs = 2 there, 3 here; seed = 0 there, 5 here)" in str(caught.value)


@pytest.mark.parametrize("key", ["finalists", "samples", "momentum"])
def test_a_setting_that_an_old_run_did_not_know_stands_at_its_default(run: Path, key: str) -> None:
    written = json.loads((run / CONFIG_FILE).read_text())
    default = written["search"].pop(key)
    (run / CONFIG_FILE).write_text(json.dumps(written))
    assert check_same_run(config_in(run)) == {}
    other = default * 2 if default > 1 else default / 2
    with pytest.raises(ConfigError, match=rf"search\.{key} = {default} there, {other} here"):
        check_same_run(config_in(run, **{f"search.{key}": other}))


def test_a_setting_of_a_newer_version_is_named(run: Path) -> None:
    written = json.loads((run / CONFIG_FILE).read_text())
    written["search"]["sharpness"] = 2
    (run / CONFIG_FILE).write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"search\.sharpness = 2 there, \"unknown\" here"):
        check_same_run(config_in(run))


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_settings_that_cannot_be_read_are_one_sentence(run: Path, content: str) -> None:
    (run / CONFIG_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json"):
        check_same_run(config_in(run))


def test_a_phase_that_has_begun_is_bound_by_its_settings(run: Path) -> None:
    later = {"retrain.learning_rate": 0.1, "data.workers": 2, "hardware.batch": 2}
    assert set(check_same_run(config_in(run, **later))) == set(later)
    (run / SEARCH_FILE).write_text("{}")
    assert set(check_same_run(config_in(run, **later))) == set(later)
    (run / CHECKPOINT).write_text("")
    with pytest.raises(ConfigError, match=r"\(retrain\.learning_rate = 0\.05 there, 0\.1 here\); .*retrain\.ckpt"):
        check_same_run(config_in(run, **later))
    table = {"hardware.cost": "latency", "hardware.table": "a.yml"}
    (run / CONFIG_FILE).write_text(json.dumps(config_in(run, **table).identity()))
    with pytest.raises(ConfigError, match=r"hardware\.batch = 1 there, 2 here"):
        check_same_run(config_in(run, **table, **{"hardware.batch": 2}))


EVERY = {
    "hardware.cost": "params",
    "data.architecture_fraction": 0.4,
    "target": 0.6,
    "seed": 5,
    "input_size": 24,
    "search.epochs": 3,
}


@pytest.mark.parametrize(
    ("change", "free"), [("table", "hardware.cost"), ("data", "data.architecture_fraction"), ("target", "target")]
)
def test_what_may_be_another_thing_frees_its_own_settings_alone(run: Path, change: str, free: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(config_in(run, **EVERY, **{"search.resume_anyway": [change]}))
    assert set(re.findall(r"([\w.]+) = \S+ there", str(caught.value))) == EVERY.keys() - {free}
    # Once the search has ended, nothing is left that could go on with another one.
    (run / SEARCH_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=rf"\b{free} = "):
        check_same_run(config_in(run, **{free: EVERY[free], "search.resume_anyway": [change]}))


def test_the_checkpoint_of_the_retraining_is_removed_where_that_is_enough(run: Path) -> None:
    (run / CHECKPOINT).write_text("")
    for changes, enough in (({"retrain.epochs": 9}, True), ({"retrain.epochs": 9, "seed": 5}, False)):
        with pytest.raises(ConfigError) as caught:
            check_same_run(config_in(run, **changes))
        assert str(caught.value).endswith("to retrain anew") == enough


def test_a_setting_that_is_written_down_at_its_default_is_no_difference(run: Path) -> None:
    written = json.loads((run / CONFIG_FILE).read_text())
    written["search"]["threads"] = None
    (run / CONFIG_FILE).write_text(json.dumps(written))
    assert check_same_run(config_in(run)) == {}
    written["search"]["threads"] = 3
    (run / CONFIG_FILE).write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"search\.threads = 3 there"):
        check_same_run(config_in(run))


def test_long_values_are_cut(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(config_in(run, **{"space.options": {"head_width": 24, "expansions": [3] * 100}}))
    assert len(str(caught.value)) < 500
    assert "..." in str(caught.value)


def test_a_search_that_kept_no_weights_cannot_go_on_without_retraining(run: Path) -> None:
    assert set(check_same_run(config_in(run, retrain=None))) == {"retrain"}
    (run / SEARCH_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"retrain = .* there, null here"):
        check_same_run(config_in(run, retrain=None))


def test_a_corrected_setting_of_the_retraining_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, train = tmp_path / "run", retrained.train

    def refused(*_: Any, **__: Any) -> Any:
        raise ConfigError("as if a check had missed it")

    monkeypatch.setattr(retrained, "train", refused)
    with pytest.raises(ConfigError, match="as if"):
        search.run_search(config_in(out))
    found = (out / SEARCH_FILE).read_bytes()
    monkeypatch.setattr(retrained, "train", train)
    result = search.run_search(config_in(out, **{"retrain.optimizer": "adamw"}))
    assert (out / SEARCH_FILE).read_bytes() == found
    assert json.loads((out / CONFIG_FILE).read_text())["retrain"]["optimizer"] == "adamw"
    first, second = json.loads((out / STARTS_FILE).read_text())
    assert (first["ended"], second["ended"]) == (False, True)
    assert second["changed"] == {"retrain.optimizer": {"from": "sgd", "to": "adamw"}}
    assert first["seconds"] < result.seconds <= first["seconds"] + second["seconds"]


# ---- the owner -------------------------------------------------------------------------------------------------


def test_a_second_start_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            with owned(tmp_path / "run"):
                refused.append("not at all")
        except ConfigError as error:
            refused.append(str(error))

    with owned(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"(process {os.getpid()} on {socket.gethostname()})" in refused[0]
    second()
    assert refused[1] == "not at all"


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    entry = {"host": socket.gethostname(), "pid": gone.pid, "seconds": 3.0}
    (tmp_path / STARTS_FILE).write_text(json.dumps([entry]))
    held, release = threading.Event(), threading.Event()

    def orphan() -> None:
        with table_lock(tmp_path / "run"):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=orphan)
    thread.start()
    held.wait()
    threading.Timer(0.5, release.set).start()
    began = time.monotonic()
    with owned(tmp_path) as start:
        assert time.monotonic() - began > 0.3
        assert start.seconds > 3
    thread.join()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_removed_meanwhile_is_no_longer_written_to(tmp_path: Path, replaced: bool) -> None:
    folder = tmp_path / "run"

    def run() -> None:
        with owned(folder) as start:
            start.note()
            folder.rename(tmp_path / "gone")
            if replaced:
                folder.mkdir()
            start.note()

    with pytest.raises(ConfigError, match=f"{folder} was removed or replaced while the run was going on"):
        run()
    assert not list(folder.glob("*"))


def test_what_a_killed_start_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".threads.abc.unfinished.json").write_text("{")
    with owned(tmp_path):
        assert not list(tmp_path.glob(".threads*"))


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder in another thread."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with table_lock(folder / "run"):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        release.set()
        thread.join()


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught, owned(folder):
        pass
    return str(caught.value)


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def entry(pid: int) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": pid, "seconds": 3.0}


def test_a_living_owner_is_told_at_once_and_is_the_last_to_have_started(
    tmp_path: Path, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / STARTS_FILE).write_text(json.dumps([entry(gone), entry(os.getpid())]))
    with held_elsewhere(tmp_path), monkeypatch.context() as patched:
        patched.setattr("proxyless_strategy.owner.ORPHAN_SECONDS", 1e9)
        assert f"(process {os.getpid()} on " in refused(tmp_path)


def test_a_lock_that_outlives_its_dead_owner_is_not_waited_for_without_end(
    tmp_path: Path, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / STARTS_FILE).write_text(json.dumps([entry(gone)]))
    monkeypatch.setattr("proxyless_strategy.owner.ORPHAN_SECONDS", 0.3)
    with held_elsewhere(tmp_path):
        assert f"(process {gone} on " in refused(tmp_path)


def test_a_refused_start_says_nothing_about_the_owners_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STARTS_FILE).write_text("garbage")
    with held_elsewhere(tmp_path), pytest.MonkeyPatch.context() as patched:
        patched.setattr("proxyless_strategy.owner.ORPHAN_SECONDS", 0.0)
        assert "(process unknown on this machine)" in refused(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_start_keeps_what_it_has_changed(tmp_path: Path) -> None:
    with owned(tmp_path, check=lambda: {"seed": {"from": 0, "to": 1}}):
        pass
    assert starts(tmp_path)[-1]["changed"] == {"seed": {"from": 0, "to": 1}}


def test_a_disk_that_refuses_does_not_hide_why_a_run_failed(tmp_path: Path) -> None:
    def failing() -> None:
        with owned(tmp_path):
            (tmp_path / STARTS_FILE).unlink()
            (tmp_path / STARTS_FILE).mkdir()  # so that no file can take its place
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def test_a_search_that_another_one_overtook_is_refused(tmp_path: Path) -> None:
    mine, other = (prepare(config_in(tmp_path / "run", seed=seed), quiet=True) for seed in (0, 1))
    with claim_out(other):
        pass
    with pytest.raises(ConfigError, match="other settings"), claim_out(mine):
        pass
    assert json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["seed"] == 1


def test_a_folder_is_looked_at_by_its_owner_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepared = prepare(config_in(out), quiet=True)
    others: list[str] = []

    def look() -> None:
        assert not (out / CONFIG_FILE).exists()
        assert not (out / STARTS_FILE).exists()

        def other() -> None:
            try:
                with owned(out):
                    others.append("got in")
            except ConfigError as error:
                others.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        raise ConfigError("not this one")

    with pytest.raises(ConfigError, match="not this one"), claim_out(prepared, look=look):
        pass
    assert ["belongs to a run that is going on" in said for said in others] == [True]
    assert not (out / CONFIG_FILE).exists()
    assert not (out / STARTS_FILE).exists(), "a refused start leaves the folder unclaimed"


def test_what_a_run_finds_in_its_folder_is_found_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []

    def is_locked(*_: Any, **__: Any) -> Any:
        def other() -> None:
            try:
                with owned(tmp_path / "run"):
                    locked.append(False)
            except ConfigError:
                locked.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        raise ConfigError("seen")

    for name in ("read_searched", "find_checkpoints"):
        with monkeypatch.context() as patched:
            patched.setattr(search, name, is_locked)
            with pytest.raises(ConfigError, match="seen"):
                search.run_search(config_in(tmp_path / "run"))
    assert locked == [True, True]


def test_seconds_count_from_the_beginning_of_the_command_over_all_its_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("proxyless_strategy.owner.time.monotonic", lambda: now[0])

    def failing() -> None:
        with owned(tmp_path, began=90.0):
            now[0] += 5
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    # The time up to its end counts, though nobody has noted it since the start.
    assert [(start["seconds"], start["ended"]) for start in starts(tmp_path)] == [(15, False)]
    with owned(tmp_path, began=now[0] - 2) as start:
        assert start.seconds == 17
        now[0] += 1
        start.note()
        assert starts(tmp_path)[-1]["seconds"] == 3
        now[0] += 1
        assert start.seconds == 19
    assert [(start["seconds"], start["ended"]) for start in starts(tmp_path)] == [(15, False), (4, True)]


def test_the_beginning_is_before_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def claimed(prepared: Any, *, began: float, **options: Any) -> Any:
        assert before <= began <= prepared.at
        raise ConfigError("enough")

    @dataclass
    class Prepared:
        at: float
        data: None = None
        target: None = None
        cost: Any = field(default_factory=lambda: SimpleNamespace(unit="ms"))

    def prepared(config: Any, **options: Any) -> Prepared:
        return Prepared(time.monotonic())

    monkeypatch.setattr(search, "prepare", prepared)
    monkeypatch.setattr(search, "as_begun", lambda data, folder: data)
    monkeypatch.setattr(search, "claim_out", claimed)
    before = time.monotonic()
    with pytest.raises(ConfigError, match="enough"):
        search.run_search(config_in(tmp_path / "run"))


def test_a_folder_that_was_removed_in_mid_run_stays_so(tmp_path: Path) -> None:
    def failing() -> None:
        with owned(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert not (tmp_path / "run").exists()


def starts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / STARTS_FILE).read_text())


@pytest.mark.parametrize("content", ["", "[{}]", "{}", "[1]", "null"])
def test_a_damaged_record_of_starts_is_told_and_begun_anew(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STARTS_FILE).write_text(content)
    with owned(tmp_path):
        pass
    assert ("cannot read" in capsys.readouterr().out) == (content != "{}")
    assert json.loads((tmp_path / STARTS_FILE).read_text())[-1]["ended"]


@pytest.mark.slow
def test_of_two_searches_that_start_together_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "search.yml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "run", **{"hardware.device": "other", "search.epochs": 10})))
    command = [sys.executable, "-m", "proxyless_strategy.cli", "search", str(path), "--set"]
    started = [
        subprocess.Popen([*command, f"seed={seed}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in (0, 1)
    ]
    said = [process.communicate()[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 2]
    winner = [process.returncode for process in started].index(0)
    loser = said[1 - winner]
    assert f"process {started[winner].pid} on" in loser or "other settings (seed" in loser
    assert json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["seed"] == winner
