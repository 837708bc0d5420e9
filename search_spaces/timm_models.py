"""The timm entry points: any MBConv subnet by its arch strings as `proxylessnas`, any network of tree-structured cells
by its letters as `proxylessnas_cifar_tree`, and the published networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import _create_effnet
from timm.models.mobilenetv3 import _create_mnv3
from torch import nn

from hardware.errors import SubnetError

from .tree_cell_net import GROUPS, TreeCellNet

__all__ = [
    "proxylessnas",
    "proxylessnas_cifar_tree",
    "proxylessnas_cpu",
    "proxylessnas_gpu",
    "proxylessnas_mobile",
    "proxylessnas_mobile_14",
]

# The published networks (arXiv 1812.00332, its release): a block is kernel_expansion, Z a skipped one; widths are those
# of the stem, block 0, stages 1 to 6 and the feature mix.
_STRIDES = (2, 2, 2, 1, 2, 1)
_CPU = ("3_6 3_3 3_3 3_3", "3_6 3_3 3_3 5_3", "3_6 Z Z 3_3", "5_6 3_3 3_3 3_3", "5_6 5_3 5_3 3_3", "5_6")
_GPU = ("5_3 Z Z Z", "7_3 Z Z 3_3", "7_6 Z Z 5_3", "5_6 Z 3_3 5_3", "7_6 7_6 7_6 5_6", "7_6")
_MOBILE = ("5_3 3_3 Z Z", "7_3 3_3 5_3 5_3", "7_6 5_3 5_3 5_3", "5_6 5_3 5_3 5_3", "7_6 7_6 7_3 7_3", "7_6")
_CPU_WIDTHS = (40, 24, 32, 48, 88, 104, 216, 360, 1432)
_GPU_WIDTHS = (40, 24, 32, 56, 112, 128, 256, 432, 1728)
_MOBILE_WIDTHS = (32, 16, 32, 40, 80, 96, 192, 320, 1280)
_MOBILE_14_WIDTHS = (48, 24, 40, 56, 112, 136, 256, 448, 1792)

CIFAR_TREE_ARCH = (
    "7dim7m555d77 aaai3imdi7dd 73ai5a33add5 a5d53dd737i7 a5did577amim 77mm35ad37ii dimm777537ii d57d57maa537 "
    "75mdiim3amad 53ii37357i57 775a35dadid3 5a5d33a775d3 m73m7d3a5m7i 3md77d5i3d73 dm3adda5ii5i 5d5iaad55573 "
    "7555d3im7d37 miid3i757mid d5ama7573aam 7i7di7d37mm5 ma3didmm5mia d73aa337iadd dmam7i7didam 7m75mimadim7 "
    "ia55m5d7addm 3adidddaa3a3 dm77imm55m5d 3737aim377mm 7775a33id3a3 5aiia5a3a7am iad3i7i7maid 75im7dmdm777 "
    "3m37i35i335i dd37d733dimi mi5i5a3ai7ad 775mda775355 aaaada75iiia mia75iiaii7i d7m3i5a3iima 7a57a3ma3imm "
    "ia7ii7ia5ma7 d5iim57d75id miamamdi5a3i 75777ad3m77a ddmad37iddm5 aamd3md7diai ma7m335aidi3 57ddimm357mi "
    "73m7dammm55m mia5d3573377 ia5377i7773a 553mai5am55i 3d3mmaimd733 73m75i5m3m37"
)
"""The published CIFAR-10 network, cell by cell, in the letters of `tree_cell_net.CODES`; re-typed from its release."""


HEADS = ("conv", "pooled")
"""The last 1x1 convolution stands before pooling, with a batch norm (EfficientNet), or after it (MobileNetV3)."""


def _arch_def(stages: Sequence[str], first_width: int, widths: Sequence[int]) -> list[list[str]]:
    strings = [[f"ds_r1_k3_s1_c{first_width}_noskip"]]
    for blocks, width, stride in zip(stages, widths, _STRIDES, strict=True):
        kept = [block.split("_") for block in blocks.split() if block != "Z"]
        strings.append([f"ir_r1_k{k}_s{1 if i else stride}_e{e}_c{width}" for i, (k, e) in enumerate(kept)])
    return strings


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


_CIFAR = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.247, 0.2435, 0.2616),
}
default_cfgs = generate_default_cfgs({name: _cfg(**_CIFAR) if "cifar" in name else _cfg() for name in __all__})


def _set_stem_stride(model: Any, stem_stride: int) -> None:
    """Change the stem's stride after building: timm's EfficientNet has no argument for it, and counts from 2."""
    model.conv_stem.stride = (stem_stride, stem_stride)
    infos = model.feature_info
    for info in infos if isinstance(infos, list) else infos.info:
        info["reduction"] = info["reduction"] * stem_stride // 2


def _feature_count(strings: Sequence[Sequence[str]]) -> int:
    """Count the resolutions; timm's default, five, fails in a network that halves its map fewer times."""
    return 1 + sum("_s2" in stage[0] for stage in strings)


