"""Batch-norm statistics of one subnet."""

import pytest
import torch
from torch import nn

from hardware.errors import ConfigError
from proxyless_strategy.strategy.recalibration import average_statistics, first_of_batch, recalibrate


def network():
    return nn.Sequential(nn.BatchNorm1d(2, momentum=0.3), nn.Dropout(0.5))


def test_statistics_are_the_mean_over_the_first_batches():
    batches = [torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)) * (seed + 1) for seed in range(4)]
    net = network()
    net[0].running_mean.fill_(7.0)
    recalibrate(net, batches, net, count=3, seed=0)
    norm = net[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches[:3]]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches[:3]]).mean(0))
    assert norm.num_batches_tracked == 3
    assert norm.momentum == 0.3
    assert not net[1].training


def test_it_draws_nothing_from_the_callers_generator():
    before = torch.get_rng_state()
    recalibrate(network(), [torch.zeros(4, 2)], lambda batch: torch.randn(3), count=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_of_processes_are_averaged():
    net = network()
    net[0].running_mean.copy_(torch.tensor([2.0, 4.0]))
    average_statistics(net, lambda value: value / 2)
    assert net[0].running_mean.tolist() == [1.0, 2.0]
    assert net[0].running_var.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("batch", [torch.ones(2), (torch.ones(2), 3), [torch.ones(2)]])
def test_the_input_is_the_batch_or_its_first_item(batch):
    assert torch.equal(first_of_batch(batch), torch.ones(2))


def test_batches_without_a_clear_input_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="inputs="):
        first_of_batch({"image": torch.zeros(1)})
