"""The architecture parameters: one `L x N` matrix, its mask, and what its rows and columns stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hardware.errors import ConfigError

from . import gates
from .edge import Edge


class ArchitectureParameters(nn.Module):
    """Architecture parameters of all edges as a single parameter `alpha`.

    One matrix, so that sampling every edge or a gradient over all of them is one tensor operation, and one host
    transfer a step.

    >>> edges = [Edge("kernel", ("3x3", "5x5", "skip")), Edge("width", ("narrow", "wide"))]
    >>> architecture = ArchitectureParameters(edges, init_std=0.0)
    >>> architecture.probabilities()
    tensor([[0.3333, 0.3333, 0.3333],
            [0.5000, 0.5000, 0.0000]], dtype=torch.float64)
    >>> architecture.export([2, 0])
    {'kernel': 'skip', 'width': 'narrow'}
    >>> costs = torch.tensor([[3.0, 6.0, 0.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    >>> architecture.expected_cost(architecture.probabilities(), costs)
    4.5

    Args:
        edges: The decisions, parents before their children.
        seed: Seed of the initial values.
        init_std: Standard deviation of the initial values, N(0, 1e-3) as in the release.
        start: Logits to start from instead, by label and candidate.

    Raises:
        ConfigError: `start` leaves an edge or a candidate out, knows others, or has a number that is not finite.
    """

    mask: Tensor

    def __init__(
        self,
        edges: Sequence[Edge],
        *,
        seed: int = 0,
        init_std: float = 1e-3,
        start: Mapping[str, Mapping[str, float]] | None = None,
    ):
        super().__init__()
        self.edges = tuple(edges)
        width = max((len(edge.candidates) for edge in self.edges), default=1)
        mask = torch.zeros(len(self.edges), width, dtype=torch.bool)
        for row, edge in enumerate(self.edges):
            mask[row, : len(edge.candidates)] = True
        u = gates.uniforms(seed, gates.Phase.INITIAL, 0, tuple(mask.shape))
        normal = torch.special.ndtri(u) * init_std
        values = normal if start is None else _logits(self.edges, start, width)
        self.alpha = nn.Parameter(torch.where(mask, values, torch.zeros_like(values)))
        self.register_buffer("mask", mask)
        self.host_mask = mask.clone()  # the buffer moves to the GPU with the module, sampling stays on the host
        self.nested = any(edge.parent for edge in self.edges)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the edges, in the order of the rows."""
        return tuple(edge.label for edge in self.edges)

    def host_alpha(self) -> Tensor:
        """Return a copy of alpha on the host, float64: the one transfer of a step."""
        return self.alpha.detach().to("cpu", torch.float64, copy=True)

    def probabilities(self) -> Tensor:
        """Return `p`, `L x N`, on the host."""
        return gates.probabilities(self.host_alpha(), self.host_mask)

    def export(self, choice: Tensor | Sequence[int]) -> dict[str, Any]:
        """Return NNI's sample of one candidate index per edge."""
        sample: dict[str, Any] = {}
        for edge, index in zip(self.edges, choice, strict=True):
            value = edge.candidates[int(index)]
            sample[edge.label] = [value] if edge.as_list else value
        return sample

    def indices(self, sample: Mapping[str, Any]) -> list[int]:
        """Return the candidate index per edge of NNI's sample."""
        values = ((edge, sample[edge.label]) for edge in self.edges)
        return [edge.candidates.index(value[0] if edge.as_list else value) for edge, value in values]

    def argmax(self) -> list[int]:
        """Return the most probable candidate of each edge, the first on a tie."""
        masked = gates.logits(self.host_alpha(), self.host_mask)
        return [int(index) for index in masked.argmax(-1)]

    def reach(self, p: Tensor) -> Tensor:
        """Return the probability that each edge matters, shape `L`: the product along its ancestors."""
        reach = torch.ones(len(self.edges), dtype=p.dtype)
        if self.nested:
            for row, edge in enumerate(self.edges):
                if edge.parent is not None:
                    parent, allowed = edge.parent
                    reach[row] = reach[parent] * p[parent, sorted(allowed)].sum()
        return reach

    def reached(self, samples: Tensor) -> Tensor | None:
        """Return which edges matter in each sampled subnet, `M x L` bool; None if all always do."""
        if not self.nested:
            return None
        active = torch.ones_like(samples, dtype=torch.bool)
        for row, edge in enumerate(self.edges):
            if edge.parent is not None:
                parent, allowed = edge.parent
                active[:, row] = active[:, parent] & torch.isin(samples[:, parent], torch.tensor(sorted(allowed)))
        return active

    def total_costs(self, p: Tensor, costs: Tensor) -> Tensor:
        """Return each candidate's cost, the expected cost of the choices nested in it included, `L x N`.

        Args:
            p: `L x N`.
            costs: Each candidate's own cost, `L x N`.
        """
        if not self.nested:
            return costs
        total = costs.clone()
        # Children come after their parents, so that going backwards a child is complete before it is added.
        for row in range(len(self.edges) - 1, -1, -1):
            parent = self.edges[row].parent
            if parent is not None:
                total[parent[0], sorted(parent[1])] += (p[row] * total[row]).sum()
        return total

    def expected_cost(self, p: Tensor, costs: Tensor) -> float:
        """Return `E = sum over edges of reach * p.F`, the paper's E[LAT] (section 3.3.1) without its fixed part."""
        return gates.scalar((self.reach(p) * (p * costs).sum(-1)).sum())


def _logits(edges: Sequence[Edge], start: Mapping[str, Mapping[str, float]], width: int) -> Tensor:
    """Return logits by label and candidate as `L x N`."""
    known = {edge.label: [str(candidate) for candidate in edge.candidates] for edge in edges}
    if start.keys() != known.keys():
        odd = sorted(start.keys() ^ known.keys())[0]
        raise ConfigError(f"start and the space differ in the edge {odd!r}; give logits for each edge, and no others")
    found = torch.zeros(len(edges), width, dtype=torch.float64)
    for row, (label, names) in enumerate(known.items()):
        if start[label].keys() != set(names):
            odd = sorted(start[label].keys() ^ set(names))[0]
            raise ConfigError(
                f"start and the space differ in the candidate {odd!r} of {label}; give a logit for each candidate"
            )
        found[row, : len(names)] = torch.tensor([float(start[label][name]) for name in names], dtype=torch.float64)
        if not torch.isfinite(found[row]).all():
            raise ConfigError(f"start has logits of {label} that are not finite; give others")
    return found
