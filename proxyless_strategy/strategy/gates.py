"""Binary gates as pure functions of the architecture matrix: sampling, gradients and the pair rescale.

Shapes: `L` edges, `N` the largest number of candidates; `alpha` is `L x N` float64, `mask` `L x N` bool marks the
cells in use, `p = softmax(alpha)` over the cells in use. Equations are those of ProxylessNAS, arXiv 1812.00332.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Estimator = Literal["paper", "unbiased"]
WarmupPaths = Literal["uniform", "fair"]
WeightPaths = Literal["sampled", "uniform"]


class Phase(enum.IntEnum):
    """What a random draw is for; each phase has its own counter, so that no phase disturbs another."""

    INITIAL = 0
    WARMUP = 1
    WEIGHTS = 2
    PAIR = 3
    ACTIVE = 4
    REINFORCE = 5


def uniforms(seed: int, phase: Phase, step: int, shape: tuple[int, ...], *, sample: int = 0) -> Tensor:
    """Return uniform numbers in (0, 1) that depend on the arguments alone (Philox, a counter-based generator).

    Every process of a search draws the same paths without a message, and a resumed search goes on as if it had not
    stopped, with no generator state to save.

    Args:
        seed: The search's seed.
        phase: What they are for.
        step: That phase's own counter.
        shape: Shape of the result.
        sample: Index among several draws of one step.

    Returns:
        float64 tensor of `shape` on the host.
    """
    # A counter of 256 bits, of which one draw moves the lowest word only: step and sample lie in the words above, so
    # that no two draws overlap, however many numbers they take.
    generator = np.random.Generator(np.random.Philox(key=[seed, int(phase)], counter=[0, 0, sample, step]))
    # The generator may give 0, whose Gumbel variable is not finite.
    return torch.from_numpy(generator.random(shape)).clamp_(1e-300, 1 - 1e-16)


def scalar(value: Tensor) -> float:
    """Return a host tensor's only number; unlike `item`, it fails on a tensor of the GPU instead of waiting for it."""
    return float(value.detach().numpy())


def logits(alpha: Tensor, mask: Tensor) -> Tensor:
    """Return `alpha` with -inf in unused cells, `L x N`."""
    # The parameter itself stays finite there: an -inf in it would make the entropy's gradient NaN.
    return alpha.masked_fill(~mask, -math.inf)


def probabilities(alpha: Tensor, mask: Tensor) -> Tensor:
    """Return the path probabilities `p = softmax(alpha)` (Eq. 2), `L x N`; 0 in unused cells."""
    return torch.softmax(logits(alpha, mask), dim=-1)


def log_probabilities(alpha: Tensor, mask: Tensor) -> Tensor:
    """Return `log p`, `L x N`; -inf in unused cells."""
    return torch.log_softmax(logits(alpha, mask), dim=-1)


