"""Import a user's own function by `module:function`: a search space, a data set."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError


def search_modules_in(*folders: Path | str) -> None:
    """Let Python find modules in `folders` too, after all places where it finds them already.

    They stay on `sys.path`: worker processes that are spawned for a user's data set get a copy of it, without which
    they could not unpickle the data set.
    """
    for folder in folders:
        # Absolute, so that it stays the same folder when the process changes its own.
        path = os.path.abspath(folder)
        if path not in sys.path:
            # Never first: a user's `random.py` or `timm/` would hide the real one from everything that imports it.
            sys.path.append(path)


def import_function(name: str, *, folders: Iterable[Path | str] = ()) -> Callable[..., Any]:
    """Import what `module:function` names: code that runs, so the user's own word alone may come here.

    The module is looked for where Python looks, then in the current folder, then in `folders`. The command `proxyless`
    needs the current folder named here: Python adds it for `python -m`, but not for an installed script.

    Args:
        name: `module:function`; the module may lie in a package (`package.module:function`).
        folders: Further places of modules.

    Raises:
        ConfigError: There is no such module or function, the module fails while it is imported, or what `name` names
            cannot be called.

    >>> import_function("math:hypot")(3, 4)
    5.0
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{name!r} names no function; write module:function")
    search_modules_in(os.getcwd(), *folders)
    # Finders remember what a folder holds, and would miss a module written since they last looked.
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{module_name} imports {error.name!r}, which is not installed; install it") from error
        raise ConfigError(
            f"no module {error.name!r} is installed, in {os.getcwd()} or beside the config; write module:function"
        ) from error
    except Exception as error:
        raise ConfigError(f"{module_name} raised {type(error).__name__} at its import: {error}; mend it") from error
    try:
        function = getattr(module, function_name)
    except AttributeError as error:
        place = getattr(module, "__file__", None) or "built into Python"
        raise ConfigError(
            f"the module {module_name} ({place}) has no {function_name!r}; write module:function"
        ) from error
    if not callable(function):
        raise ConfigError(f"{name} is {type(function).__name__}, not a function; write module:function")
    return function
