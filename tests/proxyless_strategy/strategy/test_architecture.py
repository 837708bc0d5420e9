"""Reach and expected cost of nested choices."""

import itertools

import pytest
import torch

from proxyless_strategy.strategy import gates
from tests.proxyless_strategy.strategy.spaces import (
    Nested,
    prepared,
)


def test_nested_choices_are_weighted_by_their_reach():
    _, _, architecture = prepared(Nested())
    labels = architecture.labels
    p = architecture.probabilities()
    reach = dict(zip(labels, architecture.reach(p).tolist(), strict=True))
    at = labels.index
    assert reach["outer"] == reach["depth"] == reach["input"] == reach["u0"] == 1
    assert reach["inner"] == pytest.approx(p[at("outer"), 1].item())
    assert reach["u1"] == pytest.approx(p[at("depth"), 1:].sum().item())
    assert reach["u2"] == pytest.approx(p[at("depth"), 2].item())


def test_expected_cost_of_nested_choices_equals_enumeration():
    _, _, architecture = prepared(Nested())
    p = architecture.probabilities()
    costs = torch.rand(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * architecture.mask
    samples = torch.tensor(list(itertools.product(*(range(len(e.candidates)) for e in architecture.edges))))
    reached = architecture.reached(samples)
    weight = torch.stack([p[row, samples[:, row]] for row in range(len(architecture.edges))]).prod(0)
    each = torch.stack([costs[row, samples[:, row]] for row in range(len(architecture.edges))], 1)
    expected = (weight * (each * reached).sum(1)).sum().item()
    assert architecture.expected_cost(p, costs) == pytest.approx(expected, rel=1e-12)
    leaf = architecture.host_alpha().requires_grad_()
    q = gates.probabilities(leaf, architecture.host_mask)
    total = (
        torch.stack([q[r, samples[:, r]] for r in range(samples.shape[1])]).prod(0) * (each * reached).sum(1)
    ).sum()
    total.backward()
    gradient = gates.softmax_gradient(p, architecture.total_costs(p, costs)) * architecture.reach(p)[:, None]
    assert torch.allclose(gradient, leaf.grad, atol=1e-12)
