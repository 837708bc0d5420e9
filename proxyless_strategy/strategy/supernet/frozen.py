"""Copies of a supernet with one path left."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, Repeat
from nni.nas.nn.pytorch.base import MutableModule
from torch import nn

from .layers import BinaryGateCell, BinaryGateLayer
from .space import Supernet


class OnePath(nn.Module):
    """A supernet that always runs one path.

    Args:
        network: The mutated space.
        supernet: Its paths.
        active: Candidate index per edge.
    """

    def __init__(self, network: nn.Module, supernet: Supernet, active: Sequence[int]):
        super().__init__()
        self.network = network
        self._supernet = supernet
        self._active = list(active)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._supernet.running(self._active):
            return self.network(*args, **kwargs)


def one_path_copy(network: nn.Module, supernet: Supernet, choice: Sequence[int], sample: dict[str, Any]) -> nn.Module:
    """Return a copy of one subnet with the supernet's weights.

    Where NNI freezes a space or its layers by making them anew (its NDS family, its `MutableConv2d`), it is a copy of
    the supernet on the subnet's path: NNI's own would have fresh weights.

    Args:
        network: A mutated space.
        supernet: Its paths.
        choice: Candidate index per edge.
        sample: NNI's sample of the same subnet.
    """
    if freezing_keeps_weights(network):
        return frozen_copy(network, sample)
    return OnePath(copy.deepcopy(network), supernet, choice)


def freezing_keeps_weights(network: nn.Module) -> bool:
    """Return whether NNI's `freeze` leaves the weights as they are, in every module of a mutated space."""
    keeping = [kind.freeze for kind in (MutableModule, LayerChoice, InputChoice, Repeat, BinaryGateCell)]
    return all(type(module).freeze in keeping for module in network.modules() if isinstance(module, MutableModule))


def frozen_copy(network: nn.Module, sample: dict[str, Any]) -> nn.Module:
    """Return a copy of the frozen network, with its own weights alone where `freezing_keeps_weights`.

    NNI's `freeze` copies every module that holds a choice once for each level above it, all candidates included. Where
    layers are all that is chosen, this copies what stays, once.

    Args:
        network: A mutated space.
        sample: NNI's sample.
    """
    mutables = [module for module in network.modules() if isinstance(module, MutableModule)]
    layers = [module for module in mutables if isinstance(module, BinaryGateLayer)]
    others = [module for module in mutables if not isinstance(module, BinaryGateLayer)]
    if any(module.mutables or type(module).freeze is not MutableModule.freeze for module in others):
        return copy.deepcopy(cast(ModelSpace, network).freeze(sample))
    copies: dict[int, Any] = {}
    for layer in reversed(layers):  # those nested in others first
        copies[id(layer)] = copy.deepcopy(layer[sample[layer.label]], copies)
    return copy.deepcopy(network, copies)
