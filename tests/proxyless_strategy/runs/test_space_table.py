"""What a latency table of a space measures."""

from __future__ import annotations

import pytest

from hardware.tables.heads import CLASSES, at_several_classes
from proxyless_strategy.runs.space_table import measured_operators
from search_spaces import get_space
from search_spaces.registry import known_spaces


@pytest.mark.parametrize("name", sorted(known_spaces()))
def test_every_space_measures_its_head_at_several_classes(name: str) -> None:
    costs = get_space(name).costs(64, num_classes=7, in_chans=3)
    own = costs.distinct()
    added = measured_operators(costs)[len(own) :]
    assert measured_operators(costs)[: len(own)] == own
    heads = [op for op in own if len(op.output_shape) == 1]
    assert [op.output_shape for op in heads] == [(7,)]
    assert list(added) == [op for op in at_several_classes(heads) if op not in own]
    assert [op.output_shape[0] for op in added] == list(CLASSES)
