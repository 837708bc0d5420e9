"""ONNX Runtime without its telemetry: the one place that imports it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


def import_onnxruntime() -> Any:
    """Import and return `onnxruntime`, which then neither sends anything nor keeps a record of its use.

    The official builds send the device, the session's settings and a digest of the graph to their maker, from a thread
    that also runs while something is measured.

    Raises:
        ImportError: It is not installed.
    """
    # The thread and the data base of what is to be sent start with the import, and what switches them off later leaves
    # both; processes that this one starts inherit it.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    runtime = import_module("onnxruntime")
    # Versions that do not know the variable, and whoever imported it before.
    runtime.disable_telemetry_events()
    return runtime
