"""Closed-form tests of the gates: what each estimator's expectation must be, enumerated over all pairs."""

import itertools
import math

import pytest
import torch

from proxyless_strategy.strategy import gates


def random_alpha(rows=3, columns=5, seed=0, sizes=None):
    alpha = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.ones(rows, columns, dtype=torch.bool)
    for row, size in enumerate(sizes or []):
        mask[row, size:] = False
    return alpha, mask


def pair(a, b, rows):
    return gates.Pairs(torch.full((rows,), a), torch.full((rows,), b))


def test_probabilities_are_zero_in_unused_cells_and_sum_to_one():
    alpha, mask = random_alpha(sizes=[5, 3, 1])
    p = gates.probabilities(alpha, mask)
    assert torch.allclose(p.sum(-1), torch.ones(3, dtype=torch.float64))
    assert (p[~mask] == 0).all()
    assert p[2, 0] == 1


@pytest.mark.parametrize("count", [1, 2, 7])
def test_entropy_of_equal_alphas_is_the_log_of_the_count(count):
    alpha, mask = torch.zeros(1, 7, dtype=torch.float64), torch.arange(7)[None] < count
    assert gates.entropy(gates.probabilities(alpha, mask)).item() == pytest.approx(math.log(count), abs=1e-12)


def test_entropy_has_a_finite_gradient_beside_unused_cells():
    alpha, mask = random_alpha(sizes=[5, 3, 1])
    alpha.requires_grad_()
    gates.entropy(gates.probabilities(alpha, mask)).sum().backward()
    assert torch.isfinite(alpha.grad).all()


