"""The command line, `proxyless`: one function a command, its docstring the help.

What imports torch, timm or NNI is imported inside the commands, so that `--help` and a wrong command line take half a
second rather than four.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hardware.child_process import wait_passively
from hardware.errors import ConfigError, ExportError, ProxylessError
from hardware.reading import Kind, cut, read_json
from search_spaces.nni_import import silence_false_alarms

from .. import signals
from ..config import key_values
from . import data as data_cli
from . import latency as latency_cli
from . import shrink as shrink_cli
from .answers import Answer, answers
from .doctor import doctor
from .init import init
from .lists import list_command
from .options import Config, Force, Preset, Settings, SpreadOptions, Threads, check_unused, say_version

app = typer.Typer(
    help="Hardware-aware neural architecture search that ends in a timm model.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(latency_cli.app, name="latency")
app.add_typer(data_cli.app, name="data")
app.command()(shrink_cli.shrink)
app.command("list")(list_command)
app.command()(doctor)
app.command()(init)


@app.callback()
def commands(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=say_version, help="Say which version this is."),
    ] = False,
) -> None:
    """Hardware-aware neural architecture search that ends in a timm model."""


@app.command()
@answers
@signals.stopped_in_order()
def search(config: Config, settings: Settings = None, preset: Preset = None) -> dict[str, Any] | Answer:
    """Search once: supernet, subnet, retraining, export, measured latency; with a section `shrink` as `shrink` does."""
    from ..config import load_config

    loaded = load_config(config, key_values(settings or []), preset=preset)
    if loaded.shrink is not None:
        return shrink_cli.run(loaded)
    from ..runs.search import run_search
    from ..world import find_world
    from .next_steps import echo_result, next_commands

    row = run_search(loaded).row()
    commands = next_commands(loaded)
    # of a search that had ended before; after others the further processes are gone
    if not find_world(loaded.search.devices, loaded.search.nodes).first:
        return Answer(spoken=False)
    echo_result(row, commands)
    return {**row, "next": commands}


@app.command()
@answers
def experiment(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The nnictl config.")],
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of NNI's web page (default: 8080, or a free one)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results instead of the search config's `out`.")
    ] = None,
    preset: Preset = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Run only the part of the sweep with this value, hardware=cpu."),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(min=0, max=100, help="Starts again, from its last checkpoint, of a trial that ends badly."),
    ] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the experiment in the folder, whatever ended it.")
    ] = False,
    engine: Annotated[str, typer.Option(metavar="nni|ray", help="What runs the trials: NNI, or Ray Tune.")] = "nni",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|auto", help="Ray cluster to join (default: one of this machine, on loopback)."),
    ] = None,
) -> dict[str, Any]:
    """Run an experiment's sweep to its end, by NNI on loopback or by Ray, and gather its models."""
    from ..runs.engines import choose_engine
    from ..runs.experiment import run_experiment

    chosen = choose_engine(engine, port=port, address=address)
    narrowed = key_values(only or [], option="--only")
    rows = run_experiment(config, engine=chosen, out=out, preset=preset, only=narrowed, retries=retries, resume=resume)
    return {"rows": rows}


