"""Whether a candidate is still what it was: only then may a recording stand for it.

A recording repeats work on the device. What Python does around it happens once, when it is recorded: hooks run, random
numbers are drawn, a value is read and decided on, an attribute counts. Each of these is found here and named, or makes
an old recording void.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode

_OWN = frozenset(nn.Module().__dict__) - {"training"}
"""Attributes of every module, which are containers; what is in them is looked at one by one."""
_HOOKS = tuple(name for name in nn.Module().__dict__ if "hooks" in name and "state_dict" not in name)


class Stillness:
    """A module as it is now: attributes, addresses of weights and buffers, which weights are trained, parts.

    It is asked before every replay, and therefore made of flat lists, compared by identity.

    Args:
        module: The module.

    Attributes:
        parameters: Its weights.
        tensors: These, its buffers, and tensors in attributes.
    """

    def __init__(self, module: nn.Module):
        parts = list(module.modules())
        self._attributes = [(part.__dict__, name) for part in parts for name in part.__dict__ if name not in _OWN]
        self._values = [attributes[name] for attributes, name in self._attributes]
        self._sizes = [(part.__dict__, len(part.__dict__)) for part in parts]
        containers = [(part._parameters, part._buffers, part._modules) for part in parts]
        self._containers: list[dict[str, Any]] = [container for each in containers for container in each]
        self._contents = [item for container in self._containers for item in container.values()]
        self._hooks = [getattr(part, name) for part in parts for name in _HOOKS]
        self.parameters = list(module.parameters())
        self.tensors = [item for item in (*self._contents, *self._values) if isinstance(item, Tensor)]
        self._addresses = [tensor.data_ptr() for tensor in self.tensors]
        self._trained = [parameter.requires_grad for parameter in self.parameters]

    def change(self) -> str | None:
        """Return what is another one now; None where nothing is."""
        if any(len(attributes) != size for attributes, size in self._sizes):
            return "an attribute came or went"
        values = [attributes[name] for attributes, name in self._attributes]
        if not all(map(operator.is_, values, self._values)):
            for (_, name), now, then in zip(self._attributes, values, self._values, strict=True):
                # An equal number may be another object; of all else only the same object is known to be unchanged.
                if now is not then and not (type(now) in (int, float, str) and type(now) is type(then) and now == then):
                    return f"its attribute {name} is another one"
        contents = [item for container in self._containers for item in container.values()]
        if len(contents) != len(self._contents) or not all(map(operator.is_, contents, self._contents)):
            return "a weight, a buffer or a part is another one"
        if [tensor.data_ptr() for tensor in self.tensors] != self._addresses:
            return "a weight or a buffer lies elsewhere"
        if [parameter.requires_grad for parameter in self.parameters] != self._trained:
            return "other weights are trained"
        return None

    def is_on(self, device: torch.device) -> bool:
        """Return whether all weights, buffers and tensors in attributes lie on one device.

        What lies on the host would be a constant of a recording, and may be written to.
        """
        return all(tensor.device == device for tensor in self.tensors)

    def hooked(self) -> bool:
        """Return whether a hook watches the module or one of its weights."""
        if any(self._hooks) or module_hooks._has_any_global_hook():
            return True
        return any(parameter._backward_hooks for parameter in self.parameters)

    @contextmanager
    def buffers_kept(self) -> Iterator[None]:
        """Put back, on exit, what lies in buffers: batch statistics, above all."""
        held = [(tensor, tensor.detach().clone()) for tensor in self.tensors if not isinstance(tensor, nn.Parameter)]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in held:
                    tensor.copy_(value)

    def put_back(self) -> None:
        """Put attributes and tensors back in their places, and remove attributes that have come."""
        known: dict[int, set[str]] = {id(attributes): set(_OWN) for attributes, _ in self._sizes}
        for (attributes, name), value in zip(self._attributes, self._values, strict=True):
            attributes[name] = value
            known[id(attributes)].add(name)
        for attributes, _ in self._sizes:
            for name in attributes.keys() - known[id(attributes)]:
                del attributes[name]
        contents: Iterator[Any] = iter(self._contents)
        for container in self._containers:
            for name in container:
                container[name] = next(contents)


class Generators:
    """All random generators as they are now: of Python, NumPy, torch, and of a GPU.

    Args:
        device: Where the work is.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._states = self._now()

    def _now(self) -> list[Any]:
        states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]  # noqa: NPY002
        return states + ([torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else [])

    def drawn(self) -> bool:
        """Return whether a random number was drawn since."""
        return not _equal(self._states, self._now())

    def put_back(self) -> None:
        """Let the generators go on from where they were."""
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])  # noqa: NPY002
        torch.set_rng_state(self._states[2])
        for state in self._states[3:]:
            torch.cuda.set_rng_state(state, self._device)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


class HostReads(TorchDispatchMode):
    """Notes operations whose results depend on values that the host reads, by torch's own tags of them.

    Args:
        device: Of the values that count: what lies on the host anyway is no more than a constant.

    Attributes:
        found: The name of the first one; None where there is none.
    """

    _READS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device
        self.found: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.found is None and not self._READS.isdisjoint(function.tags):
            here = any(isinstance(value, Tensor) and value.device == self._device for value in args)
            self.found = function.name().partition("::")[2].lstrip("_") if here else None
        return function(*args, **(kwargs or {}))
