"""MBConv search spaces: one declaration each, built as NNI LayerChoices over timm's blocks.

Equations and figures: ProxylessNAS, arXiv 1812.00332, and its public release.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from nni.nas.nn.pytorch import LayerChoice
from timm.layers import create_classifier, create_conv2d, get_act_layer
from torch import nn

from hardware.errors import SpaceError
from hardware.op_spec import OpSpec
from hardware.reading import cut, shown

from .blocks import (
    SKIP,
    BlockShape,
    candidate_name,
    check_width,
    first_block,
    mbconv,
    mbconv_spec,
    norm_layer,
    parse_candidate,
    skip_spec,
)
from .costs import SpaceCosts
from .declaration import MOST_CHANNELS, ShippedDeclaration, is_integer, is_number, moved
from .timm_space import TimmSpace

MOST_BLOCKS = 256
"""Of a stage; far above every use, so that a slip of the hand ends in a sentence."""
MOST_KERNEL, MOST_EXPANSION = 63, 64
"""Likewise."""


@dataclass(frozen=True)
class Stage:
    """`depth` blocks of `width` channels; the first one has `stride`, the others 1.

    >>> Stage(width=24, depth=2, stride=2)
    Stage(width=24, depth=2, stride=2)
    """

    width: int
    depth: int
    stride: int


@dataclass(frozen=True)
class SearchedBlock:
    """One searchable block: its label, where it stands, and the candidates' names in order."""

    label: str
    stage: int
    index: int
    shape: BlockShape
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class MBConvDeclaration(ShippedDeclaration):
    """A MobileNetV2-like backbone whose blocks choose kernel and expansion, and whether they are there at all.

    Attributes:
        name: Name of the space.
        stem_width: Channels of the 3x3 stem convolution.
        stem_stride: Its stride, 1 or 2.
        first_width: Channels of the fixed depthwise-separable block after the stem.
        stages: The searchable stages.
        kernels: Kernel sides of the candidates.
        expansions: Expansions of the candidates.
        head_width: Channels of the 1x1 convolution before pooling.
        activation: timm's name of the activation.
        bn_eps: Epsilon of batch norm.
        bn_momentum: Momentum of batch norm.

    Raises:
        SpaceError: A field has a value that no network can be built with.

    A block of stride 1 whose width stays may be left out, which is its last candidate, `skip`; the first block of a
    stage mostly changes the width, and always stays then.

    >>> stages = (Stage(24, depth=2, stride=2), Stage(40, depth=1, stride=2))
    >>> space = MBConvDeclaration("mine", 16, 2, 16, stages, kernels=(3, 5), expansions=(6,))
    >>> space.candidates()
    {'stage1_block0': ('3x3_e6', '5x5_e6'), 'stage1_block1': ('3x3_e6', '5x5_e6', 'skip'), \
'stage2_block0': ('3x3_e6', '5x5_e6')}
    """

    stem_width: int
    stem_stride: int
    first_width: int
    stages: tuple[Stage, ...]
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (3, 6)
    head_width: int = 1280
    activation: str = "relu6"
    bn_eps: float = 1e-3
    bn_momentum: float = 0.1

    timm_name: ClassVar[str] = "proxylessnas"
    kind: ClassVar[str] = "mbconv"

    def __post_init__(self) -> None:
        self.check_integers(stem_width=1, first_width=1, head_width=1)
        if not is_integer(self.stem_stride) or self.stem_stride not in (1, 2):
            raise SpaceError(
                f"stem_stride = {shown(self.stem_stride)} of the space {cut(self.name)}; it must be 1 or 2"
            )
        if not self.stages or not self.kernels or not self.expansions:
            raise SpaceError(f"the space {cut(self.name)} needs at least one stage, one kernel and one expansion")
        for stage in self.stages:
            if not is_integer(stage.width) or not 1 <= stage.width <= MOST_CHANNELS:
                raise SpaceError(
                    f"{shown(stage)} of the space {cut(self.name)}: width must be whole, 1 to {MOST_CHANNELS}"
                )
            fits = is_integer(stage.depth) and 1 <= stage.depth <= MOST_BLOCKS
            if not fits or not is_integer(stage.stride) or stage.stride not in (1, 2):
                raise SpaceError(
                    f"{shown(stage)} of the space {cut(self.name)}: depth must be 1 to {MOST_BLOCKS}, stride 1 or 2"
                )
        for kernel in self.kernels:
            if not is_integer(kernel) or not 1 <= kernel <= MOST_KERNEL or kernel % 2 == 0:
                raise SpaceError(
                    f"kernel {shown(kernel)} of the space {cut(self.name)}; kernels must be odd, 1 to {MOST_KERNEL}"
                )
        for expansion in self.expansions:
            if not is_integer(expansion) or not 1 <= expansion <= MOST_EXPANSION:
                raise SpaceError(
                    f"expansion {shown(expansion)} of the space {cut(self.name)}; it must be a whole number, 1 to "
                    f"{MOST_EXPANSION}"
                )
        # JSON and YAML can hold NaN and infinity
        if not is_number(self.bn_eps) or not 0 < self.bn_eps < 1:
            raise SpaceError(f"bn_eps = {shown(self.bn_eps)} of the space {cut(self.name)}; it must be between 0 and 1")
        if not is_number(self.bn_momentum) or not 0 < self.bn_momentum <= 1:
            raise SpaceError(
                f"bn_momentum = {shown(self.bn_momentum)} of the space {cut(self.name)}; it must be above 0 and at "
                "most 1"
            )
        if not isinstance(self.activation, str):
            raise SpaceError(
                f"activation = {shown(self.activation)} of the space {cut(self.name)}; give timm's name of one"
            )
        try:
            get_act_layer(self.activation)
        except (KeyError, AssertionError) as error:
            raise SpaceError(
                f"activation {shown(self.activation)} of the space {cut(self.name)} is unknown to timm; try relu6"
            ) from error
        for edge in self.edges():
            for expansion in self.expansions:
                check_width(edge.shape.in_width, expansion)

    def scaled_widths(self, width_mult: float) -> dict[str, Any]:
        """Return every width times `width_mult`, rounded as in the release; the head never shrinks."""
        return {
            "stem_width": make_divisible(self.stem_width * width_mult),
            "first_width": make_divisible(self.first_width * width_mult),
            "stages": tuple(replace(stage, width=make_divisible(stage.width * width_mult)) for stage in self.stages),
            "head_width": make_divisible(self.head_width * max(1.0, width_mult)),
        }

    def edges(self) -> tuple[SearchedBlock, ...]:
        """Return every searchable block from input to output; stages count from 1, as block 0's stage is fixed."""
        return tuple(self._edges())

    def _edges(self) -> Iterator[SearchedBlock]:
        names = tuple(candidate_name(k, e) for k in self.kernels for e in self.expansions)
        in_width = self.first_width
        for number, stage in enumerate(self.stages, start=1):
            for index in range(stage.depth):
                shape = BlockShape(in_width, stage.width, stage.stride if index == 0 else 1)
                candidates = (*names, SKIP) if shape.can_skip else names
                yield SearchedBlock(f"stage{number}_block{index}", number, index, shape, candidates)
                in_width = stage.width

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return the candidates' names of every edge, by label."""
        return {edge.label: edge.candidates for edge in self.edges()}

    def edge_paths(self) -> dict[str, str]:
        """Return the path of every edge's module in the built space, by label."""
        return {edge.label: f"blocks.{edge.stage}.{edge.index}" for edge in self.edges()}

    def build(self, *, num_classes: int = 1000, in_chans: int = 3) -> MBConvSpace:
        """Build the space as an NNI ModelSpace, ready for `ProxylessStrategy`."""
        return MBConvSpace(self, num_classes=num_classes, in_chans=in_chans)

    def costs(self, input_size: int, *, num_classes: int = 1000, in_chans: int = 3) -> SpaceCosts:
        """Return the operators of this space at `input_size x input_size` pixels."""
        size = math.ceil(input_size / self.stem_stride)
        order: list[OpSpec | str] = [
            OpSpec(
                kind="conv",
                input_shape=(in_chans, input_size, input_size),
                output_shape=(self.stem_width, size, size),
                kernel=3,
                stride=self.stem_stride,
                activation=self.activation,
            ),
            mbconv_spec(
                BlockShape(self.stem_width, self.first_width, 1),
                3,
                1,
                size,
                activation=self.activation,
                residual=False,
            ),
        ]
        edges: dict[str, dict[str, OpSpec]] = {}
        for edge in self.edges():
            edges[edge.label] = {
                name: skip_spec(edge.shape, size)
                if name == SKIP
                else mbconv_spec(edge.shape, *parse_candidate(name), size, activation=self.activation)
                for name in edge.candidates
            }
            order.append(edge.label)
            size = math.ceil(size / edge.shape.stride)
        order += [
            OpSpec(
                kind="conv",
                input_shape=(self.stages[-1].width, size, size),
                output_shape=(self.head_width, size, size),
                activation=self.activation,
            ),
            OpSpec(kind="head", input_shape=(self.head_width, size, size), output_shape=(num_classes,)),
        ]
        return SpaceCosts(self.name, input_size, in_chans, tuple(order), edges)

    def arch_def(self, choices: Mapping[str, str]) -> list[list[str]]:
        """Write a choice as timm's arch strings: one list a stage, one string a block.

        A string names one block (`r1`) by kernel, stride, expansion and width. Skipped blocks are left out, and so is a
        stage that loses all of its blocks: timm fails at an empty one.

        >>> space = MBConvDeclaration("mine", 16, 2, 16, (Stage(24, depth=2, stride=2),))
        >>> space.arch_def({"stage1_block0": "5x5_e6", "stage1_block1": "skip"})
        [['ds_r1_k3_s1_c16_noskip'], ['ir_r1_k5_s2_e6_c24']]
        """
        # `noskip`: where stem and first block are equally wide, timm would add a shortcut, which the paper's lacks.
        stages: list[list[str]] = [[f"ds_r1_k3_s1_c{self.first_width}_noskip"]]
        for stage, _, edge in kept_blocks(self, choices):
            kernel, expansion = parse_candidate(choices[edge.label])
            shape = edge.shape
            # `ir` with expansion 1 would keep a useless 1x1 convolution; `ds` is the block without one.
            head = (
                f"ir_r1_k{kernel}_s{shape.stride}_e{expansion}" if expansion > 1 else f"ds_r1_k{kernel}_s{shape.stride}"
            )
            if stage == len(stages):
                stages.append([])
            stages[stage].append(f"{head}_c{shape.out_width}")
        return stages

    def model_args(self, choices: Mapping[str, str], *, num_classes: int = 1000, in_chans: int = 3) -> dict[str, Any]:
        """Return the keyword arguments of `timm.create_model('proxylessnas', **args)`."""
        return {
            "arch_def": self.arch_def(choices),
            "stem_size": self.stem_width,
            "stem_stride": self.stem_stride,
            "num_features": self.head_width,
            "act_layer": self.activation,
            "bn_eps": self.bn_eps,
            "bn_momentum": self.bn_momentum,
            "num_classes": num_classes,
            "in_chans": in_chans,
        }

    def timm_names(self, weights: Mapping[str, torch.Tensor], choices: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Return a frozen space's weights under timm's keys: skipped blocks are gone and later ones renumbered.

        Args:
            weights: `state_dict()` of the space frozen at `choices`.
            choices: A candidate for every edge.
        """
        kept = {key: value for key, value in weights.items() if not _is_searched(key)}
        blocks = kept_blocks(self, choices)
        places = [(f"blocks.{edge.stage}.{edge.index}", f"blocks.{stage}.{index}") for stage, index, edge in blocks]
        return kept | moved(weights, places)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert values of YAML or JSON to those of the fields; a stage is a mapping of `Stage`'s fields there."""
        converted = super().from_plain(values)
        if "stages" in values:
            try:
                converted["stages"] = tuple(s if isinstance(s, Stage) else Stage(**s) for s in values["stages"])
            except TypeError as error:
                raise SpaceError(f"stages = {shown(values['stages'])}: each needs width, depth and stride") from error
        return converted


class MBConvSpace(TimmSpace):
    """The supernet of an MBConv declaration, with the attribute names of timm's EfficientNet; see `TimmSpace`."""

    declaration: MBConvDeclaration

    def __init__(self, declaration: MBConvDeclaration, num_classes: int = 1000, in_chans: int = 3):
        super().__init__(declaration, num_classes, in_chans)
        act = get_act_layer(declaration.activation)
        norm = norm_layer(eps=declaration.bn_eps, momentum=declaration.bn_momentum)
        self.conv_stem = create_conv2d(in_chans, declaration.stem_width, 3, stride=declaration.stem_stride)
        self.bn1 = norm(declaration.stem_width, act_layer=act)
        shape = BlockShape(declaration.stem_width, declaration.first_width, 1)
        stages: list[list[nn.Module]] = [
            [first_block(shape, activation=declaration.activation, norm=norm)],
            *([] for _ in declaration.stages),
        ]
        for edge in declaration.edges():
            candidates = {
                name: nn.Identity()
                if name == SKIP
                else mbconv(edge.shape, *parse_candidate(name), activation=declaration.activation, norm=norm)
                for name in edge.candidates
            }
            stages[edge.stage].append(LayerChoice(candidates, label=edge.label))
        self.blocks = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.conv_head = create_conv2d(declaration.stages[-1].width, declaration.head_width, 1)
        self.bn2 = norm(declaration.head_width, act_layer=act)
        self.global_pool, self.classifier = create_classifier(declaration.head_width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the release does: convolutions N(0, sqrt(2 / (k * k * out))).

        timm divides the fan-out of depthwise convolutions by their groups, which starts them with larger weights.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv_stem(x))
        x = self.blocks(x)
        x = self.bn2(self.conv_head(x))
        return self.classifier(self.global_pool(x))


def _is_searched(key: str) -> bool:
    return key.startswith("blocks.") and not key.startswith("blocks.0.")


def kept_blocks(declaration: MBConvDeclaration, choices: Mapping[str, str]) -> Iterator[tuple[int, int, SearchedBlock]]:
    """Yield every block that is not skipped: `(stage, index)` in the timm network, and the edge that it comes from."""
    stage, index, previous = 0, 0, 0
    for edge in declaration.edges():
        if choices[edge.label] == SKIP:
            continue
        if edge.stage != previous:
            stage, index, previous = stage + 1, 0, edge.stage
        yield stage, index, edge
        index += 1


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round `value` to a multiple of `divisor`, never under 90 % of it, as in the release."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


IMAGENET_MBCONV = MBConvDeclaration(
    name="imagenet_mbconv",
    stem_width=32,
    stem_stride=2,
    first_width=16,
    stages=(
        Stage(24, 4, 2),
        Stage(40, 4, 2),
        Stage(80, 4, 2),
        Stage(96, 4, 1),
        Stage(192, 4, 2),
        Stage(320, 1, 1),
    ),
)

SMALL_MBCONV = MBConvDeclaration(
    name="small_mbconv",
    stem_width=16,
    stem_stride=2,
    first_width=16,
    stages=(Stage(24, 2, 2), Stage(40, 2, 2), Stage(64, 2, 1)),
    head_width=256,
)

CIFAR_MBCONV = replace(
    IMAGENET_MBCONV,
    name="cifar_mbconv",
    stem_stride=1,
    stages=(Stage(24, 4, 1), *IMAGENET_MBCONV.stages[1:]),
)
"""MobileNetV2's stages for images of 32 pixels: the last feature map is 4 x 4."""
