"""Which spaces of NNI's hub the strategies search: `python -m tests.benchmarks.drop_in` prints JSON on its last line.

Each search takes a weight step and an architecture step on random images, exports, freezes, and runs the frozen net.
Spaces are narrower and shallower than their defaults where their constructors allow it.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.hub import pytorch as hub
from nni.nas.strategy import Proxyless
from torch.utils.data import TensorDataset

from proxyless_strategy.strategy.proxyless import ProxylessStrategy

CLASSES = 10
NDS: dict[str, Any] = {"width": 4, "num_cells": 3, "dataset": "cifar"}

SPACES: dict[str, Callable[[], Any]] = {
    "ProxylessNAS": lambda: hub.ProxylessNAS(num_labels=CLASSES, width_mult=0.25),
    "ShuffleNetSpace": lambda: hub.ShuffleNetSpace(num_labels=CLASSES),
    "ShuffleNetSpace, channel_search": lambda: hub.ShuffleNetSpace(num_labels=CLASSES, channel_search=True),
    "NasBench101": lambda: hub.NasBench101(stem_out_channels=8, num_stacks=2, num_modules_per_stack=1),
    "NasBench201": lambda: hub.NasBench201(stem_out_channels=4, num_modules_per_stack=1),
    "DARTS": lambda: hub.DARTS(**NDS),
    "DARTS, depth searched": lambda: hub.DARTS(**{**NDS, "num_cells": (3, 6)}),
    "DARTS, width searched": lambda: hub.DARTS(**{**NDS, "width": (4, 8)}),
    "PNAS": lambda: hub.PNAS(**NDS),
    "NASNet": lambda: hub.NASNet(**NDS),
    "ENAS": lambda: hub.ENAS(**NDS),
    "AmoebaNet": lambda: hub.AmoebaNet(**NDS),
    "MobileNetV3Space": lambda: hub.MobileNetV3Space(num_labels=CLASSES),
    "AutoFormer": lambda: hub.AutoFormer(
        search_embed_dim=(16, 32), search_num_heads=(1, 2), search_depth=(1, 2), img_size=32, num_labels=CLASSES
    ),
}

STRATEGIES: dict[str, Callable[[], Any]] = {
    "stock": Proxyless,
    "gradient": lambda: ProxylessStrategy(steps_per_update=1),
    "reinforce": lambda: ProxylessStrategy(rule="reinforce", samples=2, steps_per_update=1),
}


def evaluator(size: int = 32, *, batches: int = 1) -> Classification:
    """Build NNI's own classification evaluator on random images, one epoch of `batches` batches of 2."""

    def loader(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(2 * batches, 3, size, size, generator=generator)
        labels = torch.randint(CLASSES, (2 * batches,), generator=generator)
        return DataLoader(TensorDataset(images, labels), batch_size=2)

    return Classification(
        num_classes=CLASSES,
        train_dataloaders=loader(0),
        val_dataloaders=loader(1),
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def search(space: Any, strategy: Any, *, size: int = 32) -> Any:
    """Search `space` in place for two steps; return the frozen net's output on one image."""
    network = strategy.mutate_model(space)
    wrapped = strategy.mutate_evaluator(evaluator(size))
    wrapped.evaluate(network)
    wrapped.module.set_model(network)
    frozen = network.freeze(wrapped.module.export())
    with torch.no_grad():
        output = frozen.eval()(torch.randn(1, 3, size, size))
    if tuple(output.shape) != (1, CLASSES):
        raise ValueError(f"the frozen net's output has shape {tuple(output.shape)}")
    return output


def attempt(make_space: Callable[[], Any], make_strategy: Callable[[], Any]) -> str:
    """Try one search; return `ok`, or the reason in one line."""
    torch.manual_seed(0)
    try:
        search(make_space(), make_strategy())
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return "ok"


def compare(make_space: Callable[[], Any]) -> dict[str, str]:
    """Return the result of NNI's own strategy, and of both rules of ours."""
    found = {name: attempt(make_space, make) for name, make in STRATEGIES.items()}
    ours = next((found[rule] for rule in ("gradient", "reinforce") if found[rule] != "ok"), "ok")
    return {"stock": found["stock"], "ours": ours}


def main() -> None:
    """Run the command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", metavar="SPACE", help=f"default: all of {', '.join(SPACES)}")
    names = parser.parse_args().spaces or list(SPACES)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "nni"):
        logging.getLogger(name).setLevel(logging.ERROR)
    results = {}
    for name in names:
        results[name] = compare(SPACES[name])
        print(f"{name}: {results[name]}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
