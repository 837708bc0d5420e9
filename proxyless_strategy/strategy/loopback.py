"""Processes of one machine that talk to each other over its loopback alone, where no other machine can reach them."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from torch import distributed

LOOPBACK = "127.0.0.1"


def stay_on_loopback() -> None:
    """Have gloo and NCCL listen on this machine's loopback, in place of its network; what the user has set is kept."""
    for name in ("lo", "lo0"):
        if name in (found for _, found in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without `=` whatever begins so


def join(
    backend: str, *, rank: int, world_size: int, port: int, timeout: timedelta | None = None, **options: Any
) -> None:
    """Join the processes of this machine to the default group of `torch.distributed`, over the loopback.

    By an address alone, `init_process_group` has the first process's store listen on every interface, and whoever
    reaches it can read and write it: it asks for no password.

    Args:
        backend: `gloo` or `nccl`.
        rank: Number of this process.
        world_size: How many there are.
        port: A free port, the same for each.
        timeout: How long one waits for the others; None: torch's own time.
        **options: Further ones of `init_process_group`.
    """
    stay_on_loopback()
    waiting: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    bound: dict[str, Any] = {}
    if rank == 0:
        # torch itself would bind to every interface
        server = socket.create_server((LOOPBACK, port), backlog=2 * world_size)
        bound = {"master_listen_fd": server.detach()}
    # not waiting for the others here: the group does, and as long as it says
    store = distributed.TCPStore(
        LOOPBACK, port, world_size, is_master=rank == 0, wait_for_workers=False, **waiting, **bound
    )
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, **waiting, **options)
