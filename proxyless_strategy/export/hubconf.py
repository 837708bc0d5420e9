"""`torch.hub.load(FOLDER, "model", source="local")`: this folder's network, with torch and timm alone."""

# Copied into the export folder of an MBConv network, so it imports nothing of the project that wrote it.

import json
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from timm.layers import get_act_layer
from timm.models import EfficientNet, MobileNetV3
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels
from torch import nn

dependencies = ["torch", "timm", "safetensors"]


def model(pretrained=True, **overrides):
    """Build the network and load its weights; `overrides` are arguments of timm's network, such as drop_rate."""
    folder = Path(__file__).resolve().parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    args = {**config["model_args"], **overrides}
    stem_stride = args.pop("stem_stride", 2)
    pooled, head_bias = args.pop("head", "conv") == "pooled", args.pop("head_bias", True)
    if pooled:
        # timm takes the share of an arch string's `se` from the expanded channels here, unless it is told not to.
        args |= {"head_bias": head_bias, "se_from_exp": False}
    se_act, se_gate = args.pop("se_act", None), args.pop("se_gate", "sigmoid")
    network = (MobileNetV3 if pooled else EfficientNet)(
        block_args=decode_arch_def(args.pop("arch_def")),
        fix_stem=True,
        round_chs_fn=partial(round_channels, multiplier=None),
        act_layer=resolve_act_layer(args, "relu6"),
        norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(args)),
        se_layer=partial(
            SqueezeExcite,
            gate_layer=get_act_layer(se_gate),
            force_act_layer=None if se_act is None else get_act_layer(se_act),
        ),
        **args,
    )
    # Neither of timm's networks has an argument for it.
    network.conv_stem.stride = (stem_stride, stem_stride)
    if pretrained:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    network.pretrained_cfg = network.default_cfg = config["pretrained_cfg"]
    return network
