"""Sentences about data that stop nothing."""

from __future__ import annotations

import sys

from ..world import is_first


def notice(text: str) -> None:
    """Say something on standard error, in the first of several processes alone."""
    if is_first():
        # A file's name need not be of the terminal's alphabet.
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
