"""PyTorch eager on the CPU, measured in a child process with malloc settings that keep page faults out.

Without `mmap_max=0` and a large `trim_threshold` glibc gives each large activation back to the kernel and faults it
in again, which swings one net between 13 and 19 ms (DESIGN.md section 4); the settings are read at process start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.errors import BackendError
from hardware.op_spec import OpSpec

from ..operators import primitives
from ..operators.primitives import input_of
from .base import Backend, Runnable, required

MALLOC_TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4000000000"


class TorchBackend(Backend):
    """Eager modules under `torch.no_grad`.

    Args:
        channels_last: Whether tensors are in the channels-last memory format.
        compiled: Whether modules are compiled by Inductor with frozen weights.
    """

    name = "torch"

    def __init__(self, *, channels_last: bool = False, compiled: bool = False) -> None:
        required("torch", backend=self.name, package="torch")
        self._options = {"channels_last": channels_last, "compiled": compiled}
        self._process: subprocess.Popen[str] | None = None

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
        number = self._ask("prepare", groups=groups, shape=[batch, *shape], threads=threads, options=self._options)
        return Runnable(lambda: self._ask("run", number=number), threads=threads, handle=number)

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        return float(self._ask("time", number=runnable.handle, repeats=repeats))

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "torch": str(self._ask("version"))}

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(BrokenPipeError):
                process.communicate(timeout=30)

    def _ask(self, verb: str, **arguments: Any) -> Any:
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BackendError(f"the torch measuring process died with code {process.wait()}; its message is above.")
        answer = json.loads(line)
        if "error" in answer:
            raise BackendError(f"the torch measuring process failed: {answer['error']}")
        return answer["value"]

    def _start(self) -> subprocess.Popen[str]:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        tunables = ":".join(t for t in (os.environ.get("GLIBC_TUNABLES", ""), MALLOC_TUNABLES) if t)
        environment = {**os.environ, "PYTHONPATH": path, "GLIBC_TUNABLES": tunables}
        return subprocess.Popen(
            [sys.executable, "-m", "hardware.backends.torch_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )


def to_plain(primitive: primitives.Primitive) -> dict[str, Any]:
    """A primitive as JSON can hold it."""
    return {"type": type(primitive).__name__, **dataclasses.asdict(primitive)}


def from_plain(value: dict[str, Any]) -> primitives.Primitive:
    """The primitive that `to_plain` made `value` of."""
    fields = dict(value)
    return getattr(primitives, fields.pop("type"))(**fields)