@app.command()
@answers
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that timm loads as local-dir:FOLDER.")],
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to write.")],
    batch: Annotated[int, typer.Option(min=1, help="Images in the file's fixed batch.")] = 1,
    dtype: Annotated[
        str, typer.Option(help="float32; or int8, for the model of a search: calibrated on its architecture images.")
    ] = "float32",
) -> dict[str, Any]:
    """Write an exported model as one ONNX file, compared with PyTorch; in int8 by its accuracy on test images."""
    if dtype not in ("float32", "int8"):
        raise ConfigError(f"--dtype {cut(dtype)} is no number format of an export; give float32 or int8")
    if dtype == "int8":
        from hardware.onnx_runtime import WHERE_DEPLOYED

        from ..runs.quantised import export_quantised

        made = export_quantised(folder, onnx, batch=batch)
        assert made.accuracy is not None  # as it was to be judged
        exact = "" if made.float_accuracy is None else f", in float32 {100 * made.float_accuracy:.2f} %"
        typer.echo(
            f"{made.path}: int8, calibrated on {made.calibration_images} architecture images; "
            f"{100 * made.accuracy:.2f} % of {made.test_images} test images right{exact}; {WHERE_DEPLOYED}"
        )
        return dataclasses.asdict(made) | {"onnx": made.path}
    from ..export.onnx import export_onnx

    written = export_onnx(folder, onnx, batch=batch)
    typer.echo(f"{written.path}: outputs differ from PyTorch's by {written.max_abs_difference:.1e} at most")
    return {"onnx": written.path, "max_abs_difference": written.max_abs_difference}


@app.command()
@answers
@signals.stopped_in_order()
def retrain(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An export folder.")],
    data: Annotated[Path, typer.Option(metavar="ROOT", help="Root of the images.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="For the checkpoint and the new export folder, DIR/model.")],
    recipe: Annotated[
        str, typer.Option(metavar="NAME_OR_FILE", help="finetune, imagenet, cifar, quick, or a YAML file.")
    ] = "imagenet",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting of the recipe.")
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="NAME", help="Kind of data, as data.name of a search: torchvision:CIFAR10, ...")
    ] = "imagefolder",
    devices: Annotated[int, typer.Option(min=1, help="Processes on each host, each with its share of a batch.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts, where torchrun or srun starts the processes.")] = 1,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_FOLDER", help="Learn from a model of timm, or from an export folder (./DIR)."),
    ] = None,
) -> dict[str, Any] | Answer:
    """Train an exported network by a recipe; a run that was killed continues.

    With --recipe finetune, or weights=inherited, it starts from the folder's weights; else these are not read.
    """
    from ..export.folder import METRICS
    from ..retraining.folder import retrain as retrain_folder
    from ..retraining.folder import test_part
    from ..retraining.recipe import load_recipe
    from ..world import find_world

    given = key_values(settings or [])
    if teacher is not None:
        if "teacher" in given:
            raise ConfigError(f"--teacher {teacher} and --set teacher={given['teacher']} are both given; keep one")
        given["teacher"] = teacher
    loaded = load_recipe(recipe, given)
    written = retrain_folder(folder, data=data, recipe=loaded, out=out, source=source, devices=devices, nodes=nodes)
    if not find_world(devices, nodes, adopts=True).first:
        return Answer(spoken=False)
    metrics = read_json(written / METRICS, Kind("the metrics", "train again", ExportError))
    part = test_part(source, data)
    typer.echo(f"{written}: top-1 {metrics['accuracy']:.4f}, top-5 {metrics['top5']:.4f} on {part}")
    return {"folder": written, "part": part, **metrics}


@app.command()
@answers
@signals.stopped_in_order("nothing is half written; repeat the command")
def derive(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The `out` of a finished search.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The export folder, or with --curve a folder for it.")],
    target: Annotated[
        float | None, typer.Option(help="Budget, in the unit of the search's target (ms, millions of MACs, ...).")
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="The whole trade-off as a table and a picture.")] = False,
    points: Annotated[int, typer.Option(min=2, help="Budgets on the curve.")] = 20,
    space: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="The search's space, where it is your own function.")
    ] = None,
    force: Force = False,
) -> dict[str, Any]:
    """Derive another subnet, or the whole trade-off, from a search that is finished."""
    from ..runs.derive import CURVE_FILES, save_curve
    from ..runs.derive import derive as derive_into

    if curve == (target is not None):
        raise ConfigError("give either --target or --curve")
    check_unused(out, CURVE_FILES if curve else (), force=force)
    if target is not None:
        derived = derive_into(folder, target=target, out=out, space=space)
        typer.echo(f"{derived.folder}: {' '.join(derived.choices.values())}, {derived.cost:.4g} {derived.unit}")
        return dataclasses.asdict(derived)
    rows = save_curve(folder, out=out, points=points, space=space)
    for row in rows:
        typer.echo(f"{row['cost']:.5g} {row['unit']}  log p {row['log_probability']:8.2f}  {row['subnet']}")
    typer.echo(f"{out / 'curve.png'}: {len(rows)} distinct subnets for {points} budgets")
    return {"rows": rows, "budgets": points, "picture": out / "curve.png"}


