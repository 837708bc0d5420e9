"""NNI, imported without its two false alarms."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

FALSE_ALARMS = (
    r"<class 'torch\.nn\.parameter\.Buffer'> is found to be not a nn\.Module",
    r"<class 'torch\.nn\.modules\.linear_cross_entropy_options\.LinearCrossEntropyOptions'>"
    r" is found to be not a nn\.Module",
)
"""NNI 3.0 wraps every public name of `torch.nn` and warns about these two, which newer torch versions added."""


def silence_false_alarms() -> None:
    """Ignore `FALSE_ALARMS` from now on; for the entry points of a process, which own its warnings."""
    for message in FALSE_ALARMS:
        warnings.filterwarnings("ignore", message=message, category=RuntimeWarning)


def import_nni() -> ModuleType:
    """Import and return `nni.nas.nn.pytorch` without `FALSE_ALARMS`; the filters are as before afterwards."""
    with warnings.catch_warnings():
        silence_false_alarms()
        # First, as it and nni.nas.oneshot import each other: where the other one comes first, NNI's public strategies
        # become stubs that fail when they are called.
        importlib.import_module("nni.nas.strategy")
        return importlib.import_module("nni.nas.nn.pytorch")
