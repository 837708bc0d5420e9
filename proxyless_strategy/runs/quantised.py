"""A finished search's network as an int8 ONNX file: calibrated on architecture images, judged once on test images."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hardware.errors import BackendError, DataError, ExportError
from hardware.onnx_runtime import import_onnxruntime, session_options
from hardware.operators.quantised import quantise_file
from hardware.reading import Kind, expect, is_there, read_json, reading
from hardware.tables.records import INT8

from ..data.feeding import fed
from ..data.images import ImageData, Part
from ..data.sources import load_data
from ..export.folder import METRICS
from ..export.onnx import export_onnx
from ..layout import ONNX_FILE, SEARCH_FILE, TABLE_FILE
from .finished import FinishedRun, read_run

if TYPE_CHECKING:
    from hardware.tables.table import LatencyTable

    from ..config import SearchConfig

RUNTIMES = {"onnxruntime": False, "openvino": True}
"""What runs int8 ONNX files, and whether their weights are narrow (`quantise_file`): ONNX Runtime can be told to add
products exactly on any CPU, OpenVINO cannot."""
_METRICS = Kind("the export's metrics", "put them back, or search again", ExportError)
CALIBRATION_IMAGES = 512
"""Most architecture images that the ranges of the activations are taken from."""


@dataclass(frozen=True)
class QuantisedExport:
    """An int8 ONNX file and what it is worth.

    Attributes:
        path: The file.
        accuracy: Share of the test images that it classifies correctly, 0..1; None where nothing is to be judged.
        float_accuracy: The same of the network in float32, as the search has measured it; None where it has not.
        calibration_images: Architecture images that it was calibrated on.
        test_images: Test images that it was judged by.
    """

    path: Path
    accuracy: float | None
    float_accuracy: float | None
    calibration_images: int
    test_images: int


def export_quantised(folder: Path, out: Path, *, batch: int = 1) -> QuantisedExport:
    """Write the network of a search as an int8 ONNX file; the search's config says which images are read.

    Args:
        folder: The export folder, where the search has left it.
        out: The file to write.
        batch: Images in the file's fixed batch.

    Raises:
        ExportError: The folder lies in no search's, or the network cannot be exported.
        DataError: The images are gone, or a part has fewer of them than `batch`.
        BackendError: The network cannot be quantised.
    """
    folder = Path(folder)
    if not is_there(folder.absolute().parent / SEARCH_FILE):
        raise ExportError(
            f"{folder} lies in no folder of a search, whose images int8 is calibrated on; give RUN/model of a search, "
            "or export it as float32"
        )
    found = read_run(folder.absolute().parent)
    data, narrow = images_of(found), narrow_weights(found.config, _table_of(found))
    with tempfile.TemporaryDirectory() as place:
        exact = export_onnx(folder, Path(place) / ONNX_FILE, batch=batch).path
        return quantised(exact, out, data, batch=batch, narrow=narrow, float_accuracy=_accuracy_of(folder))


def _table_of(found: FinishedRun) -> LatencyTable | None:
    """Return the latency table that a run keeps; of another device it alone says what will run the network."""
    from hardware.tables.table import LatencyTable

    path = found.folder / TABLE_FILE
    return LatencyTable.load(path) if found.config.hardware.cost == "latency" and is_there(path) else None


def _accuracy_of(folder: Path) -> float | None:
    """Return the accuracy that an export folder's own metrics say: the run may hold other networks than the row's."""
    path = folder / METRICS
    if not is_there(path):
        return None
    metrics = read_json(path, _METRICS)
    with reading(path, _METRICS):
        accuracy: float | None = expect(metrics.get("accuracy"), float, "accuracy", none=True)
    return accuracy


def is_for_int8(config: SearchConfig, table: LatencyTable | None) -> bool:
    """Return whether what a search finds is to run as an int8 ONNX file, on this machine or on the table's."""
    chosen = (config.hardware if table is None else table.header).chosen
    return chosen["dtype"] == INT8 and chosen["name"] in RUNTIMES


def narrow_weights(config: SearchConfig, table: LatencyTable | None) -> bool:
    """Return whether an int8 file of a search has weights that its runtime needs narrow."""
    return RUNTIMES.get((config.hardware if table is None else table.header).chosen["name"], False)


