"""Search spaces by name: those that ship, those that a user registered, and a user's own function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from shlex import quote
from typing import Any

from hardware.errors import ConfigError, ProxylessError, SpaceError
from hardware.reading import cut, shown

from .declaration import ShippedDeclaration, SpaceDeclaration, check_options
from .from_timm.paths import FOLDER, PREFIX
from .from_timm.reader import read_space
from .mbconv import CIFAR_MBCONV, IMAGENET_MBCONV, SMALL_MBCONV
from .tree_cell import CIFAR_TREE
from .user_function import import_function

SpaceFactory = Callable[..., SpaceDeclaration]
"""From options, as keyword arguments, to a declaration."""

_SHIPPED: tuple[ShippedDeclaration, ...] = (IMAGENET_MBCONV, SMALL_MBCONV, CIFAR_MBCONV, CIFAR_TREE)
SPACES: dict[str, Any] = {space.name: space for space in _SHIPPED}
"""The spaces that ship, by name."""
_registered: dict[str, SpaceFactory] = {}


def known_spaces() -> tuple[str, ...]:
    """Return the names that `get_space` knows: of spaces that ship, then of those that `register` added."""
    return tuple(dict.fromkeys((*SPACES, *_registered)))


def register(name: str, factory: SpaceFactory, *, replace: bool = False) -> None:
    """Give a search space of your own a name, for `get_space` and for `space: NAME` in a search config.

    It holds in this process: whatever runs a search by this name must import the module that registers it first.

    Args:
        name: Letters, digits, `_`, `-` and `.`, a letter first.
        factory: Returns the space's declaration; its arguments are the space's options.
        replace: Take the name even if another space has it.

    Raises:
        SpaceError: The name is malformed or taken, or the factory cannot be called.

    >>> from search_spaces import MBConvDeclaration, Stage
    >>> def two_stages(width=16):
    ...     stages = (Stage(width, depth=2, stride=2), Stage(2 * width, depth=2, stride=2))
    ...     return MBConvDeclaration("two_stages", stem_width=8, stem_stride=2, first_width=8, stages=stages)
    >>> register("two_stages", two_stages)
    >>> get_space("two_stages", width=24).stages[1]
    Stage(width=48, depth=2, stride=2)
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise SpaceError(f"{shown(name)} cannot name a space; use letters, digits, _, - and ., a letter first")
    if not callable(factory):
        raise SpaceError(
            f"the space {name} was registered with {type(factory).__name__}, which cannot be called; give a function "
            "that returns a declaration"
        )
    # A notebook's cell that runs again, or a module that is reloaded, puts its new function in place of its old one.
    again = name in _registered and _origin(_registered[name]) == _origin(factory)
    if name in known_spaces() and not again and not replace:
        owner = "a space that ships" if name not in _registered else "another space"
        raise SpaceError(f"the name {name} is taken by {owner}; choose another one, or register with replace=True")
    _registered[name] = factory


def get_space(name: str, /, *, width_mult: float = 1.0, **options: Any) -> Any:
    """Return a search space by its registered name; what a file names may be passed on as it is.

    Args:
        name: One of `known_spaces()`, or `timm:MODEL`. A `module:function` is refused, and so is
            `timm:local-dir:FOLDER`, see `users_space`.
        width_mult: Multiplies every width, as in the release.
        **options: Of a space that ships, fields of its declaration to replace (`stem_stride=1`, `kernels=[3, 5]`,
            ...); of a timm model, `kernels`, `expansions` and `weights`; of others, arguments of the function.

    Raises:
        SpaceError: The space or an option is unknown, or an option impossible.

    >>> space = get_space("small_mbconv", kernels=[3, 5])
    >>> list(space.candidates().items())[1]
    ('stage1_block1', ('3x3_e3', '3x3_e6', '5x5_e3', '5x5_e6', 'skip'))
    >>> get_space("imagenet_mbconv", width_mult=1.4).stem_width
    48
    >>> get_space("timm:mobilenetv2_100", kernels=[3, 5], expansions=[3]).candidates()["stage1_block1"]
    ('3x3_e3', '3x3_e6', '5x5_e3', '5x5_e6', 'skip')
    """
    if name in _registered:
        return _made(name, _registered[name], options).scaled(width_mult)
    if name in SPACES:
        return SPACES[name].with_options(options).scaled(width_mult)
    if name.startswith(PREFIX + FOLDER):
        raise SpaceError(
            f"the space {shown(name)} is a folder, which only you may name and no file; if it is yours, give "
            f"--space {cut(quote(name))} on the command line, or call `search_spaces.users_space`"
        )
    if name.startswith(PREFIX):
        return read_space(name, options).scaled(width_mult)
    if ":" in name:
        raise SpaceError(
            f"the space {shown(name)} is a function, which only you may name and no file; if it is yours, give "
            f"--space {name} on the command line, or call `search_spaces.users_space`"
        )
    raise SpaceError(
        f"unknown search space {shown(name)}; known are {', '.join(known_spaces())}, timm:MODEL, or give your own as "
        "module:function"
    )


def users_space(name: str, /, *, width_mult: float = 1.0, **options: Any) -> Any:
    """Return a search space that the user names, who may also name a function: its module is imported, and it runs.

    Only for what stands on the user's command line, in their search config or in their code. A name that was read from
    a file of results (a table, a run folder, an export) may be anyone's, and goes to `get_space`.

    Args:
        name: One of `known_spaces()`, `timm:MODEL`, `timm:local-dir:FOLDER` of an export, or `module:function` where
            the function returns a `SpaceDeclaration`; its module may lie in the current folder.
        width_mult: Multiplies every width, as in the release.
        **options: As `get_space` takes them; of a function, its arguments.

    Raises:
        SpaceError: The space or an option is unknown, an option impossible, or the function fails.

    >>> users_space("small_mbconv", stem_stride=1).stem_stride
    1
    """
    if name.startswith(PREFIX + FOLDER):
        return read_space(name, options).scaled(width_mult)
    if ":" not in name or name.startswith(PREFIX):
        return get_space(name, width_mult=width_mult, **options)
    try:
        function = import_function(name)
    except ConfigError as error:
        raise SpaceError(f"cannot load the search space {shown(name)}: {error}") from error
    return _made(name, function, options).scaled(width_mult)


def _made(name: str, factory: SpaceFactory, options: Mapping[str, Any]) -> SpaceDeclaration:
    _check_arguments(name, factory, options)
    try:
        space = factory(**options)
    except ProxylessError:
        raise
    except Exception as error:
        given = ", ".join(f"{key} = {shown(value)}" for key, value in options.items()) or "no options"
        raise SpaceError(
            f"the space {name} with {given} raised {type(error).__name__}: {error}; mend its function or the options"
        ) from error
    if not isinstance(space, SpaceDeclaration):
        raise SpaceError(
            f"{name} returned {type(space).__name__}, not a SpaceDeclaration; return one such as MBConvDeclaration or "
            "TreeCellDeclaration"
        )
    return space


def _check_arguments(name: str, factory: SpaceFactory, options: Mapping[str, Any]) -> None:
    """Check options against the factory's signature: by its TypeError alone, a fault inside it would look the same."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables that are written in C have none
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_options(options, [p.name for p in named], space=name)
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise SpaceError(f"the space {name} needs the option {missing[0]}; give it in space.options")


def _origin(factory: SpaceFactory) -> tuple[Any, Any]:
    return getattr(factory, "__module__", None), getattr(factory, "__qualname__", factory)
