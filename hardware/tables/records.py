"""What a latency table is made of: header, entries, calibration, reference nets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FLOAT32 = "float32"
"""The number format of what is measured where nothing else is asked for."""
INT8 = "int8"


@dataclass(frozen=True)
class Reference:
    """A whole net and its measured latency, to tell later how the machine's state has changed since.

    Attributes:
        ms: Latency while the table was built.
        ops: Keys of its operators in execution order.
    """

    ms: float
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Calibration:
    """The affine map from the sum of a table to a whole net's latency, fitted on whole nets.

    Attributes:
        scale: Factor of `overhead + sum`.
        offset_ms: Constant in ms.
        nets: Number of whole nets that it was fitted on.
        figures: How well it fits (`rmse_ms`, `mape`, `spearman`, ... each `raw` and `calibrated`).
        references: Some of the nets, with their latencies.
    """

    scale: float
    offset_ms: float
    nets: int
    figures: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()

    def __call__(self, raw_ms: float) -> float:
        return self.scale * raw_ms + self.offset_ms


@dataclass(frozen=True)
class TableHeader:
    """Where, how and of what a table was measured.

    Attributes:
        device: The device in words.
        backend: Name of the measuring backend.
        place: Which of the backend's devices it was (`cpu`, `cuda:1`, ...); empty where unknown.
        threads: Threads that one inference may use.
        batch: Images per inference.
        dtype: Number format (`float32`, `int8`: activations uint8 and weights int8, ...).
        options: What else was chosen of the backend's options (`graphs`, `channels_last`, ...).
        input_size: Side of the network's input image in pixels.
        space: The search space in words; informative.
        created: Date of the measurement, ISO 8601.
        versions: Library name to version.
        repeats: Samples per operator.
        quantile: Which quantile of the samples an entry is.
        load_average: The machine's 1-minute load while measuring, where known.
        overhead_ms: What one call of the runtime costs without any operator.
        calibration: The affine map to whole nets, or None for an uncalibrated table.
        context: What an operator costs more inside a net than alone, already in the entries: `per_operator_ms` and
            `per_mparam_ms` (per million weights).
        source: Where the figures come from.
        checks: Figures of `hardware.measuring.validation.check_table` on held-out nets.
    """

    device: str
    backend: str
    threads: int
    batch: int
    dtype: str
    input_size: int
    space: str = ""
    place: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    repeats: int = 0
    quantile: float | None = None
    load_average: float | None = None
    overhead_ms: float = 0.0
    calibration: Calibration | None = None
    context: Mapping[str, float] = field(default_factory=dict)
    source: str = "measured"
    checks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # torch's version is a text of a class of its own, which writers of YAML refuse
        versions = {str(name): str.__str__(version) for name, version in self.versions.items()}
        object.__setattr__(self, "versions", versions)

    @property
    def chosen(self) -> dict[str, Any]:
        """What `get_backend` makes the backend of, as it measured this table."""
        return {"name": self.backend, "place": self.place, "dtype": self.dtype, "options": self.options}

    def runtime(self) -> str:
        """Say what ran the operators, and how.

        >>> TableHeader("a GPU", "cuda", 1, 8, "float32", 224, options={"graphs": True}).runtime()
        'cuda, 1 thread, batch 8, float32, graphs true'
        """
        chosen = [f"{name} {str(value).lower()}" for name, value in self.options.items()]
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return ", ".join([self.backend, threads, f"batch {self.batch}", self.dtype, *chosen])


@dataclass(frozen=True)
class LatencyEntry:
    """One operator's latency.

    Attributes:
        ms: Latency in ms, net of the session's overhead.
        spread: Median of the samples over their low quantile, minus 1; 0 where unknown.
        count: Samples behind the figure; 0 for a predicted one.
        predicted: Whether a learned model filled the entry instead of a measurement.
    """

    ms: float
    spread: float = 0.0
    count: int = 0
    predicted: bool = False
