"""What a choice costs: operators, latency tables, and how both are measured on a device.

The names below are what a user needs; they are imported when asked for, so that `import hardware` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.registry import register_backend
    from .measuring.table import build_table
    from .model import CostModel, LatencyModel, given_costs
    from .op_spec import OpSpec
    from .operators.primitives import register_kind
    from .tables.table import LatencyTable

__all__ = [
    "CostModel",
    "LatencyModel",
    "LatencyTable",
    "OpSpec",
    "build_table",
    "given_costs",
    "register_backend",
    "register_kind",
]

# The same as above for a run; a type checker cannot read this, and a run must not import all of that at once.
_HOMES = {
    "CostModel": ".model",
    "LatencyModel": ".model",
    "LatencyTable": ".tables.table",
    "OpSpec": ".op_spec",
    "build_table": ".measuring.table",
    "given_costs": ".model",
    "register_backend": ".backends.registry",
    "register_kind": ".operators.primitives",
}


# A type checker takes a module with `__getattr__` to have every name: hidden from it, a misspelt name is an error.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name], __name__), name)
        globals()[name] = value  # so that Python asks once a name
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
