"""What can be chosen: search spaces over timm's blocks, their subnets, and the timm models that these become.

Importing this package imports neither timm nor NNI. The timm models are registered as soon as timm is imported, before
or after; the spaces, and NNI with them, are imported when a name is asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .costs import SpaceCosts
    from .declaration import SpaceDeclaration
    from .from_timm.declaration import TimmDeclaration
    from .mbconv import MBConvDeclaration, MBConvSpace, Stage
    from .registry import SPACES, get_space, register, users_space
    from .subnet import Subnet
    from .tree_cell import TreeCellDeclaration, TreeCellSpace

_LAZY = {
    "SPACES": "registry",
    "MBConvDeclaration": "mbconv",
    "MBConvSpace": "mbconv",
    "SpaceCosts": "costs",
    "SpaceDeclaration": "declaration",
    "Stage": "mbconv",
    "Subnet": "subnet",
    "TimmDeclaration": "from_timm.declaration",
    "TreeCellDeclaration": "tree_cell",
    "TreeCellSpace": "tree_cell",
    "get_space": "registry",
    "register": "registry",
    "users_space": "registry",
}

__all__ = [
    "SPACES",
    "MBConvDeclaration",
    "MBConvSpace",
    "SpaceCosts",
    "SpaceDeclaration",
    "Stage",
    "Subnet",
    "TimmDeclaration",
    "TreeCellDeclaration",
    "TreeCellSpace",
    "get_space",
    "register",
    "users_space",
]


# timm has no entry points for models, so someone must import `timm_models`. To import timm here for that would cost
# every start four seconds, `proxyless --help` too. The hook runs at the end of timm's own import, or at once where timm
# is imported already.
@wrapt.when_imported("timm")
def _register_models(_: ModuleType) -> None:
    models = f"{__name__}.timm_models"
    if models in sys.modules:
        return  # it is what imports timm, in this thread or another; to wait for it would be a deadlock
    importlib.import_module("timm")  # waits where another thread is still importing it
    importlib.import_module(models)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A type checker takes a module with `__getattr__` to have every name; hidden from it, a misspelt one is an error.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .nni_import import import_nni

        import_nni()
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
