"""`Edge`: one decision of a search space, known without torch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Edge:
    """One decision of a search space.

    Attributes:
        label: Its label in NNI's space; layers that share a label share the decision.
        candidates: What it chooses from, in order.
        parent: `(edge index, candidate indices)`: this edge matters only where that edge chooses one of these
            candidates (a nested choice, or a block behind a searched depth); None where it always matters.
        as_list: Whether NNI's sample holds the choice as a list (an InputChoice).
    """

    label: str
    candidates: tuple[Hashable, ...]
    parent: tuple[int, frozenset[int]] | None = None
    as_list: bool = False