def without_int8_file(config: SearchConfig, table: LatencyTable | None) -> str | None:
    """Return what is to be said of a search for int8 on a runtime for which no int8 file is made; None for others."""
    chosen = (config.hardware if table is None else table.header).chosen
    if chosen["dtype"] != INT8 or is_for_int8(config, table):
        return None
    return (
        f"latencies are of int8, but no int8 file is made for {chosen['name']}: the export and its accuracy are in "
        "float32; quantise it with that runtime's own tools, and judge it again"
    )


def check_int8(config: SearchConfig, data: ImageData) -> None:
    """Refuse images that no int8 file can be calibrated on, before a search.

    Raises:
        DataError: The architecture part has fewer images than `hardware.batch`.
    """
    there, batch = len(data.architecture), config.hardware.batch  # type: ignore[arg-type]
    # of another size no int8 file is made
    if there < batch and config.latency_input_size == data.input_size:
        raise DataError(
            f"hardware.batch = {batch}, but int8 is calibrated on the architecture part, which has {there} images; "
            "lower hardware.batch"
        )


def int8_beside(
    config: SearchConfig,
    exact: Path,
    out: Path,
    data: ImageData,
    *,
    accuracy: float | None,
    table: LatencyTable | None = None,
) -> QuantisedExport | None:
    """Write the int8 form of a network that was searched for int8; say on stderr where that cannot be.

    Args:
        config: The search.
        exact: Its file in float32, of a batch of `hardware.batch`.
        out: The file to write.
        data: The search's images.
        accuracy: The network's in float32; None where it is not trained, so that int8's is not read either.
        table: The search's table; None: the config says what runs the file.

    Returns:
        What was made; None where the file cannot be quantised, or takes images of another size than the data's.
    """
    if config.latency_input_size != data.input_size:
        why = (
            f"deploy_input_size = {config.latency_input_size}, and the images to calibrate on have {data.input_size} "
            "pixels; its latency is measured by its operators"
        )
    else:
        batch, judged, narrow = config.hardware.batch, accuracy is not None, narrow_weights(config, table)
        try:
            return quantised(exact, out, data, batch=batch, narrow=narrow, float_accuracy=accuracy, judged=judged)
        except BackendError as error:
            why = str(error)
    print(f"no int8 form of {exact}: {why}", file=sys.stderr, flush=True)
    return None


def images_of(found: FinishedRun) -> ImageData:
    """Load the images of a finished search, in the parts that it had."""
    config, feeding = found.config, getattr(found.space, "feeding", None)
    source = fed(config.data, (feeding() if feeding else None) or {})
    return load_data(source, input_size=config.input_size, seed=config.seed)


def quantised(
    exact: Path,
    out: Path,
    data: ImageData,
    *,
    batch: int,
    narrow: bool,
    float_accuracy: float | None = None,
    judged: bool = True,
) -> QuantisedExport:
    """Quantise an exported file on the architecture part, and judge the result on the test part.

    Args:
        exact: The file in float32, of a fixed batch.
        out: The file to write.
        data: The images.
        batch: That batch.
        narrow: See `quantise_file`.
        float_accuracy: What is known of the network in float32.
        judged: Whether to read the test part at all: not for a network that is not trained.
    """
    there = len(data.architecture)  # type: ignore[arg-type]
    if there < batch:
        raise DataError(f"the architecture part has {there} images, fewer than the batch of {batch}; lower the batch")
    calibration = max(1, min(CALIBRATION_IMAGES, there) // batch)
    drawn = islice(batches_of(data, "architecture", batch), calibration)
    path = quantise_file(exact, out, (images for images, _ in drawn), narrow=narrow)
    accuracy, count = onnx_accuracy(path, data, batch=batch) if judged else (None, 0)
    return QuantisedExport(path, accuracy, float_accuracy, calibration * batch, count)


def onnx_accuracy(path: Path, data: ImageData, *, batch: int) -> tuple[float, int]:
    """Return the share of the test images that an ONNX file classifies correctly, 0..1, and their number."""
    session = import_onnxruntime().InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = count = 0
    for images, labels in batches_of(data, "test", batch, whole=False):
        # the file's batch is fixed: a last one that is not full is filled up with images that do not count
        filled = np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), images.dtype)])
        (logits,) = session.run(None, {name: filled})
        right += int((logits[: len(images)].argmax(axis=1) == labels).sum())
        count += len(images)
    return right / count, count


def batches_of(
    data: ImageData, part: Part, batch: int, *, whole: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give a part's images and labels; the architecture part shuffled, as it may be sorted by class."""
    shuffle = part != "test"
    for images, labels in data.loader(part, batch_size=batch, shuffle=shuffle, drop_last=whole):
        yield images.numpy(), labels.numpy()
