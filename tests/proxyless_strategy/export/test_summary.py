"""The count of a network's size."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from proxyless_strategy.export.summary import ModelSummary, SavedBytes, model_summary
from search_spaces import Subnet, get_space


def test_summary_in_closed_form() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    params = 27 * 8 + 16 + (25 * 8 + 8) + 90
    macs = 27 * 8 * 16 + 25 * 8 * 16 + 80
    assert model_summary(model, (3, 8, 8)) == ModelSummary(params=params, macs=macs)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("candidate", "params", "macs"),
    [("3x3_e3", 3.192, 257.42), ("3x3_e6", 4.685, 472.62), ("7x7_e6", 5.103, 606.59)],
)
def test_summary_of_the_papers_space(candidate: str, params: float, macs: float) -> None:
    space = get_space("imagenet_mbconv")
    subnet = Subnet(space, dict.fromkeys(space.candidates(), candidate))
    summary = model_summary(timm.create_model("proxylessnas", **subnet.model_args()), (3, 224, 224))
    assert round(summary.params / 1e6, 3) == params
    assert round(summary.macs / 1e6, 2) == macs


def test_bytes_that_autograd_saves_in_closed_form() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    images, hidden, weight = 4 * 2 * 3, 4 * 2 * 4, 4 * 4 * 2
    with SavedBytes() as everything:
        model(torch.randn(2, 3))
    with SavedBytes(without=model.parameters()) as activations:
        model(torch.randn(2, 3))
    model(torch.randn(2, 3))
    assert (everything.total, activations.total) == (images + hidden + weight, images + hidden)
