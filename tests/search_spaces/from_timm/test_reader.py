"""Which models become spaces, with which candidates; and the sentences for those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hardware.errors import SpaceError, SubnetError
from hardware.op_spec import IDENTITY
from proxyless_strategy.config import load_config
from search_spaces import Subnet, get_space, users_space
from search_spaces.from_timm.declaration import TimmDeclaration


def test_candidates_are_a_blocks_own_and_those_of_the_options():
    space = get_space("timm:mobilenetv3_large_100", kernels=[3, 7], expansions=[3])
    candidates = space.candidates()
    assert candidates["stage0_block0"] == ("3x3_e1", "7x7_e1", "skip")
    assert candidates["stage2_block0"] == ("3x3_e3", "5x5_e3", "7x7_e3")
    assert candidates["stage3_block2"] == ("3x3_e2_3", "3x3_e3", "7x7_e2_3", "7x7_e3", "skip")
    assert "stage6_block0" not in candidates, "a convolution stays as it is"
    assert space.original()["stage3_block2"] == "3x3_e2_3"
    arguments = Subnet(space, space.original()).model_args()
    assert arguments["arch_def"][3][2] == "ir_r1_k3_s1_e2.3_c80"
    assert (arguments["head"], arguments["se_act"], arguments["se_gate"]) == ("pooled", "relu", "hard_sigmoid")


def test_edge_residual_blocks_stay_and_that_is_said():
    space = get_space("timm:efficientnet_es", kernels=[5], expansions=[])
    assert space.note() == "7 of 18 blocks are edge-residual ones and stay as they are"
    assert not any(label.startswith(("stage0", "stage1", "stage2")) for label in space.candidates())
    assert get_space("timm:mobilenetv2_100").note() is None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("timm:mobilenetv2_10", {}, "timm has no model 'mobilenetv2_10'; close ones are .*mobilenetv2_100"),
        ("timm:", {}, "timm has no model ''; families that work are mobilenetv2_"),
        (
            "timm:resnet18",
            {},
            "resnet18 has no InvertedResidual .*; families that have are mobilenetv2_.*hardcore",
        ),
        ("timm:mobilenetv4_conv_small_035", {}, "has no InvertedResidual"),
        ("timm:mixnet_s", {}, "mixnet_s has a part that no arch string here describes .*MixedConv2d.*families"),
        ("timm:test_efficientnet_gn", {}, "describes .a GroupNormAct in place of batch norm"),
        ("timm:efficientnet_blur_b0", {}, "describes .blocks.1.0.aa BlurPool2d"),
        ("timm:efficientnet_b1_pruned", {}, "b1_pruned has a part .*hidden = "),
        ("timm:mobilenetv2_035", {"kernel": [3]}, "unknown option kernel = .*kernels, expansions, weights"),
        ("timm:mobilenetv2_035", {"kernels": [4]}, "kernel 4 .* must be odd"),
        ("timm:mobilenetv2_035", {"kernels": 3}, "kernels = 3 .* give a list of numbers"),
        ("timm:mobilenetv2_035", {"kernels": ["3"]}, "kernel '3' .* must be odd"),
        ("timm:mobilenetv2_035", {"expansions": [0.5]}, "expansion 0.5 .* must be 1 to"),
        ("timm:mobilenetv2_035", {"expansions": [True]}, "expansion True .* must be 1 to"),
        ("timm:mobilenetv2_035", {"weights": 3}, "weights = 3 .* give pretrained, none or a file"),
        ("timm:mobilenetv2_035", {"width_mult": 2}, "width_mult = 2, but the space .* has its model's widths"),
        ("timm:local-dir:/nowhere", {}, "is a folder, which only you may name .* --space timm:local-dir:/nowhere on"),
        ("timm:local-dir:/my nets", {}, "is a folder, which only you may name .* --space 'timm:local-dir:/my nets' on"),
    ],
)
def test_what_cannot_be_a_space_is_refused(name, options, words):
    with pytest.raises(SpaceError, match=words) as refused:
        get_space(name, **options)
    assert "\n" not in str(refused.value)


def test_a_model_with_nothing_to_choose_is_refused():
    read = get_space("timm:tf_mobilenetv3_small_minimal_100").to_dict()
    # One block, which passes nothing on and for which no other kernel is offered.
    read |= {"stages": [read["stages"][0]], "kernels": [3], "expansions": [6]}
    with pytest.raises(SpaceError, match=r"nothing to choose .* kernels = \[3\], expansions = \[6\]; name others"):
        TimmDeclaration.from_dict(read)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "no folder of a timm model"),
        ("[]", "must hold a mapping of timm's settings, but holds a list"),
        ("{", "no valid JSON at line 1"),
        ({"architecture": "hf-hub:someone/net"}, "architecture = 'hf-hub:someone/net'"),
        ({"architecture": "mobilenetv2_100", "model_args": {"checkpoint_path": "/x"}}, "model_args.checkpoint_path"),
        ({"architecture": "mobilenetv2_100", "model_args": [1]}, r"model_args = \[1\]"),
        ({"architecture": "mobilenetv2_100", "model_args": {"no_such": 1}}, "timm cannot build"),
        ({"architecture": "proxylessnas_cifar_tree"}, "has no InvertedResidual"),
    ],
)
def test_a_folder_that_is_no_export_is_refused(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(SpaceError, match=words):
        users_space(f"timm:local-dir:{tmp_path}")


def a_folder(folder, **config):
    (folder / "config.json").write_text(json.dumps({"architecture": "mobilenetv2_035", **config}))
    return users_space(f"timm:local-dir:{folder}")


def test_a_folder_says_how_its_pictures_were_made(tmp_path):
    feeding = {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "crop_pct": 0.9, "crop_mode": "squash", "first_conv": "x"}
    folder = tmp_path / "my nets"
    folder.mkdir()
    space = a_folder(folder, pretrained_cfg=feeding, pictures={"range": [0, 4095]})
    del feeding["first_conv"]
    assert space.feeding() == {**feeding, "range": [0, 4095]}
    assert a_folder(folder, pretrained_cfg=[1]).feeding() == {}


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("values", [[], 0.5, "0.5", ["0.5"] * 3, [True] * 3, {"red": 0.5}])
def test_a_folder_whose_pictures_have_no_mean_is_refused(tmp_path, name, values):
    space = a_folder(tmp_path, pretrained_cfg={name: values})
    with pytest.raises(SpaceError, match=rf"{tmp_path} has pretrained_cfg\.{name} = .* no list of numbers; give an ex"):
        space.feeding()


FAULTS = [
    ({"stem_width": 0}, "stem_width = 0"),
    ({"stem_stride": 3}, "stem_stride = 3"),
    ({"head": "round"}, "head = 'round'"),
    ({"padding": "valid"}, "padding = 'valid'"),
    ({"se_gate": "relu"}, "se_gate = 'relu'"),
    ({"activation": ["relu"]}, "activation = "),
    ({"bn_eps": "small"}, "bn_eps = 'small'"),
    ({"kernels": [99]}, "kernel 99"),
    ({"stages": [[]]}, "one or more in every stage"),
    ({"stages": 3}, "stages of a space of kind timm"),
    ({"stages": [[{"kind": "ir"}]]}, "stages of a space of kind timm"),
    ({"no_such": 1}, "no_such"),
    ({"weights": "/etc/weights.safetensors"}, "weights = '/etc/weights.safetensors' in a file"),
    ({"model": "local-dir:/etc"}, "model = 'local-dir:/etc' in a file"),
]
BLOCK_FAULTS = [
    ({"kind": "uir"}, "kind = 'uir' of block 1.0"),
    ({"width": 0}, "width = 0"),
    ({"width": 1.5}, "width = 1.5"),
    ({"kernel": 4}, "kernel = 4"),
    ({"stride": 3}, "stride = 3"),
    ({"hidden": 0}, "hidden = 0"),
    ({"hidden": 100}, "hidden = 100"),
    ({"squeeze": -1}, "squeeze = -1"),
    ({"activation": "sine"}, "activation = 'sine'"),
    ({"activation": ["relu"]}, r"activation = \['relu'\]"),
    ({"kind": {}}, r"kind = \{\}"),
    ({"shortcut": True}, "shortcut = True"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS, ids=lambda value: str(value)[:30])
def test_a_file_with_an_impossible_space_is_refused(change, words):
    space = get_space("timm:mobilenetv2_035")
    subnet = json.loads(json.dumps(Subnet(space, space.original()).to_dict()))
    subnet["space"] |= change
    with pytest.raises((SpaceError, SubnetError), match=words):
        Subnet.from_dict(subnet)


@pytest.mark.parametrize(("change", "words"), BLOCK_FAULTS, ids=lambda value: str(value)[:30])
def test_a_file_with_an_impossible_block_is_refused(change, words):
    space = get_space("timm:mobilenetv2_035")
    subnet = json.loads(json.dumps(Subnet(space, space.original()).to_dict()))
    subnet["space"]["stages"][1][0] |= change
    with pytest.raises(SpaceError, match=words):
        Subnet.from_dict(subnet)


def test_paddings_are_one_operator_where_nothing_strides():
    """Else tables of TensorFlow's models and of others would have the same operator twice."""
    ours, theirs = (
        get_space(name, kernels=[5]).costs(64) for name in ("timm:efficientnet_lite0", "timm:tf_efficientnet_lite0")
    )
    both = set(ours.distinct()) & set(theirs.distinct())
    padded = [op for op in theirs.distinct() if op.padding]
    assert padded
    assert all(op.stride == 2 for op in padded)
    assert both == {op for op in theirs.distinct() if not op.padding}
    assert theirs.edges["stage1_block1"]["skip"].kind == IDENTITY


def test_paths_of_weights_and_folders_count_from_the_config(tmp_path, monkeypatch):
    (tmp_path / "search.yml").write_text(
        "space: {name: 'timm:local-dir:model', options: {weights: mine.safetensors}}\nhardware: {cost: macs}\n"
    )
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    config = load_config(tmp_path / "search.yml")
    assert config.space.name == f"timm:local-dir:{tmp_path / 'model'}"
    assert config.space.options["weights"] == str(tmp_path / "mine.safetensors")
    given = load_config(tmp_path / "search.yml", {"space.options.weights": "mine.safetensors"})
    assert Path(given.space.options["weights"]).parent == tmp_path / "other"
    for kept in ("pretrained", "none"):
        assert load_config(tmp_path / "search.yml", {"space.options.weights": kept}).space.options["weights"] == kept
    assert load_config(tmp_path / "search.yml", {"space": "timm:mobilenetv2_100"}).space.name == "timm:mobilenetv2_100"
