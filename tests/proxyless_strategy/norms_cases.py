"""Cases of `test_norms`, for a process of its own: Triton's interpreter is chosen when Triton is imported.

TRITON_INTERPRET=1 python -m pytest tests/proxyless_strategy/norms_cases.py     # on the CPU
python -m pytest tests/proxyless_strategy/norms_cases.py                        # on a GPU
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional

from proxyless_strategy import norms
from proxyless_strategy.export.summary import SavedBytes
from proxyless_strategy.norms import FusedNorms
from proxyless_strategy.retraining.trainer import train
from proxyless_strategy.strategy.objectives import AccuracyOnly
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import GradientUpdate, Problem, ReinforceUpdate
from proxyless_strategy.strategy.supernet.frozen import frozen_copy
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import get_space
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.retraining import test_trainer
from tests.proxyless_strategy.strategy.test_capturing import Noted

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
ACTIVATIONS = {"identity": None, "relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU}
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of what is written in a type, beside the largest value; Triton's interpreter cuts bits off where a GPU rounds."""
SUMS = 2e-5
"""Of sums in float32."""


def a_norm(channels: int, activation: str = "relu6", **options: Any) -> BatchNormAct2d:
    """Make a norm whose weights and statistics are far from 1 and 0."""
    kind = ACTIVATIONS[activation]
    norm = BatchNormAct2d(channels, act_layer=kind or nn.ReLU, apply_act=kind is not None, eps=1e-3, **options)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(drawn * 2 - 1 if name in ("bias", "running_mean") else drawn + 0.5)
    return norm.to(DEVICE)


