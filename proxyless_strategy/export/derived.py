"""From a strategy that has searched to a folder that timm loads, for searches in code of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm

from hardware.errors import ConfigError, ExportError
from search_spaces import SpaceDeclaration, Subnet
from search_spaces.timm_space import TimmSpace

from .folder import export_folder

if TYPE_CHECKING:
    from ..strategy.derivation import Derived
    from ..strategy.proxyless import ProxylessStrategy

_NEEDED = ("input_size", "mean", "std")


def export_derived(
    strategy: ProxylessStrategy,
    folder: Path | str,
    *,
    pretrained_cfg: Mapping[str, Any],
    derived: Derived | None = None,
) -> Path:
    """Write a subnet of a finished search, with the supernet's weights, as a folder that timm and torch.hub load.

        export_derived(strategy, "found", pretrained_cfg={"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5]})
        timm.create_model("local-dir:found", pretrained=True)

    Batch norm statistics are estimated anew for the subnet. `proxyless retrain found ...` trains it further.

    Args:
        strategy: It has searched a space of `get_space`.
        folder: Where to write; an earlier export there is replaced.
        pretrained_cfg: How images are made for the network, in timm's words: `input_size` (C, H, W), `mean` and `std`
            at least. They are what the evaluator's own images had.
        derived: Which subnet, as `strategy.derive(3.0)` gives it; None: what the strategy exports.

    Returns:
        The folder.

    Raises:
        ExportError: The space has no timm network, or the folder cannot be written.
        ConfigError: `pretrained_cfg` lacks something.
        RuntimeError: Nothing was searched yet.
    """
    module = strategy.searched
    space = module.model
    if not isinstance(space, TimmSpace):
        raise ExportError(
            f"{type(space).__name__} is no space of this project, so that its subnets are no timm networks; freeze it "
            "by NNI: space.freeze(strategy.export())"
        )
    missing = [name for name in _NEEDED if name not in pretrained_cfg]
    if missing:
        raise ConfigError(f"pretrained_cfg lacks {', '.join(missing)}; give what the evaluator's images had")
    shape = tuple(pretrained_cfg["input_size"])
    if len(shape) != 3 or shape[0] != space.in_chans:
        raise ConfigError(
            f"pretrained_cfg has input_size {list(shape)}, but the network takes {space.in_chans} channels; "
            "give C, H, W of its images"
        )
    chosen = derived or module.derive()
    exported = module.architecture.export(chosen.choice)
    declaration = cast(SpaceDeclaration, space.declaration)
    subnet = Subnet(declaration, {label: str(value) for label, value in exported.items()})
    arguments = subnet.model_args(num_classes=space.num_classes, in_chans=space.in_chans)
    model = timm.create_model(subnet.timm_name, **arguments)
    network = module.derived_network(chosen)
    model.load_state_dict(declaration.timm_names(network.state_dict(), subnet.choices))
    cost = strategy.cost
    return export_folder(
        model,
        Path(folder),
        model_args=arguments,
        subnet=subnet.to_dict(),
        pretrained_cfg={"num_classes": space.num_classes, **pretrained_cfg},
        metrics={
            "accuracy": None,
            "unit": None if cost is None else cost.unit,
            "target_cost": strategy.target,
            "subnet_cost": None if cost is None else chosen.cost,
        },
    )
