"""Weights of a block's candidates out of the model's own block.

A larger kernel is the old one amid zeros, and a larger expansion has copies of channels that share what they pass on
(Net2Net, arXiv 1511.05641): both compute what the block did. A smaller kernel is the old one's centre, and a smaller
expansion has the strongest channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

EXPAND, DEPTHWISE, PROJECT = "conv_pw.weight", "conv_dw.weight", "conv_pwl.weight"
SQUEEZE, EXCITE = "se.conv_reduce.weight", "se.conv_expand.weight"
_PER_CHANNEL = ("bn1.", "bn2.", "se.conv_expand.bias")


def inherited(own: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a candidate, batch norm statistics too.

    Args:
        own: `state_dict()` of the model's own block.
        shapes: `state_dict()` of the candidate, of which the shapes are read.
    """
    made = dict(own)
    if PROJECT in own:
        made = _with_channels(made, shapes[PROJECT].shape[1])
        if SQUEEZE in own:
            made = _with_squeezed(made, shapes[SQUEEZE].shape[0])
    made[DEPTHWISE] = resized_kernel(made[DEPTHWISE], shapes[DEPTHWISE].shape[-1])
    return {key: value.clone() for key, value in made.items()}


def resized_kernel(weight: Tensor, side: int) -> Tensor:
    """Return kernels of another side: the centre of larger ones, or smaller ones amid zeros.

    >>> resized_kernel(torch.ones(1, 1, 1, 1), 3)[0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    margin = (side - weight.shape[-1]) // 2
    return functional.pad(weight, (margin,) * 4)  # a negative margin cuts


def chosen_channels(strength: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose which channels a layer of another width has, and what part of the old channel's output each passes on.

    Args:
        strength: How much each of the old channels matters.
        count: New number of channels.

    Returns:
        The old channel's number and the part of each new channel. The parts of an old channel that was copied sum to 1;
        they differ, as copies of equal parts would have equal gradients and stay copies for ever.
    """
    order = torch.argsort(strength, descending=True, stable=True)
    if count <= len(order):
        return torch.sort(order[:count]).values, torch.ones(count, dtype=strength.dtype)
    # The strongest ones are copied first, each again only when all have been.
    copies = torch.cat([torch.arange(len(order)), order.repeat(-(-count // len(order)))[: count - len(order)]])
    total = torch.bincount(copies, minlength=len(order)).to(strength.dtype)[copies]
    earlier = torch.zeros(len(order), dtype=torch.long)
    rank = torch.empty(count, dtype=strength.dtype)
    for place, channel in enumerate(copies.tolist()):
        earlier[channel] += 1
        rank[place] = float(earlier[channel])
    return copies, 2 * rank / (total * (total + 1))


def _with_channels(own: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return an InvertedResidual's weights with another number of hidden channels."""
    project = own[PROJECT]
    if count == project.shape[1]:
        return own
    strength = project.abs().sum((0, 2, 3)) * own["bn2.weight"].abs()
    channels, part = chosen_channels(strength, count)
    made = dict(own)
    for key, value in own.items():
        per_channel = key in (EXPAND, DEPTHWISE, EXCITE) or key.startswith(_PER_CHANNEL)
        if per_channel and value.ndim:  # the number of batches that a norm has seen is one for all channels
            made[key] = value[channels]
    part = part.to(project).view(1, -1, 1, 1)
    made[PROJECT] = project[:, channels] * part
    if SQUEEZE in own:
        made[SQUEEZE] = own[SQUEEZE][:, channels] * part
    return made


def _with_squeezed(own: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return a block's weights with another number of channels within squeeze-and-excitation."""
    excite = own[EXCITE]
    if count == excite.shape[1]:
        return own
    channels, part = chosen_channels(excite.abs().sum((0, 2, 3)), count)
    bias = "se.conv_reduce.bias"
    return {
        **own,
        SQUEEZE: own[SQUEEZE][channels],
        bias: own[bias][channels],
        EXCITE: excite[:, channels] * part.to(excite).view(1, -1, 1, 1),
    }
