"""What Ray Tune asks for and tells: the next trial, and what becomes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from hardware.errors import ExperimentError
from hardware.reading import log_of

from .ray_events import Events
from .ray_worker import as_settings, as_trial
from .sweep import Sweep
from .trials import Trial, read_end
from .tuners import Source


class Suggestions(Searcher):
    """Gives Ray Tune the trials of a source.

    Args:
        source: Where they come from.
        sweep: What they are trials of.

    Attributes:
        started: How many were given.
        failure: Why the source has ended before its time.
    """

    def __init__(self, source: Source, sweep: Sweep) -> None:
        super().__init__()
        self.started = 0
        self.failure: ExperimentError | None = None
        self._source, self._sweep = source, sweep
        self._trials: dict[str, Trial] = {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        trial = self._ask(self._source.next) if self.failure is None else None
        if trial is None:
            return str(Searcher.FINISHED)
        self.started += 1
        self._trials[trial_id] = trial
        return as_settings(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = read_end(self._sweep.out, self._trials[trial_id])
        self._ask(lambda: self._source.tell(trial))

    def _ask(self, question: Callable[[], Trial | None]) -> Trial | None:
        try:
            return question()
        except ExperimentError as error:
            # Trials that run are not lost by it: they go on to their end, and none is added.
            self.failure = error
            return None

    # Whatever continues an experiment reads the trials' folders.
    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Follower(tune.Callback):
    """Hands what Ray Tune tells of trials on to `Events`.

    Args:
        events: They.
    """

    def __init__(self, events: Events) -> None:
        self._events = events

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._events.starts(trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._events.reports(trial.config, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._events.fails(trial.config, _error_of(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._events.fails(trial.config, _error_of(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._events.ends(trial.config)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        states = [trial.status for trial in trials]
        self._events.goes_on(running=states.count("RUNNING"), pending=states.count("PENDING"))

    def __getstate__(self) -> dict[str, Any]:
        return {}


def tuner_of(
    trainable: Callable[[dict[str, Any]], None],
    suggestions: Suggestions,
    follower: Follower,
    *,
    resources: Mapping[str, float],
    limit: int | None,
    side_by_side: int,
    retries: int,
    name: str,
    storage: Path,
) -> Any:
    """Return Ray's tuner of trials.

    Args:
        trainable: What a worker calls.
        suggestions: Where trials come from.
        follower: Who is told of them.
        resources: What each trial takes of a node.
        limit: How many trials there are; None: as many as there come.
        side_by_side: How many run at a time.
        retries: How often each is started again.
        name: Of the experiment.
        storage: Ray Tune's folder.
    """
    return tune.Tuner(
        tune.with_resources(trainable, dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            num_samples=-1 if limit is None else limit,
            max_concurrent_trials=side_by_side,
            reuse_actors=False,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[follower],
            verbose=0,
        ),
    )


def _error_of(trial: Any) -> str:
    """Return Ray's text on why the trial has failed; its copy for other machines comes later."""
    return log_of(trial.error_file) if trial.error_file else ""


def _name(trial: Any) -> str:
    return str(as_trial(trial.config).name)
