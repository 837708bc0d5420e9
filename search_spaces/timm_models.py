"""The timm entry point: any MBConv subnet by its arch strings, as `timm.create_model('proxylessnas', ...)`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import _create_effnet
from torch import nn

from hardware.errors import SubnetError

__all__ = ["proxylessnas"]

MOBILE_ARCH: tuple[tuple[str, ...], ...] = (
    ("ds_r1_k3_s1_c16_noskip",),
    ("ir_r1_k5_s2_e3_c24", "ir_r1_k3_s1_e3_c24"),
    ("ir_r1_k7_s2_e3_c40", "ir_r1_k3_s1_e3_c40", "ir_r1_k5_s1_e3_c40", "ir_r1_k5_s1_e3_c40"),
    ("ir_r1_k7_s2_e6_c80", "ir_r1_k5_s1_e3_c80", "ir_r1_k5_s1_e3_c80", "ir_r1_k5_s1_e3_c80"),
    ("ir_r1_k5_s1_e6_c96", "ir_r1_k5_s1_e3_c96", "ir_r1_k5_s1_e3_c96", "ir_r1_k5_s1_e3_c96"),
    ("ir_r1_k7_s2_e6_c192", "ir_r1_k7_s1_e6_c192", "ir_r1_k7_s1_e3_c192", "ir_r1_k7_s1_e3_c192"),
    ("ir_r1_k7_s1_e6_c320",),
)
"""Proxyless-R mobile, arXiv 1812.00332 figure 5; the network that `proxylessnas` builds without `arch_def`."""


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv_stem",
        "classifier": "classifier",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({"proxylessnas": _cfg()})


def _set_stem_stride(model: Any, stem_stride: int) -> None:
    model.conv_stem.stride = (stem_stride, stem_stride)
    infos = model.feature_info
    for info in infos if isinstance(infos, list) else infos.info:
        info["reduction"] = info["reduction"] * stem_stride // 2


def _feature_count(strings: Sequence[Sequence[str]]) -> int:
    return 1 + sum("_s2" in stage[0] for stage in strings)


@register_model
def proxylessnas(
    pretrained: bool = False,
    *,
    arch_def: Sequence[Sequence[str]] | None = None,
    stem_size: int = 32,
    stem_stride: int = 2,
    num_features: int = 1280,
    act_layer: str = "relu6",
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    **kwargs: Any,
) -> nn.Module:
    """An MBConv subnet as timm's EfficientNet.

    Args:
        pretrained: Load weights (of a `local-dir:` folder).
        arch_def: One list of arch strings a stage, as `Subnet.arch_def()` gives; None builds the paper's mobile net.
        stem_size: Channels of the stem.
        stem_stride: Stride of the stem, 1 or 2.
        num_features: Channels before pooling.
        act_layer: timm's name of the activation.
        bn_eps: Epsilon of batch norm.
        bn_momentum: Momentum of batch norm.
        **kwargs: Whatever timm's EfficientNet takes (`num_classes`, `in_chans`, `drop_rate`, `features_only`, ...).

    Raises:
        SubnetError: An arch string strides after the first block of its stage (timm would silently ignore that),
            or a stage is empty.
    """
    strings = [list(stage) for stage in (MOBILE_ARCH if arch_def is None else arch_def)]
    for number, stage in enumerate(strings):
        if not stage:
            raise SubnetError(f"stage {number} of arch_def is empty; leave it out")
        for string in stage[1:]:
            if "_s2" in string:
                raise SubnetError(f"{string!r} strides inside stage {number}; only the first block of a stage may")
    if stem_stride not in (1, 2):
        raise SubnetError(f"stem_stride = {stem_stride!r}; it must be 1 or 2")
    if kwargs.get("features_only"):
        kwargs.setdefault("out_indices", tuple(range(_feature_count(strings))))
    model = _create_effnet(
        "proxylessnas",
        pretrained,
        block_args=decode_arch_def(strings),
        stem_size=stem_size,
        fix_stem=True,
        num_features=num_features,
        round_chs_fn=partial(round_channels, multiplier=None),
        act_layer=act_layer,
        norm_layer=partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum),
        **kwargs,
    )
    if stem_stride != 2:
        _set_stem_stride(model, stem_stride)
    return model
