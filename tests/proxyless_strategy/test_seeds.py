"""Seeds."""

from __future__ import annotations

import random

import numpy as np
import torch

from proxyless_strategy.seeds import seeded


def test_seeded_restores_and_depends_on_all_its_numbers() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []
    for entropy in ((1, 2), (1, 2), (1, 3)):
        with seeded(*entropy):
            draws.append((torch.rand(1).item(), random.random(), float(np.random.rand())))  # noqa: NPY002
    assert torch.equal(before, torch.get_rng_state())
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))
