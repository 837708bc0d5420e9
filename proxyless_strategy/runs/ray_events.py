"""What happens to trials under Ray, as the console says it and as their folders keep it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from hardware.errors import ExperimentError
from hardware.reading import cut, is_there

from ..layout import PARAMETERS_FILE
from .engines import PROGRESS_SECONDS, progress
from .ray_worker import as_trial
from .restarts import trial_title
from .rows import say
from .shares import Node, has_room
from .sweep import Sweep
from .trials import Record, note_failure, note_start, read_end

_WAITING_SECONDS = 30.0


class Events:
    """Says what happens to trials, and notes in their folders what they could not.

    Args:
        sweep: What they are trials of.
        record: The experiment.
        console: Receives the sentences.
        nodes: Returns the nodes that are there.
        needs: What a trial needs of one.
    """

    def __init__(
        self, sweep: Sweep, record: Record, console: Console, nodes: Callable[[], Sequence[Node]], needs: Node
    ) -> None:
        self._sweep, self._record = sweep, record
        self._say = say(console)
        self._nodes, self._needs = nodes, needs
        self._printed: dict[str, float] = {}
        self._starts: dict[str, int] = {}
        self._waiting: float | None = None
        self._told = False

    def starts(self, settings: dict[str, Any]) -> None:
        title = trial_title(as_trial(settings))
        number = self._starts[settings["name"]] = self._starts.get(settings["name"], settings["restarts"] - 1) + 1
        self._say(f"{title}: {f'started again, restart {number}' if number else 'started'}")
        self._printed[settings["name"]] = time.monotonic()

    def reports(self, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
        now = time.monotonic()
        if "epoch" in metrics and now - self._printed.get(settings["name"], now) >= PROGRESS_SECONDS:
            self._say(f"{trial_title(as_trial(settings))}: {progress(metrics)}")
            self._printed[settings["name"]] = now

    def fails(self, settings: dict[str, Any], text: str) -> None:
        """Say why a start has failed, as Ray's text has it, and note it where the trial could not."""
        name, reason = settings["name"], failure_in(text)
        folder = self._sweep.out / name
        if not is_there(folder / PARAMETERS_FILE):
            note_start(folder, as_trial(settings), self._record.id)
        trial = read_end(self._sweep.out, as_trial(settings))
        if trial.row is None and trial.failure.startswith("it ended without a word"):
            note_failure(folder, ExperimentError(reason), refused=False)
        self._say(f"{trial_title(as_trial(settings))}: {reason}")

    def ends(self, settings: dict[str, Any]) -> None:
        trial = read_end(self._sweep.out, as_trial(settings))
        self._say(f"{trial_title(trial)}: {'finished' if trial.row is not None else trial.failure}")

    def goes_on(self, *, running: int, pending: int) -> None:
        """Say once that no node can take what waits, as after the loss of one: Ray would wait without a word."""
        if running or not pending:
            self._waiting, self._told = None, False
            return
        now = time.monotonic()
        self._waiting = self._waiting or now
        if not self._told and now - self._waiting >= _WAITING_SECONDS:
            if not any(has_room(node, self._needs.cpus, self._needs.gpus) for node in self._nodes()):
                self._say(
                    f"no node of the Ray cluster has {self._needs.cpus:g} processors and {self._needs.gpus:g} GPUs any "
                    "more, so trials wait for one; Ctrl-C ends the experiment, and --resume goes on with it"
                )
                self._told = True
            self._waiting = now


def failure_in(text: str) -> str:
    """Return the reason of the latest failure in Ray's text of a trial, in one line."""
    # Each begins with a line of its number and its time; an exception's own line is the last of its traceback.
    lines = [line.strip() for line in text.rpartition("Failure # ")[2].splitlines()[1:] if line.strip()]
    if not lines:
        return "it ended without a word: its node was lost, or its process was killed"
    named = [line.partition(": ")[2] for line in lines if line.startswith(f"{ExperimentError.__module__}.")]
    traced = any(line.startswith("File ") for line in lines)
    return cut(named[-1] if named else lines[-1 if traced else 0], 300)


def reason_of(error: BaseException) -> str:
    """Return why Ray itself has failed, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return cut(lines[0] if lines else type(error).__name__, 300)
