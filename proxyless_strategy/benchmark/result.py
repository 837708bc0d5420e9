"""A benchmark's rows, and how they are kept and printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from hardware.measuring.sampling import Measurement

from .published import Accuracy

FORMAT = "proxyless-benchmark/1"

TABLE_WIDTH = 110
"""Columns of a terminal in which the table of two backends and two batches fits."""

DEFINITIONS = {
    "params": "all parameters, those of norms and biases too",
    "macs": "multiply-accumulates of convolutions and linear layers for one image",
    "peak_activation_bytes": "most bytes of tensors alive at once in an eager forward pass under no_grad, the images "
    "among them; weights and an operator's own workspace are not counted",
    "ms": "a low quantile of the samples for one whole batch; all models of a backend take turns in shuffled rounds",
    "top1": "percent; ImageNet top-1 as published at the published input size, and of an export that on its own test "
    "images, by its metrics.json; accuracy_source says which. Nothing is evaluated here",
}


@dataclass
class Row:
    """What is known of one model.

    Attributes:
        model: Its name or folder.
        source: `timm`, `torchvision` or `export`.
        input_shape: `(C, H, W)` of one image.
        params: See `DEFINITIONS`, as for all figures.
        macs: For one image.
        peak_activation_bytes: By batch.
        accuracy: Published accuracy, of an export its own; None where there is none.
        latency: By backend and batch.
        notes: Why something is missing.
    """

    model: str
    source: str
    input_shape: tuple[int, int, int]
    params: int
    macs: int
    peak_activation_bytes: dict[int, int]
    accuracy: Accuracy | None
    latency: dict[tuple[str, int], Measurement] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """All rows, and the circumstances under which they were measured."""

    rows: tuple[Row, ...]
    header: Mapping[str, Any]
    backends: tuple[str, ...]
    batches: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": FORMAT, **self.header, "models": [self._row(row) for row in self.rows]}

    def to_csv(self) -> str:
        """Write one line a model; empty where nothing is known."""
        lines = [
            {
                "model": row.model,
                "source": row.source,
                "input_size": row.input_shape[-1],
                "params": row.params,
                "macs": row.macs,
                **{f"peak_activation_bytes_batch{b}": row.peak_activation_bytes[b] for b in self.batches},
                "top1": row.accuracy.top1 if row.accuracy else None,
                "top5": row.accuracy.top5 if row.accuracy else None,
                "accuracy_source": row.accuracy.source if row.accuracy else None,
                **{
                    f"{backend}_batch{batch}_ms": round(row.latency[backend, batch].ms, 6)
                    if (backend, batch) in row.latency
                    else None
                    for backend in self.backends
                    for batch in self.batches
                },
                "notes": "; ".join(row.notes),
            }
            for row in self.rows
        ]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return buffer.getvalue()

    def table(self) -> Table:
        """Build the table that a terminal shows, a `rich.table.Table`."""
        title = f"{self.header['device']}, {self.header['threads']} thread(s); latency of a whole batch in ms"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("\nmodel", overflow="fold", min_width=12)
        names = ["\npx", "params\nM", "MACs\nM", *(f"MiB\nbatch {batch}" for batch in self.batches), "top-1\n%"]
        for name in [*names, *(f"{backend}\nbatch {batch}" for backend in self.backends for batch in self.batches)]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.model,
                str(row.input_shape[-1]),
                f"{row.params / 1e6:.3f}",
                f"{row.macs / 1e6:.1f}",
                *(f"{row.peak_activation_bytes[batch] / 2**20:.1f}" for batch in self.batches),
                f"{row.accuracy.top1:.1f}" if row.accuracy else "-",
                *(
                    f"{row.latency[backend, batch].ms:.2f}" if (backend, batch) in row.latency else "-"
                    for backend in self.backends
                    for batch in self.batches
                ),
            )
        return table

    def _row(self, row: Row) -> dict[str, Any]:
        latency: dict[str, dict[str, Any]] = {}
        for (backend, batch), figure in row.latency.items():
            latency.setdefault(backend, {})[str(batch)] = {
                "ms": figure.ms,
                "median_ms": figure.median_ms,
                "p20_ms": figure.p20_ms,
                "spread": figure.spread,
                "rounds": len(figure.samples),
            }
        accuracy = row.accuracy
        return {
            "model": row.model,
            "source": row.source,
            "input_shape": list(row.input_shape),
            "params": row.params,
            "macs": row.macs,
            "peak_activation_bytes": {str(batch): size for batch, size in row.peak_activation_bytes.items()},
            "top1": accuracy.top1 if accuracy else None,
            "top5": accuracy.top5 if accuracy else None,
            "accuracy_source": accuracy.source if accuracy else None,
            "latency": latency,
            "notes": row.notes,
        }
