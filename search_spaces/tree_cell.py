"""The tree-structured cell space for CIFAR: a PyramidNet each of whose 3x3 convolutions is a tree of searched edges.

Equations and figures: ProxylessNAS, arXiv 1812.00332, section 4.1, and its published network. Edges share no choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from nni.nas.nn.pytorch import LayerChoice

from hardware.errors import SpaceError
from hardware.op_spec import IDENTITY, OpSpec
from hardware.reading import cut, shown

from .costs import SpaceCosts
from .declaration import ShippedDeclaration
from .timm_space import TimmSpace
from .tree_cell_net import CODES, GROUPS, assemble, block_widths, candidate, cell_edges

MOST_BLOCKS, MOST_DEPTH = 1000, 8
"""Far above every use: a slip of the hand must not fill the memory or never end."""


@dataclass(frozen=True)
class TreeCellDeclaration(ShippedDeclaration):
    """Three groups of bottleneck blocks with a cell in each, whose width grows linearly from block to block.

    Attributes:
        name: Name of the space.
        blocks: Blocks in each group, B of the paper; the first block of groups 2 and 3 has stride 2.
        stem_width: Channels of the stem.
        alpha: How many channels a cell's width grows by over the whole network; the last cell has `stem_width + alpha`.
        bottleneck: How many times wider a block's output is than its cell; F of the paper is that of the last block.
        cell_depth: Depth of a cell's tree: the root edge, then searched edges, each of which feeds two more.
        operations: Names of the candidates, of `tree_cell_net.CODES`.
    """

    blocks: int = 18
    stem_width: int = 16
    alpha: int = 84
    bottleneck: int = 4
    cell_depth: int = 3
    operations: tuple[str, ...] = tuple(CODES)

    timm_name: ClassVar[str] = "proxylessnas_cifar_tree"
    kind: ClassVar[str] = "tree_cell"

    def __post_init__(self) -> None:
        self.check_integers(blocks=1, stem_width=1, alpha=0, bottleneck=1, cell_depth=2)
        # A cell has 2 ** cell_depth edges, of all blocks.
        if self.blocks > MOST_BLOCKS or self.cell_depth > MOST_DEPTH:
            raise SpaceError(
                f"blocks = {self.blocks}, cell_depth = {self.cell_depth} of the space {cut(self.name)}; they must be "
                f"at most {MOST_BLOCKS} and {MOST_DEPTH}"
            )
        unknown = [name for name in self.operations if name not in CODES]
        if unknown or not self.operations or len(set(self.operations)) < len(self.operations):
            raise SpaceError(
                f"operations = {shown(list(self.operations))} of the space {cut(self.name)}; name one or more of "
                f"{', '.join(CODES)}, each once"
            )
        widths = [self.stem_width, *(self.bottleneck * width for width in self._widths())]
        if min(widths) < 2 or any(after < before for before, after in pairwise(widths)):
            raise SpaceError(
                f"stem_width = {self.stem_width}, alpha = {self.alpha}, bottleneck = {self.bottleneck} of the space "
                f"{cut(self.name)} give widths {widths[:3]}...; they must be 2 or more and never fall, so raise one of "
                "them"
            )

    def _widths(self) -> list[int]:
        return block_widths(self.blocks, self.stem_width, self.alpha)

    def scaled_widths(self, width_mult: float) -> dict[str, Any]:
        """Return `stem_width` and `alpha` times `width_mult`, rounded; all other widths follow from both."""
        return {"stem_width": round(self.stem_width * width_mult), "alpha": round(self.alpha * width_mult)}

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return the candidates' names of every edge, by label."""
        return {label: self.operations for _, label, _ in cell_edges(self.blocks, self.cell_depth)}

    def edge_paths(self) -> dict[str, str]:
        """Return the path of every edge's module in the built space, by label."""
        return {label: path for _, label, path in cell_edges(self.blocks, self.cell_depth)}

    def shape(self) -> dict[str, Any]:
        """Return what the network is made of beside its choices, by the arguments of `tree_cell_net.assemble`."""
        return {name: getattr(self, name) for name in ("blocks", "stem_width", "alpha", "bottleneck", "cell_depth")}

    def build(self, *, num_classes: int = 10, in_chans: int = 3) -> TreeCellSpace:
        """Build the space as an NNI ModelSpace, ready for `ProxylessStrategy`."""
        return TreeCellSpace(self, num_classes=num_classes, in_chans=in_chans)

    def costs(self, input_size: int, *, num_classes: int = 10, in_chans: int = 3) -> SpaceCosts:
        """Return the operators of this space at `input_size x input_size` pixels.

        A chain has a cell's operators one after another: what the tree adds is in it as `add_map` and `sum_halves`, and
        the pools of the two shortcuts that shrink stand beside it.

        Raises:
            SpaceError: `input_size` is no multiple of 4.
        """
        if input_size % 4:
            raise SpaceError(
                f"input_size = {shown(input_size)} for the space {cut(self.name)}; its two strides need a multiple of 4"
            )
        size, in_chs = input_size, self.stem_width
        stem = (in_chs, size, size)
        order: list[OpSpec | str] = [OpSpec("conv", (in_chans, size, size), stem, kernel=3, activation="none")]
        beside: list[OpSpec] = []
        edges: dict[str, dict[str, OpSpec]] = {}
        labels: dict[int, list[str]] = {}
        for number, label, _ in cell_edges(self.blocks, self.cell_depth):
            labels.setdefault(number, []).append(label)
        for number, width in enumerate(self._widths()):
            group, block = divmod(number, self.blocks)
            stride = 2 if group and not block else 1
            before = (in_chs, size, size)
            size //= stride
            if stride == 2:
                pooled = (in_chs, size, size)
                beside.append(OpSpec("avg_pool", before, pooled, kernel=2, stride=2, activation="none"))
            shape, double = (width, size, size), (2 * width, size, size)
            in_chs = self.bottleneck * width
            order.append(OpSpec("tree_entry", before, double, kernel=3, stride=stride, hidden=width, activation="relu"))
            order.append(OpSpec("sum_halves", double, shape, activation="none"))
            for label in labels[number]:
                edges[label] = {name: operation_spec(name, shape) for name in self.operations}
                order.append(label)
            order += [OpSpec("norm", shape, shape, activation="none")] * 2
            order += [OpSpec("add_map", shape, shape, activation="none")] * 2**self.cell_depth
            order.append(OpSpec("tree_exit", shape, (in_chs, size, size), activation="relu"))
        last = (in_chs, size, size)
        order += [OpSpec("norm", last, last, activation="relu"), OpSpec("head", last, (num_classes,))]
        return SpaceCosts(self.name, input_size, in_chans, tuple(order), edges, tuple(beside))

    def arch(self, choices: Mapping[str, str]) -> str:
        """Write a choice in the letters of `tree_cell_net.CODES`: one word a cell."""
        words = [""] * (GROUPS * self.blocks)
        for number, label, _ in cell_edges(self.blocks, self.cell_depth):
            words[number] += CODES[choices[label]]
        return " ".join(words)

    def model_args(self, choices: Mapping[str, str], *, num_classes: int = 10, in_chans: int = 3) -> dict[str, Any]:
        """Return the keyword arguments of `timm.create_model('proxylessnas_cifar_tree', **args)`."""
        return {
            "arch": self.arch(choices),
            **self.shape(),
            "num_classes": num_classes,
            "in_chans": in_chans,
        }

    def timm_names(self, weights: Mapping[str, torch.Tensor], choices: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Return a frozen space's weights under timm's keys, which are the same."""
        return dict(weights)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` reads them back."""
        return {"kind": self.kind, **asdict(self)}


class TreeCellSpace(TimmSpace):
    """The supernet of a tree-cell declaration, with the module names of `TreeCellNet`; see `TimmSpace`."""

    declaration: TreeCellDeclaration

    def __init__(self, declaration: TreeCellDeclaration, num_classes: int = 10, in_chans: int = 3):
        super().__init__(declaration, num_classes, in_chans)

        def edge(label: str, width: int) -> LayerChoice:
            return LayerChoice({name: candidate(name, width) for name in declaration.operations}, label=label)

        assemble(self, edge, **declaration.shape(), num_classes=num_classes, in_chans=in_chans)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stages(self.bn1(self.conv_stem(x))))
        return self.classifier(self.global_pool(x))


def operation_spec(name: str, shape: tuple[int, int, int]) -> OpSpec:
    """Return the OpSpec of `tree_cell_net.candidate` on a map of this shape."""
    if name == "identity":
        return OpSpec(IDENTITY, shape, shape)
    if name in ("avg_pool_3x3", "max_pool_3x3"):
        return OpSpec(name.removesuffix("_3x3"), shape, shape, kernel=3, activation="none")
    kind, _, kernel = name.partition("_")
    family = "preact_ds_conv" if kind == "sep" else "preact_dilated_ds_conv"
    return OpSpec(family, shape, shape, kernel=int(kernel[0]), activation="relu")


CIFAR_TREE = TreeCellDeclaration("cifar_tree")
