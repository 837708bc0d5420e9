"""The mode of an architecture step: gates alone may change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import BinaryGateLayer

_INDIFFERENT = (nn.Conv2d, nn.Linear, nn.Sequential, nn.Identity, nn.ReLU, nn.ReLU6, nn.AvgPool2d, nn.MaxPool2d)
"""Modules, not counting their children, that do the same in training and in evaluation mode.

Most of a network are such modules, and leaving their flags alone leaves less to change.
"""


class _Quiet:
    """Modules and parameters that can be made to touch nothing, and restored.

    Args:
        modules: The modules, each with its own parameters.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self.norms: list[_BatchNorm] = []
        self.others: list[nn.Module] = []
        self.parameters: list[nn.Parameter] = []
        for module in modules:
            if isinstance(module, _BatchNorm):
                self.norms.append(module)
            elif type(module) not in _INDIFFERENT:
                self.others.append(module)
            self.parameters += [parameter for parameter in module._parameters.values() if parameter is not None]

    def on(self) -> _Quieted:
        """Return a context that changes the flags; every one of them is restored on any exit."""
        return _Quieted(self)


class _Quieted:
    """The context of `_Quiet.on`: a class, as a step over hundreds of edges enters one for each candidate that runs."""

    __slots__ = ("norms", "of", "trainable", "training")

    def __init__(self, of: _Quiet):
        self.of = of

    def __enter__(self) -> None:
        of = self.of
        # Without gradients no graph is built, so that it does not matter which parameters require one.
        self.trainable = [p for p in of.parameters if p.requires_grad] if torch.is_grad_enabled() else []
        self.training = [module for module in of.others if module.training]
        self.norms = [(norm, norm.track_running_stats) for norm in of.norms if norm.training]
        for parameter in self.trainable:
            parameter.requires_grad_(False)
        # Written to the dictionary: nn.Module's __setattr__ first looks through parameters, buffers and modules, which
        # adds up in a step over hundreds of edges.
        for module in self.training:
            module.__dict__["training"] = False
        # A norm in training mode without tracking uses batch statistics and writes no buffer. Momentum 0 would do the
        # first, but still count batches.
        for norm, _ in self.norms:
            norm.__dict__["track_running_stats"] = False

    def __exit__(self, *exception: object) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        for module in self.training:
            module.__dict__["training"] = True
        for norm, tracked in self.norms:
            norm.__dict__["track_running_stats"] = tracked


@contextmanager
def _casts_kept() -> Iterator[None]:
    """Have autocast cast a weight once for all that runs inside, as no weight changes there.

    Lightning switches that off, as its context is around an update too; elsewhere a cast may be left of before it.
    """
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()


def _outside_candidates(module: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """Yield a module and those in it, without the candidates of gated layers."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    yield module
    if not isinstance(module, BinaryGateLayer):
        for child in module.children():
            yield from _outside_candidates(child, seen)


class ArchitectureStepMode:
    """Context in which a forward and backward pass touches nothing but the gates.

    Batch norm uses batch statistics and writes no buffer (one that was frozen in evaluation mode stays so);
    everything else is in evaluation mode (no dropout, no drop-path); weights do not require grad, so that their
    gradients are never computed and no buffer moves: an architecture step moves alpha alone, and takes less time than a
    weight step. The flags of a gated layer's candidate change while that candidate runs: what runs
    is then all that a step pays for, however many candidates there are.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module):
        self._always = _Quiet(_outside_candidates(module))
        layers = [child for child in module.modules() if isinstance(child, BinaryGateLayer)]
        self._selectors = {layer.selector for layer in layers}
        candidates = {candidate for layer in layers for candidate in layer.children()}
        self._candidates = {candidate: _Quiet(_outside_candidates(candidate)) for candidate in candidates}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enter the mode; every flag is restored on any exit."""
        before = [(selector, selector.mode) for selector in self._selectors]
        with _casts_kept(), self._always.on():
            try:
                for selector in self._selectors:
                    selector.mode = self
                yield
            finally:
                for selector, mode in before:
                    selector.mode = mode

    def quiet(self, candidate: nn.Module) -> _Quieted:
        """Return the mode within one candidate of a gated layer, while it runs."""
        return self._candidates[candidate].on()
