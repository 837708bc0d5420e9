"""Is a network that is specialised for one device the wrong one for another?

For each latency table the fastest subnet of `imagenet_mbconv` is derived among all whose MACs are equal (within 1 %
of `--macs`, by default those of the published mobile network): exactly, by the same integer programme that derives a
search's result, with -latency in place of log-probabilities and MACs as the budget. No weights are trained: MACs stand
for what a network can learn, and nothing is said of accuracy. The cross table, in the manner of the paper's last one,
has every network on every device. It also has the published networks: their accuracy and their latencies on the paper's
devices are published figures, not measured here.

    .venv/bin/python -m tests.benchmarks.specialisation [--macs 320.4] [--tables litert=litert.yml] [--picture FILE.png]

`by table` are sums of a table, `measured` whole networks on this machine (ONNX Runtime, one thread, 224 px, batch 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import ConfigError, TargetError
from hardware.measure import build_table, load_or_build, measure_nets
from hardware.model import LatencyModel, macs_model
from hardware.table import LatencyTable
from hardware.tables import open_table
from proxyless_strategy.architecture import Edge
from proxyless_strategy.derivation import Deriver
from search_spaces import get_space
from search_spaces.mbconv import MBConvDeclaration

SIZE = 224
BAND = 0.01
HERE = "onnxruntime"
PUBLISHED = {
    "proxylessnas_gpu": {"top1": 75.1, "V100, batch 8": 5.1, "Xeon E5-2640": 204.9, "Pixel 1": 124.0},
    "proxylessnas_cpu": {"top1": 75.3, "V100, batch 8": 7.4, "Xeon E5-2640": 138.7, "Pixel 1": 116.0},
    "proxylessnas_mobile": {"top1": 74.6, "V100, batch 8": 7.2, "Xeon E5-2640": 164.1, "Pixel 1": 78.0},
}
"""arXiv 1812.00332, table of specialised networks: top-1 accuracy in %, latency in ms."""


def own_table(path: Path, space: MBConvDeclaration) -> LatencyTable:
    """This machine's table, measured if it is not there yet."""
    costs = space.costs(SIZE)

    def build() -> LatencyTable:
        nets = [costs.chain(choices) for choices in costs.random_choices(24, seed=0)]
        path.parent.mkdir(parents=True, exist_ok=True)
        return build_table(costs.distinct(), nets, input_size=SIZE, space=space.name, out=path, progress=False)

    return load_or_build(path, build)


def fastest_of_equal_macs(latency: LatencyModel, macs: Any, target: float, band: float = BAND) -> dict[str, str]:
    """The subnet of least latency whose MACs are within `band` of `target`.

    Raises:
        TargetError: There is none.
    """
    edges = [Edge(label, names) for label, names in zip(latency.labels, latency.candidates, strict=True)]
    most = target * (1 + band)
    gain = np.where(latency.mask, -latency.costs, -np.inf)
    # the gain is a latency in ms, so that ties within a microsecond do not matter to the solver's tolerance
    derived = Deriver(edges, gain, macs.costs, macs.fixed).within(most, slack=1 - (1 - band) / (1 + band))
    if derived.cost < target * (1 - band):
        low, high = macs.minimum()[0], macs.maximum()[0]
        raise TargetError(
            f"no subnet has {target:.1f} M MACs within {band:.0%}; choose --macs between {low:.1f} and {high:.1f}"
        )
    return {e.label: str(e.candidates[i]) for e, i in zip(edges, derived.choice, strict=True)}


def character(space: MBConvDeclaration, choices: dict[str, str], macs: Any) -> dict[str, Any]:
    """What a subnet is like: blocks, mean kernel, mean expansion; and those of the stages' first blocks."""
    kept = {label: value for label, value in choices.items() if value != "skip"}
    first = {edge.label for edge in space.edges() if edge.index == 0}

    def means(labels: list[str]) -> dict[str, float]:
        parsed = [kept[label].split("_e") for label in labels]
        return {
            "kernel": round(statistics.fmean(int(k.split("x")[0]) for k, _ in parsed), 2),
            "expansion": round(statistics.fmean(int(e) for _, e in parsed), 2),
        }

    rest = [label for label in kept if label not in first]
    return {
        "blocks": len(kept),
        **means(list(kept)),
        "first_of_stage": means([label for label in kept if label in first]),
        "others": means(rest) if rest else None,
    }


def parse_tables(given: list[str]) -> dict[str, LatencyTable]:
    """`NAME=FILE` to tables.

    Raises:
        ConfigError: One of them is something else.
    """
    tables = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--tables {text!r} is not NAME=FILE; write for example litert=tables/litert.yml")
        tables[name] = LatencyTable.load(path)
    return tables


def run(tables: dict[str, LatencyTable], target: float, *, measured: bool = True) -> dict[str, Any]:
    """The cross table: `rows` of one network each, `ms` by table and (on this machine) measured."""
    space = get_space("imagenet_mbconv")
    costs = space.costs(SIZE)
    macs = macs_model(costs.fixed, costs.edges)
    models = {name: LatencyModel(table, fixed=costs.fixed, edges=costs.edges) for name, table in tables.items()}
    nets = {name: fastest_of_equal_macs(model, macs, target) for name, model in models.items()}
    rows = []
    for name, choices in nets.items():
        rows.append(
            {
                "specialised_for": name,
                "million_macs": round(macs.cost(choices), 1),
                "ms_by_table": {device: round(model.latency(choices), 3) for device, model in models.items()},
                "character": character(space, choices, macs),
                "subnet": " ".join(choices.values()),
            }
        )
    if measured:
        chains = [costs.chain(choices) for choices in nets.values()]
        for row, found in zip(rows, measure_nets(chains, table=tables[HERE], progress=False), strict=True):
            row["ms_measured_here"] = round(found.settled_ms, 3)
    own = {row["specialised_for"]: row["ms_by_table"] for row in rows}
    penalty = {device: {name: round(own[name][device] / own[device][device], 3) for name in own} for device in models}
    return {"million_macs_target": target, "rows": rows, "slower_than_own": penalty, "published": PUBLISHED}


def draw(result: dict[str, Any], path: Path) -> None:
    """How many times as slow each network is on each device as the device's own network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    devices = list(result["slower_than_own"])
    values = np.array([[result["slower_than_own"][d][n] for d in devices] for n in devices])
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
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", type=float, default=320.4, help="in millions")
    parser.add_argument("--tables", nargs="*", default=[], metavar="NAME=FILE", help="further devices' tables")
    parser.add_argument("--own", type=Path, default=Path("runs/tables/imagenet_mbconv-224-onnxruntime.yml"))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    tables = {"pixel1": open_table("pixel1"), HERE: own_table(arguments.own, get_space("imagenet_mbconv"))}
    result = run(tables | parse_tables(arguments.tables), arguments.macs)
    for row in result["rows"]:
        print(f"for {row['specialised_for']}: {row['subnet']}\n  {row['character']}", flush=True)
    if arguments.picture:
        draw(result, arguments.picture)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
