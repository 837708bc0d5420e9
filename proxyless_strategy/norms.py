"""What computes a network's batch norms with their activations while it trains: PyTorch, cuDNN or Triton kernels.

Outside of `FusedNorms` every norm is timm's own or PyTorch's: what is copied, exported, evaluated or recalibrated there
knows nothing of this.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import chain
from types import MethodType
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardware.errors import ConfigError

from .sections import Norm

_logger = logging.getLogger(__name__)
_ACTIVATIONS: dict[type[nn.Module] | None, str] = {
    None: "identity",
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
}
"""Those of the kernels; a plain batch norm has none."""
_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_MOST_ROWS = 2**30
"""The kernels count pixels in 32 bits."""


class FusedNorms:
    """Context in which a network's batch norms run with their activations as one kernel each way, where they can.

    Names of parameters and buffers, types of modules and all flags stay as they are: inside, a norm's `forward` is
    another one. A copy that is made inside, or a pickle, has the norm's own again.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8))
    >>> with FusedNorms(network, "torch"):  # "triton" and "cudnn" ask for a GPU
    ...     output = network(torch.zeros(2, 3, 8, 8))

    Args:
        network: On its device already, and with its norms synchronised if they are to be.
        kind: `torch` changes nothing. `triton` runs kernels of this project for channels-last maps, with ReLU, ReLU6,
            Hardswish, SiLU or no activation. `cudnn` runs cuDNN's norm in training, and then the activation. What
            either does not cover runs as ever, which is logged once.
        setting: What asks for the kind, in the user's words.

    Raises:
        ConfigError: The kind cannot run on the network's device.
    """

    def __init__(self, network: nn.Module, kind: Norm, *, setting: str = "norm"):
        self._forwards: list[_Forward] = []
        self._entered = 0
        norms = [] if kind == "torch" else [m for m in network.modules() if isinstance(m, _BatchNorm)]
        if not norms:
            return
        place = next(chain(network.parameters(), network.buffers()), torch.empty(0)).device
        check_norm(kind, place, torch.float32 if kind == "triton" else None, setting=setting)
        reasons: Counter[str] = Counter()
        for norm in norms:
            reason = _never(norm, kind)
            if reason is None:
                self._forwards.append(_Forward(norm, kind, setting))
            else:
                reasons[reason] += 1
        if reasons:
            found = ", ".join(f"{count} with {reason}" for reason, count in reasons.most_common())
            _say(f"{setting} = {kind} leaves {reasons.total()} of {len(norms)} batch norms to PyTorch: {found}")

    def __enter__(self) -> None:
        self._entered += 1
        # In the instance's dictionary it is found before the class's; `__setattr__` would look through parameters,
        # buffers and modules first, for hundreds of norms in every step.
        for forward in self._forwards:
            forward.norm.__dict__["forward"] = forward

    def __exit__(self, *exception: object) -> None:
        self._entered -= 1
        if not self._entered:
            for forward in self._forwards:
                forward.norm.__dict__.pop("forward", None)

    # A copy with its network, as of a module that holds both, is one of the copied norms, which are outside of it.
    def __getstate__(self) -> list[tuple[_BatchNorm, Norm, str]]:
        return [(forward.norm, forward.kind, forward.setting) for forward in self._forwards]

    def __setstate__(self, state: list[tuple[_BatchNorm, Norm, str]]) -> None:
        self._forwards, self._entered = [_Forward(*each) for each in state], 0


def check_norm(
    kind: Norm, place: torch.device | str, dtype: torch.dtype | None, *, setting: str, channels_last: bool = True
) -> None:
    """Refuse a kind that cannot run; a map of a few values is run, for which Triton compiles once.

    Args:
        kind: The kind.
        place: The device that trains.
        dtype: Of the maps; None: any, so that nothing is run.
        setting: What asks for the kind, in the user's words.
        channels_last: Whether the maps are in that memory format.

    Raises:
        ConfigError: It cannot run, or nowhere in this memory format.
    """
    if kind == "torch":
        return
    place = torch.device(place)
    if place.type != "cuda" and not (kind == "triton" and _interpreted()):
        raise ConfigError(f"{setting} = {kind} runs on a GPU, but the {place.type} trains; set it to torch")
    if kind == "triton" and not channels_last:
        raise ConfigError(
            f"{setting} = triton is for channels-last maps, but channels_last is false; set that to true, or "
            f"{setting} to torch"
        )
    if dtype is None:
        return
    if kind == "triton" and dtype not in _TYPES:
        raise ConfigError(f"{setting} = {kind} has no kernel for {_named(dtype)}; set it to torch")
    reason = _tried(kind, place, dtype)
    if reason is not None:
        raise ConfigError(f"{setting} = {kind} cannot run in {_named(dtype)} here: {reason}; set it to torch")


# ---- what is covered ---------------------------------------------------------------------------------------------


@cache
def _kernels() -> Any:
    from . import norm_kernels  # Triton is slow to import, and not everywhere

    return norm_kernels


@cache
def _interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter (`TRITON_INTERPRET=1`), which has no need of a GPU."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


@cache
def _tried(kind: Norm, place: torch.device, dtype: torch.dtype) -> str | None:
    """Run one norm forward and backward; return why it failed."""
    norm = BatchNormAct2d(8, act_layer=nn.ReLU6).to(place)
    x = torch.ones(2, 8, 2, 2, dtype=dtype, device=place).contiguous(memory_format=torch.channels_last)
    run = _by_triton if kind == "triton" else _by_cudnn
    try:
        with torch.enable_grad():
            run(norm, x.requires_grad_()).sum().backward()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
    except Exception as error:  # of Triton, its compiler, the C compiler that it asks for, or a type that cuDNN refuses
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _never(norm: _BatchNorm, kind: Norm) -> str | None:
    """Why a norm is not run so whatever it is given."""
    # A subclass may have a forward of its own.
    if type(norm) not in (BatchNormAct2d, nn.BatchNorm2d):
        return f"type {type(norm).__name__}"
    if "forward" in norm.__dict__:
        return "another forward than their type's"
    if kind == "cudnn":
        return None if norm.affine else "no weight"
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    if drop is not None and type(drop) is not nn.Identity:
        return f"dropped values ({type(drop).__name__})"
    if (None if act is None else type(act)) not in _ACTIVATIONS:
        return f"activation {type(act).__name__}"
    hooked = any(each._forward_hooks or each._forward_pre_hooks for each in (act, drop) if each is not None)
    return "a hook on their activation" if hooked else None


def _not_now(norm: _BatchNorm, kind: Norm, x: Tensor) -> str | None:
    """Why a norm is not run so on this input; empty where PyTorch refuses the input too."""
    if x.dim() != 4 or x.numel() <= x.shape[1] or x.shape[1] != norm.num_features:
        return ""
    if not x.is_cuda and not (kind == "triton" and _interpreted()):
        return f"maps on the {x.device.type}"
    if kind == "cudnn":
        if not norm.training:
            return ""  # cuDNN has nothing to give there
        return None if _tried(kind, x.device, x.dtype) is None else f"maps in {_named(x.dtype)}"
    if x.dtype not in _TYPES:
        return f"maps in {_named(x.dtype)}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "maps that are not channels last"
    if x.numel() // x.shape[1] > _MOST_ROWS:
        return f"maps of more than {_MOST_ROWS} pixels"
    held = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if (norm.weight is None) != (norm.bias is None) or (norm.running_mean is None) != (norm.running_var is None):
        return "a weight or a statistic alone"
    if any(each is not None and (each.dtype, each.device) != (torch.float32, x.device) for each in held):
        return "weights or statistics that are not float32 on the map's device"
    return None


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _say(sentence: str) -> None:
    """Log a sentence once in this process."""
    _logger.warning("%s", sentence)


# ---- how it runs -------------------------------------------------------------------------------------------------


class _Forward:
    """The `forward` of one norm inside the context.

    Args:
        norm: The norm.
        kind: What runs it.
        setting: What asks for that.
    """

    __slots__ = ("kind", "norm", "run", "setting")

    def __init__(self, norm: _BatchNorm, kind: Norm, setting: str):
        self.norm, self.kind, self.setting = norm, kind, setting
        self.run: Callable[[_BatchNorm, Tensor], Tensor] = _by_triton if kind == "triton" else _by_cudnn

    def __call__(self, x: Tensor) -> Tensor:
        reason = _not_now(self.norm, self.kind, x)
        if reason is None:
            return self.run(self.norm, x)
        if reason:
            _say(f"{self.setting} = {self.kind} leaves {reason} to PyTorch; set it to torch to be without this")
        own: Tensor = type(self.norm).forward(self.norm, x)
        return own

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self.norm).forward, copy.deepcopy(self.norm, memo))

    def __reduce__(self) -> Any:
        return getattr, (self.norm, "forward")  # which is the class's, as the norm's own state is read later


def _statistics(norm: _BatchNorm) -> tuple[Tensor | None, Tensor | None, float]:
    """Count the batch as torch does; return the statistics that are moved or read, and the batch's share in them."""
    share = 0.0 if norm.momentum is None else norm.momentum
    tracks = norm.track_running_stats
    if norm.training and tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            share = 1.0 / float(norm.num_batches_tracked)
    if norm.training and not tracks:
        return None, None, share
    return norm.running_mean, norm.running_var, share


def _by_triton(norm: _BatchNorm, x: Tensor) -> Tensor:
    mean, var, share = _statistics(norm)
    act = norm._modules.get("act")
    activation = _ACTIVATIONS[None if act is None else type(act)]
    of_batch = norm.training or mean is None
    run: Tensor = _kernels().NormAct.apply(x, norm.weight, norm.bias, mean, var, of_batch, share, norm.eps, activation)
    return run


def _by_cudnn(norm: _BatchNorm, x: Tensor) -> Tensor:
    mean, var, share = _statistics(norm)
    y: Tensor = torch.cudnn_batch_norm(x, norm.weight, norm.bias, mean, var, True, share, norm.eps)[0]
    if isinstance(norm, BatchNormAct2d):
        y = norm.act(norm.drop(y))
    return y
