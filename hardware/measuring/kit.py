"""A folder to copy to any device that runs Python and ONNX Runtime, and the table from what it measures there.

The kit holds one ONNX graph per distinct operator, some whole nets, the empty graph of the session's overhead, and
one script that needs nothing of this package; for phones another one, which drives them from a computer. Its graphs
have constant weights, so the whole kit is under 1 MB. In int8 they are quantised, as those of the backend are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..backends.litert import check_converts, convert
from ..errors import TableError
from ..files import write_atomically
from ..op_spec import OpSpec, executed
from ..operators.onnx_graph import chain_model
from ..operators.quantised import quantised_chain
from ..progress import progress_bar
from ..reading import Kind, cut, read_json, read_text, reading, shown
from ..tables.plausibility import check_units
from ..tables.records import FLOAT32, INT8, LatencyEntry, TableHeader
from ..tables.table import LatencyTable
from .calibration import entry_alone, in_context
from .table import check_calibration_nets, check_measured, distinct_operators
from .validation import check_held_out, compare

KIT_FORMAT = "proxyless-latency-kit"
RESULTS_FORMAT = "proxyless-latency-results"
VERSION = 1
FULL = "full"
"""What a kit's manifest says of its `weights` where they stand in the graphs."""
OVERHEAD = "overhead.onnx"
GRAPHS = (FLOAT32, INT8)
"""What a kit's graphs may be in; a kit whose manifest does not say it is of a release that had float32 alone."""
DTYPES = (FLOAT32, "float16", "bfloat16", INT8)
_SCRIPTS = {"measure.py": "kit_script.py"}
_ANDROID = {"measure_android.py": "kit_android.py", "phone.py": "kit_phone.py"}
RESULTS = Kind(
    "the results file",
    "run the kit's measure.py again",
    TableError,
    missing="there is no results file at {path}; run the kit's measure.py on the device",
    sentence="{name} {path} is damaged or incomplete ({why}); {remedy}",
)


def write_kit(
    ops: Iterable[OpSpec],
    nets: Sequence[Sequence[OpSpec]],
    out: str | Path,
    *,
    input_size: int,
    batch: int = 1,
    space: str = "",
    dtype: str = FLOAT32,
    held_out: Sequence[Sequence[OpSpec]] = (),
    tflite: bool = False,
    android: bool = False,
    full_weights: bool = False,
    progress: bool = False,
) -> Path:
    """Write a kit.

    Args:
        ops: Operators, repeated ones counted once and `identity` left out.
        nets: Whole nets in execution order, 8 or more, to calibrate on.
        out: The kit's folder; it must be new or empty.
        input_size: Side of the network's input image.
        batch: Images per inference.
        space: The search space in words.
        dtype: What the graphs are in: `float32`, or `int8`: quantised for ONNX Runtime's CPU, `.tflite` files
            full-integer.
        held_out: Further whole nets, 3 or more or none, by which `import_results` checks the table.
        tflite: Whether to write a `.tflite` file beside each graph, for devices measured with `--runtime tflite`; it
            needs the extra `litert` and about a second a graph.
        android: Whether to write the script that measures on a phone, too.
        full_weights: Whether each weight stands in the ONNX files, for runtimes that do not spread constant ones once
            and for all when they load a graph (TensorRT); the kit is as large as its nets then.
        progress: Whether to show a progress bar.

    Returns:
        The script to run on the device, or with `android` the one to run beside the phone.

    Raises:
        TableError: The folder is not empty, there are no graphs of this number format, or the operators and nets do
            not make a table.
        BackendError: `.tflite` files cannot be written here.
    """
    out = Path(out)
    if dtype not in GRAPHS:
        raise TableError(f"a kit's graphs are in {' or '.join(GRAPHS)}, not in {shown(dtype)}; write one of these")
    if out.exists() and any(out.iterdir()):
        raise TableError(f"the folder {out} is not empty; give a new one for the kit")
    distinct = distinct_operators(ops)
    whole = [executed(net) for net in nets]
    check_calibration_nets(whole)
    unseen = [executed(net) for net in held_out]
    if unseen:
        check_held_out(unseen)
    check_measured((*whole, *unseen), distinct, lack="the kit lacks")
    if tflite:
        check_converts(dtype)
    write = quantised_chain if dtype == INT8 else chain_model
    chains: dict[str, tuple[OpSpec, ...]] = {OVERHEAD: ()}
    chains |= {f"op_{i:03}.onnx": (op,) for i, op in enumerate(distinct.values())}
    chains |= {f"net_{i:03}.onnx": net for i, net in enumerate(whole)}
    chains |= {f"held_out_{i:03}.onnx": net for i, net in enumerate(unseen)}
    shape = next(iter(distinct.values())).input_shape
    with progress_bar(progress, f"writing {len(chains)} graphs") as advance:
        for done, (name, chain) in enumerate(chains.items(), start=1):
            model = write(chain, batch=batch, input_shape=None if chain else shape, constant=not full_weights)
            write_atomically(out / "graphs" / name, model.SerializeToString(), error=TableError)
            if tflite:
                convert(chain, (out / "graphs" / name).with_suffix(".tflite"), batch=batch, dtype=dtype)
            advance(done / len(chains))
    manifest = {
        "format": KIT_FORMAT,
        "version": VERSION,
        "space": space,
        "input_size": input_size,
        "batch": batch,
        "dtype": dtype,
        "graphs": {name: [op.key for op in chain] for name, chain in chains.items()},
    }
    if full_weights:
        manifest["weights"] = FULL
    for name, source in (_SCRIPTS | _ANDROID if android else _SCRIPTS).items():
        own = Kind("the kit's script", "install this package again", TableError)
        write_atomically(out / name, read_text(Path(__file__).parent / source, own), error=TableError)
    write_atomically(out / "kit.json", json.dumps(manifest, indent=1), error=TableError)
    return out / next(iter(_ANDROID if android else _SCRIPTS))


