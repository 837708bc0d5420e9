"""Read a timm model into a declaration, and make sure that nothing of it was lost."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, DropPath, create_act_layer
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
)
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from hardware.errors import SpaceError
from hardware.reading import Kind, read_json, shown

from ..declaration import check_options
from .blocks import ACTIVATION_CODES, NetBlock
from .declaration import GATES, TimmDeclaration
from .paths import FOLDER, NONE, PREFIX, PRETRAINED

FAMILIES = (
    "mobilenetv2_*, mnasnet_*, semnasnet_*, spnasnet_100, fbnetc_100, efficientnet_b*, _lite* and _es*, those of "
    "tf_efficientnet, mobilenetv3_*, hardcorenas_*, and folders that this project exported"
)
_FEEDING = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "range")
OPTIONS = ("kernels", "expansions", "weights")
_CONFIG = "config.json"
FILE = Kind(
    "the description of a timm model",
    "give an export folder",
    SpaceError,
    holds="a mapping of timm's settings",
    missing="there is no {path}, so that is no folder of a timm model; give an export folder",
)
_FETCHING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def read_space(name: str, options: Mapping[str, Any]) -> TimmDeclaration:
    """Return the space that `timm:MODEL` names.

    Args:
        name: `timm:` and timm's name of a model, or `timm:local-dir:FOLDER` of an export.
        options: `kernels` and `expansions` of the candidates beside each block's own, and `weights`: `pretrained`,
            `none`, or a file of safetensors.

    Raises:
        SpaceError: The model is unknown or has no block to choose at, or an option is unknown or impossible.
    """
    check_options(options, list(OPTIONS), space=name)
    model = name.removeprefix(PREFIX)
    fields = _read(model) if not model.startswith(FOLDER) else _read.__wrapped__(model)
    chosen = {**{"weights": PRETRAINED}, **options}
    for key in ("kernels", "expansions"):
        if key in chosen:
            if isinstance(chosen[key], str) or not isinstance(chosen[key], Sequence):
                raise SpaceError(f"{key} = {shown(chosen[key])} of the space {name}; give a list of numbers")
            chosen[key] = tuple(chosen[key])
    if chosen["weights"] is None:  # YAML's null
        chosen["weights"] = NONE
    return TimmDeclaration(name=name, model=model, **fields, **chosen)


def feeding(space: TimmDeclaration) -> dict[str, Any]:
    """Return how the images were made that the model's weights have seen: mean, std, interpolation, crop, range.

    Empty where a space starts from no weights, or nothing is known.

    Raises:
        SpaceError: A folder's mean or std is no list of numbers; the rest is checked where images are read.
    """
    config: Any = None
    if space.weights != NONE and space.model.startswith(FOLDER):
        own = _config(Path(space.model.removeprefix(FOLDER)))
        config = own.get("pretrained_cfg")
        if isinstance(config, dict) and isinstance(own.get("pictures"), dict):
            config = {**config, "range": own["pictures"].get("range")}
    elif space.weights != NONE and space.model:
        found = timm.get_pretrained_cfg(space.model, allow_unregistered=True)
        config = None if found is None else found.to_dict()
    known = config if isinstance(config, dict) else {}
    for name in ("mean", "std"):
        values = known.get(name)
        listed = isinstance(values, list | tuple) and values and all(type(value) in (int, float) for value in values)
        if values is not None and not listed:
            raise SpaceError(
                f"the {_CONFIG} of {space.model} has pretrained_cfg.{name} = {shown(values)}, no list of numbers; "
                "give an export folder"
            )
    return {key: known[key] for key in _FEEDING if known.get(key) is not None}


@lru_cache(maxsize=32)
def _read(model: str) -> dict[str, Any]:
    network = _network(model)
    kinds = (InvertedResidual, DepthwiseSeparableConv)
    if not isinstance(network, EfficientNet | MobileNetV3) or not any(isinstance(m, kinds) for m in network.modules()):
        raise SpaceError(
            f"timm's {model} has no InvertedResidual or DepthwiseSeparableConv block to choose at; families that have "
            f"are {FAMILIES}"
        )
    try:
        fields = _fields(network)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise _undescribed(model, error) from error
    _check_nothing_lost(model, network, fields)
    return fields


def _network(model: str) -> nn.Module:
    """Build the network without memory for its weights."""
    name: str = model
    arguments: dict[str, Any] = {}
    if model.startswith(FOLDER):
        name, arguments = _folder(Path(model.removeprefix(FOLDER)))
    elif not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        words = f"; close ones are {', '.join(close)}" if close else f"; families that work are {FAMILIES}"
        raise SpaceError(f"timm has no model {shown(model)}{words}")
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SpaceError(f"timm cannot build {model}: {type(error).__name__}: {reason}; name another model") from error


def _folder(folder: Path) -> tuple[str, dict[str, Any]]:
    config = _config(folder)
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise SpaceError(
            f"the {_CONFIG} of {folder} has model_args = {shown(arguments)}, no mapping; give an export folder"
        )
    # Whoever wrote the folder must not have other files or addresses read.
    fetching = [key for key in _FETCHING if key in arguments]
    if not isinstance(name, str) or not timm.is_model(name) or fetching:
        what = f"model_args.{fetching[0]}" if fetching else f"architecture = {shown(name)}"
        raise SpaceError(
            f"the {_CONFIG} of {folder} has {what}, which is no model of timm's own; give an export folder"
        )
    return name, arguments


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / _CONFIG, FILE)
    return found


# ---- from modules to fields ----------------------------------------------------------------------------------------


def _fields(network: Any) -> dict[str, Any]:
    stages = tuple(tuple(_block(block) for block in stage) for stage in network.blocks)
    squeezes = [(_name(m.act1), _name(m.gate, GATES), _name(b.bn1.act)) for b in _blocks(network) for m in _squeeze(b)]
    between: list[str | None] = [*{act for act, _, block in squeezes if act != block}] or [None]
    (se_act,), (se_gate,) = between, {gate for _, gate, _ in squeezes} or {"sigmoid"}
    rates = [m.drop_prob for m in network.modules() if isinstance(m, DropPath)]
    count = sum(map(len, stages))
    pooled = isinstance(network, MobileNetV3)
    return {
        "stem_width": network.conv_stem.out_channels,
        "stem_stride": network.conv_stem.stride[0],
        "stages": stages,
        "head_width": getattr(network.conv_head, "out_channels", 0),
        "head": "pooled" if pooled else "conv",
        "head_bias": network.conv_head.bias is not None if pooled else True,
        "activation": _name(network.bn1.act),
        "padding": "same" if any(isinstance(m, Conv2dSame) for m in network.modules()) else "",
        "se_act": se_act,
        "se_gate": se_gate,
        "bn_eps": network.bn1.eps,
        "bn_momentum": network.bn1.momentum,
        "drop_rate": float(network.drop_rate),
        # timm gives block i of n the rate times i / n.
        "drop_path_rate": round(max(rates) * count / (count - 1), 9) if rates else 0.0,
    }


def _blocks(network: Any) -> list[Any]:
    return [block for stage in network.blocks for block in stage]


def _squeeze(block: Any) -> list[SqueezeExcite]:
    return [block.se] if isinstance(getattr(block, "se", None), SqueezeExcite) else []


def _block(block: Any) -> NetBlock:
    kind, main, last = _parts(block)
    if not isinstance(block.bn1, BatchNormAct2d):
        raise ValueError(f"a {type(block.bn1).__name__} in place of batch norm")
    return NetBlock(
        kind=kind,
        width=last.out_channels,
        kernel=main.kernel_size[0],
        stride=main.stride[0],
        hidden=last.in_channels if kind in ("ir", "er") else 0,
        squeeze=next((squeeze.conv_reduce.out_channels for squeeze in _squeeze(block)), 0),
        activation=_name(block.bn1.act),
        shortcut=block.has_skip,
    )


def _parts(block: Any) -> tuple[str, Any, Any]:
    """Return a block's kind, its convolution that may be wide, and its last one."""
    if type(block) is InvertedResidual:
        return "ir", block.conv_dw, block.conv_pwl
    if type(block) is DepthwiseSeparableConv:
        return "dsa" if block.has_pw_act else "ds", block.conv_dw, block.conv_pw
    if type(block) is EdgeResidual:
        return "er", block.conv_exp, block.conv_pwl
    if type(block) is ConvBnAct:
        return "cn", block.conv, block.conv
    raise ValueError(f"a {type(block).__name__}")


