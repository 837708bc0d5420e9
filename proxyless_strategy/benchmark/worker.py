"""The child process that times PyTorch modules, with its own allocator settings.

`python -m proxyless_strategy.benchmark.worker JOB.json RESULT.json`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardware.backends import Backend, Runnable
from hardware.errors import BackendError
from hardware.files import write_atomically
from hardware.measuring.sampling import Plan, interleaved, timers_of
from hardware.reading import Kind, read_json

from .models import build_model, settle


class _Modules(Backend):
    """Eager modules in this process."""

    name = "torch"

    def prepare(self, *_: Any, **__: Any) -> Runnable:
        raise BackendError("this process times whole modules only; use the torch backend for operators")

    def module(self, model: nn.Module, images: torch.Tensor, *, threads: int) -> Runnable:
        return Runnable(lambda: model(images), threads=threads)

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "torch": torch.__version__}


def _measure_job(job: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_grad_enabled(False)
    torch.set_num_threads(job["threads"])
    device, runnables = _Modules(), {}
    for index, model in enumerate(job["models"]):
        module = build_model(model["name"], seed=job["seed"])
        settle(module, model["shape"], seed=job["seed"])
        for batch in job["batches"]:
            images = torch.randn(batch, *model["shape"], generator=torch.Generator().manual_seed(job["seed"]))
            runnables[index, batch] = device.module(module, images, threads=job["threads"])
    samples = interleaved(timers_of(device, runnables), plan=Plan(**job["plan"]), seed=job["seed"])
    return {
        "samples": [[*key, values] for key, values in samples.items()],
        "device": device.device(),
        "versions": device.versions(),
    }


def _main(asked: str, answered: str) -> None:
    job = read_json(asked, Kind("the job", "start the benchmark, which writes it", BackendError))
    write_atomically(Path(answered), json.dumps(_measure_job(job)), error=BackendError)


if __name__ == "__main__":
    _main(*sys.argv[1:])
