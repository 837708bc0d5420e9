"""A sweep's trials, one after the other, for an engine that is not NNI: by NNI's own tuner, or from a list.

The tuner runs in this process, without NNI's server: a search space means the same, and the same seed draws the same
trials, as under NNI.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import environ
from typing import Any, Protocol

from hardware.errors import ConfigError, ExperimentError
from hardware.reading import shown

from ..layout import EXPERIMENT_VARIABLE
from .restarts import new_name
from .sweep import Sweep
from .trials import Trial

TUNERS = {"gridsearch": "GridSearch", "random": "Random", "tpe": "TPE"}
"""NNI's tuners that need nothing of its manager and are tested here; also a class of the user's own, by `className`."""


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> Trial | None:
        """Return the next trial; None: there are no more."""

    def tell(self, trial: Trial) -> None:
        """Learn how a trial has ended."""


class Listed:
    """Trials that are known beforehand.

    Args:
        trials: They.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._left = list(trials)

    def next(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def tell(self, trial: Trial) -> None:
        pass


class Drawn:
    """Trials that the sweep's tuner draws.

    Args:
        sweep: The sweep.
        mark: The experiment's.
        earlier: Its trials that were begun before: they are not drawn again, and the tuner learns from their results.

    Raises:
        ConfigError: The tuner cannot be made of what the sweep says.
    """

    def __init__(self, sweep: Sweep, mark: str, earlier: Sequence[Trial] = ()) -> None:
        self._sweep = sweep
        self._tuner = _tuner(sweep, mark)
        self._ids = itertools.count()
        self._of_trial: dict[str, int] = {}
        self._begun = [trial.parameters for trial in earlier]
        self._numbers = itertools.count(1 + max((trial.number for trial in earlier), default=-1))
        finished = [(trial.parameters, trial.row) for trial in earlier if trial.row is not None]
        results = [{"parameter": parameters, "value": row["accuracy"]} for parameters, row in finished]
        with _asking(sweep):
            if results:
                self._tuner.import_data(results)

    def next(self) -> Trial | None:
        """Return the next trial; None: the tuner has no more.

        Raises:
            ExperimentError: The tuner failed.
        """
        with _asking(self._sweep):
            # A tuner that does not know what was begun before, or draws with a seed, begins with the same again.
            for number in itertools.islice(self._ids, len(self._begun) + 1):
                found = self._tuner.generate_multiple_parameters([number])
                if not found:
                    return None
                # As NNI hands it out: with Python's numbers for NumPy's.
                parameters = json.loads(_as_nni_sends(found[0]))
                if parameters not in self._begun:
                    trial = Trial(new_name(self._sweep.out), parameters, next(self._numbers))
                    self._of_trial[trial.name] = number
                    return trial
                self._tuner.trial_end(number, False)
        return None

    def tell(self, trial: Trial) -> None:
        """Let the tuner learn how a trial has ended.

        Raises:
            ExperimentError: The tuner failed.
        """
        number = self._of_trial[trial.name]
        with _asking(self._sweep):
            if trial.row is not None:
                self._tuner.receive_trial_result(number, trial.parameters, {"default": trial.row["accuracy"]})
            self._tuner.trial_end(number, trial.row is not None)


def check_tuner(sweep: Sweep) -> None:
    """Refuse a tuner that cannot draw without NNI's manager, and a search space that no tuner understands.

    Raises:
        ConfigError: It is one.
    """
    tuner = sweep.config.get("tuner")
    if not isinstance(tuner, dict) or not (tuner.get("name") or tuner.get("className")):
        raise ConfigError(f"{sweep.path}: tuner is {shown(tuner)}; give its name, as in {{name: GridSearch}}")
    if tuner.get("name") and str(tuner["name"]).lower() not in TUNERS:
        raise ConfigError(
            f"{sweep.path}: the tuner {shown(tuner['name'])} runs under NNI alone; on Ray there are "
            f"{', '.join(TUNERS.values())} and a class of your own (className)"
        )
    from nni.common.hpo_utils import validate_search_space

    try:
        validate_search_space(sweep.space, raise_exception=True)
    except Exception as error:
        raise ConfigError(f"{sweep.path}: searchSpace is none of NNI's: {_reason(error)}; mend it") from error


def _tuner(sweep: Sweep, mark: str) -> Any:
    from nni.tools.package_utils import create_builtin_class_instance, create_customized_class_instance

    # It says its seed and the size of its grid on the console; in NNI's process that goes to a log.
    logging.getLogger("nni").setLevel(logging.WARNING)
    settings = dict(sweep.config["tuner"])
    try:
        if settings.get("name"):
            # NNI writes into the arguments that it is given.
            made = create_builtin_class_instance(settings["name"], dict(settings.get("classArgs") or {}), "tuners")
        else:
            folder = sweep.path.parent / str(settings.get("codeDirectory", "."))
            with _within(mark):
                made = create_customized_class_instance({**settings, "codeDirectory": str(folder)})
        made.update_search_space(sweep.space)
    except Exception as error:
        raise ConfigError(f"{sweep.path}: cannot make its tuner ({_reason(error)}); mend `tuner`") from error
    return made


@contextmanager
def _within(mark: str) -> Iterator[None]:
    """Let a tuner of the user's own see that it is part of an experiment, as in NNI's process."""
    before = environ.get(EXPERIMENT_VARIABLE)
    environ[EXPERIMENT_VARIABLE] = mark
    try:
        yield
    finally:
        environ.pop(EXPERIMENT_VARIABLE)
        if before is not None:
            environ[EXPERIMENT_VARIABLE] = before


@contextmanager
def _asking(sweep: Sweep) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ExperimentError(
            f"the tuner of {sweep.path} failed: {_reason(error)}; mend `tuner` or `searchSpace`"
        ) from error


def _as_nni_sends(parameters: Any) -> str:
    import nni

    return str(nni.dump(parameters))


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()) if str(error) else type(error).__name__
