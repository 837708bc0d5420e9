"""What a trial asks of NNI's manager and reports to it, so that no failure of the connection ends a search.

NNI's own client sends each request once, without a time limit, and does not look at the answer: a socket that is reset
ends the trial, a manager that is frozen stops it for ever, and a report that is refused is lost without a word.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import requests
from nni.runtime.command_channel.http import HttpChannel
from nni.runtime.trial_command_channel import get_default_trial_command_channel
from nni.runtime.trial_command_channel.v3 import TrialCommandChannelV3

from hardware.errors import ExperimentError
from hardware.files import write_atomically

INTERMEDIATE_SECONDS = 2.0
"""How long one intermediate result is tried: training waits meanwhile."""
FINAL_SECONDS = 300.0
"""How long the final result is tried. It is on disk, so what is at stake is what the tuner learns from it."""
PARAMETER_SECONDS = 300.0
"""How long a manager that does not answer is asked for the parameters."""

_LONGEST_PAUSE = 15.0
_REQUEST_SECONDS = 30.0
# NNI holds a question open for a second, so that many answers without a parameter are as many seconds.
_EMPTY_ANSWERS = 5


def ask_parameters() -> dict[str, Any] | None:
    """Return this trial's parameters, which NNI hands out once; None if its tuner has none.

    Raises:
        OSError: The manager did not answer for minutes.
    """
    _patient_channel()
    return nni.get_next_parameter()


class Reports:
    """The reports of one trial. None of them raises, and none is tried for ever."""

    def __init__(self) -> None:
        self._channel = _patient_channel()
        self._sent = 0
        self._dropped = 0
        self._answers = True

    def intermediate(self, metrics: dict[str, Any]) -> None:
        """Report an epoch, or drop it: the first time with a warning."""
        # The tries cost training time, so a manager that was deaf is tried once an epoch until it answers again.
        seconds = INTERMEDIATE_SECONDS if self._answers else 0.0
        # NNI counts only what was sent: its assessors look no further than the first number that is missing.
        error = self._deliver(lambda: nni.report_intermediate_result(metrics), seconds)
        self._answers = error is None
        self._sent += 1
        self._dropped += error is not None
        if error is not None and self._dropped == 1:
            _warn(f"NNI did not take an intermediate result ({_short(error)}); the trial goes on without reporting it")

    def final(self, metrics: dict[str, Any]) -> bool:
        """Report the final result, and return whether it arrived."""
        if self._dropped:
            _warn(f"{self._dropped} of {self._sent} intermediate results did not reach NNI")
        error = self._deliver(lambda: nni.report_final_result(metrics), FINAL_SECONDS)
        if error is not None:
            _warn(
                f"NNI did not take the final result ({_short(error)}), so its tuner and web page lack it; the result "
                "itself is on disk, where `proxyless experiment` collects it"
            )
        return error is None

    def _deliver(self, send: Callable[[], None], seconds: float) -> Exception | None:
        """Send within about so many seconds, and return what prevented it."""
        deadline = time.monotonic() + seconds
        pause = 0.1
        while True:
            if self._channel is not None:
                self._channel.timeout = min(_REQUEST_SECONDS, max(1.0, deadline - time.monotonic()))
            try:
                send()
            except OSError as error:  # of `requests` all are
                if time.monotonic() + pause >= deadline:
                    return error
            except Exception as error:  # a fault in NNI's client, which another try would only meet again
                return error
            else:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class FileReports:
    """The reports of a trial that NNI has not started, in a file that whoever did reads.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent: list[dict[str, Any]] = []
        self._warned = False

    def intermediate(self, metrics: dict[str, Any]) -> None:
        """Add an epoch; where the file cannot be written, the first time warn, and go on."""
        self._sent.append(metrics)
        try:
            write_atomically(self._path, json.dumps(self._sent), error=ExperimentError)
        except ExperimentError as error:
            if not self._warned:
                _warn(f"{error}; the trial goes on without reporting its epochs")
            self._warned = True

    def final(self, metrics: dict[str, Any]) -> bool:
        """Do nothing: the trial's row is the final result."""
        return True


