"""The inner product against float64, over memory layouts and number formats; nothing is copied as a whole."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from proxyless_strategy.strategy.supernet import inner
from proxyless_strategy.strategy.supernet.inner import inner_product

SHAPE = (4, 6, 10, 8)
LAYOUTS = {
    "contiguous": lambda make: make(*SHAPE),
    "channels_last": lambda make: make(*SHAPE).contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda make: make(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d),
    "transposed": lambda make: make(30, 40).t(),
    "sliced": lambda make: make(4, 6, 10, 16)[..., 3:11],
    "sliced_channels_last": lambda make: make(4, 9, 10, 8).contiguous(memory_format=torch.channels_last)[:, 2:8],
    "one_of_many": lambda make: make(3, *SHAPE)[1],
    "expanded": lambda make: make(4, 6, 1, 1).expand(SHAPE),
    "reversed_steps": lambda make: make(40)[::2],
    "size_one": lambda make: make(1, 6, 1, 8).contiguous(memory_format=torch.channels_last),
    "one_value": lambda make: make(1),
    "scalar": lambda make: make(1)[0],
    "empty": lambda make: make(0, 6),
    "empty_channels_last": lambda make: make(2, 0, 3, 4).contiguous(memory_format=torch.channels_last),
}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3, torch.float64: 1e-14}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make(dtype: torch.dtype, device: str, seed: int):
    """Make values of a mean, so that the product's sum is far from 0 and relative errors count."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: (torch.randn(*shape, generator=generator) + 0.3).to(device, dtype)


def agrees(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    found = inner_product(a, b)
    assert (found.shape, found.device) == ((), a.device)
    assert found.dtype == (torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32)
    assert float(found) == pytest.approx(float((a.double() * b.double()).sum()), rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the cases below run on the CPU alone")
def test_a_gpu_is_among_the_devices() -> None:
    assert "cuda" in DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_it_agrees_with_float64(layout: str, dtype: torch.dtype, device: str, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(inner, "CHUNK", {"cpu": chunk, "other": chunk})
    a, b = (LAYOUTS[layout](make(dtype, device, seed)) for seed in (0, 1))
    agrees(a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("second", ["channels_last", "sliced", "sliced_channels_last", "expanded", "one_of_many"])
@pytest.mark.parametrize("first", ["contiguous", "channels_last", "expanded"])
def test_two_layouts_may_meet(first: str, second: str, chunk: int, device: str, monkeypatch) -> None:
    monkeypatch.setattr(inner, "CHUNK", {"cpu": chunk, "other": chunk})
    agrees(LAYOUTS[first](make(torch.float32, device, 0)), LAYOUTS[second](make(torch.float32, device, 1)), 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_two_number_formats_may_meet(types: tuple[torch.dtype, torch.dtype], device: str) -> None:
    a, b = (LAYOUTS["channels_last"](make(dtype, device, seed)) for seed, dtype in enumerate(types))
    agrees(a, b, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_millions_of_products_keep_their_digits(dtype: torch.dtype) -> None:
    a, b = (make(dtype, "cpu", seed)(8, 32, 64, 64).contiguous(memory_format=torch.channels_last) for seed in (0, 1))
    agrees(a, b, 1e-6)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, tensor.numel())
                self.dtypes.add(tensor.dtype)
        return result


@pytest.mark.parametrize(
    ("layout", "dtype", "most"),
    [
        ("contiguous", torch.float32, 1),
        ("channels_last", torch.float32, 1),
        ("channels_last_3d", torch.float32, 1),
        ("size_one", torch.float32, 1),
        ("transposed", torch.float64, 1),
        ("channels_last", torch.bfloat16, 100),
        ("sliced", torch.float32, 100),
        ("expanded", torch.bfloat16, 100),
    ],
)
def test_no_whole_tensor_is_copied(layout: str, dtype: torch.dtype, most: int, monkeypatch) -> None:
    a, b = (LAYOUTS[layout](make(dtype, "cpu", seed)) for seed in (0, 1))
    if most > 1:
        monkeypatch.setattr(inner, "CHUNK", {"cpu": 100, "other": 100})
    with Largest() as seen:
        inner_product(a, b)
    assert seen.elements <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_casts_nothing_inside(dtype: torch.dtype) -> None:
    a, b = (make(dtype, "cpu", seed)(1000) for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Largest() as seen:
            inside = inner_product(a, b)
        assert torch.is_autocast_enabled("cpu")
    assert seen.dtypes <= {torch.float32}
    assert torch.equal(inside, inner_product(a, b))


def test_it_is_the_same_each_time() -> None:
    a, b = (LAYOUTS["channels_last"](make(torch.bfloat16, "cpu", seed)) for seed in (0, 1))
    assert len({float(inner_product(a, b)) for _ in range(5)}) == 1


# ---- the kernel --------------------------------------------------------------------------------------------------

KERNEL = """
import torch
from proxyless_strategy.strategy.supernet.inner_kernel import BLOCK, dot
for count in (0, 1, BLOCK, 4 * BLOCK + 123):
    for first, second in zip(KINDS, (*KINDS[1:], KINDS[-1])):
        x, y = ((torch.randn(count, generator=torch.Generator().manual_seed(s)) + 0.3).to(kind)
                for s, kind in ((0, first), (1, second)))
        found, exact = dot(x, y), float((x.double() * y.double()).sum())
        assert (found.shape, found.dtype) == ((), torch.float32)
        assert abs(float(found) - exact) <= 1e-6 * abs(exact), (count, first, second, float(found), exact)
        assert float(dot(x, y)) == float(found)
print("agrees")
""".replace("KINDS", "(torch.float32, torch.bfloat16, torch.float16)")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_agrees_with_float64_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KERNEL], env=environment, capture_output=True, text=True, timeout=250
    )
    assert ran.stdout.endswith("agrees\n"), ran.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("types", [("bf16", "bf16"), ("fp16", "fp32"), ("fp32", "fp32")], ids="-".join)
def test_the_kernel_compiles_without_atomics_and_reads_16_bytes_at_a_time(types: tuple[str, str]) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from proxyless_strategy.strategy.supernet.inner_kernel import BLOCK, partial_dots

    aligned = {(place,): [["tt.divisibility", 16]] for place in range(2)}
    pointers = {"a": f"*{types[0]}", "b": f"*{types[1]}", "partials": "*fp32"}
    source = ASTSource(
        partial_dots,
        signature={**pointers, "count": "i64", "programs": "i32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": BLOCK},
        attrs=aligned,
    )
    try:
        text = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"]
    except OSError as error:
        pytest.skip(f"Triton cannot compile here: {error}")
    assert "atom" not in text
    assert "ld.global.v4" in text


@pytest.mark.parametrize("fails", [ImportError, RuntimeError])
def test_without_the_kernel_torch_takes_its_place(fails: type[Exception], monkeypatch) -> None:
    calls = []

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(a)
        raise fails("no C compiler")

    monkeypatch.setattr(inner, "_kernel", lambda: None if fails is ImportError else dot)
    monkeypatch.setattr(inner, "_kernel_runs", True)
    assert inner._by_kernel(torch.ones(3), torch.ones(3)) is None
    assert inner._by_kernel(torch.ones(3), torch.ones(3)) is None
    assert len(calls) == (fails is RuntimeError), "asked once"
