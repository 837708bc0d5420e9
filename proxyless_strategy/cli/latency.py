"""`proxyless latency`: build, look at, check and convert latency tables.

As in `main`, what imports torch, timm or NNI is imported inside the commands; here scipy, onnx and a backend's runtime
too.
"""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hardware.errors import ConfigError, TableError

from .. import signals
from ..config import key_values
from ..runs.space_table import (
    calibrated_on,
    calibration_nets,
    check_same_device,
    choices_named,
    costs_of_table,
    latency_model,
    measure_space,
    measured_operators,
    own_space,
    random_nets,
    space_costs,
    unseen_nets,
)
from .answers import answers
from .options import Config, Force, Settings, Threads, check_new
from .shown import echo_calibration, echo_check, echo_checks, echo_header, echo_sums, said_figures, table_values

app = typer.Typer(
    help="Latency tables: build, look at, check and convert them.", no_args_is_help=True, rich_markup_mode=None
)

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
Nets = Annotated[int, typer.Option(min=8, help="Random nets that the table is calibrated on, beside the space's ends.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Time after which no round of samples starts.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draw.")]


class ResultsFormat(str, Enum):
    """Who wrote results."""

    kit = "kit"
    trtexec = "trtexec"


NewTable = Annotated[Path, typer.Option(metavar="TABLE.yml", help="The table to write.")]


@app.command()
@answers
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
    dtype: Annotated[
        str | None, typer.Option(help="Number format that is measured: float32, int8, ... (default: float32).")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the backend; `proxyless list backends`."),
    ] = None,
    threads: Threads = 1,
    batch: Batch = 1,
    classes: Classes = 1000,
    channels: Channels = 3,
    nets: Nets = 24,
    seconds: Seconds = 40.0,
    force: Force = False,
) -> dict[str, Any]:
    """Measure a space's latency table on this machine. An interrupted build continues when started again."""
    costs, name = space_costs(space, space_option, input_size, classes, channels, by_user=True)
    from hardware.measuring.locks import table_lock
    from hardware.measuring.sampling import Plan
    from hardware.processor import say_if_busy

    check_new(out, force=force)
    options = key_values(option or [], option="--option")
    say_if_busy()
    with table_lock(out, wait=False):
        check_new(out, force=force)
        try:
            table = measure_space(
                costs,
                out,
                name=name,
                backend=backend,
                place=device,
                dtype=dtype,
                options=options,
                threads=threads,
                batch=batch,
                nets=nets,
                plan=Plan(rounds=300, seconds=seconds),
            )
        except (KeyboardInterrupt, signals.Stopped):
            if Path(f"{out}.partial").exists():
                typer.echo(f"interrupted; the same command continues from {out}.partial", err=True)
            raise
    echo_calibration(table)
    sums = echo_sums(latency_model(table, costs), costs)
    typer.echo(f"table: {out} ({len(table.entries)} operators)")
    return {"table": out, **table_values(table), "sums": sums}


@app.command()
@answers
@signals.stopped_in_order()
def prepare(config: Config, settings: Settings = None) -> dict[str, Any]:
    """Measure a search's latency table if it is missing; show its space's extremes."""
    from ..config import load_config

    loaded = load_config(config, key_values(settings or []))
    from hardware.processor import say_if_busy

    from ..runs.prepare import prepare

    say_if_busy()
    prepared = prepare(loaded, trains=False)
    table, cost = prepared.table, prepared.cost
    typer.echo(f"no table is needed: the search counts {loaded.hardware.cost}" if table is None else f"table: {table}")
    extremes = {"minimum": cost.minimum()[0], "maximum": cost.maximum()[0]}
    return {"table": table, "unit": cost.unit, **extremes, "target": prepared.target}


@app.command("list")
@answers
def list_() -> dict[str, Any]:
    """List the tables that ship and those that your searches keep, and say what each is of."""
    from .lists import What, echo_list

    return {"tables": echo_list(What.tables)}


