"""What a machine tells of its energy: RAPL on Linux, and NVML of NVIDIA GPUs.

Both are counters of joules that only ever grow, and count all that the chip draws, whatever runs on it. No memory, fan
or power supply is in a processor's counter, and no processor in a GPU's.
"""

from __future__ import annotations

import abc
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..backends import Backend
from ..errors import EnergyError
from ..reading import shown

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+")
_MOVES = 20
_PAUSE_SECONDS = 0.05


class EnergyMeter(abc.ABC):
    """A device's counters of energy.

    Attributes:
        name: What is read, for table headers.
        block_seconds: Least time between two readings whose difference says something: the counters move in steps.
    """

    name: str
    block_seconds: ClassVar[float]

    @abc.abstractmethod
    def read(self) -> tuple[float, ...]:
        """Return where the counters stand, in joules.

        Raises:
            EnergyError: They cannot be read.
        """

    def between(self, then: Sequence[float], now: Sequence[float]) -> float:
        """Return the joules between two readings.

        Raises:
            EnergyError: The counters did not move, or went back.
        """
        joules = sum(b - a for a, b in zip(then, now, strict=True))
        if joules <= 0:
            raise EnergyError(
                f"{self.name} went from {sum(then):.6g} J to {sum(now):.6g} J while work ran; it counts no energy "
                "here, as in a virtual machine: search by latency, or measure on the machine itself"
            )
        return joules

    def check(self) -> None:
        """Check that the counters can be read and move, as even an idle device draws power.

        Raises:
            EnergyError: They cannot, or do not.
        """
        first = self.read()
        for _ in range(_MOVES):
            pause(_PAUSE_SECONDS)
            now = self.read()
            if now != first:
                return
        self.between(first, now)


class Rapl(EnergyMeter):
    """The packages (sockets) of Intel and AMD processors, summed, from files of the Linux kernel.

    Zones inside a package (cores, memory) are parts of it, and `psys` is the package and more: counted beside it, they
    would count twice. A counter starts again at 0 behind its `max_energy_range_uj`, after minutes at the earliest.

    Args:
        root: The kernel's folder of zones; None: `POWERCAP`.

    Raises:
        EnergyError: There is no package, or a file is not to be read.
    """

    # the counters move about every millisecond
    block_seconds = 0.3

    def __init__(self, root: Path | None = None) -> None:
        root = root or POWERCAP
        try:
            zones = sorted(zone for zone in root.iterdir() if _ZONE.fullmatch(zone.name))
        except FileNotFoundError:
            zones = []
        except OSError as error:
            raise _unreadable(root, error) from None
        named = [(_read(zone / "name"), zone) for zone in zones]
        packages = [(name, zone) for name, zone in named if name.startswith("package-")]
        if not packages:
            raise EnergyError(
                f"this machine does not tell its processor's energy: there is no package (RAPL) in {root}, as in most "
                "virtual machines; search by latency, or measure on a Linux machine that has one"
            )
        self.name = f"RAPL {', '.join(name for name, _ in packages)}"
        self._counters = [zone / "energy_uj" for _, zone in packages]
        self._ranges = [_joules(zone / "max_energy_range_uj") for _, zone in packages]
        for (_, zone), joules in zip(packages, self._ranges, strict=True):
            if joules <= 0:
                raise EnergyError(f"{zone / 'max_energy_range_uj'} is 0, so that it is unknown where its counter wraps")
        self.read()

    def read(self) -> tuple[float, ...]:
        return tuple(_joules(counter) for counter in self._counters)

    def between(self, then: Sequence[float], now: Sequence[float]) -> float:
        on = [b if b >= a else b + joules for a, b, joules in zip(then, now, self._ranges, strict=True)]
        return super().between(then, on)


class Nvml(EnergyMeter):
    """One NVIDIA GPU's own counter, by NVML; the processor that feeds it is not in it.

    Args:
        place: `cuda:N`, as torch counts the GPUs: by their UUID it is the same one for NVML, which counts others.

    Raises:
        EnergyError: `nvidia-ml-py` is not installed, or the GPU has no such counter.
    """

    # the counter moves up to ten times a second only
    block_seconds = 2.0

    def __init__(self, place: str) -> None:
        try:
            import pynvml  # optional
        except ImportError:
            raise EnergyError(
                f"the energy of {place} is read by nvidia-ml-py, which is not installed; install it with "
                "`pip install nvidia-ml-py`"
            ) from None
        self._nvml: Any = pynvml
        self.name = f"NVML {place}"
        try:
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByUUID(_uuid(place))
        except self._nvml.NVMLError as error:
            raise self._refused(error) from None
        self.read()

    def read(self) -> tuple[float, ...]:
        try:
            # in mJ since the driver was loaded
            return (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3,)
        except self._nvml.NVMLError as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> EnergyError:
        return EnergyError(
            f"{self.name} does not tell its energy ({error}); GPUs do from Volta on, and no parts of one (MIG): search "
            "by latency, or measure on another GPU"
        )


def meter_of(backend: Backend) -> EnergyMeter:
    """Return what reads the energy of the device that a backend measures on.

    Raises:
        EnergyError: Nothing does, or the backend cannot run for a given time.
    """
    kind = type(backend)
    if kind.time is not Backend.time and kind.run_for is Backend.run_for:
        raise EnergyError(
            f"backend {backend.name!r} keeps its own time and has no run_for, so that nothing says how many runs an "
            "energy is of; choose another backend, or give it one"
        )
    if backend.place == "cpu":
        return Rapl()
    if backend.place.startswith("cuda:"):
        return Nvml(backend.place)
    raise EnergyError(
        f"the energy of device {backend.place!r} of backend {backend.name!r} cannot be read; it can of cpu (RAPL) and "
        "of cuda:N (NVML)"
    )


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def _uuid(place: str) -> str:
    import torch  # slow, and only needed here

    found = str(torch.cuda.get_device_properties(place).uuid)
    return found if found.startswith("GPU-") else f"GPU-{found}"


def _joules(path: Path) -> float:
    text = _read(path)
    if not text.isdecimal():
        raise EnergyError(f"{path} holds {shown(text)}, no number of microjoules; search by latency")
    return int(text) / 1e6


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> EnergyError:
    if isinstance(error, PermissionError):
        return EnergyError(
            f"{path} may be read by root alone; allow it until the next start of this machine with "
            f"`sudo chmod a+r {POWERCAP}/intel-rapl:*/energy_uj`, or search by latency"
        )
    return EnergyError(f"cannot read {path} ({error}), which tells the processor's energy; search by latency")
