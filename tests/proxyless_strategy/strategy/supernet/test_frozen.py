"""Copies of one path: the same weights, and nothing left to choose."""

import itertools

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.supernet.frozen import frozen_copy
from proxyless_strategy.strategy.supernet.layers import BinaryGateLayer
from search_spaces import get_space
from tests.proxyless_strategy.strategy.spaces import Chain, Nested, Scale, Shared, prepared


def test_frozen_network_equals_the_trained_path_on_every_sample():
    strategy, network, architecture = prepared(Nested())
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for choice in itertools.product(*(range(len(e.candidates)) for e in architecture.edges)):
        with strategy.paths_of_space.running(choice):
            trained = network(x)
        assert torch.equal(network.freeze(architecture.export(choice))(x), trained)


class Deep(ModelSpace):
    """A choice inside a candidate, and nothing but layers to choose."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"p": Scale(0.2), "q": Scale(1.7)}, label="inner")
        self.outer = LayerChoice({"plain": Scale(0.9), "deep": nn.Sequential(Scale(0.4), inner)}, label="outer")


def cells():
    return get_space("cifar_tree", blocks=1, stem_width=4, alpha=4, bottleneck=2, cell_depth=2).build()


@pytest.mark.parametrize("build", [Chain, Shared, Deep, Nested, cells])
def test_a_frozen_copy_is_what_nni_freezes(build):
    """The same weights under the same keys and the same layers, in memory of its own, with nothing left to choose."""
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(build())
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        choice = [int(torch.randint(len(e.candidates), (), generator=generator)) for e in strategy.architecture.edges]
        sample = strategy.architecture.export(choice)
        frozen, copied = network.freeze(sample), frozen_copy(network, sample)
        assert [type(module) for module in copied.modules()] == [type(module) for module in frozen.modules()]
        assert not any(isinstance(module, BinaryGateLayer) for module in copied.modules())
        expected, found = frozen.state_dict(), copied.state_dict()
        assert list(found) == list(expected)
        own = {value.data_ptr() for value in network.state_dict().values() if value.numel()}
        for key, value in found.items():
            assert torch.equal(value, expected[key])
            assert value.data_ptr() not in own
        assert isinstance(next(iter(network.modules())), type(copied))
    assert any(isinstance(module, BinaryGateLayer) for module in network.modules())
