"""Derivation is exact: it is held against enumeration, nested choices included."""

import itertools
import math

import numpy as np
import pytest

from hardware.errors import TargetError
from proxyless_strategy.strategy.architecture import Edge
from proxyless_strategy.strategy.derivation import CHOICES, Deriver


def flat_problem(seed, edges=4, candidates=5):
    generator = np.random.default_rng(seed)
    sizes = [candidates - (row % 2) for row in range(edges)]
    log_p = np.full((edges, candidates), -np.inf)
    costs = np.zeros((edges, candidates))
    for row, size in enumerate(sizes):
        log_p[row, :size] = np.log(generator.dirichlet(np.ones(size)))
        costs[row, :size] = generator.uniform(1, 10, size)
    return [Edge(f"edge{row}", tuple(range(size))) for row, size in enumerate(sizes)], log_p, costs


def nested_problem(seed):
    generator = np.random.default_rng(seed)
    edges = [
        Edge("depth", (1, 2, 3)),
        Edge("block1", ("a", "b"), parent=(0, frozenset({1, 2}))),
        Edge("block2", ("a", "b", "c"), parent=(0, frozenset({2}))),
        Edge("inside", ("x", "y"), parent=(2, frozenset({1}))),
    ]
    log_p, costs = np.full((4, 3), -np.inf), np.zeros((4, 3))
    for row, edge in enumerate(edges):
        size = len(edge.candidates)
        log_p[row, :size] = np.log(generator.dirichlet(np.ones(size)))
        costs[row, :size] = generator.uniform(1, 10, size)
    return edges, log_p, costs


def every_choice(edges, log_p, costs, fixed):
    """(cost, log-probability) of every subnet, computed without the deriver."""
    seen = set()
    for choice in itertools.product(*(range(len(edge.candidates)) for edge in edges)):
        cost, total, reached = fixed, 0.0, []
        for row, edge in enumerate(edges):
            on = edge.parent is None or (reached[edge.parent[0]] and choice[edge.parent[0]] in edge.parent[1])
            reached.append(on)
            if on:
                cost += costs[row, choice[row]]
                total += log_p[row, choice[row]]
        subnet = tuple(index if on else None for index, on in zip(choice, reached, strict=True))
        if subnet not in seen:
            seen.add(subnet)
            yield cost, total


@pytest.mark.parametrize("problem", [flat_problem, nested_problem])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slack", [None, 0.05])
def test_within_equals_enumeration(problem, seed, slack):
    edges, log_p, costs = problem(seed)
    deriver = Deriver(edges, log_p, costs, fixed=2.0)
    everything = list(every_choice(edges, log_p, costs, 2.0))
    low, high = min(c for c, _ in everything), max(c for c, _ in everything)
    assert deriver.cheapest().cost == pytest.approx(low)
    assert deriver.dearest().cost == pytest.approx(high)
    for budget in np.linspace(low, high, 7):
        budget *= 1 + 1e-9
        allowed = [pair for pair in everything if pair[0] <= budget]
        if slack is not None:
            for share in (2**n * slack for n in range(9)):
                using = [pair for pair in allowed if pair[0] >= (1 - share) * budget]
                if len(using) >= CHOICES or share >= 1:
                    break
            allowed = using
        found = deriver.within(budget, slack=slack)
        assert found.cost <= budget
        assert found.log_probability == pytest.approx(max(total for _, total in allowed), abs=1e-9)


@pytest.mark.parametrize("problem", [flat_problem, nested_problem])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [None, 0.6])
def test_finalists_are_the_most_probable_subnets(problem, seed, share):
    edges, log_p, costs = problem(seed)
    everything = list(every_choice(edges, log_p, costs, 2.0))
    low, high = min(c for c, _ in everything), max(c for c, _ in everything)
    budget = None if share is None else low + share * (high - low)
    found = Deriver(edges, log_p, costs, fixed=2.0).finalists(10, budget)
    expected = sorted((pair for pair in everything if budget is None or pair[0] <= budget), key=lambda p: -p[1])[:10]
    assert len(expected) >= 3
    assert [f.log_probability for f in found] == pytest.approx([total for _, total in expected], abs=1e-9)
    assert [f.cost for f in found] == pytest.approx([cost for cost, _ in expected])


def test_slack_leaves_a_choice():
    """`a d` alone uses 98 % of the budget, 96 % three do; 8 % leave all four, of which `b e` is the most probable."""
    edges = [Edge("first", ("a", "b")), Edge("second", ("d", "e"))]
    log_p = np.log(np.array([[0.1, 0.9], [0.05, 0.95]]))
    costs = np.array([[0.51, 0.48], [0.49, 0.46]])
    deriver = Deriver(edges, log_p, costs)
    assert deriver.within(1.0, slack=0.02).choice == (1, 1)
    assert [finalist.choice for finalist in deriver.finalists(2, 1.0, slack=0.02)] == [(1, 1), (0, 1)]


def test_argmax_takes_the_first_on_a_tie():
    edges = [Edge("edge", ("a", "b", "c"))]
    assert Deriver(edges, np.log(np.array([[0.4, 0.4, 0.2]]))).argmax().choice == (0,)


def test_an_impossible_budget_is_refused_with_the_minimum():
    edges, log_p, costs = flat_problem(0)
    deriver = Deriver(edges, log_p, costs)
    least = deriver.cheapest().cost
    with pytest.raises(TargetError, match=f"{least:.6g}"):
        deriver.within(least * 0.99)


def test_curve_is_a_trade_off():
    edges, log_p, costs = flat_problem(3, edges=6)
    curve = Deriver(edges, log_p, costs).curve(15)
    latencies = [derived.cost for derived in curve]
    probabilities = [derived.log_probability for derived in curve]
    assert latencies == sorted(latencies)
    assert probabilities == sorted(probabilities)
    assert len(curve) > 3


def test_probability_zero_is_chosen_only_where_nothing_else_is_within():
    edges = [Edge("edge", ("slow", "fast"))]
    deriver = Deriver(edges, np.array([[0.0, -math.inf]]), np.array([[5.0, 1.0]]))
    assert deriver.within(10.0).choice == (0,)
    assert deriver.within(2.0).choice == (1,)
