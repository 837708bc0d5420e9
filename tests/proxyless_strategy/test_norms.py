"""Batch norms with their activations as kernels: cases in Triton's interpreter, what compiles, and who is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from hardware.errors import ConfigError
from proxyless_strategy.config import parse_config
from proxyless_strategy.norms import FusedNorms, check_norm
from proxyless_strategy.retraining.folder import retrain
from proxyless_strategy.retraining.recipe import load_recipe
from proxyless_strategy.runs.prepare import prepare
from tests.proxyless_strategy import tiny

CASES = Path(__file__).with_name("norms_cases.py")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run_cases(*, marked: str, interpreted: bool) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


@with_triton
def test_the_cases_hold_in_tritons_interpreter() -> None:
    run_cases(marked="not slow", interpreted=True)


@pytest.mark.slow
@with_triton
def test_the_slower_cases_hold_there_too() -> None:
    run_cases(marked="slow", interpreted=True)


@on_gpu
@with_triton
def test_the_cases_hold_on_the_gpu() -> None:
    run_cases(marked="slow or not slow", interpreted=False)


# ---- cuDNN -------------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_cudnn_agrees_with_float64(dtype: torch.dtype) -> None:
    norm = BatchNormAct2d(24, act_layer=nn.ReLU6).cuda()
    exact = BatchNormAct2d(24, act_layer=nn.ReLU6).cuda().double()
    x = torch.randn(8, 24, 9, 7, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        with FusedNorms(norm, "cudnn"):
            found = norm(x)
        right = exact(x.double())
        assert float((found.double() - right).abs().max()) <= (2e-2 if dtype == torch.float16 else 1e-5)
    assert int(norm.num_batches_tracked) == 2
    assert torch.allclose(norm.running_var.double(), exact.running_var, rtol=1e-5)


# ---- the kernels, compiled ---------------------------------------------------------------------------------------

MAPS = ("x", "y", "dy", "dx")
SCALARS = {"momentum": "fp32", "eps": "fp32"} | dict.fromkeys(
    ("rows", "groups", "channels", "partials", "tile_rows"), "i32"
)
ACTS = ("identity", "relu", "relu6", "hardswish", "silu")
KERNELS = ("partial_moments", "merged_moments", "normalise", "partial_gradients", "input_gradient")


def compiled(name: str, dtype: str, **given: Any) -> str:
    """Compile one kernel for an H100 as if it were here, and return its PTX; `ptxas` has assembled it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from proxyless_strategy import norm_kernels

    kernel = getattr(norm_kernels, name)
    constants: dict[str, Any] = {
        "TRACKS": True,
        "ACTIVATION": "relu6",
        "AFFINE": True,
        "OF_BATCH": True,
        "DIVISOR": 8,
        "TILE_ROWS": 32,
        "TILE_COLUMNS": 128,
        "PARTIAL_ROWS": norm_kernels.PARTIAL_ROWS,
        "PARTIAL_COLUMNS": norm_kernels.PARTIAL_COLUMNS,
    } | given
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: f"*{dtype}" if key in MAPS else SCALARS.get(key, "*fp32") for key in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    try:
        built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": norm_kernels.WARPS})
    except OSError as error:
        pytest.skip(f"Triton cannot compile here: {error}")
    assert built.asm["cubin"]
    return str(built.asm["ptx"])


@with_triton
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_atomics_and_moves_16_bytes_at_a_time(name: str) -> None:
    text = compiled(name, "bf16")
    assert "atom.global" not in text
    assert "red.global" not in text
    if name != "merged_moments":  # which reads a few rows of sums
        loads = {"partial_moments": 1, "normalise": 1, "partial_gradients": 2, "input_gradient": 2}[name]
        assert text.count("ld.global.v4") == 4 * loads, "32 values of 16 bits in a thread are 4 loads"
        assert ("st.global.v4" in text) == (name in ("normalise", "input_gradient"))


