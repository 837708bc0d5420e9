"""The command line, `proxyless`. Heavy imports wait until a command runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from hardware.errors import ProxylessError
from search_spaces._nni import silence_false_alarms

from . import latency_cli
from .cli_options import Config, Preset, Settings, key_values

app = typer.Typer(
    help="Hardware-aware neural architecture search that ends in a timm model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(latency_cli.app, name="latency")


@app.command()
def search(config: Config, settings: Settings = None, preset: Preset = None) -> None:
    """Search once: supernet, subnet, retraining, export, measured latency."""
    from proxyless_strategy.trial import read_config

    loaded = read_config(config, key_values(settings or []), preset=preset)
    from proxyless_strategy.search import run_search

    for name, value in run_search(loaded).row().items():
        typer.echo(f"{name}: {value}")


@app.command()
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
) -> None:
    """Run an NNI experiment to its end, on loopback, and gather its models."""
    from proxyless_strategy.experiment import run_experiment

    run_experiment(config, port=port, out=out, preset=preset, only=key_values(only or [], option="--only"))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that timm loads as local-dir:FOLDER.")],
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to write.")],
    batch: Annotated[int, typer.Option(min=1, help="Images in the file's fixed batch.")] = 1,
) -> None:
    """Write an exported model as one ONNX file, compared with PyTorch."""
    from proxyless_strategy.export import export_onnx

    written = export_onnx(folder, onnx, batch=batch)
    typer.echo(f"{written.path}: outputs differ from PyTorch's by {written.max_abs_difference:.1e} at most")


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
    from proxyless_strategy.importing import import_released

    folder = import_released(config, checkpoint, out, input_size=input_size)
    weights = "random weights, as no checkpoint was given" if checkpoint is None else f"the weights of {checkpoint}"
    typer.echo(f"{folder}: {weights}")


class SpreadOptions(typer.core.TyperCommand):
    """Lets a repeatable option take several values at once: `--batch 1 8` is `--batch 1 --batch 8`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        option, values = "", 0
        for argument in args:
            if argument.startswith("-"):
                option, values = argument, 0
            elif option in repeatable:
                values += 1
                spread += [option] if values > 1 else []
            spread.append(argument)
        return super().parse_args(ctx, spread)


@app.command(cls=SpreadOptions)
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
    threads: Annotated[int, typer.Option(min=1, help="Threads of one inference.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to measure on each backend.")] = 25.0,
) -> None:
    """Compare networks: latency, size, activation memory and published accuracy."""
    from rich.console import Console

    from hardware.measure import Plan
    from proxyless_strategy import benchmark as bench

    measured = bench.run_benchmark(
        models or bench.DEFAULT_MODELS,
        backends=backends or bench.BACKENDS,
        batches=batch or bench.BATCHES,
        input_size=input_size,
        threads=threads,
        plan=Plan(rounds=400, minimum_rounds=8, seconds=seconds),
        say=typer.echo,
    )
    console = Console()
    Console(width=max(console.width, bench.TABLE_WIDTH)).print(measured.table())
    typer.echo("\n".join(str(path) for path in bench.save_benchmark(measured, out)))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The `out` of a search or an experiment.")],
    out: Annotated[Path | None, typer.Option(help="The picture (default: FOLDER/report.png).")] = None,
) -> None:
    """Draw finished searches: expected latency on its way to the target, and the derived subnets."""
    from proxyless_strategy.report.pictures import draw_searches

    typer.echo(draw_searches(folder, out or folder / "report.png"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0, 2 for what the user can mend, 130 after Ctrl-C.

    Typer itself turns a wrong command line and Ctrl-C into exit statuses.

    Raises:
        SystemExit: Always.
    """
    silence_false_alarms()
    try:
        app(arguments, prog_name="proxyless")
    except ProxylessError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
