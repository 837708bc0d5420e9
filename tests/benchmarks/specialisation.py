"""Is a network that is specialised for one device the wrong one for another?

For each latency table the fastest subnet of `imagenet_mbconv` is derived among all whose MACs are equal (within 1 %
of `--macs`, by default those of the published mobile network): exactly, by the same integer programme that derives a
search's result, with -latency in place of log-probabilities and MACs as the budget. No weights are trained: MACs stand
for what a network can learn, and nothing is said of accuracy. The cross table, in the manner of the paper's last one,
has every network on every device. Below it stand the published networks: their accuracy and their latencies on the
paper's devices are published figures, not measured here.

    .venv/bin/python -m tests.benchmarks.specialisation [--macs 320.4] [--tables NAME=FILE ...] [--folder runs/tables]
                                                        [--picture CROSS.png] [--networks NETWORKS.png]

The devices are the shipped tables, this machine under each runtime that is installed (a table that is not in
`--folder` is measured first, some minutes each), and those of `--tables`.

`by table` is a calibrated sum of a table; `measured` a whole network that ran on this machine, wherever a table is of
this machine and its backend is installed, in its number format and under its options. How large the first block of a
stage is beside the others is counted. `--networks` draws each network as the paper does.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from hardware.backends import get_backend
from hardware.errors import BackendError, ConfigError, ProxylessError, TargetError
from hardware.files import write_atomically
from hardware.measuring.locks import load_or_build
from hardware.measuring.nets import measure_nets
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.model import CostModel, LatencyModel, macs_model
from hardware.op_spec import OpSpec
from hardware.tables.shipped import open_table, shipped_names
from hardware.tables.table import LatencyTable
from proxyless_strategy.report.boxes import shape_of
from proxyless_strategy.report.drawing import KIND_COLOURS
from proxyless_strategy.strategy.architecture import Edge
from proxyless_strategy.strategy.derivation import Deriver
from search_spaces import Subnet, get_space
from search_spaces.mbconv import MBConvDeclaration, Stage

SIZE = 224
BAND = 0.01
HERE: dict[str, dict[str, str]] = {
    "onnxruntime": {"name": "onnxruntime"},
    "onnxruntime-int8": {"name": "onnxruntime", "dtype": "int8"},
    "openvino": {"name": "openvino"},
    "litert": {"name": "litert"},
    "litert-int8": {"name": "litert", "dtype": "int8"},
}
"""What measures on this machine, where its package is installed: how `get_backend` is called."""
PUBLISHED = {
    "proxylessnas_gpu": {"top1": 75.1, "V100, batch 8": 5.1, "Xeon E5-2640": 204.9, "Pixel 1": 124.0},
    "proxylessnas_cpu": {"top1": 75.3, "V100, batch 8": 7.4, "Xeon E5-2640": 138.7, "Pixel 1": 116.0},
    "proxylessnas_mobile": {"top1": 74.6, "V100, batch 8": 7.2, "Xeon E5-2640": 164.1, "Pixel 1": 78.0},
}
"""arXiv 1812.00332, table of specialised networks: top-1 accuracy in %, latency in ms."""


def own_tables(folder: Path, space: MBConvDeclaration) -> dict[str, LatencyTable]:
    """Return this machine's tables, each measured if it is not there yet, and say which runtime is not installed."""
    tables = {}
    for name, chosen in HERE.items():
        try:
            get_backend(**chosen).close()
        except BackendError as error:
            print(f"no row for {name}: {error}", flush=True)
            continue
        print(f"table of {name}: {folder / table_name(name, space)}", flush=True)
        tables[name] = own_table(name, folder / table_name(name, space), space)
    return tables


def table_name(name: str, space: MBConvDeclaration, size: int = SIZE) -> str:
    return f"{space.name}-{size}-{name}.yml"


