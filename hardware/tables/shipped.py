"""Latency tables that ship with the package, and the devices of the ProxylessNAS paper."""

from __future__ import annotations

from pathlib import Path

from ..errors import TableError
from .table import LatencyTable

_FOLDER = Path(__file__).parent


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped tables."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yml")))


def open_table(name_or_path: str | Path) -> LatencyTable:
    """Open a shipped table by its name, or the table in a file.

    Raises:
        TableError: There is neither; the message lists the shipped names.
    """
    if str(name_or_path) in shipped_names():
        return LatencyTable.load(_FOLDER / f"{name_or_path}.yml")
    if not Path(name_or_path).exists():
        raise TableError(
            f"there is no latency table {str(name_or_path)!r}; shipped ones are {', '.join(shipped_names())}, "
            "others are given by the path of their file"
        )
    return LatencyTable.load(name_or_path)
