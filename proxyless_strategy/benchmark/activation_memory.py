"""Peak memory of activations, by the allocations of one forward pass."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_activation_bytes(model: nn.Module, input_shape: Sequence[int], *, batch: int = 1) -> int:
    """Count the most bytes of tensors alive at once in an eager forward pass without gradients; nothing is computed.

    The images count, weights and buffers do not; what an operator works with inside itself is not seen.

    Args:
        model: The network, in the form in which it runs.
        input_shape: `C x H x W` of an image.
        batch: Images in the batch.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), LiveBytes([*shadow.parameters(), *shadow.buffers()]) as live:
        shadow(torch.empty(batch, *input_shape, device="meta"))
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Add up the storages that operators return, until Python lets go of them."""

    def __init__(self, uncounted: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.peak = self.now = 0
        # Kept alive: torch may give the address of a storage that is gone, its key here, to the next one.
        self._uncounted = [tensor.untyped_storage() for tensor in uncounted]
        self._seen: dict[int, weakref.ref | None] = {storage._cdata: None for storage in self._uncounted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves(result)
        # In evaluation a batch norm's saved statistics are empty, but not on the meta device.
        for leaf in leaves[:1] if "batch_norm" in str(func) else leaves:
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # By its storage: a view, or the result of an operator in place, is no further memory.
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def released(_: object) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, released)
        self.now += size
        self.peak = max(self.peak, self.now)
