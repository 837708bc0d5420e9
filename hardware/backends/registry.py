"""Backends by name; each is imported when it is asked for, as its package may be missing or slow to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ..errors import BackendError
from ..reading import shown
from .base import Backend

FACTORIES: dict[str, str | Callable[[], Backend]] = {
    "onnxruntime": ".onnxruntime:OnnxRuntimeBackend",
    "torch": ".torch:TorchBackend",
    "inductor": ".inductor:InductorBackend",
    "cuda": ".cuda:CudaBackend",
    "openvino": ".openvino:OpenVINOBackend",
    "litert": ".litert:LiteRTBackend",
    "executorch": ".executorch:ExecuTorchBackend",
}
"""Name to `module:class` in this folder, or to what makes the backend."""


def get_backend(
    name: str,
    place: str | None = None,
    *,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backend:
    """Make a fresh backend.

    Args:
        name: The backend's name.
        place: Which of its devices measures (`cpu`, `cuda:1`, ...); None or empty takes the backend's own choice.
        dtype: Number format (`float32`, `int8`, ...); None takes the backend's own choice.
        options: What else of the backend's `known_options` is chosen.

    Raises:
        BackendError: The name is unknown, the backend's package is not installed, or it has no such device, number
            format or option.
    """
    if name not in FACTORIES:
        raise BackendError(f"backend {shown(name)} is unknown; known are {', '.join(backend_names())}")
    factory = FACTORIES[name]
    if isinstance(factory, str):
        module, _, kind = factory.partition(":")
        factory = getattr(import_module(module, __package__), kind)
    backend: Backend = factory()
    if place:
        backend.use(place)
    backend.choose(dtype=dtype, options=options)
    return backend


def register_backend(name: str, factory: Callable[[], Backend]) -> None:
    """Make a backend known by name, in place of an earlier one of that name."""
    FACTORIES[name] = factory


def backend_names() -> tuple[str, ...]:
    """Return all names that `get_backend` knows, sorted."""
    return tuple(sorted(FACTORIES))
