"""Backends by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from hardware.backends.base import Backend
from hardware.errors import BackendError


def get_backend(name: str, place: str | None = None) -> Backend:
    """A fresh backend.

    Args:
        name: The backend's name.
        place: Which of its devices measures (`cpu`, `cuda:1`, ...); None or empty takes the backend's own choice.

    Raises:
        BackendError: The name is unknown, the backend's package is not installed, or it has no such device.
    """
    if name not in _FACTORIES:
        raise BackendError(f"backend {name!r} is unknown; known are {', '.join(backend_names())}.")
    backend = _FACTORIES[name]()
    if place:
        backend.use(place)
    return backend


def register_backend(name: str, factory: Callable[[], Backend]) -> None:
    """Makes a backend known by name, in place of an earlier one of that name."""
    _FACTORIES[name] = factory


def backend_names() -> tuple[str, ...]:
    """All names that `get_backend` knows."""
    return tuple(sorted(_FACTORIES))


def _onnxruntime() -> Backend:
    from hardware.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend()


def _torch() -> Backend:
    from hardware.backends.torch import TorchBackend

    return TorchBackend()


def _inductor() -> Backend:
    from hardware.backends.inductor import InductorBackend

    return InductorBackend()


def _cuda() -> Backend:
    from hardware.backends.cuda import CudaBackend

    return CudaBackend()


def _litert() -> Backend:
    from hardware.backends.litert import LiteRTBackend

    return LiteRTBackend()


def _executorch() -> Backend:
    from hardware.backends.executorch import ExecuTorchBackend

    return ExecuTorchBackend()


_FACTORIES: dict[str, Callable[[], Backend]] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "inductor": _inductor,
    "cuda": _cuda,
    "litert": _litert,
    "executorch": _executorch,
}
