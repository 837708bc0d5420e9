"""The protocol of a measuring backend."""

from __future__ import annotations

import abc
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.errors import BackendError
from hardware.op_spec import OpSpec


@dataclass(frozen=True)
class Runnable:
    """Something prepared that can run again and again.

    Attributes:
        call: Runs it once; returns when the result is complete.
        threads: Threads that it may use; with one, CPU time of the calling thread is the clock.
        handle: Whatever the backend wants to remember.
    """

    call: Callable[[], object]
    threads: int = 1
    handle: Any = None


class Backend(abc.ABC):
    """Prepares chains of operators and times them.

    Attributes:
        name: The backend's name in table headers.
        dtype: Number format of the tensors.
    """

    name: str
    dtype: str = "float32"

    @abc.abstractmethod
    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        """Builds one operator, or a whole net, with random weights.

        Args:
            chain: Operators in execution order; an empty chain stands for the runtime's own overhead.
            batch: Images per inference.
            threads: Threads that one inference may use.
            input_shape: `(C, H, W)`; needed for an empty chain only.
        """

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        """One sample: seconds per run, averaged over `repeats` runs back to back.

        With one thread the clock is the CPU time of the calling thread, which other processes cannot lengthen by
        pre-empting it; otherwise the wall clock.
        """
        clock = time.thread_time if runnable.threads == 1 else time.perf_counter
        call = runnable.call
        call()
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    def device(self) -> str:
        """The device in words."""
        return cpu_name()

    def versions(self) -> dict[str, str]:
        """Library name to version, for the table's header."""
        return {"python": platform.python_version()}

    def close(self) -> None:  # noqa: B027 (most backends have nothing to close)
        """Frees what `prepare` built; the backend may not be used afterwards."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SharedBackend(Backend):
    """A backend that can also time a model file as it is deployed."""

    @abc.abstractmethod
    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        """Loads a model file, to be timed by the same loop as operators.

        Args:
            path: The model file.
            batch: Images per inference.
            threads: Threads that one inference may use.
            input_shape: `(C, H, W)`; None takes it from the file.
        """


def cpu_name() -> str:
    """The processor's name, as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def not_installed(name: str, package: str, *, extra: str | None = None) -> BackendError:
    """The error of a backend whose package is missing; `extra` is this project's extra that brings it, if one does."""
    what = f"'proxyless-strategy[{extra}]'" if extra else package
    return BackendError(
        f"backend {name!r} needs {package}, which is not installed; install it with `pip install {what}`."
    )
