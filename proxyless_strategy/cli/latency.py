"""`proxyless latency`: build, look at, check and convert latency tables.

As in `main`, what imports torch, timm or NNI is imported inside the commands; here scipy, onnx and a backend's runtime
too.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hardware.errors import ConfigError, TableError

from .. import signals
from ..config import key_values
from ..runs.space_table import (
    CALIBRATION_SEED,
    calibrated_on,
    check_same_device,
    choices_named,
    common_candidates,
    costs_of_table,
    latency_model,
    measure_space,
    own_space,
    random_nets,
    space_costs,
    unseen_nets,
)
from .options import Config, Settings, Threads

if TYPE_CHECKING:
    from hardware.measuring.validation import TableCheck
    from hardware.model import LatencyModel
    from hardware.tables.table import LatencyTable
    from search_spaces import SpaceCosts

app = typer.Typer(
    help="Latency tables: build, look at, check and convert them.", no_args_is_help=True, rich_markup_mode=None
)

NAMED_ENTRIES = 8
"""Noisy entries that `check` names; it counts the others."""

Table = Annotated[Path, typer.Argument(metavar="TABLE.yml", help="The latency table.")]
Space = Annotated[str, typer.Option("--space", metavar="NAME", help="The search space, or module:function.")]
OptionalSpace = Annotated[
    str | None, typer.Option("--space", metavar="NAME", help="The search space (default: the table's own).")
]
SpaceOptions = Annotated[
    list[str] | None,
    typer.Option("--space-option", metavar="KEY=VALUE", help="An option of the space, for example stem_stride=1."),
]
InputSize = Annotated[int, typer.Option(min=8, help="Side of the input image in pixels.")]
OptionalInputSize = Annotated[
    int | None, typer.Option("--input-size", min=8, help="Side of the input image (default: the table's own).")
]
Classes = Annotated[int, typer.Option(min=1, help="Classes of the head.")]
OptionalClasses = Annotated[int | None, typer.Option("--classes", min=1, help="Classes (default: the table's own).")]
Channels = Annotated[int, typer.Option(min=1, help="Channels of the input image.")]
OptionalChannels = Annotated[
    int | None, typer.Option("--channels", min=1, help="Channels of the image (default: the table's own).")
]
Batch = Annotated[int, typer.Option(min=1, help="Images per inference.")]
Nets = Annotated[int, typer.Option(min=8, help="Whole nets that the table is calibrated on.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Time after which no round of samples starts.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draw.")]
NewTable = Annotated[Path, typer.Option(metavar="TABLE.yml", help="The table to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


@app.command()
@signals.stopped_in_order()
def build(
    space: Space,
    input_size: InputSize,
    out: NewTable,
    backend: Annotated[str, typer.Option(help="What runs the operators.")] = "onnxruntime",
    space_option: SpaceOptions = None,
    device: Annotated[
        str | None, typer.Option(help="Which of the backend's devices: cpu, cuda:1, ... (default: its own choice).")
    ] = None,
    threads: Threads = 1,
    batch: Batch = 1,
    classes: Classes = 1000,
    channels: Channels = 3,
    nets: Nets = 24,
    seconds: Seconds = 40.0,
    force: Force = False,
) -> None:
    """Measure a space's latency table on this machine. An interrupted build continues when started again."""
    costs, name = space_costs(space, space_option, input_size, classes, channels, by_user=True)
    from hardware.measuring.locks import table_lock
    from hardware.measuring.sampling import Plan
    from hardware.processor import say_if_busy

    _check_new(out, force=force)
    say_if_busy()
    with table_lock(out, wait=False):
        _check_new(out, force=force)
        try:
            table = measure_space(
                costs,
                out,
                name=name,
                backend=backend,
                place=device,
                threads=threads,
                batch=batch,
                nets=nets,
                plan=Plan(rounds=300, seconds=seconds),
            )
        except (KeyboardInterrupt, signals.Stopped):
            if Path(f"{out}.partial").exists():
                typer.echo(f"interrupted; the same command continues from {out}.partial", err=True)
            raise
    _echo_calibration(table)
    _echo_sums(latency_model(table, costs), costs)
    typer.echo(f"table: {out} ({len(table.entries)} operators)")


