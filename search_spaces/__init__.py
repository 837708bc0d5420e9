"""What can be chosen: search spaces over timm's blocks, their subnets, and the timm models that these become.

Importing this package registers the timm models; the spaces themselves, and NNI with them, are imported when asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import timm_models as timm_models

if TYPE_CHECKING:
    from .costs import SpaceCosts
    from .declaration import SpaceDeclaration
    from .mbconv import MBConvDeclaration, MBConvSpace, Stage
    from .registry import SPACES, get_space
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
    "TreeCellDeclaration": "tree_cell",
    "TreeCellSpace": "tree_cell",
    "get_space": "registry",
}

__all__ = [
    "SPACES",
    "MBConvDeclaration",
    "MBConvSpace",
    "SpaceCosts",
    "SpaceDeclaration",
    "Stage",
    "Subnet",
    "TreeCellDeclaration",
    "TreeCellSpace",
    "get_space",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .nni_import import import_nni

    import_nni()
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
