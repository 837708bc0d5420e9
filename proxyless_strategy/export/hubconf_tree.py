"""`torch.hub.load(FOLDER, "model", source="local")`: this folder's network, with its own file."""

# Copied into the export folder of a tree-cell network: imports torch, timm and the file beside it, no more.

import importlib.util
import json
from pathlib import Path

from safetensors.torch import load_file

dependencies = ["torch", "timm", "safetensors"]


def model(pretrained=True, **overrides):
    """Build the network and load its weights; `overrides` are arguments of TreeCellNet, such as drop_path_rate."""
    folder = Path(__file__).resolve().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("tree_cell_net", folder / "tree_cell_net.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # there is one for every .py file
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    network = module.TreeCellNet(**{**config["model_args"], **overrides})
    if pretrained:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    network.pretrained_cfg = network.default_cfg = config["pretrained_cfg"]
    return network
