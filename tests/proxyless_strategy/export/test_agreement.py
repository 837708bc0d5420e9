"""An export that is read back is the network that its `subnet.json` names, or it is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hardware.errors import ExportError
from proxyless_strategy.export.folder import load_exported, read_export
from search_spaces import Subnet
from tests.proxyless_strategy.export.samples import a_subnet, a_timm, a_tree, difference, export


def edit(path: Path, change: Any) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def other_kernel(values: dict[str, Any]) -> None:
    values["choices"] = {
        label: name.replace("3x3", "5x5") if "3x3" in name else name.replace("5x5", "3x3")
        for label, name in values["choices"].items()
    }


SPOILT = {
    "choices": ("subnet.json", other_kernel, r"model_args\.arch_def = .* its subnet\.json names"),
    "stride": ("subnet.json", lambda v: v["space"].update(stem_stride=1), r"model_args\.stem_stride = 2"),
    "epsilon": ("subnet.json", lambda v: v["space"].update(bn_eps=1e-5), r"model_args\.bn_eps = 0\.001"),
    "activation": ("subnet.json", lambda v: v["space"].update(activation="relu"), r"model_args\.act_layer"),
    "no number": ("subnet.json", lambda v: v["space"].update(bn_eps=float("nan")), r"bn_eps is nan"),
    "no width": (
        "subnet.json",
        lambda v: v["space"]["stages"][-1].update(width=-8),
        r"width=-8.* width must be whole, 1 to",
    ),
    "format": ("subnet.json", lambda v: v.update(format="other"), r"names no network: not a subnet of format"),
    "arguments": ("config.json", lambda v: v["model_args"].update(bn_eps=0.5), r"model_args\.bn_eps = 0\.5"),
    "unknown argument": ("config.json", lambda v: v["model_args"].update(se_layer="se"), r"model_args\.se_layer"),
    "pooling": ("config.json", lambda v: v["model_args"].update(global_pool="max"), r"model_args\.global_pool"),
    "architecture": ("config.json", lambda v: v.update(architecture="efficientnet_b0"), r"names one of proxylessnas"),
    "classes": ("config.json", lambda v: v["pretrained_cfg"].update(num_classes=7), r"num_classes = 10 .* with 7"),
    "channels": ("config.json", lambda v: v["pretrained_cfg"].update(input_size=[3, 8, 8]), r"in_chans = 1 .* with 3"),
    "rank": ("config.json", lambda v: v["pretrained_cfg"].update(input_size=[1, 32]), r"input_size (=|is) \[1, 32\]"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_files_of_different_networks(tmp_path: Path, how: str) -> None:
    _, folder = export(tmp_path / "net")
    name, change, message = SPOILT[how]
    edit(folder / name, change)
    for read in (load_exported, read_export):
        with pytest.raises(ExportError, match=message) as error:
            read(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", ["shape", "missing", "left over"])
@pytest.mark.parametrize("subnet", [a_subnet(), a_tree(), a_timm()], ids=["mbconv", "tree", "timm"])
def test_weights_of_another_network(tmp_path: Path, subnet: Subnet, spoil: str) -> None:
    _, folder = export(tmp_path / "net", subnet)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if spoil == "shape":
        tensors["classifier.bias"] = tensors["classifier.bias"][:7].clone()
    elif spoil == "missing":
        del tensors["classifier.bias"]
    else:
        tensors["classifier.scale"] = tensors["classifier.bias"].clone()
    save_file(tensors, path)
    wanted = {"shape": "a tensor of 7 classifier.bias", "missing": "no tensor classifier.bias"}
    with pytest.raises(ExportError, match=wanted.get(spoil, "a tensor of 10 classifier.scale")):
        load_exported(folder)


def test_a_classifier_that_timm_would_drop_in_silence(tmp_path: Path) -> None:
    _, folder = export(tmp_path / "net")
    edit(folder / "config.json", lambda v: v["model_args"].update(num_classes=7))
    with pytest.raises(ExportError, match=r"model_args\.num_classes = 7 .* with 10"):
        load_exported(folder)
    edit(folder / "config.json", lambda v: v["pretrained_cfg"].update(num_classes=7))
    with pytest.raises(ExportError, match=r"a tensor of 10 classifier.bias .* a tensor of 7 of that name"):
        load_exported(folder)


def test_another_choice_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model_args\.arch_def"):
        export(tmp_path / "net", subnet=a_subnet(last=True).to_dict())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["no file", "nothing in it", "a space of the user's own"])
def test_folders_that_say_nothing_of_a_choice_are_read(tmp_path: Path, left: str) -> None:
    _, folder = export(tmp_path / "net")
    if left == "no file":
        (folder / "subnet.json").unlink()
    elif left == "nothing in it":
        (folder / "subnet.json").write_text("{}")
    else:
        edit(folder / "subnet.json", lambda v: v["space"].update(kind="my_own"))
    load_exported(folder)
    assert read_export(folder)["architecture"] == "proxylessnas"


SPOILT_TIMM = {
    "choices": ("subnet.json", other_kernel, r"model_args\.arch_def"),
    "gate": ("subnet.json", lambda v: v["space"].update(se_gate="sigmoid"), r"model_args\.se_gate = \"hard_sigmoid\""),
    "head": ("config.json", lambda v: v["model_args"].pop("head"), r"model_args\.head = none .* with \"pooled\""),
    "bias": ("config.json", lambda v: v["model_args"].update(head_bias=False), r"head_bias = false .* with none"),
    "padding": ("config.json", lambda v: v["model_args"].update(pad_type="same"), r"pad_type = \"same\" .* with none"),
    "weights": ("subnet.json", lambda v: v["space"].update(weights="/x.safetensors"), r"names no network: weights = "),
    "block": ("subnet.json", lambda v: v["space"]["stages"][1][0].update(kind=["ir"]), r"kind = \['ir'\] of block 1.0"),
}


@pytest.mark.parametrize("how", SPOILT_TIMM)
def test_files_of_different_networks_of_a_timm_model(tmp_path: Path, how: str) -> None:
    _, folder = export(tmp_path / "net", a_timm())
    name, change, message = SPOILT_TIMM[how]
    edit(folder / name, change)
    with pytest.raises(ExportError, match=message) as error:
        read_export(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rates", ["its own", "a recipe's", "none"])
def test_a_timm_models_rates_are_those_of_a_training(tmp_path: Path, rates: str) -> None:
    model, folder = export(tmp_path / "net", a_timm())
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_args"]["drop_rate"], config["model_args"]["drop_path_rate"]) == (0.1, 0.2)
    if rates == "a recipe's":
        edit(folder / "config.json", lambda v: v["model_args"].update(drop_rate=0.5))
    elif rates == "none":
        edit(folder / "config.json", lambda v: [v["model_args"].pop(name) for name in ("drop_rate", "drop_path_rate")])
    assert difference(load_exported(folder), model) == 0.0


def test_what_a_training_set_is_no_other_network(tmp_path: Path) -> None:
    _, folder = export(tmp_path / "net")
    edit(folder / "config.json", lambda v: v["model_args"].update(drop_rate=0.2))
    assert load_exported(folder).drop_rate == 0.2
