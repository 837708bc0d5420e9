"""Settings of the whole suite."""

import os

from hardware.child_process import wait_passively
from hardware.processor import SILENCE

# Two busy threads on a shared machine wait for each other far longer than one takes; resumed runs must be bit-equal.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Some tests import ONNX Runtime themselves, before `hardware.onnx_runtime` could silence it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Resumed runs are bit-equal on a GPU too; cuBLAS reads this once, when the first test of a process uses one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# What else runs on the machine is no concern of tests that read standard error.
os.environ.setdefault(SILENCE, "1")
# Before torch is imported: what a test or its children run on several threads then yields the cores to others.
wait_passively()
