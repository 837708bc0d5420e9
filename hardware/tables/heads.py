"""Heads: a table that many data sets share knows a network's head at several numbers of classes, and a line between.

A head pools, whatever the classes, and then takes one dot product for each: between two measured numbers of classes
`m <= n <= k` its latency is `F(m) + (n - m) / (k - m) * (F(k) - F(m))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ..errors import TableError
from ..op_spec import OpSpec
from .records import LatencyEntry

CLASSES = (1, 10, 100, 1000)
"""Numbers of classes at which every table and kit has its heads, beside that of its own nets."""


def at_several_classes(ops: Iterable[OpSpec]) -> tuple[OpSpec, ...]:
    """Return operators and after them each head at every number of `CLASSES`, none twice.

    >>> head = OpSpec("head", (32, 4, 4), (5,))
    >>> [op.output_shape[0] for op in at_several_classes([head])]
    [5, 1, 10, 100, 1000]
    """
    own = tuple(ops)
    others = [_with_classes(op, classes) for op in own if ends_in_classes(op) for classes in CLASSES]
    return tuple(dict.fromkeys((*own, *others)))


def ends_in_classes(op: OpSpec) -> bool:
    """Return whether an operator is a head, of whatever kind."""
    return len(op.output_shape) == 1


def between(op: OpSpec, entries: Mapping[str, LatencyEntry]) -> LatencyEntry | None:
    """Return the entry of a head between the two that were measured next to its number of classes.

    Args:
        op: An operator that `entries` lacks.
        entries: Key of an operator to its latency.

    Returns:
        None where it is no head, or `entries` have none of fewer or none of more classes; spread and count are of the
        worse of the two.
    """
    if not ends_in_classes(op):
        return None
    wanted = op.output_shape[0]
    known = {}
    for key, entry in entries.items():
        if key.startswith(f"{op.kind}-"):
            other = _read(key)
            if other is not None and ends_in_classes(other) and _with_classes(other, wanted).key == op.key:
                known[other.output_shape[0]] = entry
    fewer = max((classes for classes in known if classes < wanted), default=None)
    more = min((classes for classes in known if classes > wanted), default=None)
    if fewer is None or more is None:
        return None
    low, high = known[fewer], known[more]
    return LatencyEntry(
        ms=low.ms + (wanted - fewer) / (more - fewer) * (high.ms - low.ms),
        spread=max(low.spread, high.spread),
        count=min(low.count, high.count),
        predicted=low.predicted or high.predicted,
    )


def _with_classes(op: OpSpec, classes: int) -> OpSpec:
    return dataclasses.replace(op, output_shape=(classes,))


def _read(key: str) -> OpSpec | None:
    try:
        return OpSpec.from_key(key)
    except TableError:
        return None
