"""What a latency table of a space measures."""

from __future__ import annotations

import pytest

from hardware.model import macs_model
from hardware.tables.heads import CLASSES, at_several_classes
from proxyless_strategy.runs.space_table import calibration_nets, measured_operators, random_nets
from search_spaces import get_space
from search_spaces.from_timm.declaration import TimmDeclaration
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


@pytest.mark.parametrize("name", [*sorted(known_spaces()), "timm:mobilenetv3_small_050", "timm:tf_efficientnet_lite0"])
def test_a_table_is_calibrated_on_random_nets_and_on_the_ends_of_its_space(name: str) -> None:
    declared = get_space(name, **({"weights": "none"} if ":" in name else {}))
    costs = declared.costs(32, num_classes=7, in_chans=3)
    nets = calibration_nets(costs, 8)
    assert len(nets) == len(set(nets))
    assert set(random_nets(costs, 8, seed=0)) <= set(nets)
    assert costs.chain(macs_model(costs.fixed, costs.edges).minimum()[1]) in nets
    if isinstance(declared, TimmDeclaration):
        assert nets[-1] == costs.chain(declared.original())
    else:
        assert costs.original is None
