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


EXACT_INT8 = ("session.x64quantprecision", "1")
"""Adds products of int8 exactly. By default ONNX Runtime adds two in 16 bits on x86 CPUs that have no VNNI, where large
ones are cut off: an accuracy measured there is another than anywhere else."""
WHERE_DEPLOYED = (
    f"with ONNX Runtime on x86 CPUs without VNNI set {EXACT_INT8[0]} to {EXACT_INT8[1]} in its session, as it is here"
)


def session_options(threads: int | None = None) -> Any:
    """Return options of a session: threads, no log but of errors, products of int8 added exactly.

    Args:
        threads: Of one inference; None: as ONNX Runtime chooses.
    """
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry(*EXACT_INT8)
    return options
