"""Ray in this process: no usage statistics, on loopback unless an address is given, and nothing of it left behind."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import Any

import psutil

from hardware.errors import ConfigError, ExperimentError
from hardware.reading import cut

from .nni_server import deaf

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # GPUs that nobody asked Ray for stay as the user has them, as under NNI.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ctrl-C is ours: Tune's handler waits for the trials' next report, which may be an epoch away.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
# By this, Ray gives its only node the loopback's address, and its servers listen there alone; it is read on import.
_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Trials exchange figures alone.
_OBJECT_BYTES = 2**27


def check_ray() -> None:
    """Refuse where Ray Tune is missing.

    Raises:
        ConfigError: It is; the sentence names the extra that brings it.
    """
    missing = [name for name in ("ray", "pandas", "pyarrow", "tensorboardX") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--engine ray needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "install it with `pip install 'proxyless-strategy[ray]'`"
        )


@contextmanager
def ray_session(address: str | None) -> Iterator[Any]:
    """Have a Ray cluster inside the context, and yield the package.

    Args:
        address: A cluster to join; None: one of this machine alone, which ends with the context.

    Raises:
        ConfigError: The cluster cannot be joined.
        ExperimentError: Ray does not start, or listens on more than loopback.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None:
        os.environ[_ALONE] = "0"
    import ray

    # What fails of a trial is told in one line, see `ray_events`; here it would be a traceback of Ray's.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False, "include_dashboard": None}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if address is None:
                alone = {"include_dashboard": False, "object_store_memory": _OBJECT_BYTES}
                ray.init(address="local", **{**quiet, **alone})
            else:
                ray.init(address=address, **quiet)
        except Exception as error:
            reason = cut(" ".join(str(error).split()), 300)
            if address is None:
                raise ExperimentError(f"Ray does not start on this machine: {reason}") from error
            raise ConfigError(
                f"--address {cut(address)}: this machine cannot join a Ray cluster there ({reason}); start Ray on its "
                "nodes by `ray start`, this machine being one of them, or leave --address out"
            ) from error
        finally:
            # Ray ends by SIGTERM without a word to its trials, and with another status than a shell's.
            if main:
                signal.signal(signal.SIGTERM, before)
        if address is None:
            _check_loopback()
        with _status_kept():
            yield ray
    finally:
        with deaf():
            ray.shutdown()


@contextmanager
def _status_kept() -> Iterator[None]:
    """Let an exit by a signal keep its status: Ray's C code turns what a handler raises in it into status 1."""
    caught: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, partial(_noting, caught, handler))
    try:
        yield
    except SystemExit as error:
        if caught:
            raise SystemExit(128 + caught[0]) from error
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _noting(caught: list[int], handler: Callable[..., Any], number: int, frame: FrameType | None) -> None:
    caught.append(number)
    handler(number, frame)


def _check_loopback() -> None:
    """Refuse a Ray that listens where others can reach it: whoever does can run commands here."""
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            for connection in getattr(process, "net_connections", process.connections)():
                if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip):
                    raise ExperimentError(
                        f"Ray's process {cut(process.name())} listens on {connection.laddr.ip}, not on loopback alone; "
                        "start Ray yourself by `ray start --head` on a network that only the cluster is on, and give "
                        "--address"
                    )


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
