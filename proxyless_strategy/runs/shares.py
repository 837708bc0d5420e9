"""Which part of a cluster's processors a trial is given, so that the trials that run side by side spread over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """What one machine of a cluster has: processors and GPUs, as many as its owner says."""

    cpus: float
    gpus: float


def has_room(node: Node, cpus: float, gpus: float) -> bool:
    """Return whether a trial fits on the node while nothing else runs there."""
    return places(node, cpus, gpus) > 0


def places(node: Node, cpus: float, gpus: float) -> int:
    """Return how many trials with so many processors and GPUs fit on the node at a time."""
    # The quotients of binary fractions such as 1/3 come out below the whole number that they stand for.
    fit = int(node.cpus / cpus + 1e-6) if cpus else 0
    return min(fit, int(node.gpus / gpus + 1e-6)) if gpus else fit


def share_of(nodes: Sequence[Node], trials: int, gpus: float) -> float | None:
    """Return the processors of each trial where so many run side by side.

    It is the largest share with which they all find room, or as many of them as there are GPUs for. It is never more
    than the smallest node has, so that what is left of the cluster when a node is lost can still run each trial.

    Args:
        nodes: The cluster.
        trials: How many are to run side by side.
        gpus: What each of them takes.

    Returns:
        Processors; None where no node has the GPUs.
    """
    able = [node for node in nodes if node.cpus > 0 and has_room(node, node.cpus, gpus)]
    if not able:
        return None
    wanted = min(trials, sum(int(node.gpus / gpus + 1e-6) for node in able)) if gpus else trials
    # Between two of these no further trial finds room.
    candidates = sorted({node.cpus / part for node in able for part in range(1, wanted + 1)}, reverse=True)
    share = next(cpus for cpus in candidates if sum(places(node, cpus, gpus) for node in able) >= wanted)
    return min(share, *(node.cpus for node in able))
