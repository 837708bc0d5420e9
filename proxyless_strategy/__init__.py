"""Hardware-aware neural architecture search: ProxylessNAS as a strategy for NNI.

Importing this package is quick: timm, torch, NNI and Lightning are imported when a name that needs them is asked for.
Its timm models are registered as soon as timm is imported, so that after `import proxyless_strategy, timm`, in either
order, `timm.create_model('local-dir:FOLDER', pretrained=True)` builds an exported subnet.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import search_spaces  # noqa: F401 - registers the timm models as soon as timm is imported
from hardware.child_process import wait_passively
from hardware.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    EnergyError,
    ExperimentError,
    ExportError,
    LockError,
    MissingOperatorError,
    ProxylessError,
    SpaceError,
    SubnetError,
    TableError,
    TargetError,
    TrainingError,
    UnsupportedSpaceError,
)

if TYPE_CHECKING:
    from hardware.model import LatencyModel
    from hardware.tables.table import LatencyTable
    from search_spaces import Subnet, get_space, users_space

    from .benchmark.module_costs import measure_modules
    from .config import SearchConfig, load_config
    from .export.derived import export_derived
    from .export.onnx import export_onnx
    from .retraining.folder import retrain
    from .runs.derive import derive
    from .runs.finished import read_run
    from .runs.prepare import prepare
    from .runs.search import run_search
    from .shrinking.story import run_shrink
    from .strategy.proxyless import ProxylessStrategy

_LAZY = {
    "LatencyModel": "hardware.model",
    "LatencyTable": "hardware.tables.table",
    "ProxylessStrategy": "proxyless_strategy.strategy.proxyless",
    "SearchConfig": "proxyless_strategy.config",
    "Subnet": "search_spaces",
    "derive": "proxyless_strategy.runs.derive",
    "export_derived": "proxyless_strategy.export.derived",
    "export_onnx": "proxyless_strategy.export.onnx",
    "get_space": "search_spaces",
    "load_config": "proxyless_strategy.config",
    "measure_modules": "proxyless_strategy.benchmark.module_costs",
    "prepare": "proxyless_strategy.runs.prepare",
    "read_run": "proxyless_strategy.runs.finished",
    "retrain": "proxyless_strategy.retraining.folder",
    "run_search": "proxyless_strategy.runs.search",
    "run_shrink": "proxyless_strategy.shrinking.story",
    "users_space": "search_spaces",
}
# NNI is imported with these, some of which need it only when they run, so that its false alarms are silenced.
_ON_NNI = (
    "ProxylessStrategy",
    "derive",
    "export_derived",
    "measure_modules",
    "prepare",
    "run_search",
    "run_shrink",
)

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EnergyError",
    "ExperimentError",
    "ExportError",
    "LatencyModel",
    "LatencyTable",
    "LockError",
    "MissingOperatorError",
    "ProxylessError",
    "ProxylessStrategy",
    "SearchConfig",
    "SpaceError",
    "Subnet",
    "SubnetError",
    "TableError",
    "TargetError",
    "TrainingError",
    "UnsupportedSpaceError",
    "derive",
    "export_derived",
    "export_onnx",
    "get_space",
    "load_config",
    "measure_modules",
    "prepare",
    "read_run",
    "retrain",
    "run_search",
    "run_shrink",
    "users_space",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A type checker takes a module with `__getattr__` to have every name; hidden from it, a misspelt one is an error.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Here, as most of them import torch; and not for the import of this package alone, with which a deployed model
        # is loaded, whose threads wait as its user's do.
        wait_passively()
        if name in _ON_NNI:
            from search_spaces.nni_import import import_nni

            import_nni()
        return getattr(importlib.import_module(_LAZY[name]), name)
