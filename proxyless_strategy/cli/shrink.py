"""`proxyless shrink`: from a pretrained timm model to a smaller one, in one command.

As in `main`, what imports torch, timm or NNI is imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hardware.errors import ConfigError
from search_spaces.from_timm.paths import FOLDER, PREFIX

from .. import signals
from ..config import SearchConfig, config_of, key_values
from .answers import answers
from .options import Settings


@answers
@signals.stopped_in_order()
def shrink(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="timm's name of a model of MBConv blocks, or an export folder.")
    ],
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="Root of the images: train/CLASS/* and val/CLASS/*.")],
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="0.6x of the model's own latency on the device, 1.2ms, or 0.5 of the way from the fastest subnet.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything; one that was begun goes on.")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Weights of the model (default: its pretrained ones)."),
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="NAME", help="Kind of data, as data.name of a search: torchvision:CIFAR10, ...")
    ] = "imagefolder",
    input_size: Annotated[
        int | None, typer.Option(min=8, help="Side of the images in pixels (default: the model's own).")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=4, help="Epochs that each of both networks is trained in all (default: by the images)."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the network (default: onnxruntime).")] = None,
    device: Annotated[
        str | None, typer.Option(help="Which of the backend's devices: cpu, cuda:1, ... (default: its own choice).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that one inference may use (default: 1).")] = None,
    settings: Settings = None,
) -> dict[str, Any]:
    """Make a pretrained timm model smaller on your images and device, and compare it with itself, fine-tuned alike."""
    given: dict[str, Any] = {
        "space.name": space_name(model),
        "space.options.weights": None if weights is None else str(weights),
        "data.name": source,
        "data.root": data,
        "input_size": input_size,
        "shrink.epochs": epochs,
        "hardware.backend": backend,
        "hardware.device": device,
        "hardware.threads": threads,
        "out": out,
        **target_of(target),
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    values: dict[str, Any] = {"shrink": {}}
    return run(
        config_of(values, {**chosen, **key_values(settings or [])}, folder=Path.cwd(), source="the command line")
    )


def run(config: SearchConfig) -> dict[str, Any]:
    """Shrink, print the comparison as the last thing, and return it."""
    from rich.console import Console

    from ..shrinking.comparison import TABLE_WIDTH
    from ..shrinking.story import run_shrink

    comparison = run_shrink(config)
    typer.echo("\n".join(comparison.sentences()))
    console = Console()
    Console(width=max(console.width, TABLE_WIDTH)).print(comparison.table())
    return comparison.to_dict()


def space_name(model: str) -> str:
    """Return the space of a model by timm's name of it, or by the path of an export folder."""
    if model.startswith(PREFIX):
        return model
    return f"{PREFIX}{FOLDER}{model}" if Path(model).is_dir() else f"{PREFIX}{model}"


def target_of(text: str) -> dict[str, Any]:
    """Read a target of the command line: `0.6x`, `1.2ms`, or a fraction of the space's range.

    >>> target_of("0.6x"), target_of("1.2ms"), target_of("0.5")
    ({'target': '0.6x'}, {'target_ms': 1.2}, {'target': 0.5})

    Raises:
        ConfigError: It is none of them.
    """
    name, number = ("target_ms", text[:-2]) if text.endswith("ms") else ("target", text)
    if text.endswith("x"):
        return {"target": text}
    try:
        return {name: float(number)}
    except ValueError as error:
        raise ConfigError(f"--target {text} is no target; write 0.6x, 1.2ms, or a fraction such as 0.5") from error
