"""`proxyless init`: a search config for a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hardware.errors import ConfigError

from .answers import answers
from .options import check_new

Pictures = Annotated[
    Path, typer.Argument(metavar="DATA_FOLDER", help="Pictures in DATA_FOLDER/train/CLASS and DATA_FOLDER/val/CLASS.")
]
Out = Annotated[Path, typer.Option(metavar="FILE.yml", help="The search config to write; a new file.")]
Split = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Link the pictures of DATA_FOLDER/CLASS into train and val of this new folder."),
]


@answers
def init(
    data: Pictures,
    out: Out = Path("search.yml"),
    backend: Annotated[str, typer.Option(help="What measures latencies.")] = "onnxruntime",
    device: Annotated[
        str | None, typer.Option(help="Which of the backend's devices: cpu, cuda:1, ... (default: its own choice).")
    ] = None,
    split: Split = None,
) -> dict[str, Any]:
    """Look at a folder of pictures, and write a commented search config for it that `search` runs as it is."""
    if out.exists():
        raise ConfigError(f"{out} exists, perhaps with changes of yours; give another name with --out, or remove it")
    check_new(out, force=False)
    import torch

    from hardware.backends import get_backend
    from hardware.files import write_atomically
    from hardware.processor import cores

    from ..config import load_config
    from ..data.survey import divide, survey
    from ..runs.proposal import propose, search_yaml

    get_backend(backend, device).close()
    if split is not None:
        divide(data, split)
        data = split
    found = survey(data)
    proposal = propose(found, on_gpu=torch.cuda.is_available(), cores=cores())
    write_atomically(out, search_yaml(found, proposal, backend=backend, device=device, out=out))
    config = load_config(out)
    settings = config.search
    typer.echo(
        f"{found.images} training pictures in {len(found.train)} classes, of {found.side} pixels: input size "
        f"{config.input_size}, {settings.warmup_epochs} + {settings.epochs} epochs of {settings.batch_size} images a "
        f"step, {proposal.retrain_epochs} epochs of retraining"
    )
    typer.echo(f"next:\n  proxyless search {out}")
    return {"config": out, "images": found.images, "classes": list(found.train), "settings": config.identity()}
