"""`TimmModelSpace`: the supernet of a timm model, whose original path is the model itself."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import timm
import torch
from nni.nas.nn.pytorch import LayerChoice
from timm.layers import DropPath, get_act_layer
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import EfficientNetBuilder, decode_arch_def, efficientnet_init_weights
from torch import nn
from torch.nn import functional

from ..timm_space import TimmSpace
from .blocks import NetBlock
from .declaration import PlacedBlock, TimmDeclaration
from .inheritance import inherited
from .weights import Loaded, load_weights


def original_network(space: TimmDeclaration, *, num_classes: int, in_chans: int) -> tuple[Any, Loaded]:
    """Build a space's original network and load its weights; also return what of it has any.

    Raises:
        SpaceError: The weights are missing or of another network.
    """
    arguments = space.model_args(space.original(), num_classes=num_classes, in_chans=in_chans)
    model = timm.create_model(space.timm_name, **arguments)
    return model, load_weights(model, space)


class TimmModelSpace(TimmSpace):
    """The supernet of a timm model, with the module names of its network; see `TimmSpace`.

    Every candidate starts from the model's own block: see `inheritance`. Without weights each starts as timm's does.

    Attributes:
        loaded: What of it has weights.
    """

    declaration: TimmDeclaration
    loaded: Loaded

    def __init__(self, declaration: TimmDeclaration, num_classes: int = 1000, in_chans: int = 3):
        super().__init__(declaration, num_classes, in_chans)
        model, self.loaded = original_network(declaration, num_classes=num_classes, in_chans=in_chans)
        for number, placed in enumerate(declaration.placed):
            if not placed.candidates:
                continue
            own = model.blocks[placed.stage][placed.index]
            rate = declaration.drop_path_rate * number / len(declaration.placed)
            candidates = {
                name: self._candidate(placed, block, own, rate, inherit=self.loaded != "nothing")
                for name, block in placed.candidates.items()
            }
            model.blocks[placed.stage][placed.index] = LayerChoice(candidates, label=placed.label)
        # timm registers a network's children in the order in which it runs them.
        self._order = tuple(name for name, _ in model.named_children())
        for name, module in model.named_children():
            self.add_module(name, module)

    def chain(self) -> list[nn.Module]:
        """Return the modules in the order in which they run, from the images to the logits, each block as one.

        Dropout, which stands before the last of them in training, is none of them.
        """
        found: list[nn.Module] = []
        for name in self._order:
            module = getattr(self, name)
            found += [block for stage in module for block in stage] if name == "blocks" else [module]
        return found

    def _candidate(
        self, placed: PlacedBlock, block: NetBlock | None, own: nn.Module, drop_path_rate: float, *, inherit: bool
    ) -> nn.Module:
        if block is None:
            return nn.Identity()
        if block == placed.block:
            return own
        # Half of a start would else be spent on random numbers that are thrown away.
        with torch.device("meta") if inherit else nullcontext():
            made = self._block(placed, block)
        if drop_path_rate:
            made.drop_path = DropPath(drop_path_rate)
        if inherit:
            made.load_state_dict(inherited(own.state_dict(), made.state_dict()), assign=True)
        return made

    def _block(self, placed: PlacedBlock, block: NetBlock) -> nn.Module:
        """Have timm build a block from the arch string that a subnet of it has."""
        space = self.declaration
        builder = EfficientNetBuilder(
            pad_type=space.padding,
            round_chs_fn=lambda channels: channels,
            act_layer=get_act_layer(space.activation),
            norm_layer=cast(Any, partial(nn.BatchNorm2d, eps=space.bn_eps, momentum=space.bn_momentum)),
            se_layer=cast(
                Any,
                partial(
                    SqueezeExcite,
                    gate_layer=get_act_layer(space.se_gate),
                    force_act_layer=None if space.se_act is None else get_act_layer(space.se_act),
                ),
            ),
        )
        string = block.string(placed.in_width, activation=space.activation)
        ((made,),) = builder(placed.in_width, decode_arch_def([[string]]))
        efficientnet_init_weights(made)
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self._order:
            if name == "classifier" and self.declaration.drop_rate:
                x = functional.dropout(x, self.declaration.drop_rate, self.training)
            x = getattr(self, name)(x)
        return x