def entropy(p: Tensor) -> Tensor:
    """Return the entropy of each edge in nats, shape `L`, with `0 ln 0 = 0`."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)


def _gumbel(u: Tensor) -> Tensor:
    return -torch.log(-torch.log(u))


def sample_paths(alpha: Tensor, mask: Tensor, u: Tensor) -> Tensor:
    """Draw one candidate per edge from `p` by the Gumbel-max trick: the binary gates of Eq. 2.

    >>> alpha = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 1.0]], dtype=torch.float64))
    >>> mask = torch.tensor([[True, True, True], [True, True, False]])
    >>> probabilities(alpha, mask)
    tensor([[0.7000, 0.2000, 0.1000],
            [0.5000, 0.5000, 0.0000]], dtype=torch.float64)
    >>> [sample_paths(alpha, mask, uniforms(0, Phase.WEIGHTS, step, (2, 3))).tolist() for step in range(4)]
    [[0, 1], [0, 0], [0, 1], [0, 0]]

    Args:
        alpha: `L x N`.
        mask: `L x N`.
        u: Uniform numbers, `L x N`.

    Returns:
        Candidate indices, `L`.
    """
    return (logits(alpha, mask) + _gumbel(u)).argmax(-1)


def fair_paths(seed: int, phase: Phase, step: int, mask: Tensor) -> Tensor:
    """Draw one candidate per edge so that an edge of `n` candidates runs each of them once in every `n` steps.

    Edges are shuffled independently, anew for each round, so that each step's path is uniform over all subnets
    (FairNAS, arXiv 1907.01845, with one weight step for each path).

    Args:
        seed: The search's seed.
        phase: What the path is for.
        step: That phase's own counter.
        mask: `L x N`.

    Returns:
        Candidate indices, `L`.
    """
    counts = mask.sum(-1)
    paths = torch.zeros_like(counts)
    for count in set(counts.tolist()):  # edges of `n` candidates are in round `step // n`, so each size is drawn apart
        key = uniforms(seed, phase, step // count, tuple(mask.shape), sample=count)
        order = key.masked_fill(~mask, math.inf).argsort(-1)
        paths = torch.where(counts == count, order[:, step % count], paths)
    return paths


@dataclass(frozen=True)
class Pairs:
    """Two distinct candidates per edge, of which `active` runs; `second` is -1 where an edge has one candidate."""

    active: Tensor
    second: Tensor

    @property
    def valid(self) -> Tensor:
        """Edges that take part, `L` bool."""
        return self.second >= 0


def sample_pairs(alpha: Tensor, mask: Tensor, u: Tensor, v: Tensor) -> Pairs:
    """Draw two candidates per edge without replacement from `p`, and the active one from their softmax (section 3.2.1).

    Gumbel top-2 on logits and not `torch.multinomial`, which may return a candidate of probability 0 where an edge is
    nearly one-hot.

    Args:
        alpha: `L x N`.
        mask: `L x N`.
        u: Uniform numbers for the pair, `L x N`.
        v: Uniform numbers for the active one, `L`.
    """
    if alpha.shape[1] == 1:
        first = torch.zeros(alpha.shape[0], dtype=torch.long)
        return Pairs(first, torch.full_like(first, -1))
    top = (logits(alpha, mask) + _gumbel(u)).topk(2, dim=-1).indices
    pair_logits = alpha.gather(1, top)
    keep = v < torch.softmax(pair_logits, -1)[:, 0]
    active = torch.where(keep, top[:, 0], top[:, 1])
    second = torch.where(keep, top[:, 1], top[:, 0])
    single = mask.sum(-1) == 1
    only = mask.to(torch.uint8).argmax(-1)
    return Pairs(torch.where(single, only, active), second.masked_fill(single, -1))


def pair_weight(alpha: Tensor, mask: Tensor, pairs: Pairs, *, estimator: Estimator) -> Tensor:
    """Return the factor of `G_a - G_b` in the gradient of `alpha_a`, shape `L`; 0 for edges with one candidate.

    `paper`: `q_a q_b` with `q = softmax([alpha_a, alpha_b])` (Eq. 4 on the pair). `unbiased`:
    `(1 - p_a)(1 - p_b) / (2 - p_a - p_b)`, whose product with the pair's probability is `p_a p_b`, so that the
    expectation over pairs is the gradient of the full softmax.
    """
    second = pairs.second.clamp(min=0)
    rows = torch.arange(alpha.shape[0], device=alpha.device)
    if estimator == "paper":
        q = torch.sigmoid(alpha[rows, pairs.active] - alpha[rows, second])
        weight = q * (1 - q)
    else:
        p = probabilities(alpha, mask)
        rest_a = p.sum(-1) - p[rows, pairs.active]
        rest_b = p.sum(-1) - p[rows, second]
        weight = rest_a * rest_b / (rest_a + rest_b).clamp(min=torch.finfo(p.dtype).tiny)
    return torch.where(pairs.valid, weight, torch.zeros_like(weight))


def pair_gradient(
    alpha: Tensor, mask: Tensor, pairs: Pairs, difference: Tensor, *, estimator: Estimator = "paper"
) -> Tensor:
    """Return alpha's gradient from a pair's gate gradients: `dL/dalpha_a = w (G_a - G_b) = -dL/dalpha_b` (Eq. 4).

    On a pair the softmax of Eq. 4 has the Jacobian `q_a q_b` and `-q_a q_b`, so that the difference of the two gate
    gradients is all that need be measured.

    >>> alpha, mask = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    >>> pairs = Pairs(active=torch.tensor([0]), second=torch.tensor([2]))
    >>> pair_gradient(alpha, mask, pairs, torch.tensor([0.8], dtype=torch.float64))
    tensor([[ 0.2000,  0.0000, -0.2000]], dtype=torch.float64)

    Args:
        alpha: `L x N`.
        mask: `L x N`.
        pairs: The sampled candidates, a = active and b = second.
        difference: `G_a - G_b`, shape `L`.
        estimator: See `pair_weight`.

    Returns:
        `L x N`; every row sums to 0.
    """
    value = pair_weight(alpha, mask, pairs, estimator=estimator) * torch.where(
        pairs.valid, difference.to(alpha.dtype), torch.zeros_like(difference, dtype=alpha.dtype)
    )
    gradient = torch.zeros_like(alpha)
    gradient.scatter_add_(1, pairs.active[:, None], value[:, None])
    gradient.scatter_add_(1, pairs.second.clamp(min=0)[:, None], -value[:, None])
    return gradient


def rescale_pairs(before: Tensor, after: Tensor, pairs: Pairs) -> Tensor:
    """Shift the moved pair so that all other candidates keep their probabilities.

    Subtracts `ln((e^a' + e^b') / (e^a + e^b))` from both (section 3.2.1): one path is enhanced, the other attenuated,
    and nothing is said of the candidates that were not sampled.

    Args:
        before: alpha before the optimiser's step, `L x N`.
        after: alpha after it.
        pairs: The pair that moved.

    Returns:
        The rescaled alpha.
    """
    # Edges of one candidate have second = -1, which no gather accepts; they are masked out after it.
    index = torch.stack([pairs.active, pairs.second.clamp(min=0)], dim=1)
    shift = torch.logsumexp(after.gather(1, index), 1) - torch.logsumexp(before.gather(1, index), 1)
    shift = torch.where(pairs.valid, shift, torch.zeros_like(shift))
    return after.scatter_add(1, index, -shift[:, None].expand(-1, 2))


def limit_pairs(alpha: Tensor, pairs: Pairs, span: float) -> Tensor:
    """Bring each pair to a distance of at most `span`, moving its smaller member; return alpha, `L x N`."""
    index = torch.stack([pairs.active, pairs.second.clamp(min=0)], dim=1)
    values = alpha.gather(1, index)
    limited = values.clamp(min=values.amax(1, keepdim=True) - span)
    return alpha.scatter(1, index, torch.where(pairs.valid[:, None], limited, values))


def pair_probability(p: Tensor, a: int, b: int) -> Tensor:
    """Return the probability of drawing the unordered pair: `p_a p_b (1/(1 - p_a) + 1/(1 - p_b))`, shape `L`."""
    p_a, p_b = p[:, a], p[:, b]
    return p_a * p_b * (1 / (1 - p_a) + 1 / (1 - p_b))


def softmax_gradient(p: Tensor, costs: Tensor) -> Tensor:
    """Return the gradient of `sum_i p_i c_i` by alpha: `p (c - p.c)` for each edge, `L x N` (Eq. 4 over all)."""
    return p * (costs - (p * costs).sum(-1, keepdim=True))


def reinforce_gradient(p: Tensor, samples: Tensor, advantages: Tensor, active: Tensor | None = None) -> Tensor:
    """Return the gradient that descends towards higher reward: `(1/M) sum_j (R_j - b) (p - onehot_j)` (section 3.3.2).

    It is REINFORCE, as `d(-log p_s)/dalpha = p - onehot(s)` for a sampled candidate `s`.

    Args:
        p: `L x N`.
        samples: Candidate of each edge in each of `M` subnets, `M x L`.
        advantages: `R_j - b`, shape `M`.
        active: Which edges each subnet reaches, `M x L` bool; None where all are always reached.

    Returns:
        `L x N`.
    """
    weights = advantages.to(p.dtype)[:, None].expand(samples.shape)
    # An edge that a subnet does not reach had no part in its reward.
    if active is not None:
        weights = weights * active.to(p.dtype)
    taken = torch.zeros_like(p)
    taken.scatter_add_(1, samples.t(), weights.t())
    return (p * weights.sum(0)[:, None] - taken) / samples.shape[0]
