"""`SpaceDeclaration`: what a search needs to know of any search space; and what the shipped declarations share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from hardware.errors import SpaceError
from hardware.reading import cut, shown

from .costs import SpaceCosts

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_CHANNELS = 65_536
"""Far above every use: a slip of the hand must not fill the memory or never end."""


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
        """Return the same space with every width times `width_mult`."""
        ...

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return the candidates' names of every edge, by label."""
        ...

    def build(self, *, num_classes: int = ..., in_chans: int = ...) -> Any:
        """Build the space as an NNI ModelSpace of LayerChoices with these labels and candidates."""
        ...

    def costs(self, input_size: int, *, num_classes: int = ..., in_chans: int = ...) -> SpaceCosts:
        """Return its operators at `input_size x input_size` pixels."""
        ...

    def model_args(self, choices: Mapping[str, str], *, num_classes: int = ..., in_chans: int = ...) -> dict[str, Any]:
        """Return the keyword arguments of `timm.create_model(timm_name, **args)` for one choice; plain for JSON."""
        ...

    def timm_names(self, weights: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
        """Return the `state_dict()` of the space frozen at `choices` under timm's keys."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...


@dataclass(frozen=True)
class ShippedDeclaration(ABC):
    """What the shipped kinds of declaration do alike: widths, options, reading from JSON.

    Attributes:
        name: Name of the space.
    """

    name: str

    kind: ClassVar[str]
    """The kind's name in the file of a subnet."""

    def check_integers(self, **least: int) -> None:
        """Check that the name is a text, and that these fields are integers, each of its least value or more.

        Raises:
            SpaceError: One is not; the message names it and its value.
        """
        if not isinstance(self.name, str) or not self.name:
            raise SpaceError(f"name = {shown(self.name)} of a space; it must be a text")
        for field, smallest in least.items():
            value = getattr(self, field)
            if not is_integer(value) or int(value) < smallest:
                raise SpaceError(
                    f"{field} = {shown(value)} of the space {cut(self.name)}; it must be an integer of {smallest} or "
                    "more"
                )
            if int(value) > MOST_CHANNELS:
                raise SpaceError(
                    f"{field} = {shown(value)} of the space {cut(self.name)}; it must be at most {MOST_CHANNELS}"
                )

    def scaled(self, width_mult: float) -> Self:
        """Return the same space with its widths times `width_mult`; its name ends in `_w` and that factor.

        Raises:
            SpaceError: `width_mult` is not a positive number.
        """
        if not isinstance(width_mult, Real) or not 0 < width_mult < math.inf:
            raise SpaceError(
                f"width_mult = {shown(width_mult)} of the space {cut(self.name)}; it must be a positive number"
            )
        if width_mult == 1:
            return self
        return replace(self, name=f"{self.name}_w{width_mult:g}", **self.scaled_widths(width_mult))

    @abstractmethod
    def scaled_widths(self, width_mult: float) -> dict[str, Any]:
        """Return the fields that change when every width is multiplied."""

    @abstractmethod
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return the candidates' names of every edge, by label."""

    @abstractmethod
    def timm_names(self, weights: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
        """Return the `state_dict()` of the space frozen at `choices` under timm's keys."""

    @abstractmethod
    def edge_paths(self) -> dict[str, str]:
        """Return the path of every edge's module in the built space, by label."""

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """Replace fields by plain values, as YAML gives them.

        Raises:
            SpaceError: An option is no field, or has an impossible value.
        """
        known = [field.name for field in fields(self)]
        check_options(options, known, space=self.name)
        try:
            return replace(self, **self.from_plain(options))
        except (TypeError, ValueError) as error:
            given = ", ".join(f"{key} = {shown(value)}" for key, value in options.items())
            raise SpaceError(f"the space {cut(self.name)} cannot have {given}: {error}; correct the option") from error

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert values of YAML or JSON to those of the fields: lists become tuples, which a frozen dataclass needs.

        Raises:
            SpaceError: A value has another structure than its field.
        """
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            SpaceError: A field is missing or unknown.
        """
        try:
            return cls(**cls.from_plain({key: value for key, value in values.items() if key != "kind"}))
        except TypeError as error:
            raise SpaceError(f"not a declaration of a space of kind {cls.kind}: {error}; export again") from error


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer; yes and no, which Python takes for 1 and 0, are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, NaN and infinity included; yes and no are none."""
    # bounds tell NaN and infinity: `isfinite` fails at an integer of hundreds of digits
    return isinstance(value, Real) and not isinstance(value, bool)


def moved(weights: Mapping[str, Any], places: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the weights below each old place under its new one, as later blocks take a skipped one's number.

    >>> moved({"blocks.1.2.bn.bias": 0}, [("blocks.1.2", "blocks.1.1")])
    {'blocks.1.1.bn.bias': 0}
    """
    return {
        f"{new}.{key.removeprefix(f'{old}.')}": value
        for old, new in places
        for key, value in weights.items()
        if key.startswith(f"{old}.")
    }


def check_options(options: Mapping[str, Any], known: list[str], *, space: str) -> None:
    """Check the names of a space's options.

    Raises:
        SpaceError: One is unknown; the message names it, its value and the known ones.
    """
    for key, value in options.items():
        if key not in known:
            raise SpaceError(
                f"unknown option {cut(str(key))} = {shown(value)} for the space {space}; its options are "
                f"{', '.join(dict.fromkeys(('width_mult', *known)))}"
            )