def test_log_probability_of_equal_alphas():
    log_p = gates.log_probabilities(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert log_p[0, 1].item() == pytest.approx(math.log(1 / 3))


def test_uniforms_depend_on_their_arguments_alone():
    first = gates.uniforms(7, gates.Phase.PAIR, 3, (4, 5))
    torch.manual_seed(99)
    assert torch.equal(first, gates.uniforms(7, gates.Phase.PAIR, 3, (4, 5)))
    others = [
        gates.uniforms(8, gates.Phase.PAIR, 3, (4, 5)),
        gates.uniforms(7, gates.Phase.ACTIVE, 3, (4, 5)),
        gates.uniforms(7, gates.Phase.PAIR, 4, (4, 5)),
        gates.uniforms(7, gates.Phase.PAIR, 3, (4, 5), sample=1),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_sampled_paths_follow_the_probabilities():
    alpha, mask = random_alpha(rows=1, columns=4, sizes=[3])
    p = gates.probabilities(alpha, mask)[0]
    draws = 20000
    u = gates.uniforms(0, gates.Phase.WEIGHTS, 0, (draws, 4))
    counts = torch.bincount(gates.sample_paths(alpha.expand(draws, -1), mask.expand(draws, -1), u), minlength=4) / draws
    assert counts[3] == 0
    assert torch.allclose(counts.double(), p, atol=4 * 0.5 / math.sqrt(draws))


@pytest.mark.parametrize("start", [0, 30])
def test_fair_paths_run_every_candidate_equally_often_in_each_round(start):
    _, mask = random_alpha(sizes=[5, 3, 1])
    drawn = torch.stack([gates.fair_paths(4, gates.Phase.WARMUP, start + step, mask) for step in range(15)])
    for row, size in enumerate([5, 3, 1]):
        rounds = drawn[:, row].view(-1, size).sort(-1).values
        assert (rounds == torch.arange(size)).all(), "each candidate once in every round"


def test_fair_paths_of_two_edges_are_independent():
    mask = torch.ones(2, 3, dtype=torch.bool)
    drawn = torch.stack([gates.fair_paths(0, gates.Phase.WARMUP, step, mask) for step in range(9000)])
    counts = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9)
    assert (counts - 1000).abs().max() < 5 * (9000 * (1 / 9) * (8 / 9)) ** 0.5
    again = torch.stack([gates.fair_paths(0, gates.Phase.WARMUP, step, mask) for step in range(9)])
    assert (again == drawn[:9]).all(), "a function of its arguments alone"


def test_sampled_pairs_follow_the_closed_form():
    alpha, mask = random_alpha(rows=1, columns=4)
    p = gates.probabilities(alpha, mask)
    draws = 20000
    pairs = gates.sample_pairs(
        alpha.expand(draws, -1),
        mask.expand(draws, -1),
        gates.uniforms(0, gates.Phase.PAIR, 0, (draws, 4)),
        gates.uniforms(0, gates.Phase.ACTIVE, 0, (draws,)),
    )
    for a, b in itertools.combinations(range(4), 2):
        forward = ((pairs.active == a) & (pairs.second == b)).double().mean()
        backward = ((pairs.active == b) & (pairs.second == a)).double().mean()
        expected = gates.pair_probability(p, a, b)[0]
        assert forward + backward == pytest.approx(expected.item(), abs=0.015)
        share = (p[0, a] / (p[0, a] + p[0, b])).item()
        assert (forward / (forward + backward)).item() == pytest.approx(share, abs=0.06)


def test_pair_probabilities_sum_to_one():
    alpha, mask = random_alpha(rows=2, columns=6)
    p = gates.probabilities(alpha, mask)
    total = sum(gates.pair_probability(p, a, b) for a, b in itertools.combinations(range(6), 2))
    assert torch.allclose(total, torch.ones(2, dtype=torch.float64), atol=1e-12)


def test_a_saturated_row_never_draws_an_unused_cell():
    alpha = torch.tensor([[800.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    for step in range(200):
        pairs = gates.sample_pairs(
            alpha,
            mask,
            gates.uniforms(0, gates.Phase.PAIR, step, (1, 4)),
            gates.uniforms(0, gates.Phase.ACTIVE, step, (1,)),
        )
        assert pairs.second.item() != 3
        assert pairs.active.item() == 0


def test_an_edge_with_one_candidate_takes_no_part():
    alpha, mask = random_alpha(rows=2, columns=3, sizes=[1, 3])
    pairs = gates.sample_pairs(
        alpha, mask, gates.uniforms(0, gates.Phase.PAIR, 0, (2, 3)), gates.uniforms(0, gates.Phase.ACTIVE, 0, (2,))
    )
    assert pairs.active[0] == 0
    assert pairs.second[0] == -1
    gradient = gates.pair_gradient(alpha, mask, pairs, torch.ones(2, dtype=torch.float64))
    assert (gradient[0] == 0).all()
    moved = gates.rescale_pairs(alpha, alpha - gradient, pairs)
    assert torch.equal(moved[0], alpha[0])


@pytest.mark.parametrize("estimator", ["paper", "unbiased"])
def test_expected_pair_gradient_equals_its_closed_form(estimator):
    alpha, mask = random_alpha(rows=3, columns=5, sizes=[5, 4, 2])
    costs = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = gates.probabilities(alpha, mask)
    found = torch.zeros_like(alpha)
    closed = torch.zeros_like(alpha)
    for a, b in itertools.combinations(range(5), 2):
        both = mask[:, a] & mask[:, b]
        probability = torch.where(both, gates.pair_probability(p, a, b), torch.zeros(3, dtype=torch.float64))
        q_a = p[:, a] / (p[:, a] + p[:, b]).clamp(min=1e-300)
        pairs = gates.Pairs(torch.full((3,), a), torch.where(both, b, -1))
        gradient = gates.pair_gradient(alpha, mask, pairs, costs[:, a] - costs[:, b], estimator=estimator)
        found += probability[:, None] * gradient
        step = probability * q_a * (1 - q_a) * (costs[:, a] - costs[:, b])
        closed[:, a] += step
        closed[:, b] -= step
    expected = closed if estimator == "paper" else gates.softmax_gradient(p, torch.where(mask, costs, 0.0))
    assert torch.allclose(found, expected, atol=1e-14)


def test_pair_gradient_does_not_depend_on_which_of_the_pair_is_active():
    alpha, mask = random_alpha()
    difference = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    forward = gates.pair_gradient(alpha, mask, pair(1, 4, 3), difference)
    backward = gates.pair_gradient(alpha, mask, pair(4, 1, 3), -difference)
    assert torch.allclose(forward, backward, atol=1e-16)
    assert torch.allclose(forward.sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-16)


def test_softmax_gradient_equals_autograd():
    alpha, mask = random_alpha(sizes=[5, 3, 1])
    costs = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = alpha.clone().requires_grad_()
    (gates.probabilities(leaf, mask) * costs).sum().backward()
    assert torch.allclose(gates.softmax_gradient(gates.probabilities(alpha, mask), costs), leaf.grad, atol=1e-15)


def test_rescale_keeps_the_probabilities_of_all_other_candidates():
    alpha, mask = random_alpha(rows=3, columns=6, sizes=[6, 5, 3])
    pairs = gates.Pairs(torch.tensor([0, 4, 2]), torch.tensor([3, 1, 0]))
    moved = alpha.clone()
    moved[[0, 1, 2], pairs.active] += torch.tensor([0.7, -0.2, 1.5], dtype=torch.float64)
    moved[[0, 1, 2], pairs.second] -= torch.tensor([0.1, 0.9, 0.3], dtype=torch.float64)
    before, after = (
        gates.probabilities(alpha, mask),
        gates.probabilities(gates.rescale_pairs(alpha, moved, pairs), mask),
    )
    others = mask.clone()
    for row in range(3):
        others[row, [pairs.active[row], pairs.second[row]]] = False
    assert (before - after)[others].abs().max() < 1e-12
    assert (after[0, 0] - before[0, 0]) > 0.01
    raw = gates.probabilities(moved, mask)
    assert (before - raw)[others].abs().max() > 1e-4


def test_reinforce_gradient_is_the_gradient_of_minus_the_log_probability():
    alpha, mask = random_alpha(rows=2, columns=4)
    sample = torch.tensor([[3, 1]])
    leaf = alpha.clone().requires_grad_()
    log_p = gates.log_probabilities(leaf, mask)
    (-(log_p[0, 3] + log_p[1, 1])).backward()
    found = gates.reinforce_gradient(gates.probabilities(alpha, mask), sample, torch.ones(1, dtype=torch.float64))
    assert torch.allclose(found, leaf.grad, atol=1e-15)


def test_reinforce_mean_over_draws_equals_the_gradient_of_the_expected_reward():
    alpha, mask = random_alpha(rows=2, columns=3, sizes=[3, 2])
    p = gates.probabilities(alpha, mask)
    rewards = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf = alpha.clone().requires_grad_()
    q = gates.probabilities(leaf, mask)
    (-(q[0][:, None] * q[1][None, :] * rewards).sum()).backward()
    draws = 40000
    samples = torch.stack(
        [
            gates.sample_paths(alpha, mask, u)
            for u in gates.uniforms(1, gates.Phase.REINFORCE, 0, (draws, 2, 3)).unbind(0)
        ]
    )
    values = rewards[samples[:, 0], samples[:, 1]]
    each = torch.zeros(draws, 2, 3, dtype=torch.float64)
    each.scatter_(2, samples[:, :, None], 1.0)
    each = values[:, None, None] * (p - each)
    mean = gates.reinforce_gradient(p, samples, values)
    error = each.std(0) / math.sqrt(draws)
    assert torch.allclose(mean, each.mean(0), atol=1e-12)
    assert ((mean - leaf.grad).abs() <= 4 * error + 1e-12).all()


def test_reinforce_leaves_an_edge_alone_that_was_not_reached():
    alpha, mask = random_alpha(rows=2, columns=3)
    samples, active = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[True, False], [True, False]])
    gradient = gates.reinforce_gradient(
        gates.probabilities(alpha, mask), samples, torch.tensor([1.0, -0.5], dtype=torch.float64), active
    )
    assert (gradient[1] == 0).all()
    assert gradient[0].abs().max() > 0


def test_limited_pairs_stay_within_the_span_and_leave_the_larger_member_alone():
    alpha, _ = random_alpha(rows=2, columns=4)
    alpha[0, 1] += 50
    pairs = gates.Pairs(torch.tensor([1, 2]), torch.tensor([3, -1]))
    limited = gates.limit_pairs(alpha, pairs, 6.0)
    assert (limited[0, 1] - limited[0, 3]).item() == pytest.approx(6.0)
    assert limited[0, 1] == alpha[0, 1]
    assert torch.equal(limited[1], alpha[1])
