"""nnictl that waits for its own server: `python -m proxyless_strategy.runs.patient_nnictl ARGUMENTS`.

NNI 3.0 asks its server four times in three seconds whether it has started, and then gives up and kills it. Beside
other work it takes longer than that to start, and an experiment would fail before its first trial. It also takes
whatever answers on the port for its own server: of two experiments that start at once, one is sent to the other's
server, which then runs the trials of both.
"""

from __future__ import annotations

import contextlib
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
        OSError: It has ended, or does not answer in `START_SECONDS`; another one may answer in its place.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        reason: Exception = OSError(f"what answers on port {port} is another server; give another port")
        try:
            rest.get(port, "/check-status", url_prefix)
            if _child_listens(port):
                return
        except Exception as error:
            reason = error
        if time.monotonic() > deadline or not _children():
            raise reason
        time.sleep(0.5)


def _children() -> list[psutil.Process]:
    """Return the children of this process that run: nnictl has started nothing but the server."""
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def _child_listens(port: int) -> bool:
    for child in _children():
        with contextlib.suppress(psutil.NoSuchProcess):
            # psutil before 6 has only the second name
            connections = getattr(child, "net_connections", None) or child.connections
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections("tcp")):
                return True
    return False


if __name__ == "__main__":
    launcher._check_rest_server = wait_for_server
    nnictl.parse_args()
