"""From a search in code to a folder that timm loads, in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from hardware import given_costs
from hardware.errors import ConfigError, ExportError
from proxyless_strategy import ProxylessStrategy, export_derived, get_space

FEEDING = {"input_size": [1, 16, 16], "mean": [0.25], "std": [0.5]}


def searched(space: Any, cost: Any = None) -> ProxylessStrategy:
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(1, 16, 16, generator=generator), index % 3) for index in range(16)]
    evaluator = Classification(
        train_dataloaders=DataLoader(pairs, batch_size=8, shuffle=True),
        val_dataloaders=DataLoader(pairs, batch_size=8, shuffle=True),
        num_classes=3,
        max_epochs=3,
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    strategy = ProxylessStrategy(cost=cost, warmup_epochs=1, steps_per_update=1, finalists=2, calibration_batches=2)
    strategy.search(space, evaluator)
    return strategy


@pytest.fixture(scope="module")
def strategy() -> ProxylessStrategy:
    declaration = get_space("small_mbconv", kernels=[3, 5], expansions=[3])
    costs = {
        label: {name: 0.0 if name == "skip" else 1.0 + index for index, name in enumerate(names)}
        for label, names in declaration.candidates().items()
    }
    space = declaration.build(num_classes=3, in_chans=1)
    return searched(space, given_costs(costs, constant=2.0))


def test_the_folder_is_the_subnet_with_the_supernets_weights(strategy: ProxylessStrategy, tmp_path: Path) -> None:
    folder = export_derived(strategy, tmp_path / "found", pretrained_cfg=FEEDING)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    network = strategy.searched.derived_network()
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.eval()(image), network(image))
    assert tuple(model.pretrained_cfg["mean"]) == (0.25,)
    assert model.num_classes == 3
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["unit"], metrics["subnet_cost"]) == ("ms", strategy.derive().cost)


def test_another_subnet_of_the_same_search(strategy: ProxylessStrategy, tmp_path: Path) -> None:
    cheapest = strategy.searched.deriver().cheapest()
    folder = export_derived(strategy, tmp_path / "small", pretrained_cfg=FEEDING, derived=cheapest)
    subnet = json.loads((folder / "subnet.json").read_text())
    assert subnet["choices"] == dict(cheapest.names)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(image), strategy.searched.derived_network(cheapest)(image))


@pytest.mark.parametrize(
    ("feeding", "words"),
    [
        ({"input_size": [1, 16, 16]}, "pretrained_cfg lacks mean, std"),
        ({**FEEDING, "input_size": [3, 16, 16]}, "takes 1 channels; give C, H, W"),
        ({**FEEDING, "input_size": [16, 16]}, "give C, H, W"),
    ],
)
def test_what_images_had_must_be_said(
    strategy: ProxylessStrategy, tmp_path: Path, feeding: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        export_derived(strategy, tmp_path / "found", pretrained_cfg=feeding)
    assert not (tmp_path / "found").exists()


class Own(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.choice = LayerChoice([nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 3, padding=1)], label="choice")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choice(x).mean((2, 3))


def test_a_space_without_timm_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Own is no space of this project.*space\.freeze"):
        export_derived(searched(Own()), tmp_path / "found", pretrained_cfg=FEEDING)


def test_nothing_is_exported_before_a_search(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing was searched yet"):
        export_derived(ProxylessStrategy(), tmp_path / "found", pretrained_cfg=FEEDING)
