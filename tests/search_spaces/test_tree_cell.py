"""The tree-structured cells against the published network for CIFAR-10, and against an independent count."""

import collections
import itertools
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hardware.errors import SpaceError, SubnetError
from hardware.model import macs_model, params_model
from hardware.operators import onnx_graph, primitives
from hardware.operators.primitives import Conv
from hardware.operators.torch_module import Chain
from proxyless_strategy.export.summary import model_summary
from search_spaces import Subnet, get_space, timm_models
from search_spaces.tree_cell_net import CODES, block_widths, cell_edges, parse_arch
from tests.benchmarks.tree_cell import RESULT

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
    assert timm_models.CIFAR_TREE_ARCH.split() == words
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


# --- the space ----------------------------------------------------------------------------------------------------


TINY = {"blocks": 2, "stem_width": 4, "alpha": 8, "bottleneck": 2}


def test_cifar_tree_is_the_papers_space():
    space = get_space("cifar_tree")
    candidates = space.candidates()
    assert len(candidates) == 648
    assert set(candidates.values()) == {tuple(CODES)}
    assert len(CODES) == 7
    costs = space.costs(32)
    published = parse_arch(timm_models.CIFAR_TREE_ARCH, 18, 3)
    chain = costs.chain(published)
    assert sum(primitives.params(op) for op in chain) == 5_731_530
    assert sum(primitives.macs(op) for op in chain) == 1_213_155_872
    assert all(a.output_shape == b.input_shape for a, b in itertools.pairwise(chain))
    assert Subnet(space, published).model_args()["arch"] == timm_models.CIFAR_TREE_ARCH
    assert [op.output_shape for op in costs.beside] == [(176, 16, 16), (288, 8, 8)]


@pytest.mark.parametrize("options", [{"cell_depth": 2}, {"blocks": 1}])
def test_a_frozen_space_is_the_timm_network(options):
    torch.manual_seed(0)
    space = get_space("cifar_tree", **{**TINY, **options})
    network = space.build(num_classes=10, in_chans=1).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(2, 1, 16, 16)
    for choices in space.costs(16).random_choices(2, seed=5):
        subnet = Subnet(space, choices)
        model = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=10, in_chans=1)).eval()
        model.load_state_dict(network.timm_state_dict(choices))
        frozen = network.freeze(choices).eval()
        assert (model(x) - frozen(x)).abs().max() == 0
        renamed = space.timm_names(frozen.state_dict(), choices)
        assert set(renamed) == set(model.state_dict())
        assert all(torch.equal(renamed[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"blocks": 1, "cell_depth": 4, "bottleneck": 4}])
def test_costs_follow_the_network(options):
    """MACs, parameters and written maps of the chain, against timm's network as PyTorch counts it."""
    space = get_space("cifar_tree", **{**TINY, **options})
    costs = space.costs(16, num_classes=7, in_chans=2)
    for choices in costs.random_choices(3, seed=1):
        subnet = Subnet(space, choices)
        model = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=7, in_chans=2)).eval()
        summary = model_summary(model, (2, 16, 16))
        chain = costs.chain(choices)
        assert sum(primitives.macs(op) for op in chain) == summary.macs
        assert sum(primitives.params(op) for op in chain) == summary.params
        assert all(a.output_shape == b.input_shape for a, b in itertools.pairwise(chain))
        for model_of in (macs_model, params_model):
            cost = model_of(costs.fixed, costs.edges).cost(choices)
            expected = summary.macs if model_of is macs_model else summary.params
            assert cost == pytest.approx(expected / 1e6)


def test_additions_and_pools_are_those_that_run():
    """Counted by what torch dispatches: additions of whole maps, pools, norms, convolutions."""
    space = get_space("cifar_tree", **{**TINY, "blocks": 1})
    costs = space.costs(16)
    choices = dict.fromkeys(costs.edges, "max_pool_3x3")
    subnet = Subnet(space, choices)
    model = timm.create_model(subnet.timm_name, **subnet.model_args()).eval()
    with torch.no_grad(), Operations() as found:
        model(torch.randn(1, 3, 16, 16))
    kinds = collections.Counter(type(p).__name__ for op in costs.chain(choices) for p in primitives.decompose(op))
    beside = [p for op in costs.beside for p in primitives.decompose(op)]
    assert kinds["AddMap"] + kinds["SumHalves"] == found.count["add"]
    assert kinds["Pool"] == found.count["max_pool2d_with_indices"] == 36
    assert len(beside) == found.count["avg_pool2d"] == 2
    folded = sum(p.folded_norm for op in costs.chain(choices) for p in primitives.decompose(op) if isinstance(p, Conv))
    assert kinds["BatchNorm"] + folded == found.count["native_batch_norm"]


