"""Two hosts with an sshd each, in the two namespaces: a home, processes and a folder of their own, and one they share.

`python -m tests.ssh_hosts FOLDER` keeps them until it is interrupted, and says how to work on them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests import namespaces

SSHD = Path("/usr/sbin/sshd")
ROOT = Path(__file__).parents[1]


def why_not() -> str | None:
    """Return why there can be no such hosts here; None where there can."""
    for name in ("ssh", "ssh-keygen", "unshare", "nsenter"):
        if shutil.which(name) is None:
            return f"hosts by SSH need the program {name}"
    if not SSHD.exists():
        return f"hosts by SSH need {SSHD} (package openssh-server)"
    return namespaces.why_not()


class SshHosts:
    """The hosts.

    Args:
        folder: For all that they have.

    Attributes:
        key: The private key that logs in.
        shared: A folder that both see.
        own: A folder of each that the other does not see, with its home in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.shared = folder / "shared"
        self.own = [folder / f"host{number}" for number in range(2)]
        self._daemons: list[subprocess.Popen[bytes]] = []

    def home(self, host: int) -> Path:
        return self.own[host] / "home"

    def start(self) -> None:
        """Make them; the namespaces are there."""
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd goes while nobody has logged in yet
        self.shared.mkdir()
        _new_key(self.key)
        for host, own in enumerate(self.own):
            (self.home(host) / ".ssh").mkdir(parents=True)
            _new_key(own / "host_key")
            settings = {
                "Port": 22,
                "ListenAddress": namespaces.ADDRESSES[host],
                "HostKey": own / "host_key",
                "PidFile": "none",
                "UsePAM": "no",
                "PermitRootLogin": "prohibit-password",
                "StrictModes": "no",
                "AuthorizedKeysFile": f"{self.key}.pub",
            }
            (own / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
            users = Path("/etc/passwd").read_text().splitlines()
            root = f"root:x:0:0:root:{self.home(host)}:/bin/bash"
            (own / "passwd").write_text("\n".join(root if each.startswith("root:") else each for each in users) + "\n")
        keys = [(own / "host_key.pub").read_text().split()[:2] for own in self.own]
        known = "".join(f"{namespaces.ADDRESSES[host]} {' '.join(key)}\n" for host, key in enumerate(keys))
        for host in range(2):
            (self.home(host) / ".ssh" / "known_hosts").write_text(known)
            self._daemons.append(self._daemon(host))
        for host in range(2):
            self._wait_for(host)

    def _daemon(self, host: int) -> subprocess.Popen[bytes]:
        own, other = self.own[host], self.own[1 - host]
        script = (
            f"hostname host{host} && mount --bind {own}/passwd /etc/passwd && mount -t tmpfs none {other} && "
            f"exec {SSHD} -D -e -f {own}/sshd_config"
        )
        apart = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        with (own / "sshd.log").open("wb") as log:
            return subprocess.Popen(namespaces.inside(host, *apart), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait_for(self, host: int) -> None:
        deadline = time.monotonic() + 30
        log = self.own[host] / "sshd.log"
        while "Server listening" not in log.read_text():
            assert self._daemons[host].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def inside(self, host: int, *command: str) -> list[str]:
        """Return a command that runs on a host, as if typed there."""
        parents = psutil.Process(self._daemons[host].pid).children(recursive=True)
        pid = next(each.pid for each in parents if each.name() == "sshd")
        home = f"HOME={self.home(host)}"
        return ["nsenter", "-t", str(pid), "-m", "-u", "-n", "-p", "env", home, "XDG_CACHE_HOME=", *command]

    def stop(self) -> None:
        """End them with all that runs there: each was the first process of its own."""
        for daemon in self._daemons:
            with suppress(psutil.NoSuchProcess):
                for each in psutil.Process(daemon.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait(timeout=30)


@contextmanager
def ssh_hosts(folder: Path) -> Iterator[SshHosts]:
    """Have both hosts inside the context."""
    with namespaces.two_hosts():
        hosts = SshHosts(folder)
        try:
            hosts.start()
            yield hosts
        finally:
            hosts.stop()


def _new_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True)
    with ssh_hosts(folder) as hosts:
        for host in range(2):
            print(" ".join(hosts.inside(host, "bash")), flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    os.chdir(ROOT)
    main()