@app.command()
@answers
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
) -> dict[str, Any]:
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
    echo_header(table, loaded)
    echo_calibration(loaded)
    echo_checks(loaded)
    if model is None or costs is None:
        hint = f" {function}, which header.space of {table} names, if that function is yours," if function else ""
        typer.echo(f"give --space{hint} to see what its nets take")
        return {"table": table, **table_values(loaded)}
    sums = echo_sums(model, costs)
    if report is not None:
        from rich.console import Console

        typer.echo()
        Console(width=120, soft_wrap=True).print(report.render())
        if plot is not None:
            check_new(plot, force=True)
            report.plot(plot, title=f"{layers} on {loaded.header.device}: {report.total():.3f} {report.unit}")
            typer.echo(f"plot: {plot}")
    rows = None if report is None else [dataclasses.asdict(row) for row in report.rows]
    return {"table": table, **table_values(loaded), "sums": sums, "layers": rows}


@app.command()
@answers
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
) -> dict[str, Any]:
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
        check_new(plot, force=True)
    anew = calibrate if calibrate is not None else 0 if loaded.header.calibration else 10
    seen = set(calibration_nets(costs, calibrated_on(loaded)))
    fitted = unseen_nets(costs, anew, seed=seed + 1, seen=seen)
    seen.update(fitted)
    uniform = unseen_nets(costs, nets - nets // 2, seed=seed, seen=seen, depth="uniform")
    seen.update(uniform)
    varied = unseen_nets(costs, nets // 2, seed=seed, seen=seen, depth="varied")
    with table_lock(table, wait=False):
        checked = check_table(
            loaded,
            {"uniform": uniform, "depth-varied": varied},
            calibration_nets=fitted,
            plan=Plan(rounds=200, seconds=seconds),
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        checked.table.save(table)
    echo_check(checked)
    if plot is not None:
        checked.plot(plot)
        typer.echo(f"plot: {plot}")
    typer.echo(f"figures stored in {table}")
    found = {"figures": checked.figures(), "drift": checked.drift, "noisy": checked.noisy}
    return {"table": table, **table_values(checked.table), **found, "unordered": checked.unordered}


@app.command()
@answers
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
) -> dict[str, Any]:
    """Learn a latency model from whole nets, which can predict operators that were never measured (`fill`)."""
    from hardware.measuring import predictor, statistics
    from hardware.measuring.nets import measure_nets
    from hardware.measuring.sampling import Plan
    from hardware.tables.table import LatencyTable

    check_new(out, force=force)
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
    typer.echo(f"  {'learned model':16}{said_figures(model.figures['test'])}")
    typer.echo(f"  {'table':16}{said_figures(by_table)}")
    typer.echo(f"model: {out}")
    return {"model": out, "nets": nets, "test_nets": len(test), "figures": model.figures["test"], "by_table": by_table}


@app.command()
@answers
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
) -> dict[str, Any]:
    """Predict operators that were never measured (another width or input size), each marked as predicted."""
    from hardware.measuring.predictor import LearnedModel
    from hardware.tables.table import LatencyTable

    check_new(out, force=force)
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
    sums = echo_sums(latency_model(filled, costs), costs)
    typer.echo(f"table: {out} ({predicted} of {len(filled.entries)} operators predicted)")
    return {"table": out, **table_values(filled), "sums": sums}


@app.command()
@answers
def kit(
    space: Space,
    input_size: InputSize,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The kit's folder; new or empty.")],
    space_option: SpaceOptions = None,
    batch: Batch = 1,
    classes: Classes = 1000,
    channels: Channels = 3,
    dtype: Annotated[str, typer.Option(help="What the graphs are in: float32, or int8 (quantised).")] = "float32",
    nets: Nets = 24,
    held_out: Annotated[int, typer.Option(min=0, help="Further whole nets, to check the table by.")] = 16,
    tflite: Annotated[bool, typer.Option("--tflite", help="Also write .tflite files (extra `litert`).")] = False,
    android: Annotated[
        bool,
        typer.Option("--android", help="For a phone at this computer's adb; .tflite files where they can be written."),
    ] = False,
    full_weights: Annotated[
        bool, typer.Option("--full-weights", help="Weights as a net has them, in larger files; for TensorRT's trtexec.")
    ] = False,
) -> dict[str, Any]:
    """Write a folder to copy to any device with Python and onnxruntime, and measure there."""
    from hardware.measuring.kit import write_kit

    converts = find_spec("litert_torch") is not None
    costs, name = space_costs(space, space_option, input_size, classes, channels, by_user=True)
    check_new(out, force=True, folder=True)
    calibration = calibration_nets(costs, nets)
    script = write_kit(
        measured_operators(costs),
        calibration,
        out,
        input_size=input_size,
        batch=batch,
        space=name,
        dtype=dtype,
        held_out=unseen_nets(costs, held_out, seed=1, seen=set(calibration)),
        tflite=tflite or (android and converts),
        android=android,
        full_weights=full_weights,
        progress=sys.stderr.isatty(),
    )
    typer.echo(
        f"kit: {out} ({len(measured_operators(costs))} operators, {len(calibration) + held_out} whole nets, {dtype})"
    )
    if android:
        if not tflite and not converts:
            typer.echo("it has no .tflite files, as the extra `litert` is not installed; use --runtime onnxruntime")
        typer.echo(
            f"attach the phone, run `python {script.name} --program ...` here (its --help says which), and then:"
        )
    else:
        typer.echo(f"copy the folder to the device, run `python {script.name}` there, and bring results.json back:")
    typer.echo("  proxyless latency import results.json --out TABLE.yml")
    figures = {"operators": len(measured_operators(costs)), "nets": nets, "held_out": held_out, "dtype": dtype}
    return {"kit": out, **figures, "tflite": tflite or (android and converts)}


@app.command("import")
@answers
def import_(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="What a kit's script wrote, or a folder of trtexec's profiles.")
    ],
    out: NewTable,
    format_: Annotated[
        ResultsFormat, typer.Option("--format", help="Whose results they are.", case_sensitive=False)
    ] = ResultsFormat.kit,
    of_kit: Annotated[
        Path | None, typer.Option("--kit", metavar="DIR", help="trtexec: the kit whose graphs it ran.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="trtexec: the device in words.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="trtexec: number format that it was asked for (default: float32).")
    ] = None,
    runtime_version: Annotated[str | None, typer.Option(help="trtexec: TensorRT's version.")] = None,
    force: Force = False,
) -> dict[str, Any]:
    """Make the table of a device from the results of its kit."""
    from hardware.measuring.kit import import_results
    from hardware.measuring.locks import table_lock

    check_new(out, force=force)
    told = {"--kit": of_kit, "--device": device, "--dtype": dtype, "--runtime-version": runtime_version}
    if format_ is ResultsFormat.kit:
        if given := [name for name, value in told.items() if value is not None]:
            raise ConfigError(f"{given[0]} is for --format trtexec; a kit's results say it themselves, so leave it out")
        table = import_results(results)
    else:
        from hardware.measuring.trtexec import import_trtexec

        if of_kit is None or device is None:
            raise ConfigError(
                "profiles of trtexec do not say of which kit and device they are; give --kit and --device"
            )
        version = runtime_version or ""
        table = import_trtexec(results, of_kit, device=device, dtype=dtype or "float32", version=version)
    with table_lock(out, wait=False):
        check_new(out, force=force)
        table.save(out)
    echo_calibration(table)
    echo_checks(table)
    typer.echo(f"table: {out} ({len(table.entries)} operators of {table.header.device})")
    return {"table": out, **table_values(table)}


@app.command()
@answers
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
) -> dict[str, Any]:
    """Read a released table of either dialect into our format, or write a table in ProxylessNAS's dialect."""
    from hardware.tables import released as formats
    from hardware.tables.shipped import open_table, shipped_names
    from hardware.tables.table import FORMAT, load_yaml

    check_new(out, force=force)
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
    return {"table": out, **table_values(table)}