def _gen_proxylessnas(
    variant: str,
    arch_def: Sequence[Sequence[str]],
    pretrained: bool,
    *,
    stem_size: int,
    num_features: int,
    stem_stride: int = 2,
    act_layer: str = "relu6",
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    head: str = "conv",
    head_bias: bool = True,
    se_act: str | None = None,
    se_gate: str = "sigmoid",
    **kwargs: Any,
) -> nn.Module:
    # Lists of their own: `decode_arch_def` refuses tuples, and strings stay what they are, while the builder takes keys
    # out of the dicts that it is given, so that a second network of the same dicts would fail.
    strings = [list(stage) for stage in arch_def]
    for number, stage in enumerate(strings):
        if not stage:
            raise SubnetError(f"stage {number} of arch_def is empty; leave it out")
        for string in stage[1:]:
            # timm builds such a block with stride 1 and says nothing, as it says nothing of a token it does not know.
            if "_s2" in string:
                raise SubnetError(f"{string!r} strides inside stage {number}; only the first block of a stage may")
    if stem_stride not in (1, 2):
        raise SubnetError(f"stem_stride = {stem_stride!r}; it must be 1 or 2")
    if head not in HEADS:
        raise SubnetError(f"head = {head!r}; it must be {' or '.join(HEADS)}")
    if kwargs.get("features_only"):
        kwargs.setdefault("out_indices", tuple(range(_feature_count(strings))))
    shared: dict[str, Any] = {
        "block_args": decode_arch_def(strings),
        "stem_size": stem_size,
        "fix_stem": True,
        "num_features": num_features,
        # With its default multiplier, 1.0, timm would round every width to a multiple of 8.
        "round_chs_fn": partial(round_channels, multiplier=None),
        "norm_layer": partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum),
        # `create_model(exportable=True)` chooses among the classes of an activation while the network is built.
        "se_layer": partial(
            SqueezeExcite,
            gate_layer=get_act_layer(se_gate),
            force_act_layer=None if se_act is None else get_act_layer(se_act),
        ),
        **kwargs,
    }
    if head == "conv":
        model = _create_effnet(variant, pretrained, act_layer=act_layer, **shared)
    else:
        # timm takes the share of an arch string's `se` from the expanded channels here, but from the block's input in
        # EfficientNet; strings of one kind are enough. The activation must be a class, as timm calls it.
        model = _create_mnv3(
            variant, pretrained, act_layer=get_act_layer(act_layer), head_bias=head_bias, se_from_exp=False, **shared
        )
    if stem_stride != 2:
        _set_stem_stride(model, stem_stride)
    return model


