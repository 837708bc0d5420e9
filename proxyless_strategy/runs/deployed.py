"""Latency and energy of networks as deployed: of their files where the backend runs these, else of their operators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.backends import SharedBackend, get_backend
from hardware.errors import EnergyError
from hardware.measuring.energy import energy_of
from hardware.measuring.nets import measure_model_files, measure_nets
from hardware.measuring.sampling import Measurement
from search_spaces import Subnet

from .prepare import Prepared


def measure_deployed(
    prepared: Prepared, subnets: Sequence[Subnet], files: Sequence[Path], *, int8: bool
) -> tuple[list[Measurement | None], str | None]:
    """Measure subnets in one interleaved run.

    Args:
        prepared: Says what measures, and how.
        subnets: The subnets.
        files: The ONNX file of each.
        int8: Whether these are quantised; a backend that measures int8 runs no others.

    Returns:
        A latency for each, None where the device is another one; and the device in words, where one is known.
    """
    hardware, table = prepared.config.hardware, prepared.latency_table
    if hardware.device == "other":
        looked_up = table if prepared.energy is None else prepared.energy.table
        return [None] * len(subnets), None if looked_up is None else looked_up.header.device
    figures: list[Measurement | None] = []
    with get_backend(**(hardware if table is None else table.header).chosen) as backend:
        shared: dict[str, Any] = {"batch": hardware.batch, "threads": hardware.threads, "backend": backend}
        if isinstance(backend, SharedBackend) and (int8 or backend.times_float_onnx()):
            figures += measure_model_files(files, input_shape=prepared.costs.input_shape, table=table, **shared)
        else:
            chains = [prepared.costs.chain(subnet.choices) for subnet in subnets]
            figures += measure_nets(chains, table=table, progress=False, **shared)
        return figures, backend.device()


def measured_energy(prepared: Prepared, subnet: Subnet, file: Path) -> float | None:
    """Return the gross energy of one inference of a subnet now, in mJ; None, with a sentence, where nothing tells it.

    Args:
        prepared: Says what measures, and how.
        subnet: The subnet.
        file: Its ONNX file.
    """
    hardware = prepared.config.hardware
    if hardware.device == "other":
        return None
    with get_backend(**hardware.chosen) as backend:
        runs_file = isinstance(backend, SharedBackend) and backend.times_float_onnx()
        try:
            return energy_of(
                prepared.costs.chain(subnet.choices),
                backend=backend,
                file=file if runs_file else None,
                batch=hardware.batch,
                threads=hardware.threads,
            )
        except EnergyError as error:
            # the search is over: what it found is worth keeping without this figure
            print(f"the energy of the exported network was not measured: {error}", file=sys.stderr, flush=True)
            return None
