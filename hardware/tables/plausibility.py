"""What a table's figures would mean: seconds or microseconds for milliseconds, and what no device can do.

A table says for which runtime and how many threads it was measured, and an operator's key says how many
multiply-accumulates (MACs) it takes. A unit mistake moves the implied speed by a factor of 1000, mostly out of what
such devices can do. The limits are wide, so that no true table is refused; what they cannot tell (a slow board's table
in seconds looks like a fast one's), `hardware.measuring.validation` and every later measurement on the device notice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from ..errors import SpaceError, TableError
from ..op_spec import IDENTITY, OpSpec
from ..operators import primitives
from ..reading import cut

if TYPE_CHECKING:
    from .table import LatencyTable


AGREEMENT = 30.0
"""Most by which a whole net's latency now and then, or measured and by its table, differs without a unit mistake."""

_APART = 1.5
"""Factor between two nets from which on a table must know the faster one; its error is a few percent."""
_LARGE_MACS = 1e6
_LARGE_FACTOR = 4.0
_LEAST_CALL_MS = 1e-5


@dataclass(frozen=True)
class _Limits:
    """What no device of a class exceeds, for float32.

    Attributes:
        fastest: MACs a second, of one thread where `per_thread`.
        slowest: MACs a second, beside `operator_ms` for each operator.
        least_ms: Time of the smallest operator.
        operator_ms: Most that an operator takes beside its MACs.
        call_ms: Most that a call of the runtime takes without any operator.
        per_thread: Whether more threads are faster.
        what: Such devices in words.
    """

    fastest: float
    slowest: float
    least_ms: float
    operator_ms: float
    call_ms: float
    per_thread: bool
    what: str


# A core with two AVX-512 units at 5 GHz does 1.6e11 MACs a second, one with matrix units about 7e11 at best. The
# slowest device with Python wheels of these runtimes (a Cortex-A7 at 0.9 GHz) does about 4e8, the published Pixel 1
# table 3e9.
_CPU = _Limits(5e11, 1e8, 2e-5, 0.3, 0.5, per_thread=True, what="a CPU thread")
# TF-Lite also comes as a C++ library for smaller boards; released tables name no threads.
_TFLITE = _Limits(5e11, 2e7, 2e-5, 1.0, math.inf, per_thread=True, what="a CPU thread")
# From an 8-bit microcontroller without floating point to the largest accelerators, whose kernels take a microsecond.
_ANY = _Limits(2e14, 1e5, 2e-4, 100.0, math.inf, per_thread=False, what="a device")
_BY_BACKEND = {
    **dict.fromkeys(("onnxruntime", "openvino", "torch", "inductor", "litert", "executorch"), _CPU),
    "tflite": _TFLITE,
}


def check_units(table: LatencyTable, where: str) -> None:
    """Check that a table's latencies can be milliseconds, and its figures those of a device.

    Args:
        table: The table.
        where: How the error calls it.

    Raises:
        TableError: They imply a device that is too fast (seconds) or too slow (microseconds), or the operators
            disagree with the header's whole nets. Or an operator takes no time or has impossible shapes, or the
            calibration makes another figure of a net than any device.
    """
    header = table.header
    for key in table.entries:
        op = OpSpec.named(key)
        if op is not None and (wrong := op.impossible()) is not None:
            raise TableError(f"{where} has the operator {cut(key)} with {wrong}; remove it or build the table again")
    # first what the table says twice itself, as that needs no limits
    _check_references(table, where)
    limits = _ANY if header.place not in ("", "cpu") else _BY_BACKEND.get(header.backend, _ANY)
    if 0 < header.overhead_ms < _LEAST_CALL_MS:
        _refuse(where, f"a call of the runtime without any operator in {1e6 * header.overhead_ms:.3g} ns", "seconds")
    if header.overhead_ms > limits.call_ms:
        said = f"a call of {cut(header.backend)} without any operator in {header.overhead_ms:.3g} ms"
        _refuse(where, said, "microseconds")
    work = {key: header.batch * macs for key in table.entries if (macs := _macs(key)) is not None}
    if not work:
        return
    fastest = limits.fastest * (header.threads if limits.per_thread else 1) * (1 if header.dtype == "float32" else 4)
    # judged on the sum: a single operator may be far from its MACs, through memory or a slow path of the runtime
    total_ms = math.fsum(table.entries[key].ms for key in work)
    least_ms = math.fsum(max(limits.least_ms, 1e3 * macs / fastest) for macs in work.values())
    most_ms = math.fsum(limits.operator_ms + 1e3 * macs / limits.slowest for macs in work.values())
    if not total_ms:
        raise TableError(f"{where} gives no operator any time; measure it again")
    for key, entry in table.entries.items():
        if not entry.ms and not entry.predicted and OpSpec.named(key) is not None and not key.startswith(IDENTITY):
            raise TableError(
                f"{where} gives the operator {cut(key)} no time; measure it again, as nothing runs in 0 ms"
            )
    _check_constant(table, where)
    said = f"{_speed(sum(work.values()), total_ms):.2g} multiply-accumulates a second on average"
    if total_ms < least_ms:
        _refuse(where, f"{said}, more than {limits.what} can do", "seconds")
    if total_ms > most_ms:
        _refuse(where, f"{said}, fewer than {limits.what} does", "microseconds")
    # then the large ones one by one, on CPUs only, for a table of which but a few entries are in another unit
    for key, macs in work.items():
        speed = _speed(macs, table.entries[key].ms)
        judged = limits.per_thread and macs >= _LARGE_MACS and not table.entries[key].predicted
        if judged and speed > _LARGE_FACTOR * fastest:
            _refuse(
                where, f"{speed:.2g} multiply-accumulates a second for {cut(key)}, more than any CPU can do", "seconds"
            )


