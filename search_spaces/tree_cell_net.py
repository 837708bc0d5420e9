"""The network of one choice of tree-structured cells, on torch and timm alone: exports carry this file along.

A pre-activation PyramidNet of bottleneck blocks, whose 3x3 convolution is a tree of small operations. Equations and
figures: ProxylessNAS, arXiv 1812.00332, section 4.1, and its published CIFAR-10 network.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, DropPath, calculate_drop_path_rates, create_classifier
from timm.models import checkpoint_seq
from torch import nn
from torch.nn import functional

CODES = {
    "identity": "i",
    "sep_3x3": "3",
    "sep_5x5": "5",
    "sep_7x7": "7",
    "dil_3x3": "d",
    "avg_pool_3x3": "a",
    "max_pool_3x3": "m",
}
"""The candidates of an edge, and the letter that stands for each in `arch`."""
GROUPS = 3

EdgeFactory = Callable[[str, int], nn.Module]
"""From an edge's label and its channels to what stands there."""


def candidate(name: str, width: int) -> nn.Module:
    """Build the operation `name` of `CODES`: `B x width x H x W` to the same shape."""
    if name == "identity":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, 1, 1)
    kind, _, kernel = name.partition("_")
    return SeparableConv(width, int(kernel[0]), dilation=2 if kind == "dil" else 1)


def block_widths(blocks: int, stem_width: int, alpha: int) -> list[int]:
    """Return the channels in each block's cell: linearly up to `stem_width + alpha`, rounded, made even."""
    count = GROUPS * blocks
    rounded = [int(stem_width + alpha * number / count + 0.5) for number in range(1, count + 1)]
    return [width - width % 2 for width in rounded]


def tree_edges(label: str, path: str, levels: int) -> Iterator[tuple[str, str]]:
    """Yield label and module path of every edge under a node, an edge before those that its output feeds."""
    for index in range(2):
        below = f"{label}_{index + 1}"
        yield below, f"{path}.edges.{index}"
        if levels > 1:
            yield from tree_edges(below, f"{path}.nodes.{index}", levels - 1)


def cell_edges(blocks: int, cell_depth: int) -> Iterator[tuple[int, str, str]]:
    """Yield every edge of a network in order: its cell (from 0), its label (`cell1_1_2_1`) and its module path."""
    for number in range(GROUPS * blocks):
        group, block = divmod(number, blocks)
        for half in range(2):
            path = f"stages.{group}.{block}.cell.halves.{half}"
            for label, edge in tree_edges(f"cell{number + 1}_{half + 1}", path, cell_depth - 1):
                yield number, label, edge


def parse_arch(arch: str | Sequence[str], blocks: int, cell_depth: int) -> dict[str, str]:
    """Return the candidate of every edge, by label.

    Args:
        arch: One word of `CODES`' letters a cell, in one string or as a list.
        blocks: Blocks in each of the three groups.
        cell_depth: Depth of a cell's tree.

    Raises:
        ValueError: A word is missing or too many, too short or too long, or has an unknown letter.
    """
    words = arch.split() if isinstance(arch, str) else list(arch)
    edges = list(cell_edges(blocks, cell_depth))
    per_cell = len(edges) // (GROUPS * blocks)
    if len(words) != GROUPS * blocks:
        raise ValueError(f"arch has {len(words)} words, but the network has {GROUPS * blocks} cells; give one a cell")
    names = {code: name for name, code in CODES.items()}
    for number, word in enumerate(words, start=1):
        if len(word) != per_cell or not set(word) <= set(names):
            known = ", ".join(f"{code} ({name})" for code, name in names.items())
            raise ValueError(f"cell {number} of arch is {word!r}; it needs {per_cell} letters out of {known}")
    letters = (letter for word in words for letter in word)
    return {label: names[letter] for (_, label, _), letter in zip(edges, letters, strict=True)}


