"""Operators of timm's MBConv families against timm's own blocks: outputs, parameters, multiply-accumulates."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import timm.models._efficientnet_blocks as blocks
import torch
from timm.layers import BatchNormAct2d, get_act_layer
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from hardware.backends.torch import from_plain, to_plain
from hardware.errors import SpaceError, TableError
from hardware.onnx_runtime import import_onnxruntime
from hardware.op_spec import OpSpec
from hardware.operators import primitives
from hardware.operators.onnx_graph import _Writer, chain_model
from hardware.operators.primitives import Conv, decompose
from hardware.operators.torch_module import Chain
from hardware.operators.weights import constant_weights
from hardware.tables.released import released_key

SIDES = [8, 7]
CASES = [
    (kind, activation, squeeze, padding, stride)
    for kind in ("mbconv", "ds_conv", "dsa_conv", "edge_residual")
    for activation, squeeze, padding, stride in [
        ("silu", ("", "sigmoid"), "", 1),
        ("hard_swish", ("relu", "hard_sigmoid"), "same", 2),
        ("relu6", None, "same", 2),
        ("relu", ("", "sigmoid"), "", 2),
    ]
]


def timms(kind, activation, squeeze, padding, stride, kernel):
    """timm's block of 8 to 8 channels at stride 1, else to 16, with a squeeze to 4."""
    shared = {
        "in_chs": 8,
        "out_chs": 8 if stride == 1 else 16,
        "stride": stride,
        "pad_type": padding,
        "act_layer": get_act_layer(activation),
        "norm_layer": partial(BatchNormAct2d, eps=1e-3),
    }
    if squeeze is not None:
        between, gate = squeeze
        shared["se_layer"] = partial(
            blocks.SqueezeExcite,
            rd_channels=4,
            gate_layer=get_act_layer(gate),
            force_act_layer=get_act_layer(between) if between else None,
        )
    if kind == "mbconv":
        return blocks.InvertedResidual(**shared, dw_kernel_size=kernel, exp_ratio=3)
    if kind == "edge_residual":
        return blocks.EdgeResidual(**shared, exp_kernel_size=kernel, exp_ratio=3)
    return blocks.DepthwiseSeparableConv(**shared, dw_kernel_size=kernel, pw_act=kind == "dsa_conv")


