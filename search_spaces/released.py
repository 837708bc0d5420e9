"""Networks of ProxylessNAS's public release: a JSON config and a checkpoint, read into a subnet of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hardware.errors import SubnetError
from hardware.reading import Kind, cut, read_json, read_tensors, reading, shown

from .blocks import SKIP, candidate_name, parse_candidate
from .mbconv import MBConvDeclaration, Stage, kept_blocks
from .subnet import Subnet

NETWORK, BLOCK, MBCONV, ZERO = "ProxylessNASNets", "MobileInvertedResidualBlock", "MBInvertedConvLayer", "ZeroLayer"
CONV, LINEAR, IDENTITY = "ConvLayer", "LinearLayer", "IdentityLayer"
ACTIVATIONS = ("relu6", "relu")
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
DEFAULT_SIZE = 224
CONFIG = Kind("the released config", "give the .json or .config file", SubnetError, holds="")
CHECKPOINT = Kind(
    "the checkpoint",
    "nothing else in it will be unpickled; give the released .pth file",
    SubnetError,
    holds="",
    missing="cannot read the checkpoint {path}: No such file or directory; give its .pth file",
    sentence="{path} is no checkpoint of plain tensors ({why}); {remedy}",
)


@dataclass(frozen=True)
class ReleasedNetwork:
    """What a released config describes.

    Attributes:
        subnet: The choice, in a space made of the config's own widths.
        kept: Numbers of the config's blocks that are not skipped, without block 0.
        num_classes: Classes of the classifier.
        in_chans: Channels of an image.
        input_size: Side of an image in pixels, by the config or its file's name, else 224.
    """

    subnet: Subnet
    kept: tuple[int, ...]
    num_classes: int
    in_chans: int
    input_size: int

    def model_args(self) -> dict[str, Any]:
        """Return the keyword arguments of `timm.create_model('proxylessnas', **args)`."""
        return self.subnet.model_args(num_classes=self.num_classes, in_chans=self.in_chans)

    def key_map(self) -> dict[str, str]:
        """Map the checkpoint's key of every tensor to timm's."""
        keys = _conv_norm("first_conv", "conv_stem", "bn1")
        keys |= _block_keys(0, "blocks.0.0", expanded=False)
        declaration = self.subnet.declaration
        assert isinstance(declaration, MBConvDeclaration)
        places = kept_blocks(declaration, self.subnet.choices)
        for number, (stage, index, edge) in zip(self.kept, places, strict=True):
            _, expansion = parse_candidate(self.subnet.choices[edge.label])
            keys |= _block_keys(number, f"blocks.{stage}.{index}", expanded=expansion > 1)
        keys |= _conv_norm("feature_mix_layer", "conv_head", "bn2")
        return keys | {f"classifier.linear.{name}": f"classifier.{name}" for name in ("weight", "bias")}


def read_config(path: Path | str) -> ReleasedNetwork:
    """Read a released config.

    Raises:
        SubnetError: The file cannot be read, is no JSON, or describes another network.
    """
    path = Path(path)
    config = read_json(path, CONFIG)
    name = config.get("name") if isinstance(config, dict) else type(config).__name__
    if name != NETWORK:
        raise SubnetError(f"{path} describes a network {shown(name)}, not {NETWORK}; only that one can be imported")
    with reading(path, CONFIG):
        return _network(_Node(config, path.name), name=path.stem)


def read_checkpoint(path: Path | str, network: ReleasedNetwork, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Read a released checkpoint, weights only, into timm's keys; every tensor must find its place.

    Counters of batches, which early checkpoints lack, are 0 where missing.

    Args:
        path: The checkpoint; nothing but tensors is unpickled.
        network: Its config.
        shapes: Shape of every tensor by timm's key, of the network that is to take them.

    Raises:
        SubnetError: The file is no such checkpoint, or a tensor is missing, left over or of another shape.
    """
    tensors = _tensors(path)
    keys = network.key_map()
    placed = {}
    for key, target in keys.items():
        if key not in tensors and key.endswith(".num_batches_tracked"):
            tensors[key] = torch.tensor(0)
        if key not in tensors:
            raise SubnetError(f"the checkpoint {path} has no tensor {key}; give the one that belongs to this config")
        if tuple(tensors[key].shape) != tuple(shapes[target]):
            raise SubnetError(
                f"{key} of the checkpoint {path} has shape {tuple(tensors[key].shape)}, but the config asks for "
                f"{tuple(shapes[target])}; give the checkpoint that belongs to this config"
            )
        placed[target] = tensors[key]
    left_over = [key for key in tensors if key not in keys]
    if left_over:
        raise SubnetError(
            f"the checkpoint {path} has {len(left_over)} tensors without a place in this config, first "
            f"{cut(left_over[0])}; give the config that belongs to it"
        )
    return placed


