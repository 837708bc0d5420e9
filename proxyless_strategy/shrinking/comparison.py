"""The original beside its subnet: accuracy, measured time, size, and how long each has trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.reading import Kind, expect, read_json, reading

from .layout import COMPARISON_FILE

FORMAT = "proxyless-shrink/1"
FILE = Kind("the comparison", "remove it to compare again", ConfigError, holds="a mapping of results")
TABLE_WIDTH = 96
_NUMBERS = ("accuracy", "ms", "table_ms", "cost", "params", "macs", "epochs")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of the two networks.

    Attributes:
        folder: timm's export folder.
        onnx: Its ONNX file.
        accuracy: Share of the test images that it classifies correctly, 0..1.
        ms: Measured in one interleaved run with the other; None where nothing is measured on this machine.
        table_ms: Latency by the table; None where none is used.
        cost: What the target is about, in the comparison's unit.
        params: Parameters.
        macs: Multiply-accumulates of one image.
        epochs: Epochs of training, of the original and of the supernet in which it started among them.
        int8_onnx: The ONNX file in int8, which is then the measured one; None where int8 was not searched for.
        int8_accuracy: Its share of the test images, 0..1.
    """

    folder: str
    onnx: str
    accuracy: float
    ms: float | None
    table_ms: float | None
    cost: float
    params: int
    macs: int
    epochs: int
    int8_onnx: str | None = None
    int8_accuracy: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What a shrinking came to.

    Attributes:
        model: The space's name.
        target: The target as it was asked for.
        unit: What the costs are in.
        limit: The target in that unit.
        place: What was measured, and how: device, backend, threads, batch, input_size; since there are others than
            float32, also dtype and options.
        original: The fine-tuned original.
        subnet: The subnet that the search found.
        seconds: Duration of everything, of all starts.
    """

    model: str
    target: str
    unit: str
    limit: float
    place: Mapping[str, Any]
    original: Compared
    subnet: Compared
    seconds: float

    @property
    def is_within(self) -> bool:
        """Whether the subnet keeps to the target, as the table or the count has it."""
        return self.subnet.cost <= self.limit * (1 + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def save(self, out: Path) -> None:
        """Write `comparison.json`, which ends the shrinking."""
        write_atomically(out / COMPARISON_FILE, json.dumps(self.to_dict(), indent=2) + "\n", error=ConfigError)

    @classmethod
    def load(cls, out: Path) -> Comparison:
        """Read what `save` wrote.

        Raises:
            ConfigError: It cannot be read, or another version wrote it.
        """
        path = out / COMPARISON_FILE
        values = read_json(path, FILE)
        with reading(path, FILE):
            if values.pop("format", None) != FORMAT:
                raise ValueError("it was written by another version of this project")
            for name in ("original", "subnet"):
                found = expect(values[name], dict, name)
                for key in _NUMBERS:
                    expect(found[key], float, f"{name}.{key}", none=key in ("ms", "table_ms"))
                expect(found.get("int8_accuracy"), float, f"{name}.int8_accuracy", none=True)
                expect(found.get("int8_onnx"), str, f"{name}.int8_onnx", none=True)
                values[name] = Compared(**found)
            return cls(**values)

    def table(self) -> Table:
        """Return both networks as a table, with what the subnet has of the original."""
        table = Table(
            title=f"{self.model}, target {self.target}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        table.add_column("network")
        int8 = None not in (self.original.int8_accuracy, self.subnet.int8_accuracy)
        more = ("in int8\n%",) if int8 else ()
        for name in ("accuracy\n%", *more, "measured\nms", "table\nms", "params\nM", "MACs\nM", "epochs\nin all"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, net in (("original", self.original), ("subnet", self.subnet)):
            table.add_row(
                name,
                f"{100 * net.accuracy:.2f}",
                *((_percent(net.int8_accuracy),) if int8 else ()),
                _said(net.ms),
                _said(net.table_ms),
                f"{net.params / 1e6:.3f}",
                f"{net.macs / 1e6:.1f}",
                str(net.epochs),
            )
        small, large = self.subnet, self.original
        table.add_row(
            "subnet / original",
            f"{100 * (small.accuracy - large.accuracy):+.2f}",
            *((_points(small.int8_accuracy, large.int8_accuracy),) if int8 else ()),
            _ratio(small.ms, large.ms),
            _ratio(small.table_ms, large.table_ms),
            _ratio(small.params, large.params),
            _ratio(small.macs, large.macs),
            "",
        )
        return table

    def sentences(self) -> list[str]:
        """Say where the networks are, and what the table does not tell."""
        place = self.place
        options = [f"{name} {str(value).lower()}" for name, value in place.get("options", {}).items()]
        runtime = [place["backend"], f"{place['threads']} thread(s)", f"batch {place['batch']}", place.get("dtype", "")]
        lines = [
            f"{place['input_size']} px on {place['device']}: {', '.join(filter(None, [*runtime, *options]))}",
            f"the subnet is timm's local-dir:{self.subnet.folder}, and {self.subnet.onnx}",
            f"the original is timm's local-dir:{self.original.folder}, and {self.original.onnx}",
            *(f"in int8, as measured: {net.int8_onnx}" for net in (self.subnet, self.original) if net.int8_onnx),
            f"all took {self.seconds / 60:.1f} minutes",
        ]
        if not self.is_within:
            lines.append(
                f"the subnet costs {self.subnet.cost:.4g} {self.unit}, above the target of {self.limit:.4g} {self.unit}"
            )
        return lines


def _said(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _points(small: float | None, large: float | None) -> str:
    return "-" if small is None or large is None else f"{100 * (small - large):+.2f}"


def _ratio(small: float | None, large: float | None) -> str:
    return "-" if small is None or not large else f"{small / large:.3f}x"