def import_results(path: str | Path) -> LatencyTable:
    """Make the calibrated table of a kit's results, checked on its held-out nets where it has some.

    Args:
        path: The results file that the kit's script wrote.

    Raises:
        TableError: The file is no complete set of results, or a value in it is impossible.
    """
    where = f"the results file {path}"
    document = read_json(path, RESULTS)
    if document.get("format") != RESULTS_FORMAT:
        raise TableError(f"{where} is not one that a kit's measure.py wrote; give its results.json")
    if document.get("version") != VERSION or document.get("unit") != "ms":
        version, unit = document.get("version"), document.get("unit")
        raise TableError(
            f"{where} has version {shown(version)} and unit {shown(unit)}, not {VERSION} and 'ms'; write a new kit"
        )
    with reading(path, RESULTS):
        said, graphs = document.get("dtype", FLOAT32), document["kit"].get("dtype", FLOAT32)
        if said != graphs and INT8 in (said, graphs):
            raise TableError(
                f"{where} says that {shown(said)} was measured, but the graphs of its kit are in {shown(graphs)}; "
                "measure again with the kit's own script"
            )
        return table_of(document, where)


def table_of(document: dict[str, Any], where: str, *, overhead_ms: float | None = None) -> LatencyTable:
    """Make the table of results.

    Args:
        document: What a results file holds.
        where: How an error calls it.
        overhead_ms: What a call costs without any operator; None: what the kit's empty graph took.
    """
    manifest, graphs = document["kit"], document["graphs"]
    wanted = [name for name in manifest["graphs"] if name != OVERHEAD or overhead_ms is None]
    missing = [name for name in wanted if name not in graphs]
    if missing:
        raise TableError(f"{where} lacks {len(missing)} graphs of its kit, first {cut(missing[0])}; measure again")
    for name, figure in graphs.items():
        if not (math.isfinite(figure["ms"]) and figure["ms"] > 0 and figure["median_ms"] >= figure["ms"]):
            raise TableError(f"the time of {cut(name)} in {where} is {figure['ms']} ms; it must be finite and positive")
        if not (isinstance(figure["count"], int) and figure["count"] >= 1 and math.isfinite(figure["median_ms"])):
            raise TableError(
                f"{cut(name)} in {where} has count {shown(figure['count'])} and median {figure['median_ms']} ms; "
                "both must be finite, and 1 sample or more"
            )
    dtype = document.get("dtype", FLOAT32)
    if dtype not in DTYPES:
        raise TableError(f"{where} has the number format {shown(dtype)}; it must be one of {', '.join(DTYPES)}")
    overhead = graphs[OVERHEAD]["ms"] if overhead_ms is None else overhead_ms
    entries: dict[str, LatencyEntry] = {}
    nets: dict[str, list[list[OpSpec]]] = {"net": [], "held_out": []}
    measured: dict[str, list[float]] = {"net": [], "held_out": []}
    for name in wanted:
        keys, figure = manifest["graphs"][name], graphs[name]
        if name.startswith("op_"):
            spread = figure["median_ms"] / figure["ms"] - 1.0
            entries[keys[0]] = entry_alone(keys[0], figure["ms"], overhead, spread=spread, count=int(figure["count"]))
        elif name != OVERHEAD:
            part = "held_out" if name.startswith("held_out_") else "net"
            nets[part].append([OpSpec.from_key(key) for key in keys])
            measured[part].append(float(figure["ms"]))
    header = TableHeader(
        device=str(document["device"]),
        backend=str(document["backend"]),
        threads=int(document["threads"]),
        batch=int(manifest["batch"]),
        dtype=dtype,
        input_size=int(manifest["input_size"]),
        space=str(manifest["space"]),
        place=str(document.get("place", "")),
        created=str(document["created"]),
        versions={str(name): str(version) for name, version in document["versions"].items()},
        repeats=min(int(figure["count"]) for figure in graphs.values()),
        quantile=None if document["quantile"] is None else float(document["quantile"]),
        load_average=document["load_average"],
        overhead_ms=float(overhead),
        source="measured with a kit on the device",
    )
    try:
        alone = LatencyTable(header, entries)
    except TableError as error:
        raise TableError(str(error).replace("the latency table", where, 1)) from None
    check_units(alone, where)
    table = in_context(alone, nets["net"], measured["net"])
    check_units(table, where)
    if not nets["held_out"]:
        return table
    # the held-out nets were timed in the same rounds as the table, so there is no drift between the two
    groups = ["held out"] * len(nets["held_out"])
    return compare(table, nets["held_out"], measured["held_out"], groups=groups).table
