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
    """Ignores `FALSE_ALARMS` from now on; for the entry points of a process, which own its warnings."""
    for message in FALSE_ALARMS:
        warnings.filterwarnings("ignore", message=message, category=RuntimeWarning)


def import_nni() -> ModuleType:
    """Returns `nni.nas.nn.pytorch`, imported without `FALSE_ALARMS`; the filters are as before afterwards."""
    with warnings.catch_warnings():
        silence_false_alarms()
        # Imported after nni.nas.oneshot, NNI's public strategies become stubs that fail (a circular import of its own).
        importlib.import_module("nni.nas.strategy")
        return importlib.import_module("nni.nas.nn.pytorch")
