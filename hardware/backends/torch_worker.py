"""The measuring process of the torch backends: one JSON request a line on stdin, one answer a line on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..operators.torch_module import chain_and_image
from .base import runs_within, seconds_per_run
from .torch import from_plain


def main() -> None:
    """Answer requests until stdin closes."""
    # Answers get the real stdout for themselves: what torch or a compiler prints would break the next line of JSON, and
    # goes to stderr instead. It is done on the file descriptors, as C++ code does not know `sys.stdout`.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"value": getattr(worker, request.pop("verb"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


class Worker:
    """Keeps the prepared modules and times them; each method is a verb of the parent's."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []
        self._threads = 0
        torch.set_grad_enabled(False)

    def version(self) -> str:
        return torch.__version__

    def prepare(
        self, groups: list[list[dict[str, Any]]], shape: list[int], threads: int, options: dict[str, bool]
    ) -> int:
        # the number is the whole process's: what was prepared before would from now on run with another one
        if self._threads not in (0, threads):
            raise ValueError(f"this process measures with {self._threads} threads; {threads} need another one")
        if not self._threads:
            torch.set_num_threads(threads)
            self._threads = threads
        layers = [[from_plain(p) for p in group] for group in groups]
        module: Any
        module, x = chain_and_image(layers, shape, channels_last=options["channels_last"])
        if options["compiled"]:
            import torch._inductor.config as inductor

            inductor.freezing = True
            # Dynamo compiles one piece of code 8 times at most and runs it eagerly after that. All chains share one
            # `forward`; traced, each gets code of its own. `fullgraph` makes a fall back to eager an error.
            module = torch.compile(torch.fx.symbolic_trace(module), dynamic=False, fullgraph=True)
        module(x)
        self._calls.append(lambda: module(x))
        return len(self._calls) - 1

    def run(self, number: int) -> None:
        self._calls[number]()

    def run_for(self, number: int, seconds: float) -> int:
        return runs_within(self._calls[number], seconds)

    def time(self, number: int, repeats: int) -> float:
        # timed here and not in the parent, whose clock would count the pipe between the two
        return seconds_per_run(self._calls[number], repeats=repeats, cpu_time=self._threads == 1)


if __name__ == "__main__":
    main()