def check_agreement(ratios: Sequence[float], where: str) -> None:
    """Check that whole nets, which now take `ratios` times what a table says, are near enough for milliseconds.

    Args:
        ratios: Latency now over latency by the table.
        where: How the error calls the table.

    Raises:
        TableError: One of them is beyond `AGREEMENT`.
    """
    for ratio in ratios:
        if not 1 / AGREEMENT <= ratio <= AGREEMENT:
            raise TableError(
                f"whole nets take {ratio:.3g} times as long here as {where} says; its latencies are not in "
                "milliseconds, or it is of another device or setting; build one here"
            )


def _check_references(table: LatencyTable, where: str) -> None:
    calibration = table.header.calibration
    if calibration is None:
        return
    if not 1 / AGREEMENT <= calibration.scale <= AGREEMENT:
        raise TableError(
            f"the calibration's scale in {where} is {calibration.scale:.4g}, so that a net would take that many times "
            f"its operators' sum; calibrate the table again (a scale is about 1, never beyond {AGREEMENT:g})"
        )
    times: list[tuple[float, float]] = []
    for reference in calibration.references:
        if not all(key in table.entries for key in reference.ops):
            continue
        raw = table.header.overhead_ms + math.fsum(table.entries[key].ms for key in reference.ops)
        predicted = calibration(raw)
        times.append((predicted, reference.ms))
        if not reference.ms / AGREEMENT <= predicted <= reference.ms * AGREEMENT:
            raise TableError(
                f"the operators of {where} add up to {predicted:.4g} ms for a net that was measured with "
                f"{reference.ms:.4g} ms; the two are in different units, give both in milliseconds"
            )
    for (fast, fast_ms), (slow, slow_ms) in permutations(times, 2):
        if slow > _APART * fast and fast_ms > _APART * slow_ms:
            raise TableError(
                f"by the operators of {where} a net of {fast_ms:.4g} ms is faster ({fast:.4g} ms) than one of "
                f"{slow_ms:.4g} ms ({slow:.4g} ms); entries or reference nets are of another table, build it again"
            )


def _check_constant(table: LatencyTable, where: str) -> None:
    """Refuse a calibration that makes a constant, or less than nothing, of whatever a net is made of."""
    calibration = table.header.calibration
    if calibration is None:
        return
    # no net has all the operators of a space, so none takes longer than this
    most = calibration.scale * (table.header.overhead_ms + math.fsum(entry.ms for entry in table.entries.values()))
    offset = calibration.offset_ms
    if most + offset <= 0:
        raise TableError(
            f"the calibration's offset in {where} is {offset:.4g} ms, more than all of its operators take "
            f"({most:.4g} ms), so that nets would take less than nothing; calibrate the table again"
        )
    if offset > AGREEMENT * most:
        raise TableError(
            f"the calibration's offset in {where} is {offset:.4g} ms, beside which all of its operators together "
            f"({most:.4g} ms) count for nothing; calibrate the table again"
        )


def _refuse(where: str, implied: str, unit: str) -> None:
    raise TableError(f"{where} implies {implied}: its latencies seem to be in {unit}; give them in milliseconds")


def _speed(macs: float, ms: float) -> float:
    """Return multiply-accumulates a second."""
    return 1e3 * macs / ms if ms else math.inf


def _macs(key: str) -> int | None:
    """Return the multiply-accumulates of one image; None where the key names no operator that is known here."""
    try:
        return primitives.macs(OpSpec.from_key(key))
    except (TableError, SpaceError):
        return None
