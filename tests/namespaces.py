"""Two network namespaces joined by a veth pair, as two hosts of a network: `python -m tests.namespaces up | down`.

Needs root and Linux. What it makes has names of its own, and `down` removes all of it. Files and processes are this
machine's; only the network is another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

NAMES = ("proxyless0", "proxyless1")
DEVICES = ("pxveth0", "pxveth1")
LOCK = "/run/proxyless-namespaces.lock"
"""Where only root writes; the names are the same in every checkout."""
HOSTS_FILES = Path("/etc/netns")
ADDRESSES = ("10.211.77.1", "10.211.77.2")


def why_not() -> str | None:
    """Return why namespaces cannot be made here; None where they can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux and the program ip"
    if os.geteuid() != 0:
        return "network namespaces need root"
    done = subprocess.run(["ip", "netns", "add", f"{NAMES[0]}probe"], capture_output=True, text=True)
    if done.returncode != 0:
        return f"network namespaces cannot be made here: {done.stderr.strip()}"
    ip("netns", "del", f"{NAMES[0]}probe")
    return None


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def inside(host: int, *command: str) -> list[str]:
    """Return a command that runs on one of the hosts."""
    return ["ip", "netns", "exec", NAMES[host], *command]


def up() -> None:
    """Make both hosts and the link between them."""
    down()
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", DEVICES[0], "netns", NAMES[0], "type", "veth", "peer", "name", DEVICES[1], "netns", NAMES[1])
    for name, device, address in zip(NAMES, DEVICES, ADDRESSES, strict=True):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
        for link in (device, "lo"):
            ip("-n", name, "link", "set", link, "up")


def down() -> None:
    """Remove them, with whatever still runs there."""
    for name in NAMES:
        if subprocess.run(["ip", "netns", "pids", name], capture_output=True).returncode == 0:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
            for pid in found.split():
                os.kill(int(pid), 9)
            ip("netns", "del", name)
        shutil.rmtree(HOSTS_FILES / name, ignore_errors=True)


def call(host: int, names: Mapping[str, str]) -> None:
    """Have one of the hosts look up names as these addresses."""
    folder = HOSTS_FILES / NAMES[host]
    folder.mkdir(parents=True, exist_ok=True)
    lines = {"localhost": "127.0.0.1", **names}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in lines.items()))


def link(state: str) -> None:
    """Set the link `down`, as where a cable is cut, or `up`."""
    ip("-n", NAMES[1], "link", "set", DEVICES[1], state)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Have both hosts inside the context; another run of these tests waits for them."""
    with FileLock(LOCK):
        up()
        try:
            yield
        finally:
            down()


if __name__ == "__main__":
    {"up": up, "down": down}[sys.argv[1]]()
