"""Build exported models back with timm: `python -m proxyless_strategy.runs.build_back FOLDER...`.

A program of its own, which `experiment.build_back` runs. `-m` imports proxyless_strategy first and nothing else of it,
as the models' user does. A failure is one line on stderr that names the folder and what is wrong with it.
"""

from __future__ import annotations

import sys
from typing import Any

import timm
import torch


def main(folders: list[str]) -> None:
    """Build the model of each folder and run it once.

    Raises:
        SystemExit: One cannot be built, or its output is not one row of finite numbers.
    """
    for folder in folders:
        try:
            model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
            feeding: Any = model.pretrained_cfg
            with torch.no_grad():
                output = model(torch.zeros(1, *feeding["input_size"]))
            assert output.shape == (1, model.num_classes), f"its output has the shape {tuple(output.shape)}"
            assert output.isfinite().all(), "its output is not finite"
        except Exception as error:
            sys.exit(f"{folder}: {type(error).__name__}: " + " ".join(str(error).split()))


if __name__ == "__main__":
    main(sys.argv[1:])
