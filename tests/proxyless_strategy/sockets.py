"""Where a process listens, from /proc."""

from __future__ import annotations

import os
import socket
from pathlib import Path

LISTENING = "0A"


def listening(pid: int | str = "self") -> list[str]:
    """Addresses on which a process listens for TCP connections."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except OSError:
            continue
    found = []
    for name, family, size in (("tcp", socket.AF_INET, 8), ("tcp6", socket.AF_INET6, 32)):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                digits = fields[1].split(":")[0]
                # the kernel writes words of 32 bits, each in the machine's order
                words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, size, 8)]
                found.append(socket.inet_ntop(family, b"".join(words)))
    return sorted(found)