class _Node:
    """A part of the config that says where it stands when something is wrong with it."""

    def __init__(self, values: Any, place: str) -> None:
        if not isinstance(values, dict):
            raise SubnetError(f"{place} of the released config is {shown(values)}; it must describe a layer")
        self.values = values
        self.place = place

    def part(self, key: str) -> _Node:
        self._require(key)
        return _Node(self.values[key], f"{self.place}: {key}")

    def number(self, key: str) -> int:
        self._require(key)
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SubnetError(f"{self.place} has {key} = {shown(value)}; it must be a positive whole number")
        return value

    def expect(self, **wanted: Any) -> None:
        """Check settings; one that the config leaves out is as wanted."""
        for key, value in wanted.items():
            found = self.values.get(key, value)
            if found != value:
                raise SubnetError(f"{self.place} has {key} = {shown(found)}; only {key} = {value!r} can be imported")

    def named(self, *names: str) -> str:
        name = self.values.get("name")
        if name not in names:
            raise SubnetError(f"{self.place} is an unknown layer {shown(name)}; known there: {', '.join(names)}")
        return name

    def _require(self, key: str) -> None:
        if key not in self.values:
            raise SubnetError(f"{self.place} of the released config has no {key}; give a complete one")


@dataclass(frozen=True)
class _Block:
    """A searched block: its candidate, and where it stands (a skipped one at width 0, which fits everywhere)."""

    candidate: str
    in_width: int = 0
    out_width: int = 0
    stride: int = 1


def _network(root: _Node, *, name: str) -> ReleasedNetwork:
    stem, head, classifier = (root.part(key) for key in ("first_conv", "feature_mix_layer", "classifier"))
    activation = stem.values.get("act_func", "relu6")
    if activation not in ACTIVATIONS:
        raise SubnetError(f"{stem.place} has act_func = {shown(activation)}; known are {', '.join(ACTIVATIONS)}")
    for layer, kernel in ((stem, 3), (head, 1)):
        layer.named(CONV)
        layer.expect(kernel_size=kernel, dilation=1, groups=1, bias=False, has_shuffle=False, use_bn=True)
        layer.expect(act_func=activation, ops_order="weight_bn_act")
    head.expect(stride=1)
    classifier.named(LINEAR)
    classifier.expect(bias=True, use_bn=False, act_func=None, in_features=head.number("out_channels"))
    norm = root.part("bn") if "bn" in root.values else _Node({}, f"{root.place}: bn")
    norm.expect(ws_eps=None)

    listed = root.values.get("blocks")
    if not isinstance(listed, list) or len(listed) < 2:
        raise SubnetError(f"{root.place} lists no blocks; give a complete config")
    nodes = [_Node(values, f"{root.place}: block {number}") for number, values in enumerate(listed)]
    first_width = _first_block(nodes[0], stem.number("out_channels"), activation)
    blocks, width = [], first_width
    for node in nodes[1:]:
        blocks.append(_block(node, width, activation))
        width = blocks[-1].out_width or width
    head.expect(in_channels=width)

    stages, choices = _stages(blocks, first_width)
    chosen = [parse_candidate(block.candidate) for block in blocks if block.candidate != SKIP]
    declaration = MBConvDeclaration(
        name=f"released_{name}",
        stem_width=stem.number("out_channels"),
        stem_stride=stem.number("stride"),
        first_width=first_width,
        stages=stages,
        kernels=tuple(sorted({3, 5, 7, *(kernel for kernel, _ in chosen)})),
        expansions=tuple(sorted({3, 6, *(expansion for _, expansion in chosen)})),
        head_width=head.number("out_channels"),
        activation=activation,
        bn_eps=_positive(norm, "eps", 1e-3),
        bn_momentum=_positive(norm, "momentum", 0.1),
    )
    return ReleasedNetwork(
        subnet=Subnet(declaration, choices),
        kept=tuple(number for number, block in enumerate(blocks, start=1) if block.candidate != SKIP),
        num_classes=classifier.number("out_features"),
        in_chans=stem.number("in_channels"),
        input_size=_input_size(root, name),
    )


