"""Decomposition, and counts of parameters and MACs worked out elsewhere."""

from __future__ import annotations

import pytest

from hardware.errors import SpaceError, TableError
from hardware.model import activation_model, macs_model, params_model
from hardware.op_spec import IDENTITY, OpSpec
from hardware.operators import primitives, weights
from hardware.operators.primitives import Add, Conv, GlobalAvgPool, Linear, Pool, decompose


def test_mbconv_is_expand_depthwise_project_and_add():
    op = OpSpec("mbconv", (24, 8, 8), (24, 8, 8), kernel=5, hidden=72, residual=True)
    assert decompose(op) == (
        Conv(24, 72, 1, activation="relu6"),
        Conv(72, 72, 5, groups=72, activation="relu6"),
        Conv(72, 24, 1),
        Add(),
    )


def test_ds_conv_conv_head_and_identity():
    assert decompose(OpSpec("ds_conv", (8, 4, 4), (12, 2, 2), kernel=3, stride=2, activation="relu")) == (
        Conv(8, 8, 3, 2, groups=8, activation="relu"),
        Conv(8, 12, 1),
    )
    assert decompose(OpSpec("conv", (3, 4, 4), (8, 4, 4), kernel=3, activation="none")) == (Conv(3, 8, 3),)
    assert decompose(OpSpec("head", (8, 4, 4), (10,))) == (GlobalAvgPool(), Linear(8, 10))
    assert decompose(OpSpec(IDENTITY, (8, 4, 4), (8, 4, 4))) == ()


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (OpSpec("transformer", (8, 4, 4), (8, 4, 4)), "register_kind"),
        (OpSpec("conv", (3, 8, 8), (8, 8, 8), kernel=3, stride=2), "declares output"),
        (OpSpec("mbconv", (8, 4, 4), (8, 4, 4)), "no hidden width"),
        (OpSpec("mbconv", (8, 4, 4), (16, 4, 4), hidden=24, residual=True), "adds its"),
        (OpSpec("conv", (3, 8, 8), (8, 8, 8), activation="sine"), "'sine' is unknown"),
    ],
)
def test_impossible_operators_are_refused(op, words):
    with pytest.raises(SpaceError, match=words):
        decompose(op)


def test_a_new_kind_can_be_registered_once(monkeypatch):
    monkeypatch.setattr(primitives, "KINDS", dict(primitives.KINDS))

    def pooled(op):
        return (Pool(3, maximum=True, padding=1),)

    primitives.register_kind("pool", pooled)
    primitives.register_kind("pool", pooled)
    op = OpSpec("pool", (8, 4, 4), (8, 4, 4), kernel=3)
    assert primitives.macs(op) == primitives.params(op) == 0
    assert primitives.activation_bytes(op) == 4 * 8 * 16
    with pytest.raises(SpaceError, match="already registered"):
        primitives.register_kind("pool", lambda op: ())
    with pytest.raises(SpaceError, match="leave out '-'"):
        primitives.register_kind("max-pool", pooled)


def test_odd_sizes_round_up_with_stride_2():
    op = OpSpec("conv", (3, 7, 7), (8, 4, 4), kernel=3, stride=2)
    assert primitives.macs(op) == 8 * 3 * 9 * 16


@pytest.mark.parametrize(
    ("candidate", "params", "macs"),
    [("3x3_e3", 3.192, 257.42), ("3x3_e6", 4.685, 472.62), ("7x7_e6", 5.103, 606.59)],
)
def test_counts_of_whole_imagenet_nets(imagenet_space, candidate, params, macs):
    fixed, edges = imagenet_space
    choices = dict.fromkeys(edges, candidate)
    assert params_model(fixed, edges).cost(choices) == pytest.approx(params, abs=5e-4)
    assert macs_model(fixed, edges).cost(choices) == pytest.approx(macs, abs=5e-3)


def test_the_smallest_imagenet_net(imagenet_space):
    fixed, edges = imagenet_space
    assert params_model(fixed, edges).minimum()[0] == pytest.approx(2.155, abs=5e-4)
    assert macs_model(fixed, edges).minimum()[0] == pytest.approx(102.53, abs=5e-3)


def test_activation_bytes_add_up(imagenet_space):
    fixed, edges = imagenet_space
    op = OpSpec("mbconv", (24, 56, 56), (24, 56, 56), kernel=5, hidden=72, residual=True)
    assert primitives.activation_bytes(op) == 4 * 56 * 56 * (72 + 72 + 24 + 24)
    model = activation_model(fixed, edges)
    choices = dict.fromkeys(edges, "3x3_e3")
    ops = [*fixed, *(edges[label]["3x3_e3"] for label in edges)]
    assert model.unit == "MB"
    assert model.cost(choices) == pytest.approx(sum(map(primitives.activation_bytes, ops)) / 1e6)


def test_keys_are_unique(imagenet_space):
    fixed, edges = imagenet_space
    ops = {*fixed, *(op for options in edges.values() for op in options.values())}
    assert len({op.key for op in ops}) == len(ops)


def test_keys_can_be_read_back(imagenet_space):
    fixed, edges = imagenet_space
    for op in {*fixed, *(op for options in edges.values() for op in options.values())}:
        assert OpSpec.from_key(op.key) == op


BLOCK = "mbconv-in:8x8x8-out:8x8x8-k:3-s:1-hidden:16-res:1-act:relu"
SQUEEZES = ("0.relu.sigmoid", "-4.relu.sigmoid", "04.relu.sigmoid", "4.relu", "4", "4..sigmoid", "x.relu.sigmoid", "")


@pytest.mark.parametrize(
    "key",
    [
        *("", "conv", "conv-in:3x8x8", "conv-in:axb-out:1", "head-in:8x4x4-out:10-k:3-s:1"),
        *(f"{BLOCK}-se:{squeeze}" for squeeze in SQUEEZES),
        *(f"{BLOCK}-pad:", f"{BLOCK}-pad:same-se:4.relu.sigmoid", "head-in:8x4x4-out:10-pad:same"),
    ],
)
def test_no_operator_has_a_strange_key(key):
    with pytest.raises(TableError, match="no operator's key"):
        OpSpec.from_key(key)


def test_weights_depend_on_seed_and_position_only(tiny_ops):
    layers = [p for op in tiny_ops[:2] for p in decompose(op)]
    first, again = weights.random_weights(layers, seed=1), weights.random_weights(layers, seed=1)
    other = weights.random_weights(layers, seed=2)
    assert all((a["weight"] == b["weight"]).all() for a, b in zip(first, again, strict=True))
    assert (first[0]["weight"] != other[0]["weight"]).any()


def test_a_chain_whose_shapes_differ_is_refused(tiny_ops):
    with pytest.raises(SpaceError, match="cannot follow"):
        primitives.check_chain([tiny_ops[0], tiny_ops[0]])
