"""A table from the profiles that TensorRT's `trtexec --exportProfile` writes of a kit's graphs.

A profile is a list in JSON: first `{"count": N}`, the inferences, then one mapping for each layer of the engine, with
its `name`, `timeMs` over all inferences, `averageMs` and, of newer versions, `medianMs` of one, and its `percentage`.
A graph takes the sum over its layers, of medians where there are some, else of averages. It is the time of the GPU
alone: what a call costs without any layer is not in it, so such a table has no overhead.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TableError
from ..reading import Kind, Unreadable, cut, expect, read_json, reading, shown
from ..tables.records import FLOAT32
from ..tables.table import LatencyTable
from .kit import FULL, KIT_FORMAT, OVERHEAD, VERSION, table_of

BACKEND = "tensorrt"
_AVERAGES = {"name", "timeMs", "averageMs", "percentage"}
_MEDIANS = {*_AVERAGES, "medianMs"}
_MANIFEST = Kind(
    "the kit's kit.json",
    "write the kit again",
    TableError,
    missing="there is no kit.json at {path}; give the folder of the kit whose graphs trtexec ran with --kit",
)
_PROFILE = Kind(
    "the profile",
    "export it again with trtexec --exportProfile",
    TableError,
    limit=2**23,
    holds="",
    missing="there is no profile at {path}; export one with trtexec --exportProfile",
)


_BOTH = Kind("the folder of profiles", "write the kit again, and export the profiles of its graphs", TableError)


class _Profile(NamedTuple):
    ms: float
    inferences: int
    medians: bool


def import_trtexec(
    folder: str | Path, kit: str | Path, *, device: str, dtype: str = "float32", version: str = ""
) -> LatencyTable:
    """Make the calibrated table of a kit from profiles of its graphs.

    Args:
        folder: The profiles: for each graph of the kit but the empty one a file of its name that ends in `.json`, and
            no other such file.
        kit: The kit's folder.
        device: The device in words.
        dtype: Number format that trtexec was asked for.
        version: TensorRT's version; empty where unknown.

    Raises:
        TableError: A profile is missing, empty or no profile, or they are of different versions of TensorRT; or the
            kit's weights do not stand in its graphs.
    """
    folder, kit = Path(folder), Path(kit)
    if not device.strip():
        raise TableError("a profile does not say of which device it is; say it in words with --device")
    manifest = read_json(kit / "kit.json", _MANIFEST)
    with reading(kit / "kit.json", _MANIFEST):
        graphs = expect(manifest["graphs"], dict, "graphs")
        if manifest["format"] != KIT_FORMAT or manifest["version"] != VERSION:
            raise TableError(f"{kit / 'kit.json'} is of no kit of this release; write the kit again")
        if manifest.get("dtype", FLOAT32) != FLOAT32:
            raise TableError(
                f"the graphs of the kit {kit} are in {shown(manifest['dtype'])}, quantised for ONNX Runtime; give "
                "trtexec a kit in float32 and --int8, and import with --dtype int8"
            )
        if manifest.get("weights") != FULL:
            raise TableError(
                f"the graphs of the kit {kit} make their weights when they run, which TensorRT would time; write it "
                "again with `proxyless latency kit --full-weights`"
            )
        names = {f"{Path(name).stem}.json": name for name in graphs if name != OVERHEAD}
    there = _profiles(folder)
    if missing := [name for name in names if name not in there]:
        raise TableError(
            f"{folder} lacks the profiles of {len(missing)} of {len(names)} graphs of {kit / 'kit.json'}, first "
            f"{cut(missing[0])}; export them with trtexec --exportProfile"
        )
    of_none = sorted(there - names.keys() - {f"{Path(OVERHEAD).stem}.json"})
    if of_none:
        raise TableError(f"{cut(of_none[0])} in {folder} is of no graph of {kit / 'kit.json'}; move it elsewhere")
    profiles = {name: _read(folder / file) for file, name in names.items()}
    files = {name: file for file, name in names.items()}
    with_medians, without = ([files[n] for n, p in profiles.items() if p.medians is having] for having in (True, False))
    if with_medians and without:
        few, many = sorted((with_medians, without), key=len)
        raise TableError(
            f"{folder / few[0]} has {'medians' if few is with_medians else 'no medians'}, unlike {cut(many[0])} and "
            f"{len(many) - 1} others: they are of different versions of TensorRT; export all of them with one"
        )
    document = {
        "kit": manifest,
        "device": device,
        "backend": BACKEND,
        "place": "cuda:0",
        "dtype": dtype,
        "threads": 1,
        "quantile": 0.5 if with_medians else None,
        "created": "",
        "load_average": None,
        "versions": {"tensorrt": version} if version else {},
        "graphs": {
            name: {"ms": profile.ms, "median_ms": profile.ms, "count": profile.inferences}
            for name, profile in profiles.items()
        },
    }
    both = f"{folder} (of {kit / 'kit.json'})"
    with reading(both, _BOTH):
        return table_of(document, f"{_BOTH.name} {both}", overhead_ms=0.0)


def _profiles(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir() if path.suffix == ".json"}
    except OSError as error:
        raise TableError(
            f"cannot look for profiles in {folder}: {error.strerror}; give the folder with those of the kit's graphs"
        ) from None


def _read(path: Path) -> _Profile:
    found = read_json(path, _PROFILE)
    with reading(path, _PROFILE):
        first, *layers = expect(found, list, "content") or [None]
        if not isinstance(first, dict) or set(first) != {"count"}:
            raise Unreadable(f'it begins with {shown(first)}, not with {{"count": ...}}')
        count = expect(first["count"], int, "count")
        if count < 1 or not layers:
            raise Unreadable(f"it is empty: {count} inferences of {len(layers)} layers")
        medians = isinstance(layers[0], dict) and "medianMs" in layers[0]
        total = math.fsum(_layer(layer, count, medians=medians) for layer in layers)
        if not total > 0:
            raise Unreadable(f"its {len(layers)} layers take no time")
        return _Profile(total, count, medians)


def _layer(layer: Any, count: int, *, medians: bool) -> float:
    """Return a layer's time in ms, of which its other figures must say the same."""
    expect(layer, dict, "layer")
    if set(layer) != (_MEDIANS if medians else _AVERAGES):
        raise Unreadable(f"its layer {shown(layer.get('name'))} has {cut(', '.join(map(str, layer)))}")
    name = expect(layer["name"], str, "name of a layer")
    times = {key: float(expect(layer[key], float, f"{key} of {cut(name)}")) for key in layer if key != "name"}
    if min(times.values()) < 0:
        raise Unreadable(f"its layer {shown(name)} has a negative time")
    # six digits are written of each
    if not math.isclose(times["timeMs"], times["averageMs"] * count, rel_tol=0.01, abs_tol=1e-9):
        raise Unreadable(
            f"its layer {shown(name)} took {times['timeMs']} ms in {count} inferences, but {times['averageMs']} in each"
        )
    return times["medianMs"] if medians else times["averageMs"]