def own_table(
    name: str, path: Path, space: MBConvDeclaration, *, size: int = SIZE, plan: Plan | None = None
) -> LatencyTable:
    """Return this machine's table under one of its runtimes, measured if it is not there yet."""
    costs = space.costs(size)

    def build() -> LatencyTable:
        nets = [costs.chain(choices) for choices in costs.random_choices(24, seed=0)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with get_backend(**HERE[name]) as backend:
            return build_table(
                costs.distinct(),
                nets,
                backend=backend,
                input_size=size,
                space=space.name,
                out=path,
                plan=plan,
                progress=False,
            )

    return load_or_build(path, build, LatencyTable.load)


def fastest_of_equal_macs(latency: CostModel, macs: CostModel, target: float, band: float = BAND) -> dict[str, str]:
    """Find the subnet of least latency whose MACs are within `band` of `target`, in millions.

    Raises:
        TargetError: There is none.
    """
    edges = [Edge(label, names) for label, names in zip(latency.labels, latency.candidates, strict=True)]
    gain = np.where(latency.mask, -latency.costs, -np.inf)
    deriver = Deriver(edges, gain, macs.costs, macs.fixed)
    least, most = target * (1 - band), target * (1 + band)
    if deriver.cheapest().cost <= most and deriver.dearest().cost >= least:
        derived = deriver.within(most, slack=1 - least / most, leaving=1)
        if derived.cost >= least:
            return {e.label: str(e.candidates[i]) for e, i in zip(edges, derived.choice, strict=True)}
    low, high = macs.minimum()[0], macs.maximum()[0]
    raise TargetError(
        f"no subnet has {target:.1f} M MACs within {band:.0%}; choose --macs between {low:.1f} and {high:.1f}"
    )


def character(space: MBConvDeclaration, choices: Mapping[str, str]) -> dict[str, Any]:
    """Describe a subnet: blocks, mean kernel and expansion, and how the first block of its stages compares.

    Of every stage that keeps several blocks it is counted whether the first one's expansion and kernel are larger than
    the mean of the others, equal or smaller.
    """
    stages: dict[int, list[tuple[int, int]]] = {}
    for edge in space.edges():
        if choices[edge.label] != "skip":
            kernel, expansion = choices[edge.label].split("_e")
            stages.setdefault(edge.stage, []).append((int(kernel.split("x")[0]), int(expansion)))
    counts: dict[str, Any] = {}
    for column, name in enumerate(("kernel", "expansion")):
        found: Counter[str] = Counter(larger=0, equal=0, smaller=0)
        for first, *others in stages.values():
            if others:
                mean = statistics.fmean(block[column] for block in others)
                found["larger" if first[column] > mean else "equal" if first[column] == mean else "smaller"] += 1
        counts[name] = dict(found)
    blocks = [block for stage in stages.values() for block in stage]
    return {
        "blocks": len(blocks),
        "mean_kernel": round(statistics.fmean(kernel for kernel, _ in blocks), 2),
        "mean_expansion": round(statistics.fmean(expansion for _, expansion in blocks), 2),
        "first_of_stage": counts,
    }


def published_subnet(name: str) -> Subnet:
    """Read a published network off the registered model, as a subnet of a space of its own widths; it skips nothing."""
    with torch.device("meta"):
        model = timm.create_model(name)
    arch, stages = [["ds_r1_k3_s1_c" + str(model.blocks[0][0].conv_pw.out_channels) + "_noskip"]], []
    for stage in model.blocks[1:]:
        strings = []
        for block in stage:
            (kernel, _), (stride, _) = block.conv_dw.kernel_size, block.conv_dw.stride
            expansion = block.conv_pw.out_channels // block.conv_pw.in_channels
            strings.append(f"ir_r1_k{kernel}_s{stride}_e{expansion}_c{block.conv_pwl.out_channels}")
        arch.append(strings)
        stages.append(Stage(stage[0].conv_pwl.out_channels, len(stage), stage[0].conv_dw.stride[0]))
    widths = model.conv_stem.out_channels, 2, model.blocks[0][0].conv_pw.out_channels, tuple(stages)
    space = MBConvDeclaration(name, *widths, head_width=model.conv_head.out_channels)
    return Subnet.from_arch_def(space, arch)


def parse_tables(given: list[str]) -> dict[str, LatencyTable]:
    """Load tables given as `NAME=FILE`.

    Raises:
        ConfigError: One of them is something else, or two have the same name.
    """
    tables: dict[str, LatencyTable] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--tables {text!r} is not NAME=FILE; write for example litert=tables/litert.yml")
        if name in {*shipped_names(), *HERE, *tables}:
            raise ConfigError(f"--tables {text!r}: there is a table {name} already; choose another name")
        tables[name] = open_table(path)
    return tables


def is_of_this_machine(table: LatencyTable) -> bool:
    """Tell whether what the table is of can be measured here: its backend is installed and names the same device."""
    try:
        with get_backend(**table.header.chosen) as backend:
            return backend.device() == table.header.device
    except BackendError:
        return False


def measured_ms(
    tables: Mapping[str, LatencyTable], chains: Sequence[Sequence[OpSpec]], *, plan: Plan | None = None
) -> dict[str, list[float]]:
    """Measure whole networks on every device that exists here, as the machine was when its table was built."""
    figures = {}
    for name, table in tables.items():
        if is_of_this_machine(table):
            header = table.header
            print(f"measuring {len(chains)} networks on {header.device} ({header.runtime()})", flush=True)
            shared: dict[str, Any] = {"batch": header.batch, "threads": header.threads, "table": table, "plan": plan}
            found = measure_nets(chains, backend=header.backend, progress=False, **shared)
            figures[name] = [round(figure.settled_ms, 3) for figure in found]
    return figures


def run(
    tables: Mapping[str, LatencyTable],
    target: float,
    *,
    measured: bool = True,
    space: MBConvDeclaration | None = None,
    size: int = SIZE,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Make the cross table: `rows` of one network each with `ms_by_table` and `ms_measured`, both by device.

    Args:
        tables: By the device's name.
        target: Millions of MACs.
        measured: Whether to run whole networks as well.
        space: What the subnets are of; by default imagenet_mbconv.
        size: Pixels.
        plan: How long to measure.
    """
    space = space or get_space("imagenet_mbconv")
    costs = space.costs(size)
    macs = macs_model(costs.fixed, costs.edges)
    models = {name: LatencyModel(table, fixed=costs.fixed, edges=costs.edges) for name, table in tables.items()}
    nets = {name: fastest_of_equal_macs(model, macs, target) for name, model in models.items()}
    published = {name: published_subnet(name) for name in PUBLISHED}
    chains = [costs.chain(choices) for choices in nets.values()]
    chains += [subnet.declaration.costs(size).chain(subnet.choices) for subnet in published.values()]
    ran = measured_ms(tables, chains, plan=plan) if measured else {}
    rows = []
    for number, (name, choices) in enumerate(nets.items()):
        rows.append(
            {
                "specialised_for": name,
                "million_macs": round(macs.cost(choices), 1),
                "ms_by_table": {device: round(model.latency(choices), 3) for device, model in models.items()},
                "ms_measured": {device: figures[number] for device, figures in ran.items()},
                "character": character(space, choices),
                "subnet": " ".join(choices.values()),
            }
        )
    others = []
    for number, (name, subnet) in enumerate(published.items(), start=len(rows)):
        assert isinstance(subnet.declaration, MBConvDeclaration)
        others.append(
            {
                "network": name,
                "published": PUBLISHED[name],
                "ms_measured": {device: figures[number] for device, figures in ran.items()},
                "character": character(subnet.declaration, subnet.choices),
            }
        )
    return {
        "million_macs_target": target,
        "rows": rows,
        "slower_than_own": {"by table": _slower(rows, "ms_by_table"), "measured": _slower(rows, "ms_measured")},
        "published_networks": others,
    }


def _slower(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Return by device and network how many times as slow the network is there as the device's own."""
    own = {row["specialised_for"]: row[key] for row in rows}
    devices = next(iter(own.values()))
    return {device: {name: round(own[name][device] / own[device][device], 3) for name in own} for device in devices}


def show(result: Mapping[str, Any]) -> None:
    """Print the cross table, then the published networks, then what was counted."""
    from rich.console import Console
    from rich.table import Table

    rows, others = result["rows"], result["published_networks"]
    console = Console(width=120, highlight=False)
    table = Table(title=f"fastest subnets of {result['million_macs_target']:.1f} M MACs: ms on each device")
    table.add_column("network")
    for device in rows[0]["ms_by_table"]:
        table.add_column(f"{device}\nby table", justify="right")
    for device in rows[0]["ms_measured"]:
        table.add_column(f"{device}\nmeasured", justify="right")
    for row in rows:
        figures = [*row["ms_by_table"].values(), *row["ms_measured"].values()]
        table.add_row(f"for {row['specialised_for']}", *(f"{ms:.3f}" for ms in figures))
    console.print(table)
    table = Table(title="published networks: top-1 and latencies as published, and measured here")
    columns = list(others[0]["published"])
    for title in ("network", *columns, *(f"{device}, measured" for device in others[0]["ms_measured"])):
        table.add_column(title, justify="left" if title == "network" else "right")
    for other in others:
        figures = [*(other["published"][c] for c in columns), *other["ms_measured"].values()]
        table.add_row(other["network"], *map(str, figures))
    console.print(table)
    for name, kind in [(f"for {row['specialised_for']}", row["character"]) for row in rows] + [
        (other["network"], other["character"]) for other in others
    ]:
        first = kind["first_of_stage"]
        counted = "; ".join(
            f"{what} {found['larger']} larger, {found['equal']} equal, {found['smaller']} smaller"
            for what, found in first.items()
        )
        console.print(
            f"{name}: {kind['blocks']} blocks, mean kernel {kind['mean_kernel']}, mean expansion "
            f"{kind['mean_expansion']}; first block of a stage beside the others: {counted}"
        )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw how many times as slow each network is on each device as the device's own network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    slower = result["slower_than_own"]["by table"]
    devices = list(slower)
    values = np.array([[slower[device][name] for device in devices] for name in devices])
    figure, axes = pyplot.subplots(figsize=(1.7 * len(devices) + 2.4, 1.0 * len(devices) + 1.6))
    most = max(1.5, min(3.0, values.max()))
    axes.imshow(values, cmap="YlOrRd", vmin=1, vmax=most)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            colour = "white" if value > 0.7 * most else "black"
            ms = result["rows"][i]["ms_by_table"][devices[j]]
            axes.text(j, i, f"{ms:.3g} ms\n{value:.2f} x", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(devices)), [f"on {name}" for name in devices])
    axes.set_yticks(range(len(devices)), [f"for {name}" for name in devices])
    axes.set_title(f"Fastest networks of {result['million_macs_target']:.0f} M MACs")
    figure.tight_layout()
    _write(figure, path)


def draw_networks(result: Mapping[str, Any], path: Path) -> None:
    """Draw each network in a row, a box for each block: height by kernel, width by expansion, a line for skip."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    rows = result["rows"]
    figure, axes = pyplot.subplots(figsize=(12, 0.9 * len(rows) + 0.8))
    blocks = len(rows[0]["subnet"].split())
    for y, row in enumerate(rows):
        for x, name in enumerate(row["subnet"].split()):
            shape = shape_of(name)
            if shape.passes:
                axes.plot([x + 0.05, x + 0.95], [y, y], color="#5d6b7a", linewidth=1)
                continue
            height, width = 0.85 * shape.height, 0.9 * shape.width
            colour = KIND_COLOURS[("MB3", "MB6").index(shape.kind)]
            axes.add_patch(Rectangle((x + 0.5 - width / 2, y - height / 2), width, height, color=colour))
            axes.text(x + 0.5, y, shape.side[0], ha="center", va="center", color="white", fontsize=8)
        kind = row["character"]
        axes.text(
            blocks + 0.3,
            y,
            f"{kind['blocks']} blocks\nkernel {kind['mean_kernel']}, expansion {kind['mean_expansion']}",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, blocks + 4)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"for {row['specialised_for']}" for row in rows])
    axes.set_xticks([])
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(
        f"Fastest networks of {result['million_macs_target']:.0f} M MACs: a number is the kernel; wide boxes expand "
        "by 6, narrow ones by 3",
        fontsize=10,
    )
    figure.tight_layout()
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip(".") or "png", dpi=120)
    pyplot.close(figure)
    write_atomically(path, content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", type=float, default=320.4, help="in millions")
    parser.add_argument("--tables", nargs="*", default=[], metavar="NAME=FILE", help="further devices' tables")
    parser.add_argument("--folder", type=Path, default=Path("runs/tables"), help="where this machine's tables lie")
    parser.add_argument("--picture", type=Path, help="draw the cross table here")
    parser.add_argument("--networks", type=Path, help="draw the networks here")
    arguments = parser.parse_args()
    try:
        given = parse_tables(arguments.tables)
        shipped = {name: open_table(name) for name in shipped_names()}
        tables = {**shipped, **own_tables(arguments.folder, get_space("imagenet_mbconv")), **given}
        result = run(tables, arguments.macs)
    except ProxylessError as error:
        parser.error(str(error))
    show(result)
    if arguments.picture:
        draw(result, arguments.picture)
    if arguments.networks:
        draw_networks(result, arguments.networks)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
