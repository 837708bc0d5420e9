"""Folders that hold data of another kind than picture files."""

from __future__ import annotations

from pathlib import Path

from hardware.reading import is_there

from .hf_source import NAME as HF
from .hf_source import SAVED
from .shard_source import NAME as SHARDS


def other_kind(root: Path) -> str:
    """Say what a folder holds in the place of pictures, and which config is for that; nothing where it is neither."""
    try:
        tars = sum(len(list(root.glob(pattern))) for pattern in ("*.tar", "*/*.tar"))
        if tars:
            kind = f"{tars} tar file{'s' * (tars > 1)}"
            return f"{kind}, which a search's YAML names by `data: {{name: {SHARDS}, root: {root}}}`"
        tables = is_there(root / SAVED) or any(any(root.glob(p)) for p in ("*/state.json", "*.parquet", "*/*.parquet"))
    except OSError:
        return ""
    return f"tables, which a search's YAML names by `data: {{name: {HF}, root: {root}}}`" if tables else ""