@app.command()
@signals.stopped_in_order()
def prepare(config: Config, settings: Settings = None) -> None:
    """Measure a search's latency table if it is missing; show its space's extremes."""
    from ..config import load_config

    loaded = load_config(config, key_values(settings or []))
    from hardware.processor import say_if_busy

    from ..runs.prepare import prepare

    say_if_busy()
    table = prepare(loaded, trains=False).table
    typer.echo(f"no table is needed: the search counts {loaded.hardware.cost}" if table is None else f"table: {table}")


@app.command()
def show(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table's file, or a shipped table's name (pixel1).")],
    space: OptionalSpace = None,
    input_size: OptionalInputSize = None,
    space_option: SpaceOptions = None,
    classes: OptionalClasses = None,
    channels: OptionalChannels = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="NET", help="List one net's layers: minimum, maximum, or a candidate for every edge."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="P.png", help="Draw those layers.")] = None,
) -> None:
    """Show what a table is of, how good it is, and what the nets of its space take by it."""
    from hardware.tables.shipped import open_table

    loaded = open_table(table)
    if plot is not None and layers is None:
        raise ConfigError("--plot draws one net; say which with --layers minimum, maximum or a candidate")
    costs = model = None
    own = own_space(loaded)
    function = "" if own is None or ":" not in own[0] else own[0]
    if space is not None or layers is not None or (own is not None and not function):
        costs = costs_of_table(loaded, space, space_option, input_size, classes, channels, file=table)
        model = latency_model(loaded, costs)
    report = model.report(choices_named(layers, model)) if layers is not None and model is not None else None
    _echo_header(table, loaded)
    _echo_calibration(loaded)
    _echo_checks(loaded)
    if model is None or costs is None:
        hint = f" {function}, which header.space of {table} names, if that function is yours," if function else ""
        typer.echo(f"give --space{hint} to see what its nets take")
        return
    _echo_sums(model, costs)
    if report is not None:
        from rich.console import Console

        typer.echo()
        Console(width=120, soft_wrap=True).print(report.render())
        if plot is not None:
            _check_new(plot, force=True)
            report.plot(plot, title=f"{layers} on {loaded.header.device}: {report.total():.3f} {report.unit}")
            typer.echo(f"plot: {plot}")