def a_map(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean
    return drawn.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def close(found: Tensor | None, exact: Tensor | None, tolerance: float, what: str) -> None:
    if exact is None or found is None:
        assert found is exact, what
        return
    error = (found.double() - exact.double()).abs().max() / exact.abs().max().clamp_min(1e-12)
    assert float(error) <= tolerance, f"{what}: {float(error):.2g}"


def run(norm: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output, and the gradient of the input; those of weights stand in them."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


def agrees(norm: nn.Module, x: Tensor, dy: Tensor, *, tolerance: float = 1.0) -> nn.Module:
    """Hold outputs, gradients and statistics against those of the norm's own forward in float64; return that norm."""
    norm.zero_grad(set_to_none=True)
    exact = copy.deepcopy(norm).double()
    with FusedNorms(norm, "triton"):
        y, dx = run(norm, x, dy)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.dtype == x.dtype
    right, right_dx = run(exact, x.double(), dy.double())
    rounding = tolerance * ROUNDING[x.dtype]
    close(y, right, rounding, "output")
    close(dx, right_dx, rounding, "gradient of the input")
    for name, parameter in norm.named_parameters():
        close(parameter.grad, exact.get_parameter(name).grad, tolerance * SUMS, f"gradient of {name}")
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    for name, buffer in norm.named_buffers():
        close(buffer, exact.get_buffer(name), tolerance * 5e-6, name)
    return exact


def is_triton(y: Tensor) -> bool:
    return "NormAct" in type(y.grad_fn).__name__


# ---- one norm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_agrees_with_float64(activation: str, dtype: torch.dtype) -> None:
    # 9 x 7 pixels of 3 images fill no tile, and 24 channels no power of two.
    norm = a_norm(24, activation)
    agrees(norm, a_map(3, 24, 9, 7, dtype=dtype), a_map(3, 24, 9, 7, dtype=dtype, seed=1))
    agrees(norm.eval(), a_map(3, 24, 9, 7, dtype=dtype), a_map(3, 24, 9, 7, dtype=dtype, seed=1))


@pytest.mark.parametrize(
    "shape",  # the last one fills three programs, of which another than the first has the last tile
    [(2, 13, 5, 7), (2, 1, 4, 4), (64, 8, 1, 1), (1, 144, 6, 5), (2, 200, 3, 3), (3, 20, 41, 33)],
    ids=str,
)
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_any_size_may_come(shape: tuple[int, int, int, int], training: bool) -> None:
    agrees(a_norm(shape[1]).train(training), a_map(*shape), a_map(*shape, seed=1))


@pytest.mark.parametrize("outlier", [0.0, 1e4])
def test_a_mean_of_1000_deviations_leaves_the_variance_its_digits(outlier: float) -> None:
    # With sums of squares the variance would be off by a twentieth. The mean itself is rounded to 3e-5 deviations.
    norm, x = a_norm(20, "identity"), a_map(4, 20, 21, 19, mean=1000.0)
    x[0, :, 0, 0] += outlier
    agrees(norm, x, a_map(4, 20, 21, 19, seed=1), tolerance=20.0)
    # The shares of old and new statistics are known, so that the batch's own variance is, too.
    batch = (norm.running_var.double() - 0.9 * a_norm(20).running_var.double()) / 0.1
    close(batch, x.double().var((0, 2, 3)), 2e-6 * (1 + 10 * (outlier == 0)), "variance")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_a_number_stays_so(activation: str) -> None:
    norm, x = a_norm(4, activation), a_map(2, 4, 3, 3)
    x[0, 1, 0, 0] = torch.nan
    x[0, 2, 0, 0] = torch.inf
    with FusedNorms(norm, "triton"):
        y = norm(x)
    assert is_triton(y)
    bad = (~y.isfinite()).flatten(2).all(-1).all(0)
    assert bad.tolist() == [False, True, True, False]
    assert norm.running_mean.isfinite().tolist() == norm.running_var.isfinite().tolist() == [True, False, False, True]


def test_it_is_the_same_each_time() -> None:
    found = []
    for _ in range(2):
        norm = a_norm(16)
        with FusedNorms(norm, "triton"):
            y, dx = run(norm, a_map(2, 16, 33, 31), a_map(2, 16, 33, 31, seed=1))
        found.append([y, dx, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_gradient_may_have_any_layout() -> None:
    x, shape = a_map(2, 8, 5, 6), (2, 8, 5, 6)
    for dy in (a_map(*shape, seed=1).contiguous(), a_map(2, 8, 1, 1, seed=1).expand(shape)):
        agrees(a_norm(8), x, dy)


def test_it_keeps_its_input_and_two_values_for_each_channel() -> None:
    norm, x = a_norm(16, "silu"), a_map(2, 16, 8, 8, dtype=torch.bfloat16).requires_grad_()
    with FusedNorms(norm, "triton"), SavedBytes(without=list(norm.parameters())) as saved:
        y = norm(x)
    assert is_triton(y)
    assert saved.total == 2 * x.numel() + 2 * 4 * 16


@pytest.mark.parametrize("training", [True, False])
def test_an_input_that_needs_no_gradient_gets_none(training: bool) -> None:
    norm, x, dy = a_norm(8).train(training), a_map(2, 8, 5, 5), a_map(2, 8, 5, 5, seed=1)
    exact = copy.deepcopy(norm).double()
    norm.bias.requires_grad_(False)
    with FusedNorms(norm, "triton"):
        norm(x).backward(dy)
    exact(x.double()).backward(dy.double())
    close(norm.weight.grad, exact.weight.grad, SUMS, "weight")
    assert (x.grad, norm.bias.grad) == (None, None)


CHANGES: dict[str, Callable[[Any, Tensor], Any]] = {
    "input": lambda norm, x: x.add_(1),
    "weight": lambda norm, x: norm.weight.mul_(2),
    "statistics": lambda norm, x: norm.train()(x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_before_the_backward_pass_is_refused(change: str) -> None:
    norm, x = a_norm(8).eval(), a_map(2, 8, 3, 3).requires_grad_() * 1
    with FusedNorms(norm, "triton"):
        y = norm(x)
        with torch.no_grad():
            CHANGES[change](norm, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- the modes of a batch norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_norms_without_weights_or_statistics(options: dict[str, bool], training: bool) -> None:
    norm = a_norm(8, **options).train(training)
    agrees(norm, a_map(2, 8, 5, 5), a_map(2, 8, 5, 5, seed=1))
    plain = nn.BatchNorm2d(8, **options).to(DEVICE).train(training)
    agrees(plain, a_map(2, 8, 5, 5), a_map(2, 8, 5, 5, seed=1))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.01, 1.0])
def test_statistics_move_as_torch_moves_them(momentum: float | None) -> None:
    norm = a_norm(8, momentum=momentum)
    exact = norm
    for seed in range(3):
        exact = agrees(norm, a_map(2, 8, 5, 5, seed=seed), a_map(2, 8, 5, 5, seed=9))
    assert int(norm.num_batches_tracked) == int(exact.get_buffer("num_batches_tracked")) == 3
    assert not torch.equal(norm.running_var, a_norm(8).running_var) or momentum == 0


@pytest.mark.parametrize("training", [True, False])
def test_an_architecture_step_moves_no_statistic_and_asks_for_no_gradient_of_weights(training: bool) -> None:
    norm, x, dy = a_norm(8).train(training), a_map(2, 8, 5, 5), a_map(2, 8, 5, 5, seed=1)
    before = copy.deepcopy(norm)
    reference = copy.deepcopy(norm)
    with FusedNorms(norm, "triton"), ArchitectureStepMode(norm).active():
        y, dx = run(norm, x, dy)
    assert all(parameter.grad is None for parameter in norm.parameters())
    for name, value in before.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
    with ArchitectureStepMode(reference).active():
        right, right_dx = run(reference, x, dy)
    close(y, right, 2e-6, "output")
    close(dx, right_dx, 2e-6, "gradient")


def test_one_value_for_each_channel_is_refused_as_torch_does() -> None:
    norm, own = a_norm(8), a_norm(8)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as expected:
        own(a_map(1, 8, 1, 1))
    with FusedNorms(norm, "triton"), pytest.raises(ValueError, match="Expected more than 1 value") as found:
        norm(a_map(1, 8, 1, 1))
    assert str(found.value) == str(expected.value)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), own.buffers(), strict=True))


# ---- what is left to PyTorch -------------------------------------------------------------------------------------


class Halved(BatchNormAct2d):
    """A norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def _hooked() -> nn.Module:
    norm = a_norm(8)
    norm.act.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    ("make", "dtype", "layout", "words"),
    [
        (lambda: BatchNormAct2d(8, act_layer=nn.GELU), torch.float32, torch.channels_last, "activation GELU"),
        (lambda: BatchNormAct2d(8, drop_layer=nn.Dropout2d).eval(), torch.float32, torch.channels_last, "Dropout2d"),
        (lambda: Halved(8), torch.float32, torch.channels_last, "type Halved"),
        (_hooked, torch.float32, torch.channels_last, "a hook on their activation"),
        (lambda: a_norm(8).double(), torch.float64, torch.channels_last, "maps in float64"),
        (lambda: a_norm(8).bfloat16(), torch.bfloat16, torch.channels_last, "that are not float32"),
        (lambda: a_norm(8), torch.float32, torch.contiguous_format, "that are not channels last"),
    ],
)
def test_what_is_not_covered_runs_as_ever_and_is_said_once(
    make: Any, dtype: torch.dtype, layout: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    norms._say.cache_clear()
    norm = make().to(DEVICE)
    own, x = copy.deepcopy(norm), a_map(2, 8, 5, 5).to(dtype).contiguous(memory_format=layout)
    with caplog.at_level(logging.WARNING), FusedNorms(norm, "triton", setting="search.norm"):
        found = [norm(x) for _ in range(2)]
    assert not is_triton(found[0])
    assert all(torch.equal(value, own(x)) for value in found)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("search.norm = triton leaves ")
    assert words in said


def test_a_copy_or_a_pickle_made_inside_has_its_own_forward() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), a_norm(8)).to(DEVICE)
    keys, kinds = list(network.state_dict()), [type(module) for module in network.modules()]
    x = a_map(2, 3, 5, 5)
    fused = FusedNorms(network, "triton")
    with fused:
        with fused:
            assert is_triton(network(x))
        assert is_triton(network(x)), "the context may be entered within itself"
        assert list(network.state_dict()) == keys
        assert [type(module) for module in network.modules()] == kinds
        copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    assert not is_triton(network(x))
    assert all("forward" not in module.__dict__ for module in network.modules())
    for twin in (*copies, copy.deepcopy(copies[0]), pickle.loads(pickle.dumps(copies[0]))):
        before = [network[1].running_mean.clone(), twin[1].running_mean.clone()]
        assert not is_triton(twin(x))
        assert torch.equal(network[1].running_mean, before[0]), "a copy moves its own statistics"
        assert not torch.equal(twin[1].running_mean, before[1])
    for twin, its in (copy.deepcopy((network, fused)), pickle.loads(pickle.dumps((network, fused)))):
        with its:
            assert is_triton(twin(x))
            assert not is_triton(network(x))
        assert not is_triton(twin(x))
    with pytest.raises(KeyError), fused:
        raise KeyError
    assert not is_triton(network(x))


# ---- a supernet --------------------------------------------------------------------------------------------------

SPACE = {"stem_width": 8, "first_width": 8, "head_width": 16, "stages": [{"width": 8, "depth": 2, "stride": 2}]}


def a_supernet() -> tuple[ProxylessStrategy, nn.Module]:
    torch.manual_seed(0)
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(get_space("small_mbconv", **SPACE).build(num_classes=5)).train()
    return strategy, network.to(DEVICE).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_steps_of_a_supernet_are_as_near_to_float64_as_those_of_pytorch(precision: torch.dtype) -> None:
    y = (torch.arange(6) % 5).to(DEVICE)
    found: dict[str, list[Any]] = {}
    for kind in ("exact", "torch", "triton"):
        strategy, network = a_supernet()
        x = a_map(6, 3, 16, 16)
        if kind == "exact":
            network, x = network.double(), x.double()
        half = precision == torch.bfloat16 and kind != "exact"
        mixed = functools.partial(torch.autocast, DEVICE, dtype=torch.bfloat16, enabled=half)
        fused = FusedNorms(network, "triton" if kind == "triton" else "torch")
        ran = []

        def loss(network: nn.Module = network, ran: list[bool] = ran, mixed: Any = mixed, x: Tensor = x) -> Tensor:
            with mixed():
                out = network(x)
            ran.append("NormAct" in _graph(out))
            return functional.cross_entropy(out, y)

        supernet, architecture = strategy.paths_of_space, strategy.architecture
        with fused, supernet.running([0] * len(supernet.edges)):
            value = loss()
            value.backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        statistics = [buffer.clone() for buffer in network.buffers()]
        costs, fixed = strategy.cost_matrix()
        problem = Problem(supernet, architecture, costs, fixed, AccuracyOnly(), 0)
        before = [tensor.clone() for tensor in (*network.parameters(), *network.buffers())]
        with fused, ArchitectureStepMode(network).active():
            alpha = GradientUpdate().compute(problem, loss, 0, scale=None).gradient
            reward = ReinforceUpdate(samples=2).compute(problem, lambda loss=loss: (-loss()).exp(), 0, scale=None)
        after = (*network.parameters(), *network.buffers())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert ran[:2] == [kind == "triton"] * 2
        sample = architecture.export([0] * len(supernet.edges))
        with fused:
            frozen = frozen_copy(network, sample).eval()
        network.eval()
        with torch.no_grad(), supernet.running([0] * len(supernet.edges)):
            assert torch.equal(network(x), frozen(x)), "a frozen supernet is a timm network"
        found[kind] = [value.detach(), *gradients, *statistics, alpha, reward.gradient]
    # Some gradients are 0: a shift of all values is nothing to a norm that follows.
    largest = max(float(exact.double().norm()) for exact in found["exact"])
    floor = largest * (1e-6 if precision == torch.float32 else 2e-3)
    for index, (exact, own, near) in enumerate(zip(*found.values(), strict=True)):
        own_error, error = (float((other.double() - exact.double()).norm()) for other in (own, near))
        assert error <= 3 * own_error + floor, f"{index} of {len(found['exact'])}: {error:.2g}, PyTorch {own_error:.2g}"


def _graph(out: Tensor) -> str:
    """Return the names of all functions of a graph."""
    seen, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [other for other, _ in node.next_functions]
    return " ".join(type(node).__name__ for node in seen)


# ---- whole trainings ---------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Note of each norm that Triton runs whether a graph is built, and whether its statistics move."""
    norms._tried("triton", torch.empty(0, device=DEVICE).device, torch.float32)  # a norm that is no part of a network
    noted: list[tuple[bool, bool]] = []
    run = norms._by_triton

    def noting(norm: Any, x: Tensor) -> Tensor:
        noted.append((torch.is_grad_enabled(), norm.training and norm.track_running_stats))
        return run(norm, x)

    monkeypatch.setattr(norms, "_by_triton", noting)
    return noted


def searched(**options: Any) -> ProxylessStrategy:
    """Search a tiny space of channels-last maps through Lightning, for three steps."""
    return tiny.searched(
        space=lambda: tiny.TinySpace().to(memory_format=torch.channels_last),
        trainer={"limit_train_batches": 3, "limit_val_batches": 1},
        warmup_epochs=0,
        epochs=1,
        **options,
    )


def near(first: nn.Module, second: nn.Module) -> None:
    for (name, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert name == other
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3), name


@pytest.mark.skipif(DEVICE != "cpu", reason="the tiny search is one of the CPU")
@pytest.mark.parametrize("rule", ["gradient", pytest.param("reinforce", marks=pytest.mark.slow)])
def test_a_search_through_lightning_ends_as_with_pytorchs_norms(rule: str, ran: list[tuple[bool, bool]]) -> None:
    networks = []
    for kind in ("torch", "triton"):
        strategy = searched(finalists=2, rule=rule, norm=kind)
        assert bool(ran) == (kind == "triton")
        assert strategy.searched.counters["architecture"] > 0
        count, derived = len(ran), strategy.searched.derived_network()
        derived(tiny.data()[:8][0])
        assert len(ran) == count, "a derived subnet and its recalibration run PyTorch's own norms"
        for network in (derived, strategy.searched.model):
            assert all("forward" not in module.__dict__ for module in network.modules())
        networks.append((strategy.export(), strategy.searched.model))
    weights, architecture, without_graph = (True, True), (True, False), (False, False)
    assert set(ran) == {weights, without_graph} | ({architecture} if rule == "gradient" else set())
    assert networks[0][0] == networks[1][0]
    near(networks[0][1], networks[1][1])


@pytest.mark.skipif(DEVICE != "cpu", reason="the tiny search is one of the CPU")
def test_captured_candidates_run_the_same_norms(ran: list[tuple[bool, bool]]) -> None:
    states = []
    for capture in (recorder := Noted(), False):
        states.append(tiny.final_state(searched(finalists=1, norm="triton", capture=capture)))
    assert ran
    assert recorder.replayed > recorder.recorded > 0
    captured, eager = states
    assert captured[1:] == eager[1:]
    # a gate gradient is added up in the order of its map's memory, which is the recording's and need not be autograd's
    for (name, a), (other, b) in zip(captured[0].items(), eager[0].items(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.slow
def test_a_retraining_ends_as_with_pytorchs_norms(ran: list[tuple[bool, bool]]) -> None:
    found = []
    for kind in ("torch", "triton"):
        recipe = test_trainer.settings(epochs=1, norm=kind, ema_decay=None)
        found.append(train(test_trainer.build, test_trainer.image_data("none"), recipe, seed=0, device=DEVICE))
        assert bool(ran) == (kind == "triton")
        assert all("forward" not in module.__dict__ for module in found[-1].model.modules())
    near(found[0].model, found[1].model)
    assert found[0].test_loss == pytest.approx(found[1].test_loss, rel=1e-3)