def spec(kind, activation, squeeze, padding, stride, kernel, side):
    between, gate = squeeze or ("", "sigmoid")
    out = -(-side // stride)
    return OpSpec(
        kind,
        (8, side, side),
        (8 if stride == 1 else 16, out, out),
        kernel=kernel,
        stride=stride,
        hidden=24 if kind in ("mbconv", "edge_residual") else 0,
        residual=stride == 1,
        activation=activation,
        squeeze=4 if squeeze else 0,
        squeeze_activation=between,
        gate=gate,
        padding=padding,
    )


def varied(network):
    """Batch norms that are no identity, in a network that is evaluated."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return network.eval()


def folded(network):
    """The arrays of timm's layers in execution order, as the primitives of an operator have them."""
    found, convolution = [], None
    for name, module in network.named_modules():
        if isinstance(module, blocks.SqueezeExcite):
            parts = (("reduce", module.conv_reduce), ("expand", module.conv_expand))
            found.append({f"{part}.{key}": value for part, conv in parts for key, value in arrays_of(conv).items()})
        elif isinstance(module, nn.Conv2d) and not name.startswith("se."):
            convolution = module
            if name == "conv_head":
                found.append(arrays_of(module))
        elif isinstance(module, nn.BatchNorm2d):
            found.append(arrays_of(fuse_conv_bn_eval(convolution, module)))
        elif isinstance(module, nn.Linear):
            found.append(arrays_of(module))
    return found


def arrays_of(layer):
    return {key: value.detach().numpy() for key, value in layer.state_dict().items()}


def outputs(op, network, images):
    """What the torch module and the ONNX graph of an operator give with a network's weights."""
    group, weights = decompose(op), iter(folded(network))
    weighted = (Conv, primitives.Linear, primitives.SqueezeExcite)
    arrays = [next(weights) if isinstance(p, weighted) else {} for p in group]
    assert next(weights, None) is None
    chain = Chain([group]).eval()
    for layer, own in zip(chain.layers, arrays, strict=True):
        inner = {key.removeprefix("layer."): value for key, value in layer.state_dict().items()}
        assert set(inner) == set(own)
        for key, value in own.items():
            inner[key].copy_(torch.from_numpy(value))
    model = _Writer(op.input_shape, len(images), constant=False).write([group], arrays)
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (written,) = session.run(None, {"input": images.numpy()})
    with torch.inference_mode():
        return chain(images), torch.from_numpy(written)


def counted(network, images):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops() // 2 // len(images), sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_block_is_timms(case, kernel, side):
    torch.manual_seed(0)
    network, op = varied(timms(*case, kernel)), spec(*case, kernel, side)
    images = torch.randn(2, 8, side, side)
    with torch.inference_mode():
        expected = network(images)
    for found in outputs(op, network, images):
        assert (found - expected).abs().max() <= 1e-5
    assert (primitives.macs(op), primitives.params(op)) == counted(network, images)
    assert OpSpec.from_key(op.key) == op


@pytest.mark.parametrize("bias", [True, False])
def test_mobilenet_v3s_head_is_timms(bias):
    torch.manual_seed(0)
    block = {"block_type": "ds", "out_chs": 16, "stride": 1, "act_layer": None, "dw_kernel_size": 3}
    whole = MobileNetV3([[block]], num_features=24, num_classes=5, head_bias=bias, act_layer=nn.Hardswish).eval()
    head = nn.Sequential()
    for name in ("global_pool", "conv_head", "act2", "flatten", "classifier"):
        head.add_module(name, getattr(whole, name))
    kind = "efficient_head" if bias else "unbiased_efficient_head"
    op = OpSpec(kind, (16, 4, 4), (5,), hidden=24, activation="hard_swish")
    images = torch.randn(2, 16, 4, 4)
    with torch.inference_mode():
        expected = head(images)
    for found in outputs(op, head, images):
        assert (found - expected).abs().max() <= 1e-5
    assert (primitives.macs(op), primitives.params(op)) == counted(head, images)
    assert OpSpec.from_key(op.key) == op


@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_same_padding_gives_the_side_over_the_stride_rounded_up(kernel, side):
    conv = Conv(8, 8, kernel, 2, groups=8, same=True)
    assert conv.output((8, side, side)) == (8, -(-side // 2), -(-side // 2))
    top, left, bottom, right = conv.pads((8, side, side))
    assert (top, bottom) == (left, right)
    assert 0 <= bottom - top <= 1


def test_the_keys_of_operators_without_these_parts_stay():
    op = OpSpec("mbconv", (24, 8, 8), (24, 8, 8), kernel=5, hidden=72, residual=True)
    assert op.key == "mbconv-in:24x8x8-out:24x8x8-k:5-s:1-hidden:72-res:1-act:relu6"


def test_each_part_is_in_the_key():
    plain = spec("mbconv", "silu", ("", "sigmoid"), "", 2, 3, 8)
    others = [
        spec("mbconv", "silu", None, "", 2, 3, 8),
        spec("mbconv", "silu", ("relu", "sigmoid"), "", 2, 3, 8),
        spec("mbconv", "silu", ("", "hard_sigmoid"), "", 2, 3, 8),
        spec("mbconv", "silu", ("", "sigmoid"), "same", 2, 3, 8),
    ]
    assert len({op.key for op in (plain, *others)}) == 5


def test_what_a_released_table_cannot_name_is_refused():
    for op in (spec("mbconv", "relu6", ("", "sigmoid"), "", 2, 3, 8), spec("mbconv", "relu6", None, "same", 2, 3, 8)):
        with pytest.raises(TableError, match="has no key"):
            released_key(op)


def test_an_unknown_padding_is_refused():
    with pytest.raises(SpaceError, match="padding 'valid'"):
        decompose(OpSpec("conv", (3, 8, 8), (8, 4, 4), kernel=3, stride=2, padding="valid"))


@pytest.mark.parametrize("kind", ["mbconv", "edge_residual"])
def test_squeezing_writes_its_means_and_gates_too(kind):
    with_it, without = (spec(kind, "relu", squeeze, "", 1, 3, 8) for squeeze in (("", "sigmoid"), None))
    assert primitives.activation_bytes(with_it) - primitives.activation_bytes(without) == 4 * (24 * 64 + 24 + 4 + 24)


def test_constant_weights_of_a_squeeze_differ():
    arrays = constant_weights(decompose(spec("mbconv", "relu", ("", "sigmoid"), "", 1, 3, 8)))
    values = [array.ravel()[0] for own in arrays for array in own.values()]
    assert len(set(values)) == len(values)
    assert np.isfinite(values).all()


def test_a_whole_net_runs_alike_in_every_form():
    """As its graph with random weights, as the torch module, and as the measuring process is told it; and in a kit."""
    net = [
        OpSpec("conv", (3, 9, 9), (8, 5, 5), kernel=3, stride=2, activation="hard_swish", padding="same"),
        spec("mbconv", "hard_swish", ("relu", "hard_sigmoid"), "", 1, 3, 5),
        spec("edge_residual", "relu", ("", "sigmoid"), "same", 2, 5, 5),
        OpSpec("efficient_head", (16, 3, 3), (5,), hidden=24, activation="hard_swish"),
    ]
    images = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    groups = [decompose(op) for op in net]
    assert [[from_plain(json.loads(json.dumps(to_plain(p)))) for p in g] for g in groups] == [list(g) for g in groups]
    found = {}
    for constant in (False, True):
        model = chain_model(net, constant=constant).SerializeToString()
        session = import_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
        (found[constant],) = session.run(None, {"input": images.numpy()})
    with torch.inference_mode():
        assert abs(Chain(groups).eval()(images).numpy() - found[False]).max() <= 1e-5
    assert np.isfinite(found[True]).all()
    assert (found[True] != 0).all()
