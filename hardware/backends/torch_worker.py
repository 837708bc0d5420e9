"""The measuring process of the torch backends: one JSON request a line on stdin, one answer a line on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from hardware.backends.torch import from_plain

from ..operators.torch_module import Chain


def main() -> None:
    """Answers requests until stdin closes."""
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
    """Keeps the prepared modules and times them."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []
        self._threads = 0
        torch.set_grad_enabled(False)

    def version(self) -> str:
        return torch.__version__

    def prepare(
        self, groups: list[list[dict[str, Any]]], shape: list[int], threads: int, options: dict[str, bool]
    ) -> int:
        if self._threads not in (0, threads):
            raise ValueError(f"this process measures with {self._threads} threads; {threads} need another one")
        if not self._threads:
            torch.set_num_threads(threads)
            self._threads = threads
        module: Any = Chain([[from_plain(p) for p in group] for group in groups]).eval()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if options["channels_last"]:
            module = module.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)
        if options["compiled"]:
            import torch._inductor.config as inductor

            inductor.freezing = True
            # traced, each module is compiled as code of its own; one forward of all would be compiled 8 times at most
            # and run eagerly after that, which `fullgraph` makes an error
            module = torch.compile(torch.fx.symbolic_trace(module), dynamic=False, fullgraph=True)
        module(x)
        self._calls.append(lambda: module(x))
        return len(self._calls) - 1

    def run(self, number: int) -> None:
        self._calls[number]()

    def time(self, number: int, repeats: int) -> float:
        clock = time.thread_time if self._threads == 1 else time.perf_counter
        call = self._calls[number]
        call()
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats


if __name__ == "__main__":
    main()