@app.command()
def check(
    table: Table,
    space: OptionalSpace = None,
    nets: Annotated[int, typer.Option(min=6, help="Held-out nets: half uniform, half of varied depth.")] = 30,
    space_option: SpaceOptions = None,
    input_size: OptionalInputSize = None,
    classes: OptionalClasses = None,
    channels: OptionalChannels = None,
    calibrate: Annotated[
        int | None,
        typer.Option(min=3, metavar="N", help="Fit the calibration anew on N other nets (default: only if it lacks)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="P.png", help="Draw predicted against measured.")] = None,
    seconds: Seconds = 30.0,
    seed: Seed = 1,
) -> None:
    """Measure whole nets that a table has never seen, and compare; the figures go into the table's header."""
    from hardware.measuring.locks import table_lock
    from hardware.measuring.sampling import Plan
    from hardware.measuring.validation import check_table
    from hardware.tables.table import LatencyTable

    loaded = LatencyTable.load(table)
    costs = costs_of_table(loaded, space, space_option, input_size, classes, channels, file=table)
    loaded.check(costs.distinct(), input_size=costs.input_size, batch=loaded.header.batch)
    check_same_device(loaded)
    if plot is not None:
        _check_new(plot, force=True)
    anew = calibrate if calibrate is not None else 0 if loaded.header.calibration else 10
    seen = set(random_nets(costs, calibrated_on(loaded), seed=CALIBRATION_SEED))
    calibration_nets = unseen_nets(costs, anew, seed=seed + 1, seen=seen)
    seen.update(calibration_nets)
    uniform = unseen_nets(costs, nets - nets // 2, seed=seed, seen=seen, depth="uniform")
    seen.update(uniform)
    varied = unseen_nets(costs, nets // 2, seed=seed, seen=seen, depth="varied")
    with table_lock(table, wait=False):
        checked = check_table(
            loaded,
            {"uniform": uniform, "depth-varied": varied},
            calibration_nets=calibration_nets,
            plan=Plan(rounds=200, seconds=seconds),
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        checked.table.save(table)
    _echo_check(checked)
    if plot is not None:
        checked.plot(plot)
        typer.echo(f"plot: {plot}")
    typer.echo(f"figures stored in {table}")


@app.command()
def fit(
    table: Table,
    out: Annotated[Path, typer.Option(metavar="MODEL.json", help="The learned model to write.")],
    space: OptionalSpace = None,
    nets: Annotated[int, typer.Option(min=20, help="Random nets to measure; one fifth is kept for testing.")] = 300,
    space_option: SpaceOptions = None,
    input_size: OptionalInputSize = None,
    classes: OptionalClasses = None,
    channels: OptionalChannels = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time limit of each group of 32 nets.")] = 8.0,
    seed: Seed = 2,
    force: Force = False,
) -> None:
    """Learn a latency model from whole nets, which can predict operators that were never measured (`fill`)."""
    from hardware.measuring import predictor, statistics
    from hardware.measuring.nets import measure_nets
    from hardware.measuring.sampling import Plan
    from hardware.tables.table import LatencyTable

    _check_new(out, force=force)
    loaded = LatencyTable.load(table)
    costs = costs_of_table(loaded, space, space_option, input_size, classes, channels, file=table)
    loaded.check(costs.distinct(), input_size=costs.input_size, batch=loaded.header.batch)
    check_same_device(loaded)
    header = loaded.header
    drawn = random_nets(costs, nets, seed=seed)
    timed = measure_nets(
        drawn,
        backend=header.backend,
        batch=header.batch,
        threads=header.threads,
        table=loaded,
        plan=Plan(rounds=100, minimum_rounds=15, seconds=seconds, extra_rounds=0),
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    measured = [figure.settled_ms for figure in timed]
    model = predictor.fit(drawn, measured, header=header, seed=seed)
    test, _ = predictor.split(nets, seed=seed)
    by_table = statistics.figures([loaded.calibrated_ms(drawn[i]) for i in test], [measured[i] for i in test])
    model.save(out)
    typer.echo(f"{len(test)} test nets of {nets}:")
    typer.echo(f"  {'learned model':16}{_figures(model.figures['test'])}")
    typer.echo(f"  {'table':16}{_figures(by_table)}")
    typer.echo(f"model: {out}")


@app.command()
def fill(
    model: Annotated[Path, typer.Argument(metavar="MODEL.json", help="A model that `fit` wrote.")],
    space: Space,
    out: NewTable,
    input_size: OptionalInputSize = None,
    table: Annotated[
        Path | None, typer.Option(metavar="TABLE.yml", help="Keep what this table has, and predict the rest.")
    ] = None,
    space_option: SpaceOptions = None,
    classes: Classes = 1000,
    channels: Channels = 3,
    force: Force = False,
) -> None:
    """Predict operators that were never measured (another width or input size), each marked as predicted."""
    from hardware.measuring.predictor import LearnedModel
    from hardware.tables.table import LatencyTable

    _check_new(out, force=force)
    learned = LearnedModel.load(model)
    size = input_size or learned.header.input_size
    costs, name = space_costs(space, space_option, size, classes, channels, by_user=True)
    if table is None:
        filled = learned.table(costs.distinct(), input_size=size)
        filled = dataclasses.replace(filled, header=dataclasses.replace(filled.header, space=name))
    else:
        measured = LatencyTable.load(table)
        if measured.header.input_size != size:
            raise TableError(
                f"{table} was measured at input size {measured.header.input_size}, not {size}; leave out --table to "
                "predict every operator"
            )
        filled = learned.fill(measured, costs.distinct())
    filled.save(out)
    predicted = sum(entry.predicted for entry in filled.entries.values())
    _echo_sums(latency_model(filled, costs), costs)
    typer.echo(f"table: {out} ({predicted} of {len(filled.entries)} operators predicted)")


@app.command()
def kit(
    space: Space,
    input_size: InputSize,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The kit's folder; new or empty.")],
    space_option: SpaceOptions = None,
    batch: Batch = 1,
    classes: Classes = 1000,
    channels: Channels = 3,
    nets: Nets = 24,
    held_out: Annotated[int, typer.Option(min=0, help="Further whole nets, to check the table by.")] = 16,
    tflite: Annotated[bool, typer.Option("--tflite", help="Also write .tflite files (extra `litert`).")] = False,
) -> None:
    """Write a folder to copy to any device with Python and onnxruntime, and measure there."""
    from hardware.measuring.kit import write_kit

    costs, name = space_costs(space, space_option, input_size, classes, channels, by_user=True)
    _check_new(out, force=True, folder=True)
    calibration = random_nets(costs, nets, seed=CALIBRATION_SEED)
    script = write_kit(
        costs.distinct(),
        calibration,
        out,
        input_size=input_size,
        batch=batch,
        space=name,
        held_out=unseen_nets(costs, held_out, seed=1, seen=set(calibration)),
        tflite=tflite,
        progress=sys.stderr.isatty(),
    )
    typer.echo(f"kit: {out} ({len(costs.distinct())} operators, {nets + held_out} whole nets)")
    typer.echo(f"copy the folder to the device, run `python {script.name}` there, and bring results.json back:")
    typer.echo("  proxyless latency import results.json --out TABLE.yml")


@app.command("import")
def import_(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="What a kit's measure.py wrote.")],
    out: NewTable,
    force: Force = False,
) -> None:
    """Make the table of a device from the results of its kit."""
    from hardware.measuring.kit import import_results
    from hardware.measuring.locks import table_lock

    _check_new(out, force=force)
    table = import_results(results)
    with table_lock(out, wait=False):
        _check_new(out, force=force)
        table.save(out)
    _echo_calibration(table)
    _echo_checks(table)
    typer.echo(f"table: {out} ({len(table.entries)} operators of {table.header.device})")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="TABLE", help="A table released by ProxylessNAS or Once-for-all, or one of ours.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.yml", help="The file to write.")],
    device: Annotated[str, typer.Option(help="A released table's device in words (default: the file's name).")] = "",
    proxylessnas: Annotated[
        bool, typer.Option("--proxylessnas", help="Write ProxylessNAS's dialect (the default for a table of ours).")
    ] = False,
    force: Force = False,
) -> None:
    """Read a released table of either dialect into our format, or write a table in ProxylessNAS's dialect."""
    from hardware.tables import released as formats
    from hardware.tables.shipped import open_table, shipped_names
    from hardware.tables.table import FORMAT, load_yaml

    _check_new(out, force=force)
    if source in shipped_names():
        ours = True
    else:
        document = load_yaml(Path(source))
        ours = isinstance(document, dict) and document.get("format") == FORMAT
    table = open_table(source) if ours else formats.read_released(source, device=device)
    if ours or proxylessnas:
        formats.write_proxylessnas(table, out)
        typer.echo(f"table: {out} ({len(table.entries)} operators, ProxylessNAS's dialect)")
    else:
        table.save(out)
        typer.echo(f"table: {out} ({len(table.entries)} operators of {table.header.device}, uncalibrated)")


# ---- files and devices -------------------------------------------------------------------------------------------


def _check_new(path: Path, *, force: bool, folder: bool = False) -> None:
    """Refuse a file that exists, or that cannot be written, before anything is measured."""
    if not folder and path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file in it")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; give another name, or --force to replace it")
    existing = path if folder else path.absolute().parent
    while not existing.exists():
        existing = existing.absolute().parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"cannot write {path}: {existing} is no folder that may be written to; choose another place")


