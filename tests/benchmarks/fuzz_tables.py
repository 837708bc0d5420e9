"""The fuzzer's targets of tables: latencies, energies, released ones, kits, profiles and learned models."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

from hardware.errors import ProxylessError
from hardware.measuring.kit import import_results, write_kit
from hardware.measuring.predictor import LearnedModel, header_of
from hardware.measuring.predictor import fit as fit_model
from hardware.measuring.sampling import PartialSamples
from hardware.measuring.trtexec import import_trtexec
from hardware.op_spec import OpSpec
from hardware.operators.primitives import macs
from hardware.tables.energy import EnergyEntry, EnergyHeader, EnergyTable
from hardware.tables.released import ONCE_FOR_ALL, PROXYLESS, parse_released_key, read_released
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import load_config
from proxyless_strategy.runs.space_table import costs_of_table, energy_model, latency_model
from search_spaces import SpaceCosts, users_space
from tests.benchmarks.fuzz_cases import RUN, Target, copying, nothing
from tests.benchmarks.fuzz_formats import json_text, key_text, yaml_text


def _table(folder: Path) -> Any:
    path = folder / "table.yml"
    table = LatencyTable.load(path)

    def use() -> None:
        costs = costs_of_table(table, None, None, None, None, None, file=path)
        model = latency_model(table, costs)
        model.minimum()
        model.report(model.maximum()[1]).total()

    return use


def _energy_files(folder: Path) -> None:
    """Of each operator of the run's space, the energy that its latency would take at one watt."""
    table = LatencyTable.load(RUN / "table.yml")
    header = table.header
    shared = {"device": header.device, "input_size": header.input_size, "batch": header.batch}
    known = EnergyHeader(
        **shared, meter="RAPL package-0", backend=header.backend, place="cpu", threads=1, dtype="float32",
        block_seconds=0.3, overhead_mj=0.5, scale=1.1, offset_mj=0.25, nets=8, mape=0.02,
    )  # fmt: skip
    energies = {key: EnergyEntry(entry.ms + 1e-6, 0.1, 9) for key, entry in table.entries.items()}
    EnergyTable(known, energies).save(folder / "energy.yml")


def _energies(folder: Path) -> Any:
    table = EnergyTable.load(folder / "energy.yml")

    def use() -> None:
        model = energy_model(table, _costs(), batch=table.header.batch)
        model.minimum()
        model.maximum()
        table.header.runtime()

    return use


@functools.cache
def _costs() -> SpaceCosts:
    config = load_config(RUN / "reinforce.yml")
    space = users_space(config.space.name, **config.space.options)
    return space.costs(config.latency_input_size, num_classes=10, in_chans=1)


def _foreign_table(folder: Path) -> None:
    read_released(folder / "released.yml").save(folder.parent / "converted.yml")


PROXYLESSNAS_TEXT = """
Conv-input:224x224x3-output:112x112x32: {count: 9, mean: 4.0, var: 0.16}
Conv_1-input:7x7x320-output:7x7x1280: {count: 9, mean: 3.0, var: 0.0}
Logits-input:7x7x1280-output:1000: {count: 9, mean: 0.5, var: 0.01}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1: {count: 7, mean: 5, var: 1.0}
"""
_BLOCK = "expanded_conv-input:28x28x40-output:28x28x40-expand:120-kernel:5-stride:1-idskip:1-se:1-hs:0"
ONCE_FOR_ALL_TEXT = f"""
Conv-input:224x224x3-output:112x112x16: {{count: 9, mean: 4.0, std: 0.16}}
Conv_1-input:7x7x160-output:7x7x960: {{count: 9, mean: 3.0, std: 0.0}}
AvgPool2D-input:7x7x960-output:1x1x960: {{count: 9, mean: 0.1, std: 0.01}}
Conv_2-input:1x1x960-output:1x1x1280: {{count: 9, mean: 0.4, std: 0.01}}
Logits-input:1x1x1280-output:1000: {{count: 9, mean: 0.5, std: 0.01}}
{_BLOCK}: {{count: 7, mean: 5, std: 1.0}}
{_BLOCK.replace("120", "40").replace("se:1", "se:0")}: {{count: 7, mean: 5, std: 1}}
"""


def _proxylessnas(folder: Path) -> None:
    (folder / "released.yml").write_text(PROXYLESSNAS_TEXT)


def _once_for_all(folder: Path) -> None:
    (folder / "released.yml").write_text(ONCE_FOR_ALL_TEXT)


@functools.cache
def results_of_kit() -> dict[str, Any]:
    return json.loads((RUN / "results.json").read_text(encoding="utf-8"))


def _kit(folder: Path) -> None:
    graphs = results_of_kit()["kit"]["graphs"]
    ops = [OpSpec.from_key(keys[0]) for name, keys in graphs.items() if name.startswith("op_")]
    nets = [[OpSpec.from_key(key) for key in keys] for name, keys in graphs.items() if name.startswith("net_")]
    write_kit(ops, nets, folder / "kit", input_size=16)