def _gen_published(
    variant: str, stages: Sequence[str], widths: Sequence[int], pretrained: bool, **kwargs: Any
) -> nn.Module:
    """A published network; `widths` are those of the stem, block 0, stages 1 to 6 and the feature mix."""
    stem, first, *middle, last = widths
    kwargs = {"stem_size": stem, "num_features": last, **kwargs}
    return _gen_proxylessnas(variant, _arch_def(stages, first, middle), pretrained, **kwargs)


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
    head: str = "conv",
    head_bias: bool = True,
    se_act: str | None = None,
    se_gate: str = "sigmoid",
    **kwargs: Any,
) -> nn.Module:
    """An MBConv subnet as timm's EfficientNet, or with `head="pooled"` as its MobileNetV3.

    Args:
        pretrained: Load weights (of a `local-dir:` folder).
        arch_def: One list of arch strings a stage, as `Subnet.arch_def()` gives; None builds the paper's mobile net.
        stem_size: Channels of the stem.
        stem_stride: Stride of the stem, 1 or 2.
        num_features: Channels of the last 1x1 convolution.
        act_layer: timm's name of the activation.
        bn_eps: Epsilon of batch norm.
        bn_momentum: Momentum of batch norm.
        head: `conv` where that convolution stands before pooling, `pooled` where it stands after it.
        head_bias: Whether the convolution of a pooled head has a bias.
        se_act: timm's name of the activation in squeeze-and-excitation; None takes the block's.
        se_gate: timm's name of its gate.
        **kwargs: Whatever timm's network takes (`num_classes`, `in_chans`, `pad_type`, `drop_rate`, `features_only`,
            ...).

    Raises:
        SubnetError: An arch string strides after the first block of its stage (timm would silently ignore that),
            a stage is empty, or the head is unknown.
    """
    return _gen_proxylessnas(
        "proxylessnas",
        _arch_def(_MOBILE, 16, _MOBILE_WIDTHS[2:-1]) if arch_def is None else arch_def,
        pretrained,
        stem_size=stem_size,
        stem_stride=stem_stride,
        num_features=num_features,
        act_layer=act_layer,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        head=head,
        head_bias=head_bias,
        se_act=se_act,
        se_gate=se_gate,
        **kwargs,
    )


@register_model
def proxylessnas_cpu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Proxyless CPU, found for a Xeon E5-2640 v4 at batch 1."""
    return _gen_published("proxylessnas_cpu", _CPU, _CPU_WIDTHS, pretrained, **kwargs)


@register_model
def proxylessnas_gpu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Proxyless GPU, found for a V100 at batch 8."""
    return _gen_published("proxylessnas_gpu", _GPU, _GPU_WIDTHS, pretrained, **kwargs)


@register_model
def proxylessnas_mobile(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Proxyless mobile, found for a Pixel 1 at batch 1."""
    return _gen_published("proxylessnas_mobile", _MOBILE, _MOBILE_WIDTHS, pretrained, **kwargs)


@register_model
def proxylessnas_mobile_14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Proxyless mobile, 1.4 times as wide."""
    return _gen_published("proxylessnas_mobile_14", _MOBILE, _MOBILE_14_WIDTHS, pretrained, **kwargs)


@register_model
def proxylessnas_cifar_tree(
    pretrained: bool = False,
    *,
    arch: str | Sequence[str] | None = None,
    blocks: int = 18,
    cell_depth: int = 3,
    **kwargs: Any,
) -> nn.Module:
    """A PyramidNet of tree-structured cells; by default the published network for CIFAR-10 (5.73 M parameters).

    Args:
        pretrained: Load weights (of a `local-dir:` folder).
        arch: One word of letters a cell, in one string or as a list, as `TreeCellDeclaration.arch` writes them; None is
            the published network's, which has 54 cells of depth 3.
        blocks: Blocks in each of the three groups.
        cell_depth: Depth of a cell's tree.
        **kwargs: Whatever else `TreeCellNet` takes (`stem_width`, `alpha`, `num_classes`, `drop_path_rate`, ...), and
            `features_only`.

    Raises:
        SubnetError: `arch` does not fit the network.
    """
    if arch is None and (blocks, cell_depth) != (18, 3):
        raise SubnetError(
            f"blocks = {blocks}, cell_depth = {cell_depth}, but the published arch has 18 blocks of depth 3 a group; "
            "give arch"
        )
    try:
        return build_model_with_cfg(
            TreeCellNet,
            "proxylessnas_cifar_tree",
            pretrained,
            feature_cfg={"out_indices": tuple(range(GROUPS)), "flatten_sequential": True},
            arch=CIFAR_TREE_ARCH if arch is None else arch,
            blocks=blocks,
            cell_depth=cell_depth,
            **kwargs,
        )
    # `TreeCellNet` travels with exported networks, where this project's errors are not there to be raised.
    except ValueError as error:
        raise SubnetError(f"{error}") from error
