"""A search on several processes: what Lightning's strategies must be told for it."""

from __future__ import annotations

import atexit
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.plugins import LayerSync, TorchSyncBatchNorm
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardware.errors import TrainingError
from hardware.reading import cut

from .loopback import join, stay_on_loopback
from .meeting import part

BUFFERS_OPTION = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
)
"""DDP's option that copies buffers before every forward pass; newer torch versions renamed it."""

_ended = False
# State of the process and not of a search: the further processes of a DDP search are copies of the script that exit at
# its end, so that a second search in the same script would wait for processes that will not come.


_LOST = ("gloo", "NCCL", "c10d", "TCPStore", "Connection reset by peer", "Connection closed by peer")
"""What torch's messages hold when the process at the other end of a connection is gone; gloo's have no type."""


@contextmanager
def lost_process_named() -> Iterator[None]:
    """Turn torch's traceback, where another process of the run has ended, into one sentence.

    Raises:
        TrainingError: One that trains has ended, or cannot be reached; or one that reads images has.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if reason.startswith("DataLoader worker"):
            raise TrainingError(
                f"a process that reads images has ended ({cut(reason, 160)}), as happens where memory runs out; lower "
                "data.workers or free memory, and repeat the command to continue from the last checkpoint"
            ) from error
        if not isinstance(error, torch.distributed.DistError) and not any(word in reason for word in _LOST):
            raise
        raise TrainingError(
            f"another process of this run has ended, or cannot be reached ({cut(reason, 160)}); its own message, if it "
            "could give one, says why; repeat the command to continue from the last checkpoint"
        ) from error


def prepare(strategy: Any) -> None:
    """Set a Lightning strategy's options for a search, so that its user need not know them.

    Each step trains one path, so a different set of parameters lacks gradients each time: DDP must look for them, and
    may not assume a static graph, or it waits for gradients that never come. Running statistics are never used, and an
    architecture step must not write any, so that no buffer is sent. Batch norms are synchronised by timm's conversion.
    Processes of one machine meet on its loopback.

    Args:
        strategy: `trainer.strategy`; only `DDPStrategy` has anything to set.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    # Lightning has no public way to change a strategy's options once the user's Trainer has made it.
    options = strategy._ddp_kwargs
    options.pop("broadcast_buffers", None)  # newer torch warns of both names at once
    options.update({"find_unused_parameters": True, "static_graph": False, BUFFERS_OPTION: False})
    if isinstance(strategy._layer_sync, TorchSyncBatchNorm):
        strategy._layer_sync = TimmSyncBatchNorm()
    if strategy.num_nodes == 1:
        # on the instance: the user's Trainer has made it already
        strategy.setup_distributed = _on_loopback(strategy, strategy.setup_distributed)  # type: ignore[method-assign]


def _on_loopback(strategy: DDPStrategy, setup: Callable[[], None]) -> Callable[[], None]:
    """Return a strategy's `setup_distributed` that finds the process group there already, made on the loopback."""

    def setup_distributed() -> None:
        stay_on_loopback()
        assert strategy.cluster_environment is not None
        # torchrun has processes meet at a store of its own
        elastic = isinstance(strategy.cluster_environment, TorchElasticEnvironment)
        if not torch.distributed.is_initialized() and not elastic:
            strategy.set_world_ranks()
            backend, device = strategy._get_process_group_backend(), strategy.root_device
            join(
                backend,
                rank=strategy.global_rank,
                world_size=strategy.world_size,
                port=strategy.cluster_environment.main_port,
                timeout=strategy._timeout,
                device_id=None if device.type == "cpu" else device,
            )
            # as Lightning does for groups that it makes: torch warns of one that is left over
            if backend == "nccl":
                atexit.register(_leave)
        setup()

    return setup_distributed


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def averaged(value: Tensor, trainer: Any) -> Tensor:
    """Return the mean of a tensor over all processes, on the tensor's own device.

    Args:
        value: Of the same shape on every process.
        trainer: Lightning's.
    """
    if trainer.world_size == 1:
        return value
    # NCCL exchanges tensors on the GPU alone. It is the strategy that knows the GPU: after a fit, when finalists are
    # compared, Lightning has moved the module to the host.
    shared = value.to(trainer.strategy.root_device)
    torch.distributed.all_reduce(shared)
    return (shared / trainer.world_size).to(value.device)


def launched() -> bool:
    """Return whether this process has already run a search on several processes."""
    return _ended


def end_processes(strategy: Any) -> None:
    """End a search on several processes: the first one goes on alone, the others exit.

    Args:
        strategy: `trainer.strategy`.
    """
    global _ended
    if not isinstance(strategy, DDPStrategy):
        return
    _ended = True
    part()
    # Should one end earlier, the others would fail in what they still have to say to it.
    strategy.barrier()
    torch.distributed.destroy_process_group()
    if strategy.global_rank != 0:
        raise SystemExit(0)


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