class PatientChannel(HttpChannel):
    """NNI's channel of a trial, which notices what it has lost.

    Attributes:
        timeout: Seconds until a request that is not answered has failed.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.timeout = _REQUEST_SECONDS
        base, _, channel = url.partition("/env/")
        self._rest = f"{base}/api/v1/nni"
        self._trial = channel.rpartition("/")[2]
        self._in_doubt: dict[str, Any] | None = None

    def send(self, command: dict[str, Any]) -> None:
        """Send a command once.

        Raises:
            OSError: It was not acknowledged, except for a question for parameters, which `receive` repeats.
        """
        # A connection that broke leaves open whether the manager has read the command, and a tuner that is told twice
        # learns twice.
        if command == self._in_doubt and self._has_arrived(command):
            self._in_doubt = None
            return
        self._in_doubt = command
        try:
            answer = requests.put(self._url, json=command, timeout=self.timeout)
            if answer.status_code != 200:
                raise OSError(f"NNI's manager answered with status {answer.status_code}")
        except OSError:
            if command["type"] == "request_parameter":
                return
            raise
        self._in_doubt = None

    def receive(self) -> dict[str, Any] | None:
        """Return the next command; None when the manager is about to end.

        Raises:
            OSError: The manager did not answer for minutes.
        """
        heard = time.monotonic()
        empty, broken = 0, False
        while True:
            try:
                answer = requests.get(self._url, timeout=self.timeout)
                if answer.status_code not in (200, 408, 410):
                    raise OSError(f"NNI's manager answered with status {answer.status_code}")
                if answer.status_code == 200:
                    self._in_doubt = None
                    return answer.json()
            except OSError:
                if time.monotonic() - heard > PARAMETER_SECONDS:
                    raise
                empty, broken = 0, True
                time.sleep(0.5)
                continue
            if answer.status_code == 410:
                return None
            heard = time.monotonic()
            empty += 1
            if empty < _EMPTY_ANSWERS:
                continue
            empty = 0
            # Only now: where the question did arrive, a second one would take the parameters of another trial.
            if self._in_doubt is not None:
                self.send(self._in_doubt)
            elif broken:
                with contextlib.suppress(OSError):
                    if (parameter := self._stored()) is not None:
                        return parameter

    def _has_arrived(self, command: dict[str, Any]) -> bool:
        if command["type"] != "metric":
            return False
        metric = json.loads(command["metric"])
        stored = self._ask(f"/metric-data/{self._trial}?type={metric['type']}") or []
        return any(
            int(row["sequence"]) == metric["sequence"] and json.loads(row["data"]) == metric["value"] for row in stored
        )

    def _stored(self) -> dict[str, Any] | None:
        """Return the parameters that the manager has noted for this trial: what it sent was lost on the way."""
        parameters = (self._ask(f"/trial-jobs/{self._trial}") or {}).get("hyperParameters")
        return {"type": "parameter", "parameter": parameters[0]} if parameters else None

    def _ask(self, path: str) -> Any:
        answer = requests.get(self._rest + path, timeout=self.timeout)
        return answer.json() if answer.status_code == 200 else None


def _patient_channel() -> PatientChannel | None:
    """Put the patient channel in the place of NNI's own; None where reports go another way than by HTTP."""
    channel = get_default_trial_command_channel()
    if not isinstance(channel, TrialCommandChannelV3):
        return None
    if not isinstance(channel._channel, PatientChannel):
        channel._channel = PatientChannel(channel._channel._url)
    return channel._channel


def _short(error: Exception) -> str:
    """Return the innermost reason: `requests` wraps it several times, with addresses of Python's objects."""
    inner: BaseException = error
    link: BaseException | None = error
    while link is not None:
        inner = link if isinstance(link, OSError) else inner
        link = link.__cause__ or link.__context__
    return " ".join(f"{type(inner).__name__}: {inner}".split())


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
