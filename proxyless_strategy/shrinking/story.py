"""The story of `proxyless shrink`: check, fine-tune the original, search, fine-tune the subnet, compare.

Everything lands in `config.out`. Each stage is skipped where its result is there, so a run that was killed goes on
where it was when started again with the same settings.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hardware.backends import get_backend
from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.processor import say_if_busy
from hardware.reading import Kind, cut, is_there, read_json, shown
from hardware.tables.records import FLOAT32
from search_spaces import SpaceCosts, Subnet

from ..config import SearchConfig
from ..data.feeding import fed
from ..data.images import ImageData
from ..data.look import grey_throughout
from ..data.notice import notice
from ..data.sources import check_data
from ..data.unreadable import as_begun, noting_unreadable
from ..determinism import prepare_cublas
from ..export.onnx import export_onnx
from ..layout import INT8_FILE, MODEL, ONNX_FILE, ROW_FILE
from ..owner import Start, owned
from ..retraining.teacher import NO_TEACHER
from ..runs.deployed import measure_deployed
from ..runs.finished import FinishedRun, read_run
from ..runs.forecast import forecast, step_seconds
from ..runs.playoff import epochs_at_most
from ..runs.prepare import Library, Prepared, prepare
from ..runs.quantised import int8_beside
from ..runs.same_run import check_same_run
from ..runs.search import run_search
from ..runs.sensitivity import measuring_seconds
from .comparison import Compared, Comparison
from .layout import COMPARISON_FILE, ORIGINAL, PICTURE_FILE, SEARCH, SETTINGS_FILE, START
from .originals import is_made, make_original, make_start, metrics_of, weights_of
from .picture import draw
from .plan import Model, check_shrink, planned, read_model, sized, subnet_epochs

FREE = ("out", "data.workers", "search.checkpoint_every", "search.resume_anyway", "retrain.checkpoint_every")
"""Settings that no result depends on."""
TABLE_SECONDS, COMPARING_SECONDS = 70.0, 30.0
"""What a table and the comparison take at most, whatever the data."""
FORWARD = 1 / 3
"""A forward pass of the teacher in training steps of the same network, whose backward pass is twice as long."""
_SETTINGS = Kind("the settings of a shrinking", "choose another out, or remove that folder", ConfigError)


@dataclass(frozen=True, eq=False)
class Ready:
    """A shrinking of which all is checked.

    Attributes:
        config: The planned settings.
        model: Its model.
        prepared: What its search stands on.
        data: The images, as the run began with them.
    """

    config: SearchConfig
    model: Model
    prepared: Prepared
    data: ImageData

    @property
    def start(self) -> Path | None:
        """The folder that the search starts from; None: the model as it is given."""
        assert self.config.shrink is not None
        return self.config.out / START if self.config.shrink.start_epochs else None


def run_shrink(config: SearchConfig) -> Comparison:
    """Make a pretrained timm model smaller by a search, fine-tune both on the same images, and compare them.

    The folder gets `start` (the original that the search starts from, fine-tuned on the weight part alone), `original`
    (the same after as many epochs as the subnet gets, on all training images), `search` (the run folder of the search;
    its `model` is the subnet), `comparison.json` and `comparison.png`.

    Args:
        config: A search config of a `timm:` space; what it does not set follows from the model and the images.

    Raises:
        ProxylessError: See `prepare`; or the folder holds another shrinking, or a later step failed.
    """
    began = time.monotonic()
    check_shrink(config)
    check_same_settings(config)
    if is_there(config.out / COMPARISON_FILE):
        return Comparison.load(config.out)
    say_if_busy()
    ready = check_all(config)
    out = config.out

    def check() -> dict[str, Any]:
        check_same_settings(config)
        return {}

    with owned(out, check=check, began=began) as start, noting_unreadable(out, ready.data):
        write_atomically(out / SETTINGS_FILE, json.dumps(_settings(config), indent=2) + "\n", error=ConfigError)
        if ready.start is not None:
            make_start(ready.config, ready.model.space, ready.data)
            start.note()
        make_original(ready.config, ready.model.space, ready.data, start=ready.start)
        start.note()
        found = _searched(search_config(ready.config, start=ready.start))
        start.note()
        return _compared(ready, found, start)


# ---- before any work ---------------------------------------------------------------------------------------------


def check_all(config: SearchConfig) -> Ready:
    """Check and load everything; measure the table where it is missing; say what all will take.

    Raises:
        ProxylessError: Something cannot work.
    """
    model = read_model(config)
    prepare_cublas(config.deterministic)
    library, feeding = Library(), model.space.feeding()
    reading = sized(config, model)
    check_data(fed(reading.data, feeding))
    full = planned(config, model, library.data(reading, feeding))
    assert full.shrink is not None
    start = config.out / START if full.shrink.start_epochs and is_made(config.out / START) else None
    search = search_config(full, start=start, probing=not is_made(config.out / ORIGINAL))
    prepared = prepare(search, library=library, before_table=partial(_say_before, full, model))
    return Ready(full, model, prepared, as_begun(prepared.data, config.out))


def search_config(config: SearchConfig, *, start: Path | None, probing: bool = False) -> SearchConfig:
    """Return the settings of the search alone.

    Args:
        config: The planned settings.
        start: The folder whose weights it starts from; None: the model's own.
        probing: Whether it is only to be checked, as there is no fine-tuned original yet.
    """
    options = dict(config.space.options)
    if start is not None:
        options["weights"] = str(weights_of(start))
    assert config.retrain is not None
    retrain = config.retrain
    if retrain.teacher is None:
        # not yet the original, whatever the model: it is no teacher before it is fine-tuned
        teacher = NO_TEACHER if probing else str(config.out / ORIGINAL)
        retrain = retrain.model_copy(update={"teacher": teacher})
    return config.model_copy(
        update={
            "space": config.space.model_copy(update={"options": options}),
            "retrain": retrain,
            "shrink": None,
            "out": config.out if probing else config.out / SEARCH,
        }
    )


def check_same_settings(config: SearchConfig) -> None:
    """Refuse a folder that holds a shrinking with other settings.

    Raises:
        ConfigError: It does, or its settings cannot be read.
    """
    path = config.out / SETTINGS_FILE
    if not is_there(path):
        return
    there, here = read_json(path, _SETTINGS), _settings(config)
    different = sorted(key for key in {*there, *here} if key not in FREE and there.get(key) != here.get(key))
    if different:
        told = [
            f"{cut(key, 60)} = {shown(there.get(key), width=50)} there, {shown(here.get(key), width=50)} here"
            for key in different[:4]
        ]
        raise ConfigError(
            f"{config.out} holds a shrinking with other settings ({'; '.join(told)}); choose another out or remove it"
        )


def _settings(config: SearchConfig) -> dict[str, Any]:
    """Return what the user has set, by dotted key, as plain values."""

    def leaves(values: dict[str, Any], *parents: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            inner = isinstance(value, dict) and value
            found |= leaves(value, *parents, key) if inner else {".".join((*parents, key)): value}
        return found

    found = leaves(config.model_dump(mode="json", exclude_unset=True))
    return {key: value for key, value in found.items() if key not in FREE}


def _say_before(config: SearchConfig, model: Model, data: ImageData, costs: SpaceCosts) -> None:
    """Say what is done with grey pictures, and what all will take."""
    if data.channels < model.channels:
        notice(
            f"the images are grey, {model.space.model} is for colour: its stem's weights are summed over the colours, "
            "as timm does"
        )
    elif data.channels == 3 and model.channels == 3 and grey_throughout(data):
        notice(
            "the pictures are grey: each is read with three equal channels, as timm does; "
            "data.options.channels=1 makes the network a grey one"
        )
    print(forecast_sentence(config, model, costs, data), flush=True)


def forecast_sentence(config: SearchConfig, model: Model, costs: SpaceCosts, data: ImageData) -> str:
    """Say what a shrinking will take that begins now, in all and by stage."""
    assert config.shrink is not None
    shrink, space = config.shrink, model.space
    per_image = step_seconds(config, space, costs, data, space.original())
    training, weights = len(data.training), len(data.weights)  # type: ignore[arg-type]
    table = config.hardware.uses_table and config.hardware.device != "other"
    assert config.retrain is not None
    tuned = config.retrain.epochs
    images = training * tuned + weights * epochs_at_most(config)
    taught = 0.0 if config.retrain.teacher == NO_TEACHER else FORWARD * per_image * images
    asks_weights = "sensitivity" in (config.rule, config.search.start)
    tested = FORWARD * per_image * len(data.test)  # type: ignore[arg-type]
    fine_tuning = per_image * training * tuned + tested
    trained = fine_tuning if config.rule == "sensitivity" else forecast(config, space, costs, data).seconds
    seconds = {
        "the table": TABLE_SECONDS if table and not is_there(Path(config.hardware.table or "")) else 0.0,
        "the original": per_image * (training * (shrink.original_epochs or 0) + weights * (shrink.start_epochs or 0))
        + tested,
        "what the weights say": measuring_seconds(costs, data, FORWARD * per_image) if asks_weights else 0.0,
        "search and fine-tuning": trained + taught,
        "the comparison": COMPARING_SECONDS,
    }
    stages = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items() if value)
    return (
        f"predicted for all: about {sum(seconds.values()) / 60:.0f} minutes ({stages}); of the original "
        f"{shrink.start_epochs} + {shrink.original_epochs} epochs, of the subnet {shrink.start_epochs} + "
        f"{subnet_epochs(config)}"
    )


# ---- stages ------------------------------------------------------------------------------------------------------


def _searched(config: SearchConfig) -> FinishedRun:
    """Return the finished search, of which an earlier start may have done all or a part."""
    if is_there(config.out / ROW_FILE):
        check_same_run(config)
    else:
        run_search(config)
    return read_run(config.out)


def _compared(ready: Ready, found: FinishedRun, start: Start) -> Comparison:
    """Measure both networks side by side, and write the comparison."""
    config, prepared, data = ready.config, ready.prepared, ready.data
    assert config.shrink is not None
    assert config.retrain is not None
    folders = (config.out / ORIGINAL, found.folder / MODEL)
    files = (config.out / f"{ORIGINAL}.onnx", found.folder / ONNX_FILE)
    size = (data.channels, config.latency_input_size, config.latency_input_size)
    export_onnx(folders[0], files[0], input_shape=size, batch=config.hardware.batch)
    space = ready.model.space
    subnets = (Subnet(space, space.original()), Subnet(space, found.choices))
    figures = (metrics_of(folders[0]), found.row)
    original_int8 = None
    if found.row.get("int8_onnx") is not None:
        path = config.out / f"{ORIGINAL}-int8.onnx"
        table, accuracy = prepared.latency_table, figures[0]["accuracy"]
        original_int8 = int8_beside(config, files[0], path, data, accuracy=accuracy, table=table)
    int8: tuple[dict[str, Any], ...] = ({}, {})
    deployed = files
    if original_int8 is not None:
        deployed = (original_int8.path, found.folder / INT8_FILE)
        accuracies = (original_int8.accuracy, found.row["int8_accuracy"])
        int8 = tuple(
            {"int8_onnx": str(path), "int8_accuracy": accuracy}
            for path, accuracy in zip(deployed, accuracies, strict=True)
        )
    measured, _ = measure_deployed(prepared, subnets, deployed, int8=original_int8 is not None)
    first = config.shrink.start_epochs or 0
    epochs = (first + (config.shrink.original_epochs or 0), first + subnet_epochs(config))
    nets = [
        Compared(
            folder=str(folder),
            onnx=str(file),
            accuracy=row["accuracy"],
            ms=None if figure is None else figure.settled_ms,
            table_ms=prepared.table_ms(subnet),
            cost=prepared.cost.cost(subnet.choices),
            params=row["params"],
            macs=row["macs"],
            epochs=trained,
            **more,
        )
        for folder, file, row, figure, subnet, trained, more in zip(
            folders, files, figures, measured, subnets, epochs, int8, strict=True
        )
    ]
    asked = next(value for value in (config.target, config.target_ms, config.target_cost) if value is not None)
    assert prepared.target is not None
    comparison = Comparison(
        model=config.space.name,
        target=str(asked) if config.target is not None else f"{asked} {prepared.cost.unit}",
        unit=prepared.cost.unit,
        limit=prepared.target,
        place=_place(prepared),
        original=nets[0],
        subnet=nets[1],
        seconds=start.seconds,
    )
    # last, as its presence says that all is done
    write_atomically(config.out / PICTURE_FILE, draw(comparison), error=ConfigError)
    comparison.save(config.out)
    return comparison


def _place(prepared: Prepared) -> dict[str, Any]:
    hardware, latency = prepared.config.hardware, prepared.latency
    device = latency.table.header.device if latency is not None else hardware.device
    dtype, options = hardware.dtype, dict(hardware.options)
    if latency is not None:
        dtype, options = latency.table.header.dtype, dict(latency.table.header.options)
    if hardware.device != "other":
        with get_backend(**hardware.chosen) as backend:
            device = backend.device()
            dtype, options = backend.dtype, dict(backend.options)
    return {
        "device": device,
        "backend": hardware.backend,
        "dtype": dtype or FLOAT32,
        "options": options,
        "threads": hardware.threads,
        "batch": hardware.batch,
        "input_size": prepared.config.latency_input_size,
    }
