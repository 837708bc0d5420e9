"""What a user may do next with a finished search: commands and code to copy."""

from __future__ import annotations

from hardware.reading import is_there

from ..layout import HUB_FILE, MODEL
from ..runs.finished import FinishedRun
from ..runs.next_commands import benchmark_command, derive_command, retrain_command


def next_steps(search: FinishedRun) -> list[tuple[str, str]]:
    """Return what to do next and how, each as text; paths are absolute, and quoted for a shell or for Python."""
    folder = search.folder.resolve()
    model = folder / MODEL
    beside = folder.parent / f"{folder.name}-next"
    space = str(search.settings["space"]["name"])
    curve = derive_command(folder, "--curve", out=beside / "curve", space=space)
    steps = [("The whole trade-off of this search", curve)]
    target = _other_target(search)
    if target is not None:
        words = f"Another subnet of the same search, here within {target} {search.unit}"
        steps.insert(0, (words, derive_command(folder, "--target", target, out=beside / "model", space=space)))
    if not is_there(model / HUB_FILE):
        return steps
    compared = benchmark_command(model, "mobilenetv2_100", "proxylessnas_mobile", out=beside / "benchmark")
    return [
        *steps,
        ("Train it again by a recipe", retrain_command(model, search.settings, out=beside / "retrained")),
        ("Compare it with known networks", compared),
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
