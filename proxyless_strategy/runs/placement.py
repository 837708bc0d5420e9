"""Lightning's trainer, told which processes there are: left alone it follows whatever the environment holds."""

from __future__ import annotations

from typing import Any

from lightning_fabric.plugins.environments.lightning import find_free_network_port
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.plugins.environments import ClusterEnvironment

from ..strategy.loopback import LOOPBACK
from ..world import World


def placed(world: World) -> dict[str, Any]:
    """Return the options of a trainer for these processes; its `plugins` are to be added to.

    Args:
        world: The processes.
    """
    # Set when Lightning is imported, by the first of RANK, LOCAL_RANK, SLURM_PROCID and JSM_NAMESPACE_RANK that there
    # is; where it is not 0, loggers and warnings are silent.
    rank_zero_only.rank = world.rank  # type: ignore[attr-defined]
    return {
        "devices": world.local_size,
        "num_nodes": world.nodes,
        "plugins": [Placement(world)],
        **({"strategy": "ddp"} if world.launched and world.size > 1 else {}),
    }


class Placement(ClusterEnvironment):
    """Tells Lightning what `proxyless_strategy.world` has found, so that it looks for no cluster by itself.

    As it is not Lightning's environment of Slurm, no handler is installed that puts the job into the queue again.

    Args:
        world: The processes.
    """

    def __init__(self, world: World):
        super().__init__()
        self.world = world
        self._port = world.port

    @property
    def creates_processes_externally(self) -> bool:
        return self.world.launched or not self.world.first

    @property
    def main_address(self) -> str:
        return self.world.address or LOOPBACK

    @property
    def main_port(self) -> int:
        if self._port is None:
            self._port = find_free_network_port()
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None:
        pass  # Lightning computes it from devices and hosts, which are ours

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.rank // self.world.local_size
