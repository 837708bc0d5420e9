"""A retraining that ends within an epoch: by the clock, by a signal, and as if it had not stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from hardware.errors import CheckpointError
from proxyless_strategy import signals
from proxyless_strategy.config import RetrainSettings
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.retraining import checkpoints
from proxyless_strategy.retraining.trainer import train
from tests.proxyless_strategy.retraining.test_trainer import (
    CLASSES,
    SIZE,
    build,
    image_data,
    same_weights,
    settings,
    trained,
)
from tests.proxyless_strategy.test_signals import default_signals

UPDATES = 3  # of an epoch: 30 images in batches of 8, without the last
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "mixup": {"optimizer": "adamw", "learning_rate": 0.002, "mixup": 0.3, "ema_decay": None},
    "bfloat16": {"precision": "bfloat16", "warmup_epochs": 1, "cutout": 3},
}


class Killed(Exception):
    """Raised in place of an update."""


def killed_at(update: int, what: Any = Killed) -> Any:
    """Make networks that end the process's training as this update (1, 2, ...) begins."""
    seen = [0]

    def made() -> nn.Module:
        model = build()

        def begins(module: nn.Module, _: Any) -> None:
            seen[0] += module.training
            if seen[0] == update:
                if what is Killed:
                    raise Killed
                os.kill(os.getpid(), what)

        model.register_forward_pre_hook(begins)
        return model

    return made


def run(make: Any, path: Path, reports: list[dict[str, Any]] | None = None, **changes: Any) -> Any:
    noted = None if reports is None else reports.append
    data = image_data()
    return train(make, data, settings(**changes), seed=0, checkpoint=path, on_epoch=noted)


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def without_time(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in report.items() if name != "seconds"} for report in reports]


@pytest.mark.parametrize(
    ("recipe", "update"),
    [("sgd", 2), ("sgd", 3 * UPDATES + 2), ("mixup", UPDATES + 3), ("bfloat16", UPDATES + 3)],
)
def test_a_training_killed_within_an_epoch_ends_as_if_it_had_not(recipe: str, update: int, tmp_path: Path) -> None:
    changes = {**RECIPES[recipe], "checkpoint_every": 1e-9}
    whole: list[dict[str, Any]] = []
    expected = run(build, tmp_path / "whole.ckpt", whole, **RECIPES[recipe])
    reports: list[dict[str, Any]] = []
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Killed):
        run(killed_at(update), path, reports, **changes)
    epoch, step = divmod(update - 1, UPDATES)
    assert (state(path)["epoch_under_way"], state(path)["step"]) == (epoch, step)
    torch.rand(3)
    found = run(build, path, reports, **changes)
    assert same_weights(found.model, expected.model)
    assert (found.test_loss, found.test_accuracy) == (expected.test_loss, expected.test_accuracy)
    assert without_time(reports) == without_time(whole)


@pytest.mark.slow
def test_a_training_killed_at_each_update_ends_as_if_it_had_not(tmp_path: Path) -> None:
    path = tmp_path / "retrain.ckpt"
    for _ in range(4 * UPDATES - 1):
        with pytest.raises(Killed):
            run(killed_at(2), path, checkpoint_every=1e-9)
    assert same_weights(run(build, path).model, trained().model)


def test_checkpoints_are_written_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoints, "write_checkpoint", lambda path, state: written.append(now[0]))
    for writes, times in ((True, [150, 300, 450]), (False, [])):
        saved = checkpoints.TrainingCheckpoints(tmp_path / "a.ckpt", minutes=2, state=dict, writes=writes)
        for _ in range(10):
            now[0] += 50
            saved.after_update()
        assert written == times
        now[0], written[:] = 0.0, []


def test_how_often_it_is_written_makes_it_no_other_training(tmp_path: Path) -> None:
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Killed):
        run(killed_at(5), path, checkpoint_every=1e-9)
    assert same_weights(run(build, path, checkpoint_every=7.0).model, trained().model)


@pytest.mark.parametrize("lacks", ["epoch_under_way", "sums", "random"])
def test_a_checkpoint_within_an_epoch_is_whole_or_refused(lacks: str, tmp_path: Path) -> None:
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Killed):
        run(killed_at(3), path, checkpoint_every=1e-9)
    found = state(path)
    assert "epoch" not in found, "a version that knows whole epochs only must not begin the epoch anew"
    del found[lacks]
    (tmp_path / "retrain.previous.ckpt").unlink()
    torch.save(found, path)
    with pytest.raises(CheckpointError, match=f"it lacks {lacks}"):
        run(build, path)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """As within `stopped_in_order`, but for its end, which ends whatever this process has started."""
    before = signal.signal(signal.SIGTERM, signals._on_signal)
    monkeypatch.setattr(signals, "_state", signals._State())
    yield signals._state
    signal.signal(signal.SIGTERM, before)


# Within an epoch, and in its last update, after which the epoch is reported.
@pytest.mark.parametrize("update", [UPDATES + 2, 2 * UPDATES])
def test_a_training_told_to_stop_keeps_the_update_that_it_was_in(
    update: int, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "retrain.ckpt"
    reports: list[dict[str, Any]] = []
    with pytest.raises(signals.Stopped) as stopped:
        run(killed_at(update, signal.SIGTERM), path, reports)
    assert stopped.value.code == 143
    assert heard.holds == 0
    found = state(path)
    epoch = found["epoch_under_way"] if "step" in found else found["epoch"]
    assert UPDATES * epoch + found.get("step", 0) == update
    monkeypatch.setattr(signals, "_state", None)
    assert same_weights(run(build, path, reports).model, trained().model)
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]


def test_a_training_without_a_checkpoint_stops_at_once(heard: Any) -> None:
    with pytest.raises(signals.Stopped):
        train(killed_at(2, signal.SIGTERM), image_data(), settings(), seed=0)


class Slow(Dataset):
    """Images that are read by worker processes."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


@pytest.mark.slow
def test_with_data_workers(tmp_path: Path) -> None:
    plain = image_data()
    parts = {part: Slow(getattr(plain, part)) for part in PARTS}
    data = ImageData(CLASSES, 1, SIZE, (0.0,), (1.0,), "bicubic", workers=2, **parts)
    recipe = RetrainSettings(**{**settings().model_dump(), "checkpoint_every": 1e-9})
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Killed):
        train(killed_at(UPDATES + 3), data, recipe, seed=0, checkpoint=path)
    resumed = train(build, data, recipe, seed=0, checkpoint=path)
    whole = train(build, data, recipe, seed=0)
    assert same_weights(resumed.model, whole.model)


CHILD = """
import signal, sys
from pathlib import Path
from proxyless_strategy import signals
from tests.proxyless_strategy.retraining.test_within_an_epoch import killed_at, run

with signals.stopped_in_order():
    run(killed_at(int(sys.argv[2]), getattr(signal, sys.argv[3])), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_process_leaves_the_checkpoint_of_its_update(name: str, status: int, tmp_path: Path) -> None:
    path = tmp_path / "retrain.ckpt"
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(UPDATES + 2), name],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=default_signals,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.endswith("stopped; repeat the command to continue\n")
    assert (state(path)["epoch_under_way"], state(path)["step"]) == (1, 2)
    assert same_weights(run(build, path).model, trained().model)