def _name(activation: nn.Module, names: Sequence[str] = tuple(ACTIVATION_CODES)) -> str:
    for name in names:
        # By the class's name: timm's Sigmoid and torch's are one to a network.
        if type(create_act_layer(name)).__name__ == type(activation).__name__:
            return name
    raise ValueError(f"the activation {type(activation).__name__}")


# ---- nothing lost --------------------------------------------------------------------------------------------------


def _check_nothing_lost(model: str, network: nn.Module, fields: Mapping[str, Any]) -> None:
    """Build the network back from its fields and compare every module, so that a surprise in timm is no other net."""
    try:
        declared = TimmDeclaration(name=f"{PREFIX}{model}", **fields)
    except SpaceError as error:
        raise _undescribed(model, error) from error
    sizes = {"num_classes": int(network.num_classes), "in_chans": int(network.in_chans)}  # type: ignore[arg-type]
    with torch.device("meta"):
        built = timm.create_model(declared.timm_name, **declared.model_args(declared.original(), **sizes))
    for there, here in zip(_signature(network), _signature(built), strict=False):
        if there != here:
            raise _undescribed(model, f"{' '.join(there)}, here {here[1]} {here[2]}")
    if len(_signature(network)) != len(_signature(built)):
        raise _undescribed(model, "more modules")


def _undescribed(model: str, what: object) -> SpaceError:
    return SpaceError(
        f"timm's {model} has a part that no arch string here describes ({what}); families that work are {FAMILIES}"
    )


def _signature(network: nn.Module) -> list[tuple[str, str, str]]:
    return [
        (name, type(module).__name__, f"{module.extra_repr()}{' shortcut' * bool(getattr(module, 'has_skip', False))}")
        for name, module in network.named_modules()
    ]