class Operations(TorchDispatchMode):
    """Counts the tensor operations that run, by name."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.__name__.split(".")[0].removesuffix("_")] += 1
        return function(*args, **(kwargs or {}))


def test_subnet_round_trips(tmp_path):
    space = get_space("cifar_tree", **TINY)
    for choices in space.costs(16).random_choices(3, seed=2):
        subnet = Subnet(space, choices)
        subnet.save(tmp_path / "subnet.json")
        assert Subnet.load(tmp_path / "subnet.json") == subnet
        with pytest.raises(SubnetError, match="no MBConv space"):
            subnet.arch_def()
    (tmp_path / "subnet.json").write_text(
        (tmp_path / "subnet.json").read_text().replace('"kind": "tree_cell"', '"kind": "bush"')
    )
    with pytest.raises(SpaceError, match="kind 'bush'; known here are mbconv, timm, tree_cell"):
        Subnet.load(tmp_path / "subnet.json")


def test_width_mult_scales_stem_and_growth():
    space = get_space("cifar_tree", width_mult=0.5)
    assert (space.stem_width, space.alpha, space.name) == (8, 42, "cifar_tree_w0.5")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": 0}, "blocks = 0"),
        ({"cell_depth": 1}, "cell_depth = 1"),
        ({"operations": ["sep_9x9"]}, "sep_9x9"),
        ({"operations": ["identity", "identity"]}, "each once"),
        ({"stem_width": 1, "alpha": 0}, "raise one of them"),
        ({"stem_width": 17, "alpha": 0, "bottleneck": 1}, "never fall"),
        ({"depth": 3}, "unknown option .*cell_depth"),
        ({"width_mult": -1}, "width_mult = -1"),
    ],
)
def test_impossible_spaces_are_refused(options, words):
    with pytest.raises(SpaceError, match=words):
        get_space("cifar_tree", **options)


def test_an_input_size_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(SpaceError, match="input_size = 30"):
        get_space("cifar_tree").costs(30)


@pytest.mark.parametrize("constant", [False, True])
def test_backends_agree_on_a_chain_of_cells(constant):
    """The same numbers from ONNX Runtime and torch, and none of them overflows or vanishes over 54 cells."""
    import onnxruntime

    space = get_space("cifar_tree", blocks=18 if constant else 2, stem_width=4, alpha=8, bottleneck=2)
    costs = space.costs(8, in_chans=3)
    for choices in [*costs.random_choices(1, seed=3), dict.fromkeys(costs.edges, "max_pool_3x3")]:
        chain = costs.chain(choices)
        model = onnx_graph.chain_model(chain, constant=constant)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
        (found,) = session.run(None, {"input": x})
        assert np.isfinite(found).all()
        assert np.abs(found).min() > 1e-30
        if not constant:
            with torch.no_grad():
                expected = Chain([primitives.decompose(op) for op in chain]).eval()(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_committed_fashion_mnist_rows_are_of_cells_of_one_size():
    found = json.loads(RESULT.read_text())
    sizes = []
    for row in found["rows"]:
        options = {name: value for name, value in found["space"].items() if name not in ("name", "edges")}
        summary = model_summary(timm.create_model("proxylessnas_cifar_tree", arch=row["arch"], **options), (3, 32, 32))
        assert (row["params_m"], row["macs_m"]) == (round(summary.params / 1e6, 4), round(summary.macs / 1e6, 4))
        sizes.append((summary.params, summary.macs))
    assert [row["cells"] for row in found["rows"]] == ["derived", *(f"random {n}" for n in range(1, 6))]
    assert all(abs(a / b - 1) < 0.05 for size in sizes[1:] for a, b in zip(size, sizes[0], strict=True))
