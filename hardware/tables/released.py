"""The two released dialects of latency tables: ProxylessNAS's, read and written, and Once-for-all's, read.

A key is `<type>-input:HxWxC-output:HxWxC[-expand:E-kernel:K-stride:S-idskip:0|1[-se:0|1-hs:0|1]]`, its value the
`count`, the `mean` in ms, and the `var` (ProxylessNAS) or the `std` (Once-for-all). `expand` is the expansion in the
first and the number of hidden channels in the second. A `expanded_conv` is a whole block with its residual addition.

>>> released_key(OpSpec("conv", (3, 224, 224), (32, 112, 112), kernel=3, stride=2))
'Conv-input:224x224x3-output:112x112x32'
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import TableError
from ..files import write_atomically
from ..op_spec import OpSpec
from ..reading import cut, reading, shown
from ..yaml_text import dump_yaml
from .plausibility import check_units
from .records import LatencyEntry, TableHeader
from .table import FILE, LatencyTable, load_yaml

PROXYLESS = "proxylessnas"
ONCE_FOR_ALL = "once-for-all"

_KEY = re.compile(
    r"(?P<type>[A-Za-z_0-9]+)-input:(?P<input>[0-9x]+)-output:(?P<output>[0-9x]+)"
    r"(-expand:(?P<expand>[0-9]{1,9})-kernel:(?P<kernel>[0-9]{1,9})-stride:(?P<stride>[0-9]{1,9})-idskip:(?P<idskip>[01])"
    r"(-se:(?P<se>[01])-hs:(?P<hs>[01]))?)?"
)


def read_released(path: str | Path, *, device: str = "", backend: str = "tflite", source: str = "") -> LatencyTable:
    """Read a released table of either dialect.

    Its header is uncalibrated, one thread and batch 1; its input size is that of the stem's key.

    Args:
        path: The YAML file.
        device: The device in words; empty takes the file's name.
        backend: The runtime that measured it.
        source: Where the file comes from; empty takes its name.

    Raises:
        TableError: The file is of neither dialect, or a value in it is impossible.
    """
    path = Path(path)
    where = f"the released table {path}"
    document = load_yaml(path)
    if not isinstance(document, dict) or not document:
        raise TableError(f"{where} is no mapping of operators (perhaps truncated); get the file again")
    with reading(path, FILE):
        return _table(document, path, device=device, backend=backend, source=source)


def _table(document: dict[Any, Any], path: Path, *, device: str, backend: str, source: str) -> LatencyTable:
    where = f"the released table {path}"
    dialect = _dialect(document, where)
    entries: dict[str, LatencyEntry] = {}
    input_size = None
    for key, value in document.items():
        op = parse_released_key(key, dialect=dialect)
        if op.key in entries:
            raise TableError(f"{where} has two entries for the operator {cut(op.key)}; remove one of them")
        entries[op.key] = _entry(value, dialect, f"the entry {cut(key)} of {where}")
        if key.startswith("Conv-"):
            input_size = op.input_shape[1]
    if input_size is None:
        raise TableError(f"{where} has no stem (a `Conv-` key), so its input size is unknown; add it")
    header = TableHeader(
        device=device or path.stem,
        backend=backend,
        threads=1,
        batch=1,
        dtype="float32",
        input_size=input_size,
        space=f"released table of {dialect}",
        repeats=min(entry.count for entry in entries.values()),
        source=source or f"{path.name}, released by {dialect}",
    )
    table = LatencyTable(header, entries)
    check_units(table, where)
    return table


def write_proxylessnas(table: LatencyTable, path: str | Path) -> None:
    """Write a table in ProxylessNAS's dialect; `var` is `(spread * ms)^2`, the inverse of what reading does.

    Raises:
        TableError: The dialect has no key for an operator.
    """
    document = {}
    for key, entry in table.entries.items():
        document[released_key(OpSpec.from_key(key))] = {
            "count": int(entry.count),
            "mean": float(entry.ms),
            "var": float((entry.spread * entry.ms) ** 2),
        }
    if len(document) != len(table.entries):
        raise TableError("two operators of the table have the same key in ProxylessNAS's dialect; write them apart")
    write_atomically(path, dump_yaml(dict(sorted(document.items())), width=1000), error=TableError)


def released_key(op: OpSpec) -> str:
    """Return an operator's key in ProxylessNAS's dialect.

    Raises:
        TableError: The dialect has no key for it.
    """
    dims = f"input:{_dims(op.input_shape)}-output:{_dims(op.output_shape)}"
    if op.kind == "head":
        return f"Logits-{dims}"
    plain = op.activation == "relu6" and not op.squeeze and not op.padding
    if plain and op.kind == "conv" and not op.residual and op.kernel == 3 and op.stride == 2 and op.input_shape[0] == 3:
        return f"Conv-{dims}"
    if plain and op.kind == "conv" and not op.residual and op.kernel == 1 and op.stride == 1:
        return f"Conv_1-{dims}"
    if plain and op.kind in ("mbconv", "ds_conv"):
        hidden = op.hidden if op.kind == "mbconv" else op.input_shape[0]
        expand, rest = divmod(hidden, op.input_shape[0])
        if not rest and expand >= 1 + (op.kind == "mbconv"):
            block = f"expand:{expand}-kernel:{op.kernel}-stride:{op.stride}-idskip:{int(op.residual)}"
            return f"expanded_conv-{dims}-{block}"
    raise TableError(f"ProxylessNAS's dialect has no key for {op.key}; write the table in this project's own format")


def parse_released_key(key: Any, *, dialect: str) -> OpSpec:
    """Return the operator that a released key names.

    Args:
        key: The key.
        dialect: `PROXYLESS` (activations are ReLU6) or `ONCE_FOR_ALL` (MobileNetV3: h-swish outside the blocks; a block
            with squeeze-and-excitation has the kind `mbconv_se`).

    Raises:
        TableError: The key is of neither dialect.
    """
    op = _named(key, dialect)
    if (wrong := op.impossible()) is not None:
        raise TableError(f"the operator {cut(key)} of a released table has {wrong}; correct its key")
    return op


def _named(key: Any, dialect: str) -> OpSpec:
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    parts = match.groupdict() if match else {}
    once_for_all = dialect == ONCE_FOR_ALL
    kind = parts.get("type")
    known = ("Conv", "Conv_1", "Logits", "expanded_conv") + (("Conv_2", "AvgPool2D") if once_for_all else ())
    if (
        kind not in known
        or (kind == "expanded_conv") != (parts["expand"] is not None)
        or (kind == "expanded_conv" and once_for_all != (parts["se"] is not None))
    ):
        raise TableError(f"{shown(key)} is no key of a released table ({dialect}); such keys are of {', '.join(known)}")
    start, end = _shape(parts["input"]), _shape(parts["output"])
    if kind == "Logits":
        return OpSpec("head", start, end)
    if kind == "AvgPool2D":
        if len(start) < 3:
            raise TableError(f"the operator {cut(key)} of a released table pools no C x H x W map; correct its key")
        return OpSpec("avg_pool", start, end, kernel=start[1], stride=start[1], activation="none")
    if kind != "expanded_conv":
        kernel, stride = (3, 2) if kind == "Conv" else (1, 1)
        activation = "hard_swish" if once_for_all else "relu6"
        return OpSpec("conv", start, end, kernel=kernel, stride=stride, activation=activation)
    hidden = int(parts["expand"]) * (1 if once_for_all else start[0])
    if hidden < 1:
        raise TableError(f"the operator {cut(key)} of a released table has no hidden channels; correct its key")
    activation = ("hard_swish" if parts["hs"] == "1" else "relu") if once_for_all else "relu6"
    expands = hidden != start[0]
    return OpSpec(
        ("mbconv" if expands else "ds_conv") + ("_se" if parts["se"] == "1" else ""),
        start,
        end,
        kernel=int(parts["kernel"]),
        stride=int(parts["stride"]),
        hidden=hidden if expands else 0,
        residual=parts["idskip"] == "1",
        activation=activation,
    )


def _dialect(document: dict[Any, Any], where: str) -> str:
    fields = {name for value in document.values() if isinstance(value, dict) for name in value}
    if fields == {"count", "mean", "var"}:
        return PROXYLESS
    if fields == {"count", "mean", "std"}:
        return ONCE_FOR_ALL
    named = cut(", ".join(sorted(map(str, fields)))) or "no fields"
    raise TableError(
        f"{where} is of no released dialect: its entries have {named} "
        "instead of count, mean and var (ProxylessNAS) or std (Once-for-all)"
    )


def _entry(value: Any, dialect: str, where: str) -> LatencyEntry:
    name = "var" if dialect == PROXYLESS else "std"
    if not isinstance(value, dict) or set(value) != {"count", "mean", name}:
        raise TableError(f"{where} is {shown(value)}, not a mapping of count, mean and {name}; get the file again")
    for field, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < float("inf"):
            raise TableError(f"the {field} of {where} is {shown(number)}; it must be a number of 0 or more")
        if field == "count" and number != int(number):
            raise TableError(f"the {field} of {where} is {shown(number)}; it must be a whole number")
    mean, noise = float(value["mean"]), float(value[name])
    if mean == 0:
        raise TableError(f"the mean of {where} is 0; measure it again")
    deviation = noise**0.5 if dialect == PROXYLESS else noise
    return LatencyEntry(ms=mean, spread=deviation / mean, count=int(value["count"]))


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, (*shape[1:], shape[0])))


def _shape(dims: str) -> tuple[int, ...]:
    try:
        *size, channels = (int(side) for side in dims.split("x"))
    except ValueError:
        raise TableError(f"{shown(dims)} in a key of a released table is no shape; write H x W x C") from None
    return (channels, *size)
