"""PyTorch compiled by Inductor with frozen weights; without freezing it is no faster than eager."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .torch import TorchBackend


class InductorBackend(TorchBackend):
    """`torch.compile` under `torch.no_grad` and `torch._inductor.config.freezing`, in the same child process as eager.

    Each operator and each net is compiled once, which takes some seconds.
    """

    name = "inductor"
    known_options: ClassVar[Mapping[str, bool]] = {"channels_last": False}

    def worker_options(self) -> dict[str, Any]:
        return {**self.options, "compiled": True}
