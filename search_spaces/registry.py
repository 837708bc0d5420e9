"""The named search spaces, and users' own."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from hardware.errors import SpaceError

from .declaration import SpaceDeclaration
from .mbconv import CIFAR_MBCONV, IMAGENET_MBCONV, SMALL_MBCONV, Stage
from .tree_cell import CIFAR_TREE

_NAMED: tuple[Any, ...] = (IMAGENET_MBCONV, SMALL_MBCONV, CIFAR_MBCONV, CIFAR_TREE)
SPACES: dict[str, Any] = {space.name: space for space in _NAMED}


def get_space(name: str, *, width_mult: float = 1.0, **options: Any) -> Any:
    """A named search space, or the user's own.

    Args:
        name: One of `SPACES`, or `module:function` where the function returns a `SpaceDeclaration`.
        width_mult: Multiplies every width, as in the release.
        **options: Fields of the declaration to replace (`stem_stride=1`, `kernels=[3, 5]`, ...), or arguments of
            the user's function.

    Raises:
        SpaceError: The space or an option is unknown, or an option impossible.
    """
    if ":" in name:
        return _users_space(name, options).scaled(width_mult)
    if name not in SPACES:
        raise SpaceError(
            f"unknown search space {name!r}; known are {', '.join(SPACES)}, or give your own as module:function"
        )
    fields = {key: _plain(key, value) for key, value in options.items()}
    try:
        return replace(SPACES[name], **fields).scaled(width_mult)
    except TypeError as error:
        known = ", ".join(SPACES[name].__dataclass_fields__)
        raise SpaceError(f"unknown option for the space {name}: {error}; options are width_mult, {known}") from error


def _plain(key: str, value: Any) -> Any:
    if key == "stages":
        try:
            return tuple(stage if isinstance(stage, Stage) else Stage(**stage) for stage in value)
        except TypeError as error:
            raise SpaceError(f"stages = {value!r}: each needs width, depth and stride") from error
    return tuple(value) if isinstance(value, list) else value


def _users_space(name: str, options: dict[str, Any]) -> SpaceDeclaration:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise SpaceError(f"cannot load the search space {name!r}: {error}; write module:function") from error
    space = function(**options)
    if not isinstance(space, SpaceDeclaration):
        raise SpaceError(
            f"{name} returned {type(space).__name__}, not a SpaceDeclaration such as MBConvDeclaration or "
            "TreeCellDeclaration"
        )
    return space
