"""What a user may do next with a finished search: commands and code to copy."""

from __future__ import annotations

import shlex
from pathlib import Path

from hardware.reading import is_there

from ..layout import HUB_FILE, MODEL
from ..runs.finished import FinishedRun

_LARGE_IMAGES = 128
"""Pixels from which on images are trained on like ImageNet's."""


def next_steps(search: FinishedRun) -> list[tuple[str, str]]:
    """Return what to do next and how, each as text; paths are absolute, and quoted for a shell or for Python."""
    folder = search.folder.resolve()
    model = folder / MODEL
    beside = folder.parent / f"{folder.name}-next"
    name = str(search.settings["space"]["name"])
    space = ["--space", name] if ":" in name and not name.startswith("timm:") else []
    derive = ["proxyless", "derive", str(folder), *space]
    target = _other_target(search)
    steps = [("The whole trade-off of this search", _command(*derive, "--curve", "--out", str(beside / "curve")))]
    if target is not None:
        words = f"Another subnet of the same search, here within {target} {search.unit}"
        steps.insert(0, (words, _command(*derive, "--target", target, "--out", str(beside / "model"))))
    if not is_there(model / HUB_FILE):
        return steps
    data = search.settings["data"]
    source = str(data["name"])
    kind = [] if source == "imagefolder" else ["--source", source]
    pixels = search.settings.get("input_size")
    recipe = "imagenet" if isinstance(pixels, int) and pixels >= _LARGE_IMAGES else "cifar"
    root = data.get("root")
    where = str(root) if isinstance(root, str) else "." if source == "digits" else "ROOT"
    retrain = ["proxyless", "retrain", str(model), "--data", where, *kind, "--recipe", recipe]
    return [
        *steps,
        ("Train it again by a recipe", _command(*retrain, "--out", str(beside / "retrained"))),
        ("Compare it with known networks", _command(*_benchmark(model), "--out", str(beside / "benchmark"))),
        (
            "Use it with timm",
            "# registers its architectures with timm\nimport proxyless_strategy\nimport timm\n\n"
            f"model = timm.create_model({f'local-dir:{model}'!r}, pretrained=True)",
        ),
        (
            "Use it with timm alone, without this project",
            f'import torch\n\nmodel = torch.hub.load({str(model)!r}, "model", source="local")',
        ),
    ]


def _benchmark(model: Path) -> list[str]:
    return ["proxyless", "benchmark", "--models", str(model), "mobilenetv2_100", "proxylessnas_mobile"]


def _other_target(search: FinishedRun) -> str | None:
    """Return a budget between the cheapest subnet and this one; None where that is not known."""
    now = search.row.get("subnet_cost")
    if now is None:
        return None
    least = 0.8 * now
    if search.network is not None:
        cheapest = (min(op.cost for op in options.values()) for options in search.network.edges.values() if options)
        least = search.network.fixed + sum(cheapest)
    return f"{(now + least) / 2:.4g}"


def _command(*words: str) -> str:
    return shlex.join(words)
