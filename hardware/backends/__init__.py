"""Measuring backends: how operators and whole nets are run and timed on a device.

A backend of one's own is a subclass of `Backend` with `prepare`; `time` is inherited unless the device needs a
clock of its own. Register it with `register_backend(name, factory)`, and test it with `hardware.testing`.
"""

from __future__ import annotations

from .base import Backend, Runnable, SharedBackend
from .registry import backend_names, get_backend, register_backend

__all__ = ["Backend", "Runnable", "SharedBackend", "backend_names", "get_backend", "register_backend"]
