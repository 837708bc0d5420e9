"""A search on several processes: what Lightning's strategies must be told for it."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def prepare(strategy: Any) -> None:
    """Set a Lightning strategy's options for a search, so that its user need not know them.

    One path per step leaves most parameters without gradients, other ones each time; running statistics are never
    used, and an architecture step must not write any. Batch norms are synchronised by timm's conversion.

    Args:
        strategy: `trainer.strategy`; only `DDPStrategy` has anything to set.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    strategy._ddp_kwargs.update(find_unused_parameters=True, broadcast_buffers=False, static_graph=False)
    if isinstance(strategy._layer_sync, TorchSyncBatchNorm):
        strategy._layer_sync = TimmSyncBatchNorm()


class TimmSyncBatchNorm(LayerSync):
    """Synchronises batch norms by timm's conversion; torch's own drops the activation of timm's `BatchNormAct2d`."""

    def __init__(self) -> None:
        self._originals: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every batch norm by its synchronised form; parameters and buffers stay the same tensors."""
        self._originals = {
            name: module
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, _BatchNorm)
        }
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the original layers back, with the present parameters and buffers."""
        for name, original in self._originals.items():
            synchronised = model.get_submodule(name)
            original._parameters.update(synchronised._parameters)
            original._buffers.update(synchronised._buffers)
            original.training = synchronised.training
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent).add_module(child, original)
        self._originals = {}
        return model