def _positive(node: _Node, key: str, default: float) -> float:
    value = node.values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SubnetError(f"{node.place} has {key} = {shown(value)}; it must be a positive number")
    return float(value)


def _input_size(root: _Node, name: str) -> int:
    if "resolution" in root.values:
        return root.number("resolution")
    found = re.search(r"(?<![A-Za-z0-9])r(\d{2,4})(?!\d)", name)
    return int(found.group(1)) if found else DEFAULT_SIZE


def _first_block(node: _Node, stem_width: int, activation: str) -> int:
    """Check the fixed block 0, and return its width."""
    node.named(BLOCK)
    conv = node.part("mobile_inverted_conv")
    conv.named(MBCONV)
    _check_conv(conv, stem_width, activation)
    for key, value in (("kernel_size", 3), ("stride", 1), ("expand_ratio", 1)):
        conv.number(key)
        conv.expect(**{key: value})
    node.expect(shortcut=None)
    return conv.number("out_channels")


def _block(node: _Node, width: int, activation: str) -> _Block:
    node.named(BLOCK)
    conv = node.part("mobile_inverted_conv")
    shortcut = node.values.get("shortcut")
    if shortcut is not None:
        node.part("shortcut").named(IDENTITY)
    if conv.named(MBCONV, ZERO) == ZERO:
        conv.expect(stride=1)
        if shortcut is None:
            raise SubnetError(f"{node.place} is a {ZERO} without a shortcut, so nothing passes it; give another config")
        return _Block(SKIP)
    _check_conv(conv, width, activation)
    block = _Block(
        candidate_name(conv.number("kernel_size"), conv.number("expand_ratio")),
        width,
        conv.number("out_channels"),
        conv.number("stride"),
    )
    fits = block.stride == 1 and width == block.out_width
    if fits != (shortcut is not None):
        raise SubnetError(
            f"{node.place} has {'no shortcut though one fits' if fits else 'a shortcut that does not fit'}; "
            "only networks with a shortcut wherever stride is 1 and the width stays can be imported"
        )
    return block


def _check_conv(conv: _Node, width: int, activation: str) -> None:
    if conv.values.get("use_se"):
        raise SubnetError(f"{conv.place} has squeeze-excite, which this space does not have; it cannot be imported")
    conv.expect(act_func=activation)
    conv.number("in_channels")
    conv.expect(in_channels=width)
    if conv.values.get("mid_channels") is not None:
        conv.expect(mid_channels=width * conv.number("expand_ratio"))


def _stages(blocks: Sequence[_Block], first_width: int) -> tuple[tuple[Stage, ...], dict[str, str]]:
    """Group blocks into stages, a new one wherever stride or width changes; return them and each edge's candidate."""
    groups: list[list[_Block]] = []
    for block in blocks:
        changes = block.candidate != SKIP and (block.stride != 1 or block.in_width != block.out_width)
        if changes or not groups:
            groups.append([])
        groups[-1].append(block)
    stages: list[Stage] = []
    choices: dict[str, str] = {}
    width = first_width
    for number, group in enumerate(groups, start=1):
        width = group[0].out_width or width
        stages.append(Stage(width, len(group), group[0].stride))
        choices |= {f"stage{number}_block{index}": block.candidate for index, block in enumerate(group)}
    return tuple(stages), choices


def _tensors(path: Path | str) -> dict[str, torch.Tensor]:
    loaded = read_tensors(path, CHECKPOINT)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise SubnetError(f"{path} holds no state_dict of tensors; give the released .pth file")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _block_keys(number: int, target: str, *, expanded: bool) -> dict[str, str]:
    source = f"blocks.{number}.mobile_inverted_conv"
    parts = {"depth_conv": ("conv_dw", "bn1"), "point_linear": ("conv_pw", "bn2")}
    if expanded:
        parts = {
            "inverted_bottleneck": ("conv_pw", "bn1"),
            "depth_conv": ("conv_dw", "bn2"),
            "point_linear": ("conv_pwl", "bn3"),
        }
    keys: dict[str, str] = {}
    for name, (conv, norm) in parts.items():
        keys |= _conv_norm(f"{source}.{name}", f"{target}.{conv}", f"{target}.{norm}")
    return keys


def _conv_norm(source: str, conv: str, norm: str) -> dict[str, str]:
    return {f"{source}.conv.weight": f"{conv}.weight"} | {
        f"{source}.bn.{name}": f"{norm}.{name}" for name in NORM_TENSORS
    }