@pytest.mark.slow
@with_triton
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_form_of_a_kernel_compiles(name: str, dtype: str) -> None:
    activations = ACTS if name in ("normalise", "partial_gradients", "input_gradient") else ACTS[:1]
    for activation in activations:
        compiled(name, dtype, ACTIVATION=activation)
    for given in ({"AFFINE": False}, {"OF_BATCH": False}, {"TRACKS": False}):
        compiled(name, dtype, **given)
    for divisor, columns in ((1, 16), (2, 32), (4, 64)):
        compiled(name, dtype, DIVISOR=divisor, TILE_COLUMNS=columns, TILE_ROWS=4096 // columns)


# ---- where it cannot run -----------------------------------------------------------------------------------------


def settings(tmp_path: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "space": {"name": "small_mbconv", "options": {"stages": [{"width": 8, "depth": 1, "stride": 2}]}},
        "data": "digits",
        "input_size": 16,
        "hardware": {"cost": "macs", "device": "other"},
        "target": 0.5,
        "search": {"warmup_epochs": 0, "epochs": 2, "batch_size": 128, "channels_last": True},
        "retrain": {"epochs": 1, "batch_size": 128},
        "out": str(tmp_path / "run"),
    }
    for dotted, value in changes.items():
        section, name = dotted.split("__")
        values[section] = {**values[section], name: value}
    return parse_config(values)


@no_gpu
@pytest.mark.parametrize("kind", ["triton", "cudnn"])
@pytest.mark.parametrize("key", ["search__norm", "retrain__norm"])
def test_without_a_gpu_a_config_that_asks_for_it_is_refused(kind: str, key: str, tmp_path: Path) -> None:
    setting = key.replace("__", ".")
    with pytest.raises(ConfigError, match=rf"^{setting} = {kind} runs on a GPU, but the cpu trains; set it to torch$"):
        prepare(settings(tmp_path, **{key: kind}), quiet=True)
    assert not (tmp_path / "run").exists()


@no_gpu
def test_without_a_gpu_a_retraining_is_refused(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "data" / "run_bc6f2f8" / "gradient" / "model"
    recipe = load_recipe("quick", {"norm": "triton"})
    with pytest.raises(ConfigError, match=r"^norm = triton runs on a GPU, but the cpu trains"):
        retrain(folder, data=tmp_path, recipe=recipe, out=tmp_path / "out", source="digits")
    assert not (tmp_path / "out").exists()


@no_gpu
def test_without_a_gpu_a_strategy_is_refused_before_its_first_step() -> None:
    with pytest.raises(ConfigError, match=r"^norm = triton runs on a GPU, but the cpu trains"):
        tiny.searched(norm="triton")


def test_a_strategy_knows_no_other_kind() -> None:
    with pytest.raises(ConfigError, match=r"norm = 'apex'; it must be one of torch, cudnn, triton"):
        tiny.searched(norm="apex")


@on_gpu
def test_what_a_kind_does_not_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search.norm = triton is for channels-last maps, but channels_last is fals"):
        prepare(settings(tmp_path, search__norm="triton", search__channels_last=False), quiet=True)
    with pytest.raises(ConfigError, match=r"norm = triton has no kernel for float64; set it to torch"):
        check_norm("triton", "cuda", torch.float64, setting="norm")


def test_pytorchs_own_needs_nothing() -> None:
    check_norm("torch", "cpu", torch.float64, setting="norm", channels_last=False)
    network = nn.Sequential(BatchNormAct2d(4))
    with FusedNorms(network, "torch"):
        assert "forward" not in network[0].__dict__


@pytest.mark.parametrize(("retrain_norm", "expected"), [(None, "triton"), ("torch", "torch"), ("cudnn", "cudnn")])
def test_a_retraining_has_the_norms_of_its_search_unless_it_says_otherwise(
    retrain_norm: str | None, expected: str, tmp_path: Path
) -> None:
    config = settings(tmp_path, search__norm="triton", search__deterministic=True, retrain__norm=retrain_norm)
    assert config.retraining is not None
    assert (config.retraining.norm, config.retraining.deterministic) == (expected, True)
    assert config.model_copy(update={"retrain": None}).retraining is None