class SeparableConv(nn.Module):
    """Batch norm, ReLU, depthwise convolution, 1x1 convolution."""

    def __init__(self, width: int, kernel: int, *, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.norm = BatchNormAct2d(width)
        self.conv_dw = nn.Conv2d(width, width, kernel, padding=padding, dilation=dilation, groups=width, bias=False)
        self.conv_pw = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_pw(self.conv_dw(self.norm(x)))


class TreeNode(nn.Module):
    """Two edges from one input, what their outputs feed, and the sum of both."""

    def __init__(self, label: str, width: int, levels: int, edge: EdgeFactory):
        super().__init__()
        self.edges = nn.ModuleList()
        self.nodes = nn.ModuleList()
        for index in range(2):
            below = f"{label}_{index + 1}"
            self.edges.append(edge(below, width))
            self.nodes.append(TreeNode(below, width, levels - 1, edge) if levels > 1 else nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nodes[0](self.edges[0](x)) + self.nodes[1](self.edges[1](x))


class TreeCell(nn.Module):
    """The root edge to twice the channels, a tree on each half of them, and the sum of both halves."""

    def __init__(self, label: str, width: int, stride: int, depth: int, edge: EdgeFactory):
        super().__init__()
        self.norm = BatchNormAct2d(width)
        self.conv = nn.Conv2d(width, 2 * width, 3, stride, 1, groups=2, bias=False)
        self.shuffle = nn.ChannelShuffle(2)
        self.halves = nn.ModuleList(TreeNode(f"{label}_{half}", width, depth - 1, edge) for half in (1, 2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.shuffle(self.conv(self.norm(x))).chunk(2, dim=1)
        first = self.norms[0](self.halves[0](first)) + first
        second = self.norms[1](self.halves[1](second)) + second
        return first + second


class TreeBlock(nn.Module):
    """Bottleneck with a cell in its middle; the shortcut is pooled where it must shrink, and padded with zeros."""

    def __init__(
        self,
        label: str,
        in_chs: int,
        width: int,
        out_chs: int,
        *,
        stride: int,
        depth: int,
        edge: EdgeFactory,
        drop_path: float,
    ):
        super().__init__()
        self.pad = out_chs - in_chs
        self.norm1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.cell = TreeCell(label, width, stride, depth, edge)
        self.norm2 = BatchNormAct2d(width)
        self.conv2 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_chs)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cell(self.conv1(self.norm1(x)))
        y = self.drop_path(self.norm3(self.conv2(self.norm2(y))))
        return y + functional.pad(self.pool(x), (0, 0, 0, 0, 0, self.pad))


def assemble(
    network: Any,
    edge: EdgeFactory,
    *,
    blocks: int,
    stem_width: int,
    alpha: int,
    bottleneck: int,
    cell_depth: int,
    num_classes: int,
    in_chans: int,
    global_pool: str = "avg",
    drop_path_rate: float = 0.0,
) -> int:
    """Give `network` its layers, `edge(label, width)` at each edge, and return the number of its features."""
    network.conv_stem = nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(stem_width)
    rates: list[Any] = calculate_drop_path_rates(drop_path_rate, GROUPS * blocks)
    groups: list[list[nn.Module]] = [[] for _ in range(GROUPS)]
    in_chs = stem_width
    for number, width in enumerate(block_widths(blocks, stem_width, alpha)):
        group, block = divmod(number, blocks)
        out_chs = bottleneck * width
        groups[group].append(
            TreeBlock(
                f"cell{number + 1}",
                in_chs,
                width,
                out_chs,
                stride=2 if group and not block else 1,
                depth=cell_depth,
                edge=edge,
                drop_path=rates[number],
            )
        )
        in_chs = out_chs
    network.stages = nn.Sequential(*(nn.Sequential(*group) for group in groups))
    network.norm = BatchNormAct2d(in_chs)
    network.global_pool, network.classifier = create_classifier(in_chs, num_classes, pool_type=global_pool)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return in_chs


class TreeCellNet(nn.Module):
    """The network of one choice.

    Args:
        arch: One word of `CODES`' letters a cell, in one string or as a list; a cell's edges come in the order of
            `cell_edges`.
        blocks: Blocks in each of the three groups.
        stem_width: Channels of the stem.
        alpha: How many channels a cell's width grows by over the whole network.
        bottleneck: How many times wider a block's output is than its cell.
        cell_depth: Depth of a cell's tree, its root edge included.
        num_classes: Classes of the linear classifier; 0 leaves it out.
        in_chans: Channels of the input image.
        global_pool: timm's name of the pooling.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path of the last block; earlier ones have less, linearly down to 0.

    Input `B x in_chans x H x W`, output `B x num_classes`.

    Raises:
        ValueError: `arch` does not fit the other arguments.
    """

    conv_stem: nn.Conv2d
    bn1: nn.BatchNorm2d
    stages: nn.Sequential
    norm: BatchNormAct2d
    global_pool: nn.Module
    classifier: nn.Module

    def __init__(
        self,
        arch: str | Sequence[str],
        *,
        blocks: int = 18,
        stem_width: int = 16,
        alpha: int = 84,
        bottleneck: int = 4,
        cell_depth: int = 3,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        choices = parse_arch(arch, blocks, cell_depth)
        self.num_features = self.head_hidden_size = assemble(
            self,
            lambda label, width: candidate(choices[label], width),
            blocks=blocks,
            stem_width=stem_width,
            alpha=alpha,
            bottleneck=bottleneck,
            cell_depth=cell_depth,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_path_rate=drop_path_rate,
        )
        groups: Any = self.stages
        self.feature_info = [
            {"num_chs": group[-1].conv2.out_channels, "reduction": 2**index, "module": f"stages.{index}"}
            for index, group in enumerate(groups)
        ]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Return layers for layer-wise learning rates: the stem, then each block (or group, if coarse)."""
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^conv_stem|^bn1", "blocks": [(block, None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map before pooling, `B x num_features x H/4 x W/4`."""
        x = self.bn1(self.conv_stem(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            groups: Any = self.stages
            x = checkpoint_seq([block for group in groups for block in group], x)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Apply pooling, dropout and classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))
