"""PyTorch compiled by Inductor with frozen weights; without freezing it is no faster than eager."""

from __future__ import annotations

import shutil

from ..errors import BackendError
from .torch import TorchBackend


class InductorBackend(TorchBackend):
    """`torch.compile` under `torch.no_grad` and `torch._inductor.config.freezing`, in the same child process as eager.

    Each operator and each net is compiled once, which takes some seconds.
    """

    name = "inductor"

    def __init__(self, *, channels_last: bool = False) -> None:
        # Inductor compiles C++; without a compiler it would fail at the first graph only, with a long trace
        if not any(shutil.which(compiler) for compiler in ("g++", "c++", "clang++")):
            raise BackendError("backend 'inductor' needs a C++ compiler, and there is none on the PATH; install g++")
        super().__init__(channels_last=channels_last, compiled=True)
