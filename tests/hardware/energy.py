"""A tree of energy counters as the kernel has them, and a device that spends exact energies."""

from __future__ import annotations

from pathlib import Path

from hardware.backends import Backend, Runnable

RANGE_UJ = 50_000_000
OVERHEAD_UJ = 40
NET_FACTOR = 2


class Powercap:
    """Two packages, and zones that must not be counted beside them; counters wrap behind `RANGE_UJ`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "package-1",
            "intel-rapl:2": "psys",
            "intel-rapl-mmio:0": "package-0",
        }
        self.standing = dict.fromkeys(names, 0)
        for zone, name in names.items():
            (root / zone).mkdir(parents=True)
            (root / zone / "name").write_text(f"{name}\n")
            (root / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            self.set(zone, 0)
        (root / "intel-rapl").mkdir()

    def set(self, zone: str, uj: int) -> None:
        self.standing[zone] = uj % RANGE_UJ
        (self.root / zone / "energy_uj").write_text(f"{self.standing[zone]}\n")

    def spend(self, uj: int) -> None:
        """Spend `uj` in all: three quarters in package 0 and the rest in package 1; other zones count as they like."""
        most = 3 * uj // 4
        shares = {"intel-rapl:0": most, "intel-rapl:1": uj - most, "intel-rapl:0:0": most // 2, "intel-rapl:2": 2 * uj}
        for zone, share in shares.items():
            self.set(zone, self.standing[zone] + share)

    def idle(self, _: float) -> None:
        """Draw power while nothing runs."""
        self.spend(8)


def operator_uj(op) -> int:
    return 100 + sum(map(ord, op.key)) % 997


def net_uj(chain) -> int:
    """An operator takes twice as much inside a net as alone."""
    factor = NET_FACTOR if len(chain) > 1 else 1
    return factor * (OVERHEAD_UJ + sum(map(operator_uj, chain)))


class Spender(Backend):
    """A processor each of whose runs spends what `net_uj` says."""

    name = "spender"
    powercap: Powercap

    def prepare(self, chain, *, batch=1, threads=1, input_shape=None):
        uj = net_uj(chain)
        return Runnable(lambda: self.powercap.spend(uj), threads=threads)

    def device(self) -> str:
        return "a counter"
