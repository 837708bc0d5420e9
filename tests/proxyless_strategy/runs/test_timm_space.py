"""A search on a timm model: what is checked before it, how its images are made, and that it ends in a timm model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from hardware.errors import SpaceError, TargetError
from proxyless_strategy.config import DataConfig, parse_config
from proxyless_strategy.data.feeding import fed
from proxyless_strategy.export.summary import model_summary
from proxyless_strategy.runs.prepare import Library, prepare
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.runs.space_table import default_table_path
from tests.proxyless_strategy.data.samples import write_idx
from tests.search_spaces.from_timm.samples import images, with_weights

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_weights(NAME, tmp_path_factory.mktemp("weights"))[1]


def settings(weights: Path | str, out: Path, **changes: Any) -> dict[str, Any]:
    options = {"kernels": [5], "expansions": [3], "weights": str(weights)}
    return {
        "space": {"name": f"timm:{NAME}", "options": options},
        "data": "digits",
        "hardware": {"cost": "macs"},
        "target": 0.5,
        "search": {"warmup_epochs": 0, "epochs": 1, "batch_size": 128, "steps_per_update": 4, "finalists": 2},
        "retrain": None,
        "out": str(out),
        **changes,
    }


@pytest.mark.slow
def test_a_search_ends_in_a_timm_model(weights: Path, tmp_path: Path) -> None:
    result = run_search(parse_config(settings(weights, tmp_path / "run")))
    assert result.subnet_cost <= result.target_cost
    model = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
    alone = torch.hub.load(str(result.folder), "model", source="local").eval()
    with torch.inference_mode():
        assert (model(images(32, 1)) - alone(images(32, 1))).abs().max() == 0.0
    assert type(model).__name__ == "MobileNetV3"
    config = json.loads((result.folder / "config.json").read_text())["pretrained_cfg"]
    assert config["mean"] == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert config["interpolation"] == "bicubic"


def test_images_are_made_as_the_model_has_seen_them() -> None:
    feeding = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "crop_pct": 0.9}
    colour = fed(DataConfig(name="imagefolder", options={"crop_pct": 1.0}), feeding).options
    assert colour == {**feeding, "crop_pct": 1.0}, "what the config says is kept"
    grey = fed(DataConfig(name="digits"), feeding).options
    assert grey == {**feeding, "mean": [pytest.approx(0.2)], "std": [0.5]}
    assert fed(DataConfig(name="imagefolder"), {}).options == {}
    assert fed(DataConfig(name="my_data:stripes"), feeding).options == {}, "options are the function's arguments"


def test_weights_are_checked_before_a_table_is_measured(tmp_path: Path) -> None:
    table = tmp_path / "table.yml"
    config = parse_config(settings(tmp_path / "none.safetensors", tmp_path, hardware={"table": str(table)}))
    with pytest.raises(SpaceError, match=r"none\.safetensors cannot be read"):
        prepare(config)
    assert not table.exists()


def test_fixed_blocks_are_said_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    space = {"name": "timm:efficientnet_es", "options": {"weights": "none", "kernels": [5], "expansions": []}}
    prepare(parse_config(settings("none", tmp_path, space=space)))
    assert capsys.readouterr().out.count("7 of 18 blocks are edge-residual ones and stay as they are") == 1


def test_the_table_of_a_folders_space_lies_in_the_cache_itself(tmp_path: Path) -> None:
    usual = default_table_path(parse_config({}))
    folder = default_table_path(parse_config({"space": f"timm:local-dir:{tmp_path}/model"}))
    assert folder.parent == usual.parent


# ---- a share of the original's cost ----------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["macs", "params", "activation_memory"])
def test_a_share_is_of_the_original_networks_own_cost(weights: Path, tmp_path: Path, cost: str) -> None:
    prepared = prepare(parse_config(settings(weights, tmp_path, target="0.7x", hardware={"cost": cost})), quiet=True)
    network = timm.create_model(NAME, num_classes=10, in_chans=1)
    if cost != "activation_memory":
        summary = model_summary(network, (1, 32, 32))
        assert prepared.original == pytest.approx({"macs": summary.macs, "params": summary.params}[cost] / 1e6)
    assert prepared.original is not None
    assert prepared.target == pytest.approx(0.7 * prepared.original)


def test_the_least_share_is_named_and_can_be_had(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"target = 0\.05x of the original of timm:") as refused:
        prepare(parse_config(settings(weights, tmp_path, target="0.05x")), quiet=True)
    (least,) = re.findall(r"the least share is (0\.\d+)x", str(refused.value))
    for share, ends in ((float(least), True), (float(least) - 0.001, False)):
        config = parse_config(settings(weights, tmp_path, target=f"{share:.3f}x"))
        if ends:
            assert prepare(config, quiet=True).target is not None
        else:
            with pytest.raises(TargetError):
                prepare(config, quiet=True)


def test_other_spaces_have_no_original() -> None:
    prepared = prepare(parse_config({"hardware": {"cost": "macs"}, "target": 0.5}), quiet=True)
    assert prepared.original is None


def test_images_of_torchvision_are_made_as_the_model_has_seen_them(tmp_path: Path, weights: Path) -> None:
    grey = write_idx(tmp_path / "grey", packed=False)
    given = {"name": "torchvision:FashionMNIST", "root": grey, "architecture_fraction": 0.5}
    config = parse_config(settings(weights, tmp_path / "out", data=given))
    data = Library().data(config, {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"})
    assert (data.channels, data.mean, data.std) == (1, (pytest.approx(0.3),), (pytest.approx(0.6),))
    assert data.interpolation == "bilinear"
    colour = parse_config(settings(weights, tmp_path / "out", data={**given, "options": {"channels": 3}}))
    assert Library().data(colour, {"mean": (0.2, 0.3, 0.4)}).mean == (0.2, 0.3, 0.4)