@app.command("import-released")
def import_released_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.json", help="A network of ProxylessNAS's release.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The export folder to write.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="[CHECKPOINT.pth]", help="Its weights; none: random ones.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels (default: as the config or its name says, else 224).")
    ] = None,
) -> None:
    """Turn a released ProxylessNAS network into a folder that timm loads as local-dir:DIR."""
    from ..export.released import import_released

    folder = import_released(config, checkpoint, out, input_size=input_size)
    weights = "random weights, as no checkpoint was given" if checkpoint is None else f"the weights of {checkpoint}"
    typer.echo(f"{folder}: {weights}")


@app.command(cls=SpreadOptions)
@answers
def benchmark(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the table, JSON and picture.")],
    models: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME_OR_FOLDER...", help="Of timm or torchvision, or export folders (default: a few)."),
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option(metavar="BACKEND...", help="onnxruntime, torch (default: both).")
    ] = None,
    input_size: Annotated[int | None, typer.Option(min=1, help="Pixels (default: each model's own).")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, metavar="N...", help="Images (default: 1 and 8).")] = None,
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to measure on each backend.")] = 25.0,
    force: Force = False,
) -> dict[str, Any]:
    """Compare networks: latency, size, activation memory and published accuracy."""
    from rich.console import Console

    from hardware.measuring.sampling import Plan

    from ..benchmark import run as bench
    from ..benchmark.models import DEFAULT_MODELS
    from ..benchmark.result import TABLE_WIDTH

    check_unused(out, bench.FILES, force=force)
    bench.check_out(out)
    measured = bench.run_benchmark(
        models or DEFAULT_MODELS,
        backends=backends or bench.BACKENDS,
        batches=batch or bench.BATCHES,
        input_size=input_size,
        threads=threads,
        plan=Plan(rounds=400, minimum_rounds=8, seconds=seconds),
        say=typer.echo,
    )
    console = Console()
    Console(width=max(console.width, TABLE_WIDTH)).print(measured.table())
    typer.echo("\n".join(str(path) for path in bench.save_benchmark(measured, out)))
    return measured.to_dict()


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The `out` of a search or an experiment.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One file: the page .html, the picture .png or .pdf, the architecture .svg, its film .gif "
            "(default: page and .png).",
        ),
    ] = None,
) -> None:
    """Show finished searches, in FOLDER/report.html and FOLDER/report.png: costs, probabilities, derived subnets."""
    from ..report.film import draw_architecture, draw_film
    from ..report.page import write_page
    from ..report.pictures import draw_searches

    writers = {
        ".html": write_page,
        ".png": draw_searches,
        ".svg": draw_architecture,
        ".pdf": draw_searches,
        ".gif": draw_film,
    }
    for path in [folder / "report.html", folder / "report.png"] if out is None else [out]:
        if path.suffix not in writers:
            raise ConfigError(f"{path} is neither a page nor a picture; end its name with {', '.join(writers)}")
        typer.echo(writers[path.suffix](folder, path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: with 0, with 2 for what the user can mend, with 130 after Ctrl-C and 143 after SIGTERM.

    Typer itself turns a wrong command line and Ctrl-C into exit statuses.

    Raises:
        SystemExit: Always.
    """
    wait_passively()
    silence_false_alarms()  # NNI raises them when a command imports it
    try:
        app(arguments, prog_name="proxyless")
    except ProxylessError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
