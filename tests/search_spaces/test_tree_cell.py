"""The tree-structured cells against the published network for CIFAR-10, and against an independent count."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from hardware.errors import SubnetError
from proxyless_strategy.export import model_summary
from search_spaces import timm_models
from search_spaces.tree_cell_net import CODES, block_widths, cell_edges

PUBLISHED = Path("/work/shared/data/proxyless_cifar_compact.txt")
SMALL = {"blocks": 1, "alpha": 8, "bottleneck": 2}


def small(letters="37d", **changes):
    """Three cells; each cell's letters repeat `letters`."""
    words = [(letters * 12)[:12]] * 3
    return timm.create_model("proxylessnas_cifar_tree", **{"arch": words, **SMALL, **changes})


def test_the_published_network_has_the_published_size():
    summary = model_summary(timm.create_model("proxylessnas_cifar_tree"), (3, 32, 32))
    assert summary.params == 5_731_530
    assert round(summary.macs / 1e6, 1) == 1213.2


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is not here")
def test_the_default_cells_are_the_published_ones():
    short = {"id": "i", "s3": "3", "s5": "5", "s7": "7", "d3": "d", "ap": "a", "mp": "m"}
    words, widths = [], []
    for line in PUBLISHED.read_text().split("\n")[:54]:
        number, width, cell = line.split(":", 2)[0], *line.split(":", 2)[1].split(), line.split(":", 2)[2]
        assert int(number) == len(words) + 1
        widths.append(int(width.removeprefix("w")))
        words.append("".join(short[name] for name in re.findall(r"[a-z]+\d?", cell)))
    assert timm_models._CIFAR_TREE.split() == words
    assert block_widths(18, 16, 84) == widths


def test_edges_come_before_what_they_feed_and_letters_reach_their_edge():
    edges = list(cell_edges(18, 3))
    assert len(edges) == 648
    assert [label for _, label, _ in edges[:4]] == ["cell1_1_1", "cell1_1_1_1", "cell1_1_1_2", "cell1_1_2"]
    word = "".join(CODES.values()) + "im3id"
    model = timm.create_model("proxylessnas_cifar_tree", arch=["i" * 12, "i" * 12, word], **SMALL)
    kinds = {"i": nn.Identity, "a": nn.AvgPool2d, "m": nn.MaxPool2d}
    for (cell, _, path), letter in zip(cell_edges(1, 3), "i" * 24 + word, strict=True):
        module = model.get_submodule(path)
        if letter in kinds:
            assert type(module) is kinds[letter]
        else:
            kernel, dilation = module.conv_dw.kernel_size[0], module.conv_dw.dilation[0]
            assert (kernel, dilation) == {"3": (3, 1), "5": (5, 1), "7": (7, 1), "d": (3, 2)}[letter], cell


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_cell_computes_its_tree(depth):
    """Identity at each edge: a node of L levels gives 2^L x; a half adds itself after batch norm."""
    per_cell = len(list(cell_edges(1, depth))) // 3
    assert per_cell == 2 * sum(2**level for level in range(1, depth))
    model = timm.create_model("proxylessnas_cifar_tree", arch=["i" * per_cell] * 3, cell_depth=depth, **SMALL).eval()
    cell = model.stages[1][0].cell
    x = torch.randn(2, cell.conv.in_channels, 8, 8)
    root = cell.conv(cell.norm(x))
    width = cell.conv.in_channels
    order = torch.arange(2 * width).view(2, width).t().flatten()  # channels of the two groups interleaved
    halves = root[:, order].split(width, dim=1)
    scale = 2 ** (depth - 1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(cell(x), sum(half * (1 + scale) for half in halves))


def test_a_block_pads_and_pools_its_shortcut():
    model = small().eval()
    block = model.stages[1][0]
    nn.init.zeros_(block.norm3.weight)
    x = torch.randn(2, block.norm1.num_features, 8, 8)
    found = block(x)
    torch.testing.assert_close(found[:, : x.shape[1]], x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    assert not found[:, x.shape[1] :].any()


def test_drop_path_grows_linearly():
    model = small(drop_path_rate=0.3)
    rates = [getattr(group[0].drop_path, "drop_prob", 0.0) for group in model.stages]
    assert rates == pytest.approx([0.0, 0.15, 0.3])


def test_it_is_independent_of_gradient_checkpointing():
    model = small().train()
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    plain = torch.autograd.grad(model(x).sum(), x)[0]
    model.set_grad_checkpointing()
    assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], plain)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blocks": 1}, "give arch"),
        ({"blocks": 1, "arch": "i" * 12}, "1 words, but the network has 3 cells"),
        ({"blocks": 1, "arch": ["i" * 12, "i" * 11, "i" * 12]}, "cell 2 of arch is 'iiiiiiiiiii'; it needs 12"),
        ({"blocks": 1, "arch": ["i" * 12, "i" * 12, "i" * 11 + "x"]}, r"cell 3 .* 3 \(sep_3x3\)"),
    ],
)
def test_an_arch_that_does_not_fit_is_refused(arguments, words):
    with pytest.raises(SubnetError, match=words):
        timm.create_model("proxylessnas_cifar_tree", **arguments)
