"""Where a process listens so that those on other hosts reach it: a host's own name is often one of its loopback."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address

from hardware.errors import ConfigError


def listening_at(address: str) -> str:
    """Return where the first process listens so that others reach it at `address`.

    Many systems give a host's own name an address of its loopback, which other hosts look up as another one.

    Raises:
        ConfigError: It is on the loopback, and nothing says which of several addresses the others reach.
    """
    own = _own_address(address)
    if own is None or not _is_loopback(own) or address == "localhost" or _is_loopback(address):
        return address
    outer = _outer_address()
    if outer is None:
        raise ConfigError(
            f"{address} is {own} here, which other hosts cannot reach; set MASTER_ADDR to an address of this host"
        )
    return outer


def choose_interface(address: str) -> None:
    """Have gloo listen where the others can reach it; by itself it takes the address of the host's own name."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    import psutil

    own = _own_address(address)
    if own is not None and _is_loopback(own) and address != "localhost" and not _is_loopback(address):
        own = _outer_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == own for found in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _own_address(address: str) -> str | None:
    """Return this host's address on the way to another; None where there is none."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)  # sends nothing: asks the system by which way it would
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _outer_address() -> str | None:
    """Return this host's address in the network: that of its default route, or the only one that it has."""
    import psutil

    default = _own_address("192.0.2.1")  # kept for documentation, so that no route but the default one leads there
    if default is not None and not _is_loopback(default):
        return default
    families = (socket.AF_INET, socket.AF_INET6)
    found = [each.address for several in psutil.net_if_addrs().values() for each in several if each.family in families]
    outer = [text for text in found if not _is_loopback(text) and not ip_address(text.partition("%")[0]).is_link_local]
    return outer[0] if len(outer) == 1 else None


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:  # a name
        return False
