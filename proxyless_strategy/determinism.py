"""Deterministic algorithms of torch, cuDNN and cuBLAS: what makes a run on a GPU the same each time.

On a CPU nothing changes: a run is the same each time anyway, with the same number of threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn

from hardware.errors import ConfigError, TrainingError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC = (":4096:8", ":16:8")
_UNABLE = re.compile(r"(\S+) does not have a deterministic implementation")


def prepare_cublas(setting: str | None) -> None:
    """Set what cuBLAS reads from the environment when CUDA starts; to be called before that.

    The variable stays, as cuBLAS reads it once in a process.

    Args:
        setting: What asks for it, in the user's words (`search.deterministic`); None: nothing does.

    Raises:
        ConfigError: It has another value, or CUDA has started without it.
    """
    if setting is None or not torch.cuda.is_available():
        return
    given = os.environ.get(WORKSPACE)
    if given in _DETERMINISTIC:
        return
    if given is not None:
        raise ConfigError(
            f"{setting} = true needs {WORKSPACE} to be {' or '.join(_DETERMINISTIC)}, but the environment says "
            f"{given[:60]!r}; unset it"
        )
    if torch.cuda.is_initialized():
        raise ConfigError(
            f"{setting} = true needs {WORKSPACE}={_DETERMINISTIC[0]} in the environment before the GPU is first used, "
            "and this process has used it already; set it and start again"
        )
    os.environ[WORKSPACE] = _DETERMINISTIC[0]


@contextmanager
def deterministic(wanted: bool, *, setting: str, cuda: bool) -> Iterator[None]:
    """Run with deterministic algorithms alone, and put the caller's choice back on exit.

    Args:
        wanted: Whether to; if not, the caller's choice holds.
        setting: What asks for it, in the user's words.
        cuda: Whether a GPU computes.

    Raises:
        TrainingError: An operation has no deterministic implementation.
        ConfigError: See `prepare_cublas`.
    """
    if not wanted:
        yield
        return
    if cuda:
        prepare_cublas(setting)
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
    )
    try:
        torch.use_deterministic_algorithms(True, warn_only=False)
        # A kernel more for each new tensor. It serves code that reads what it has not written.
        memory.fill_uninitialized_memory = False
        # cuDNN's trials choose by the clock.
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        unable = _UNABLE.search(str(error))
        if unable is None:
            raise
        raise TrainingError(
            f"{setting} = true, but {unable[1]} has no deterministic implementation in torch {torch.__version__}; use "
            f"another operation in the network, or start anew with {setting} = false: what is resumed may then differ "
            "in the last digits"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark = before[2:]
