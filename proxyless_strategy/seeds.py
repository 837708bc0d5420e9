"""Seeds: mix several numbers into one, set every generator, and leave the caller's as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """`isolated_seed` of several numbers."""
    with isolated_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0])):
        yield


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers."""
    words = np.random.SeedSequence([part & 0xFFFFFFFFFFFFFFFF for part in parts]).generate_state(2, np.uint32)
    return int(words[0]) | (int(words[1]) & 0x7FFFFFFF) << 32


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - users' augmentations draw from the global generator
    random.seed(seed)


@contextmanager
def isolated_seed(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's (CPU) global generators inside the context, and put them back on exit."""
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - users' augmentations draw from the global generator
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
