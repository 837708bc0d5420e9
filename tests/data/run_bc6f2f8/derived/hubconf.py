"""`torch.hub.load(FOLDER, "model", source="local")`: this folder's network, with torch and timm alone."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from timm.models import EfficientNet
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels
from torch import nn

dependencies = ["torch", "timm", "safetensors"]


def model(pretrained=True, **overrides):
    """Build the network and load its weights; `overrides` are arguments of timm's EfficientNet, such as drop_rate."""
    folder = Path(__file__).resolve().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    args = {**config["model_args"], **overrides}
    stem_stride = args.pop("stem_stride", 2)
    network = EfficientNet(
        block_args=decode_arch_def(args.pop("arch_def")),
        fix_stem=True,
        round_chs_fn=partial(round_channels, multiplier=None),
        act_layer=resolve_act_layer(args, "relu6"),
        norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(args)),
        **args,
    )
    network.conv_stem.stride = (stem_stride, stem_stride)
    if pretrained:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    network.pretrained_cfg = network.default_cfg = config["pretrained_cfg"]
    return network
