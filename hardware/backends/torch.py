"""PyTorch eager on the CPU, measured in a child process with malloc settings that keep page faults out.

The child (`torch_worker.py`) is asked one line of JSON at a time. It lives as long as the backend, so that what was
prepared stays prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..child_process import measuring_environment
from ..errors import BackendError
from ..op_spec import OpSpec
from ..operators import primitives
from ..operators.primitives import input_of
from .base import Backend, Runnable, required


class TorchBackend(Backend):
    """Eager modules under `torch.no_grad`.

    Args:
        **options: `channels_last`: whether tensors are in the channels-last memory format. `compiled`: whether modules
            are compiled by Inductor with frozen weights.
    """

    name = "torch"
    known_options: ClassVar[Mapping[str, bool]] = {"channels_last": False, "compiled": False}

    def __init__(self, **options: bool) -> None:
        required("torch", backend=self.name, package="torch")
        self.options = {}
        self.choose(options=options)
        self.process: subprocess.Popen[str] | None = None

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        chain = primitives.check_chain(chain)
        shape = input_of(chain, input_shape)
        groups = [[to_plain(p) for p in primitives.decompose(op)] for op in chain]
        options = self.worker_options()
        number = self.ask("prepare", groups=groups, shape=[batch, *shape], threads=threads, options=options)
        return Runnable(lambda: self.ask("run", number=number), threads=threads, handle=number)

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        return float(self.ask("time", number=runnable.handle, repeats=repeats))

    def run_for(self, runnable: Runnable, seconds: float) -> int:
        return int(self.ask("run_for", number=runnable.handle, seconds=seconds))

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "torch": str(self.ask("version"))}

    def choose(self, *, dtype: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().choose(dtype=dtype, options=options)
        if self.worker_options()["compiled"]:
            self.check_compiler()

    def worker_options(self) -> dict[str, Any]:
        """Return how the child builds modules: `channels_last` and `compiled`."""
        return dict(self.options)

    def check_compiler(self) -> None:
        """Refuse to compile where there is no C++ compiler.

        Raises:
            BackendError: There is none; Inductor would fail at the first graph only, with a long trace.
        """
        if not any(shutil.which(compiler) for compiler in ("g++", "c++", "clang++")):
            raise BackendError(
                f"backend {self.name!r} needs a C++ compiler to compile graphs, and there is none on the PATH; "
                "install g++"
            )

    def close(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            # closing its stdin ends the child's loop; where it has died already, there is nobody to write to
            with contextlib.suppress(BrokenPipeError):
                process.communicate(timeout=30)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Have the child carry out a method of `torch_worker.Worker`; started by the first question.

        Raises:
            BackendError: The method raised, or the child is gone.
        """
        if self.process is None:
            self.process = self._start()
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BackendError(f"the torch measuring process died with code {process.wait()}; its message is above")
        answer = json.loads(line)
        if "error" in answer:
            raise BackendError(f"the torch measuring process failed: {answer['error']}")
        return answer["value"]

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hardware.backends.torch_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=measuring_environment(),
            text=True,
        )


def to_plain(primitive: primitives.Primitive) -> dict[str, Any]:
    """Write a primitive as JSON can hold it."""
    return {"type": type(primitive).__name__, **dataclasses.asdict(primitive)}


def from_plain(value: dict[str, Any]) -> primitives.Primitive:
    """Return the primitive that `to_plain` made `value` of."""
    fields = dict(value)
    return getattr(primitives, fields.pop("type"))(**fields)