# ---- what is printed ---------------------------------------------------------------------------------------------


def _echo_header(name: str, table: LatencyTable) -> None:
    header = table.header
    predicted = sum(entry.predicted for entry in table.entries.values())
    count = f"{len(table.entries)} operators" + (f" ({predicted} predicted)" if predicted else "")
    threads = f"{header.threads} thread{'s' * (header.threads > 1)}"
    load = "" if header.load_average is None else f", load {header.load_average:.2f}"
    versions = ", ".join(f"{library} {version}" for library, version in header.versions.items())
    rows = {
        "table": f"{name}: {count} of {header.space or 'an unnamed space'} at {header.input_size} px",
        "device": header.device + (f" ({header.place})" if header.place not in ("", "cpu") else ""),
        "runtime": f"{header.backend}, {threads}, batch {header.batch}, {header.dtype}",
        "versions": versions,
        "measured": f"{header.created or 'date unknown'}, {header.repeats} samples or more of each operator{load}",
        "source": header.source,
    }
    for label, text in rows.items():
        if text:
            typer.echo(f"{label:14}{text}")


def _echo_calibration(table: LatencyTable) -> None:
    calibration = table.header.calibration
    if calibration is None:
        typer.echo(f"{'calibration':14}none: its sums are uncalibrated")
        return
    figures = calibration.figures.get("calibrated")
    quality = f"; {_figures(figures)} on them" if isinstance(figures, dict) else ""
    typer.echo(
        f"{'calibration':14}{calibration.scale:.4f} x sum {calibration.offset_ms:+.4f} ms, "
        f"from {calibration.nets} whole nets{quality}"
    )


