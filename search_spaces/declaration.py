"""`SpaceDeclaration`: what a search needs to know of any search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from .costs import SpaceCosts


@runtime_checkable
class SpaceDeclaration(Protocol):
    """A space whose subnets are networks of one timm entry point.

    Attributes:
        name: Name of the space.
        timm_name: The timm entry point, which `model_args` are the arguments of.
    """

    @property
    def name(self) -> str: ...

    @property
    def timm_name(self) -> str: ...

    def scaled(self, width_mult: float) -> SpaceDeclaration:
        """The same space with every width times `width_mult`."""
        ...

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Candidates' names of every edge, by label."""
        ...

    def build(self, *, num_classes: int = ..., in_chans: int = ...) -> Any:
        """The space as an NNI ModelSpace of LayerChoices with these labels and candidates."""
        ...

    def costs(self, input_size: int, *, num_classes: int = ..., in_chans: int = ...) -> SpaceCosts:
        """Its operators at `input_size x input_size` pixels."""
        ...

    def model_args(self, choices: Mapping[str, str], *, num_classes: int = ..., in_chans: int = ...) -> dict[str, Any]:
        """Keyword arguments of `timm.create_model(timm_name, **args)` for one choice; plain values for JSON."""
        ...

    def timm_names(self, weights: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
        """The `state_dict()` of the space frozen at `choices` under timm's keys."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ...
