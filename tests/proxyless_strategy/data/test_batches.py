"""Which images form which batch, and how processes share an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from proxyless_strategy.data.batches import EpochBatches


def sampler(**arguments: Any) -> EpochBatches:
    return EpochBatches(**{"length": 10, "batch_size": 3, "shuffle": True, "drop_last": False, "seed": 0, **arguments})


def test_every_image_comes_once_an_epoch() -> None:
    assert sorted(index for key in sampler() for index in key.indices) == list(range(10))
    assert len(sampler()) == len(list(sampler())) == 4
    assert len(sampler(drop_last=True)) == len(list(sampler(drop_last=True))) == 3


def test_without_shuffling_images_come_as_they_lie() -> None:
    assert [key.indices for key in sampler(shuffle=False)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = sampler(epoch=2), sampler(), sampler(seed=1, epoch=2)
    assert list(first) != list(again)
    again.set_epoch(2)
    assert list(first) == list(again)
    assert [key.indices for key in first] != [key.indices for key in other]


def test_start_skips_batches_of_the_same_order() -> None:
    whole, rest = sampler(epoch=1), sampler()
    rest.set_epoch(1, start=2)
    assert list(rest) == list(whole)[2:]


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 2), (True, 1)])
def test_replicas_share_an_epoch(drop_last: bool, steps: int) -> None:
    whole = list(sampler(drop_last=drop_last))
    shares = [list(sampler(drop_last=drop_last, rank=rank, replicas=2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [steps, steps]
    assert [key for pair in zip(*shares, strict=True) for key in pair] == whole[: 2 * steps]


@pytest.mark.parametrize("length", range(1, 20))
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_weighted_by_counts_the_mean_over_processes_is_the_mean_over_the_images_of_the_step(
    length: int, replicas: int
) -> None:
    """As one process has them: each image once, however unequally the last ones are divided."""
    options = {"length": length, "shuffle": True, "drop_last": False, "seed": 1}
    values = np.random.default_rng(0).normal(size=length)
    alone = list(EpochBatches(batch_size=3 * replicas, **options))
    samplers = [EpochBatches(batch_size=3, rank=rank, replicas=replicas, **options) for rank in range(replicas)]
    shares = [list(share) for share in samplers]
    assert all(len(share) == len(alone) for share in shares)
    for step, whole in enumerate(alone):
        means = [
            sampler.weight(step) * values[share[step].indices].mean()
            for sampler, share in zip(samplers, shares, strict=True)
        ]
        assert np.mean(means) == pytest.approx(values[whole.indices].mean(), abs=1e-12)
        if len(whole.indices) == 3 * replicas:
            assert [sampler.weight(step) for sampler in samplers] == [1.0] * replicas
