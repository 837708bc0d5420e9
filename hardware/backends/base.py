"""What a measuring backend is, and what the backends share."""

from __future__ import annotations

import abc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import BackendError
from ..onnx_runtime import import_onnxruntime
from ..op_spec import OpSpec
from ..reading import cut, shown
from ..tables.records import FLOAT32, INT8

_KINDS = {bool: "true or false", int: "a whole number", str: "a text"}


@dataclass(frozen=True)
class Runnable:
    """Something prepared that can run again and again.

    Attributes:
        call: Runs it once; returns when the result is complete.
        threads: Threads that it may use; with one, CPU time of the calling thread is the clock.
        handle: Whatever the backend wants to remember.
        wall_clock: Whether the wall clock is right even with one thread, because something else does the work.
    """

    call: Callable[[], object]
    threads: int = 1
    handle: Any = None
    wall_clock: bool = False


class Backend(abc.ABC):
    """Prepares chains of operators and times them.

    Attributes:
        name: The backend's name in table headers.
        dtypes: Number formats that it can measure.
        dtype: Number format of the tensors.
        known_options: What else can be chosen, each with its default, whose type is the option's.
        options: All of these, as chosen.
        place: Which of the backend's devices measures (`cpu`, `cuda:1`, ...), as the backend calls it. The command
            line and YAML call it `device`; here `device` is a device's name in words.
    """

    name: str
    dtypes: ClassVar[tuple[str, ...]] = (FLOAT32,)
    known_options: ClassVar[Mapping[str, bool | int | str]] = {}
    dtype: str = FLOAT32
    options: Mapping[str, Any] = {}
    place: str = "cpu"

    def use(self, place: str) -> None:
        """Choose the device that measures, before anything is prepared; a backend that has several overrides this.

        Raises:
            BackendError: The backend has no such device.
        """
        if place != self.place:
            raise BackendError(
                f"backend {self.name!r} measures on {self.place!r} alone, not on {place!r}; leave the device out, or "
                "choose another backend"
            )

    def choose(self, *, dtype: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Choose number format and options, before anything is prepared.

        Args:
            dtype: One of `dtypes`; None keeps the one that is chosen.
            options: Some of `known_options`; the others stay as they are.

        Raises:
            BackendError: The backend has no such number format or option, or the option no such value.
        """
        if dtype is not None and dtype not in self.dtypes:
            raise BackendError(
                f"backend {self.name!r} does not measure {shown(dtype)}; it measures {', '.join(self.dtypes)}"
            )
        for option, value in (options or {}).items():
            if option not in self.known_options:
                raise BackendError(
                    f"backend {self.name!r} has no option {shown(option)}; it has {described(self.known_options)}"
                )
            kind = type(self.known_options[option])
            # for Python True is a whole number
            if type(value) is not kind:
                raise BackendError(
                    f"option {option} of backend {self.name!r} is {shown(value)}; it must be {_KINDS[kind]}"
                )
        self.dtype = dtype or self.dtype
        self.options = {**self.known_options, **self.options, **(options or {})}

    def of_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options that a table's header or a config names, with the defaults of all others.

        A table that was measured before an option existed is of its default.
        """
        return {**self.known_options, **options}

    @abc.abstractmethod
    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        """Build one operator, or a whole net, with random weights.

        Args:
            chain: Operators in execution order; an empty chain stands for the runtime's own overhead.
            batch: Images per inference.
            threads: Threads that one inference may use.
            input_shape: `(C, H, W)`; needed for an empty chain only.
        """

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        """Take one sample: seconds per run, averaged over `repeats` runs back to back.

        With one thread the clock is the CPU time of the calling thread, which other processes cannot lengthen by
        pre-empting it; otherwise the wall clock.
        """
        return seconds_per_run(
            runnable.call, repeats=repeats, cpu_time=runnable.threads == 1 and not runnable.wall_clock
        )

    def run_for(self, runnable: Runnable, seconds: float) -> int:
        """Run back to back until `seconds` are over, at least once; return the number of runs, all of them complete.

        What else the device counts meanwhile (its energy) is then of so many runs. A backend whose `time` does not run
        `Runnable.call` in this process overrides this too.
        """
        return runs_within(runnable.call, seconds)

    def device(self) -> str:
        """Name the device in words."""
        return cpu_name()

    def versions(self) -> dict[str, str]:
        """Return library name to version, for the table's header."""
        return {"python": platform.python_version()}

    def close(self) -> None:  # noqa: B027 (most backends have nothing to close)
        """Free what `prepare` built; the backend may not be used afterwards."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SharedBackend(Backend):
    """A backend that can also time a model file as it is deployed.

    Attributes:
        suffix: What the name of such a file ends in.
    """

    suffix: ClassVar[str] = ".onnx"

    def times_float_onnx(self) -> bool:
        """Whether it times a float32 ONNX file as it is: not one of another kind, nor where it measures int8."""
        return self.suffix == ".onnx" and self.dtype != INT8

    @abc.abstractmethod
    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        """Load a model file, to be timed by the same loop as operators.

        Args:
            path: The model file.
            batch: Images per inference.
            threads: Threads that one inference may use.
            input_shape: `(C, H, W)`; None takes it from the file.
        """


def model_file(path: str | Path) -> Path:
    """Return the path of a model file that is there.

    Raises:
        BackendError: It is not.
    """
    path = Path(path)
    if not path.is_file():
        raise BackendError(f"there is no model file at {path}; export one first")
    return path


def random_image(shape: Sequence[int], *, uint8: bool) -> np.ndarray:
    """Draw numbers for an input: floats, or for an operator of a quantised net its uint8."""
    generator = np.random.default_rng(0)
    if uint8:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.standard_normal(shape, dtype=np.float32)


def described(options: Mapping[str, Any]) -> str:
    """Say which options there are, each with its default.

    >>> described({"graphs": False, "streams": 1}), described({})
    ('graphs (false), streams (1)', 'none')
    """
    said = [f"{name} ({str(value).lower() if isinstance(value, bool) else value})" for name, value in options.items()]
    return cut(", ".join(said), 200) or "none"


def seconds_per_run(call: Callable[[], object], *, repeats: int, cpu_time: bool) -> float:
    """Return the mean of `repeats` runs back to back, after one run that does not count.

    Args:
        call: What runs.
        repeats: How often.
        cpu_time: Whether the calling thread's CPU time is the clock, or else the wall clock.
    """
    clock = time.thread_time if cpu_time else time.perf_counter
    # another operator ran before: the first run pays for refilling the caches, which would dominate a short sample
    call()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def runs_within(call: Callable[[], object], seconds: float) -> int:
    """Run back to back until `seconds` are over by the wall clock, at least once; return the number of runs."""
    end = time.perf_counter() + seconds
    runs = 0
    while True:
        call()
        runs += 1
        if time.perf_counter() >= end:
            return runs


def cpu_name() -> str:
    """Return the processor's name, as the operating system gives it."""
    # Python's `platform.processor` is empty on most Linux systems
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def required(module: str, *, backend: str, package: str, extra: str | None = None) -> Any:
    """Import a module that a backend needs.

    Args:
        module: The module's name.
        backend: The backend's name.
        package: The package that has the module.
        extra: This project's extra that brings the package, if one does.

    Raises:
        BackendError: The package is not installed.
    """
    try:
        return import_onnxruntime() if module == "onnxruntime" else import_module(module)
    except ImportError:
        what = f"'proxyless-strategy[{extra}]'" if extra else package
        raise BackendError(
            f"backend {backend!r} needs {package}, which is not installed; install it with `pip install {what}`"
        ) from None
