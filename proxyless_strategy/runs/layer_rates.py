"""Learning rates of a supernet's layers: lower for the body than for the head, where the body has learned before."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from hardware.errors import ConfigError
from search_spaces import SpaceDeclaration

from ..config import SearchConfig
from .retrained import has_weights

LAYER_DECAY = 0.8
"""Of a space with weights, where the config names none. In short searches on a few images the finalists' losses were
the lower the smaller it was, down to this: a fresh classifier learns fast, and random paths spoil less of the body."""
_BLOCK = r"^blocks\.(\d+)\.(\d+)\."
_LAYERS = {"stem": r"^conv_stem|^bn1", "blocks": [(_BLOCK, None), (r"^conv_head|^bn2|^norm_head", (99999,))]}
"""How timm's EfficientNet counts its layers; what lies within a block is one, and so are all candidates of it."""


def layer_decay(config: SearchConfig, space: SpaceDeclaration, *, groups: int | None = None) -> float | None:
    """Return the factor of the learning rate from each layer of the supernet to the one before it; None for one rate.

    Where the config names none, a space with weights has `LAYER_DECAY`: what its body knows is worth more than what the
    first steps of a fresh classifier tell it.

    Args:
        config: The search.
        space: Its space.
        groups: Groups of parameters in the checkpoint that it continues from; older versions had one rate.

    Raises:
        ConfigError: The space's network is no row of blocks.
    """
    asked = config.search.layer_decay
    if asked is None:
        return LAYER_DECAY if has_weights(space) and groups != 1 else None
    paths = list(getattr(space, "edge_paths", dict[str, str])().values())
    if not paths or not all(path.startswith("blocks.") for path in paths):
        raise ConfigError(
            f"search.layer_decay = {asked} needs a network of blocks in a row, which the space {config.space.name} has "
            "not; remove it"
        )
    return None if asked == 1 else asked


def layer_scales(network: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of every parameter: `decay` to the number of layers after its own.

    Args:
        network: A supernet with the module names of timm's EfficientNet.
        decay: Factor from each layer to the one before it.
    """
    layers: dict[str, int] = group_parameters(network, _LAYERS, reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}