def _echo_checks(table: LatencyTable) -> None:
    together = (table.header.checks or {}).get("together")
    if isinstance(together, dict) and isinstance(calibrated := together.get("calibrated"), dict):
        typer.echo(f"{'checked':14}{_figures(calibrated)} on {table.header.checks.get('nets', '?')} held-out nets")


def _figures(figures: Mapping[str, float]) -> str:
    found = [figures.get(name) for name in ("rmse_ms", "mape", "spearman", "kendall")]
    rmse, mape, *ranks = (value if isinstance(value, (int, float)) else math.nan for value in found)
    return f"RMSE {rmse:.4f} ms, MAPE {100 * mape:.2f} %, Spearman {ranks[0]:.3f}, Kendall {ranks[1]:.3f}"


def _echo_sums(model: LatencyModel, costs: SpaceCosts) -> None:
    """Print what the fixed parts, the nets of one candidate, the extremes and the average net of a space take."""
    # At alpha = 0 every candidate that an edge has is equally probable.
    used = model.mask.sum(axis=1, keepdims=True)
    rows = {"fixed parts": model.fixed_ms}
    rows |= {f"all {name}": model.latency(dict.fromkeys(model.labels, name)) for name in common_candidates(model)}
    rows |= {
        "minimum": model.minimum()[0],
        "maximum": model.maximum()[0],
        "E[LAT] at alpha = 0": float(model.expected(model.mask / used)),
    }
    typer.echo(f"\n{costs.space} at {costs.input_size} px, {model.unit}")
    for label, value in rows.items():
        typer.echo(f"  {label:20}{value:12.4f}")


def _echo_check(check: TableCheck) -> None:
    from rich.console import Console

    Console(width=100).print(check.render())
    typer.echo(f"the machine was {check.drift:.3f} x as slow as when the table was built")
    spreads: dict[str, Any] = {key: check.table.entries[key].spread for key in check.noisy}
    _echo_some("noisy", [f"{key} (spread {100 * spread:.0f} %)" for key, spread in spreads.items()])
    pairs = [
        f"{small} takes {check.table.entries[small].ms:.4f} ms, more than {large} ({check.table.entries[large].ms:.4f})"
        for small, large in check.unordered
    ]
    _echo_some("non-monotone", pairs)


def _echo_some(title: str, lines: Sequence[str]) -> None:
    """Print the first lines of a list, and how many there are."""
    typer.echo(f"{title} entries: {len(lines) or 'none'}")
    for line in lines[:NAMED_ENTRIES]:
        typer.echo(f"  {line}")
    if len(lines) > NAMED_ENTRIES:
        typer.echo(f"  ... and {len(lines) - NAMED_ENTRIES} more")
