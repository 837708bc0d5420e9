"""examples/cifar10.yml: what it asks for, drawn files of CIFAR-10's layout, Cutout, its smoke preset on NNI itself."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from hardware.errors import ConfigError, DataError
from proxyless_strategy.config import DataConfig, load_config, parse_config
from proxyless_strategy.data.datasets import ItemImages, TensorImages
from proxyless_strategy.data.drawn import draw_cifar10
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.runs import search
from proxyless_strategy.sections import DrawnImages
from search_spaces import Subnet, get_space

ROOT = Path(__file__).parents[3]
SEARCH = ROOT / "examples" / "cifar10_search.yml"
DRAW = {"classes": 10, "train": 10, "val": 3, "size": 32}


def test_the_example_is_the_papers_recipe() -> None:
    config = load_config(SEARCH)
    assert len(get_space(config.space.name, **config.space.options).candidates()) == 648
    assert config.search.warmup_epochs + config.search.epochs == 200
    assert [config.search.architecture_rate(rule) for rule in ("gradient", "reinforce")] == [0.006, 0.01]
    assert config.data.architecture_per_class == 500
    retrain = config.retrain
    assert retrain is not None
    assert (retrain.epochs, retrain.batch_size, retrain.learning_rate, retrain.weight_decay) == (300, 64, 0.1, 1e-4)
    assert (retrain.optimizer, retrain.momentum, retrain.scheduler, retrain.cutout) == ("sgd", 0.9, "cosine", 16)
    longer = load_config(SEARCH, preset="drop_path").retrain
    assert longer is not None
    assert longer.epochs == 600
    assert longer.drop_path > 0


def test_a_rate_must_be_given_for_both_rules() -> None:
    with pytest.raises(ConfigError, match=r"architecture_learning_rate .* must name gradient and reinforce"):
        parse_config({"search": {"architecture_learning_rate": {"gradient": 0.006}}})
    assert parse_config({"search": {"architecture_learning_rate": 0.1}}).search.architecture_rate("gradient") == 0.1
    assert parse_config({}).search.architecture_rate("reinforce") is None


# --- drawn files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "cifar"
    draw_cifar10(root, DrawnImages(**DRAW))
    return root


def test_torchvisions_own_loader_reads_drawn_files(drawn: Path) -> None:
    config = DataConfig(name="torchvision:CIFAR10", root=drawn, draw=DrawnImages(**DRAW), architecture_per_class=2)
    data = load_data(config, input_size=32, seed=0)
    assert (data.num_classes, data.channels) == (10, 3)
    assert data.class_names == tuple(f"class{number:04d}" for number in range(10))
    sizes = [len(part) for part in (data.weights, data.architecture, data.training, data.test)]
    assert sizes == [80, 20, 100, 30]
    batch = pickle.loads((drawn / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    assert isinstance(data.training, TensorImages)
    assert np.array_equal(data.training.images[0].numpy().reshape(-1), batch["data"][0])
    assert data.training.targets[:20] == batch["labels"]
    assert np.bincount(data.training.targets).tolist() == [10] * 10


def test_files_that_are_not_the_originals_are_refused_where_nothing_is_drawn(drawn: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10 in .*download: true"):
        load_data(DataConfig(name="torchvision:CIFAR10", root=drawn), input_size=32, seed=0)


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    config = DataConfig(name="torchvision:CIFAR10", root=tmp_path / "none")
    with pytest.raises(DataError, match=r"CIFAR10 in .*none.*set data.options.download: true"):
        load_data(config, input_size=32, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draw": {"size": 64}}, "images of 32 pixels"),
        ({"draw": {"size": 32, "train": 4}}, "five training files"),
        ({"name": "torchvision:CIFAR100", "draw": {"size": 32}}, "makes an imagefolder or torchvision:CIFAR10"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"data": {"name": "torchvision:CIFAR10", "root": "somewhere", **changes}})


# --- Cutout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [3, 8])
def test_cutout_takes_a_square_from_every_image(side: int) -> None:
    data = load_data(DataConfig(), input_size=16, seed=0)

    def read(cutout: int, epoch: int = 0) -> torch.Tensor:
        loader = data.loader("training", batch_size=32, seed=1, epoch=epoch, cutout=cutout)
        return torch.cat([images for images, _ in loader])

    whole, cut = read(0), read(side)
    changed = (whole != cut) | (cut == 0)
    places = set()
    for image, mask in zip(cut[:200], changed[:200], strict=True):
        rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
        assert len(rows) <= side
        assert len(columns) <= side
        assert not image[mask].any()
        places.add((int(rows[0]), int(columns[0])))
    zeros = (cut == 0).sum((1, 2, 3))
    assert int(zeros.min()) >= side**2
    assert len(places) > 20
    assert torch.equal(cut, read(side))
    assert not torch.equal(cut, read(side, epoch=1))
    plain = torch.cat([images for images, _ in data.loader("test", batch_size=32)])
    assert (plain == 0).float().mean() < 0.01


def test_cutout_of_images_that_are_read_one_by_one(drawn: Path) -> None:
    config = DataConfig(name="torchvision:CIFAR10", root=drawn, draw=DrawnImages(**DRAW), architecture_per_class=2)
    data = load_data(config, input_size=32, seed=0)
    loader = data.loader("training", batch_size=10, cutout=16, rand_augment="rand-m9-mstd0.5")
    assert isinstance(loader.dataset, ItemImages)
    images, _ = next(iter(loader))
    assert ((images == 0).all(1).sum((1, 2)) >= 256).all()


def test_a_cutout_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(DataError, match="cutout = 16 leaves nothing of images of 16 pixels"):
        load_data(DataConfig(), input_size=16, seed=0).loader("training", batch_size=32, cutout=16)


# --- a search -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_over_tree_cells_ends_in_their_timm_model(drawn: Path, tmp_path: Path) -> None:
    config = load_config(
        SEARCH,
        {
            "data.root": drawn,
            "data.architecture_per_class": 4,
            "space.options.cell_depth": 2,
            "search.epochs": 2,
            "retrain.epochs": 1,
            "hardware.device": "other",
            "target": 0.4,
            "out": tmp_path / "run",
        },
        preset="smoke",
    )
    result = search.run_search(config)
    assert result.subnet_cost <= result.target_cost
    model = timm.create_model(f"local-dir:{result.folder}", pretrained=True)
    assert type(model).__name__ == "TreeCellNet"
    assert sum(p.numel() for p in model.parameters()) == result.params
    assert result.macs == pytest.approx(1e6 * result.subnet_cost)
    assert Subnet.load(result.folder / "subnet.json") == result.subnet
    assert search.run_search(config).subnet == result.subnet


@pytest.mark.slow
def test_the_smoke_preset_runs_on_plain_nnictl_to_two_timm_folders(tmp_path: Path) -> None:
    folder, home = tmp_path / "examples", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    shutil.copy(SEARCH, folder)
    experiment = yaml.safe_load((ROOT / "examples" / "cifar10.yml").read_text())
    experiment["trialCommand"] = experiment["trialCommand"].replace("../.venv/bin/python", sys.executable)
    (folder / "cifar10.yml").write_text(yaml.safe_dump(experiment))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", "create", "--foreground", "--port", str(port)]
    done = subprocess.run(
        [*command, "--config", str(folder / "cifar10.yml")],
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "PROXYLESS_PRESET": "smoke"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    results = sorted((tmp_path / "runs" / "cifar10_smoke").glob("*/result.json"))
    assert len(results) == 2, done.stdout
    rows = [json.loads(path.read_text()) for path in results]
    assert {row["rule"] for row in rows} == {"gradient", "reinforce"}
    for row, path in zip(rows, results, strict=True):
        assert 0 <= row["accuracy"] <= 1
        model = timm.create_model(f"local-dir:{path.parent / 'model'}", pretrained=True)
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