def _measured(folder: Path) -> None:
    """Run the kit's script with a runtime that takes no time; it knows no errors of ours, and ends by `sys.exit`."""
    from hardware.measuring import kit_script

    arguments, original = sys.argv, kit_script.onnxruntime_session
    sys.argv = ["measure.py", "--kit", str(folder / "kit"), "--out", str(folder.parent / "measured.json")]
    sys.argv += ["--rounds", "1"]
    kit_script.onnxruntime_session = lambda threads, place: (lambda path: path.stat, {}, place)  # type: ignore[assignment]
    try:
        kit_script.main()
    except SystemExit as ended:
        raise ProxylessError(str(ended)) from ended
    finally:
        sys.argv, kit_script.onnxruntime_session = arguments, original


def _profiles(folder: Path) -> None:
    """A kit, and of each of its graphs a profile that takes as long as the graph took in the kept results."""
    results = results_of_kit()
    manifest = {**results["kit"], "weights": "full"}
    for part in ("kit", "profiles"):
        (folder / part).mkdir(parents=True)
    (folder / "kit/kit.json").write_text(json.dumps(manifest))
    for name, figure in results["graphs"].items():
        times = {"timeMs": 8 * figure["ms"], "averageMs": figure["ms"], "medianMs": figure["ms"], "percentage": 100}
        profile = [{"count": 8}, {"name": "/0/Conv + /1/Relu", **times}]
        (folder / "profiles" / name).with_suffix(".json").write_text(json.dumps(profile))


def _profiled(folder: Path) -> None:
    import_trtexec(folder / "profiles", folder / "kit", device="a board")


def _learned_files(folder: Path) -> None:
    graphs = results_of_kit()["kit"]["graphs"]
    nets = [[OpSpec.from_key(key) for key in keys] for name, keys in graphs.items() if name.startswith("net_")]
    table = LatencyTable.load(RUN / "table.yml")
    header = header_of(backend=table.header.backend, input_size=16, device=table.header.device)
    nets = (nets * 20)[:40]
    measured = [0.01 + sum(0.001 + 1e-7 * macs(op) for op in net) for net in nets]
    fit_model(nets, measured, header=header).save(folder / "model.json")


def _learned(folder: Path) -> Any:
    model = LearnedModel.load(folder / "model.json")

    def use() -> None:
        ops = [OpSpec.from_key(key) for keys in results_of_kit()["kit"]["graphs"].values() for key in keys]
        known = [op for op in dict.fromkeys(ops) if not model.unknown(op)]
        model.table(known).calibrated_ms(known)

    return use


def _partial_files(folder: Path) -> None:
    PartialSamples(folder / "table.partial", {"device": "x", "threads": 1}).save({"op": [1.0, 2.0], "net": [3.0]})


def _partial(folder: Path) -> None:
    for samples in PartialSamples(folder / "table.partial", {"device": "x", "threads": 1}).load().values():
        sum(samples)


def _key(text: str) -> None:
    OpSpec.from_key(text)


def _released_key(text: str) -> None:
    alone = text.startswith(("AvgPool2D", "Conv_2")) or "-se:" in text
    parse_released_key(text, dialect=ONCE_FOR_ALL if alone else PROXYLESS)


def table_targets() -> tuple[Target, ...]:
    """Return the targets of tables, and of what tables are made of."""
    keys = [key.encode() for key in results_of_kit()["kit"]["graphs"]["net_000.onnx"]]
    released = [line.partition(": ")[0].encode() for line in ONCE_FOR_ALL_TEXT.split("\n") if line]
    return (
        Target("latency table", copying(RUN / "table.yml", "table.yml"), "table.yml", _table, yaml_text),
        Target("energy table", _energy_files, "energy.yml", _energies, yaml_text),
        Target("table of ProxylessNAS", _proxylessnas, "released.yml", _foreign_table, yaml_text),
        Target("table of Once-for-all", _once_for_all, "released.yml", _foreign_table, yaml_text),
        Target("key of an operator", nothing, "", _key, key_text, lambda folder: keys, ()),
        Target("key of a released table", nothing, "", _released_key, key_text, lambda folder: released, ()),
        Target("kit", _kit, "kit/kit.json", _measured, json_text, share=0.5),
        Target(
            "results of a kit",
            copying(RUN / "results.json", "results.json"),
            "results.json",
            lambda folder: import_results(folder / "results.json"),
            json_text,
        ),
        Target(
            "profile of trtexec",
            _profiles,
            "profiles/op_000.json",
            _profiled,
            json_text,
            share=0.3,
            # where profiles contradict one another, none of them can be named
            names=("op_000.json", "./profiles"),
        ),
        Target("kit of profiles", _profiles, "kit/kit.json", _profiled, json_text, share=0.3),
        Target("learned latency model", _learned_files, "model.json", _learned, json_text),
        Target("partial samples", _partial_files, "table.partial", _partial, json_text),
    )
