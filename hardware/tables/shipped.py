"""Latency tables that ship with the package, and the devices of the ProxylessNAS paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import TableError
from .table import LatencyTable

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PaperDevice:
    """A device that the paper specialised a net for.

    Attributes:
        name: Short name, as in the names of the released nets.
        hardware: The device in words.
        runtime: What ran the nets, where the paper says so.
        batch: Images per inference.
        input_size: Side of the input image.
        latency_ms: What the net specialised for it takes on it.
        top1: That net's ImageNet top-1 accuracy in percent.
        table: Name of a shipped table of this device, if there is one.
    """

    name: str
    hardware: str
    runtime: str | None
    batch: int
    input_size: int
    latency_ms: float
    top1: float
    table: str | None = None


PAPER_DEVICES: dict[str, PaperDevice] = {
    device.name: device
    for device in (
        PaperDevice("gpu", "NVIDIA V100", None, 8, 224, 5.1, 75.1),
        PaperDevice("cpu", "2 x Intel Xeon E5-2640 v4", None, 1, 224, 138.7, 75.3),
        PaperDevice("mobile", "Google Pixel 1", "TF-Lite", 1, 224, 78.0, 74.6, table="pixel1"),
    )
}


def shipped_names() -> tuple[str, ...]:
    """Names of the shipped tables."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yml")))


def open_table(name_or_path: str | Path) -> LatencyTable:
    """A shipped table by its name, or the table in a file.

    Raises:
        TableError: There is neither; the message lists the shipped names.
    """
    if str(name_or_path) in shipped_names():
        return LatencyTable.load(_FOLDER / f"{name_or_path}.yml")
    if not Path(name_or_path).exists():
        raise TableError(
            f"there is no latency table {str(name_or_path)!r}; shipped ones are {', '.join(shipped_names())}, "
            "others are given by the path of their file."
        )
    return LatencyTable.load(name_or_path)
