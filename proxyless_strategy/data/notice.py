"""Sentences about data that stop nothing."""

from __future__ import annotations

import os
import sys


def notice(text: str) -> None:
    """Say something on standard error, in the first of several processes alone."""
    if os.environ.get("RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0":
        # A file's name need not be of the terminal's alphabet.
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
