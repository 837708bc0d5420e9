"""nnictl that waits for its own server: `python -m proxyless_strategy.runs.patient_nnictl ARGUMENTS`.

NNI 3.0 asks its server four times in three seconds whether it has started, and then gives up and kills it. Beside
other work it takes longer than that to start, and an experiment would fail before its first trial.
"""

from __future__ import annotations

import time

import psutil
from nni.experiment import launcher, rest
from nni.tools.nnictl import nnictl

START_SECONDS = 120.0
"""How long a server may take to answer."""


def wait_for_server(port: int, retry: int = 0, url_prefix: str | None = None) -> None:
    """Wait until NNI's server answers, in the place of `nni.experiment.launcher._check_rest_server`.

    Args:
        port: The server's port.
        retry: NNI's number of tries, which the patience here replaces.
        url_prefix: NNI's prefix of the server's paths.

    Raises:
        OSError: It has ended, or does not answer in `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            rest.get(port, "/check-status", url_prefix)
            return
        except Exception:
            if time.monotonic() > deadline or not _child_runs():
                raise
        time.sleep(0.5)


def _child_runs() -> bool:
    """Whether a child of this process runs: nnictl has started nothing but the server."""
    return any(child.status() != psutil.STATUS_ZOMBIE for child in psutil.Process().children())


if __name__ == "__main__":
    launcher._check_rest_server = wait_for_server
    nnictl.parse_args()
