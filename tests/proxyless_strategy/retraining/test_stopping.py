"""Early stopping and layer decay of a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from hardware.errors import CheckpointError, TrainingError
from proxyless_strategy.retraining.evaluation import evaluate
from proxyless_strategy.retraining.setup import make_optimizer, make_scheduler, training_loader
from proxyless_strategy.retraining.stopping import EarlyStopping
from tests.proxyless_strategy.retraining.test_trainer import (
    Stop,
    build,
    image_data,
    same_weights,
    settings,
    stop_after,
    trained,
)

# ---- early stopping --------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A network whose loss on every image is a given number: two classes, by their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(x)), self.value.expand(len(x)), torch.full((len(x),), -1e4)], dim=1)


def looked(values: list[float], patience: int) -> tuple[EarlyStopping, list[bool]]:
    """Look at a network of these values, epoch by epoch, where every image is of the first class."""
    data = image_data()
    for part in (data.architecture, data.weights):
        part.labels.zero_()  # type: ignore[attr-defined]
    stopping, network, over = EarlyStopping(patience, data, rank=0, replicas=1), Given(), []
    for epoch, value in enumerate(values, start=1):
        network.value.data.fill_(value)
        loss = stopping.look(network, epoch)
        assert loss == pytest.approx(math.log1p(math.exp(value)), rel=1e-5) or not math.isfinite(value)
        over.append(stopping.over)
    return stopping, over


def test_the_best_epoch_is_kept_and_so_many_without_a_better_one_end_it() -> None:
    stopping, over = looked([3.0, 1.0, 2.0, 0.5, 0.5, 0.7, 0.6], patience=3)
    assert over == [False] * 6 + [True]
    assert stopping.best_epoch == 4, "an equal loss is no better one"
    network = Given()
    stopping.restore(network)
    assert float(network.value) == 0.5


def test_a_loss_that_is_not_finite_is_no_best_one() -> None:
    stopping, over = looked([math.nan, 1.0, math.nan], patience=2)
    assert (stopping.best_epoch, over[-1]) == (2, False)
    never, over = looked([math.nan, math.nan], patience=2)
    assert over == [False, True]
    with pytest.raises(TrainingError, match="was finite after none of 2 epochs"):
        never.restore(Given())


def test_it_trains_on_the_part_weights_and_looks_at_the_part_architecture() -> None:
    data = image_data()
    seen: list[torch.Tensor] = []
    for patience, part in ((None, data.training), (2, data.weights)):
        recipe = settings(early_stopping=patience, batch_size=3)
        loader = training_loader(data, recipe, seed=0, rank=0, replicas=1)
        assert len(loader) == len(part) // 3  # type: ignore[arg-type]
        seen = [labels for _, labels in loader]
    assert sorted(torch.cat(seen).tolist()) == sorted(data.weights.labels[data.weights.indices].tolist())  # type: ignore[attr-defined]


def test_the_result_is_the_best_epochs_network() -> None:
    """At a rate that leaves all bounds after the first epochs the last epoch is not the best one."""
    reports: list[dict[str, Any]] = []
    recipe = settings(early_stopping=2, epochs=12, learning_rate=0.4, scheduler="step", ema_decay=None)
    found = trained(settings=recipe, on_epoch=reports.append)
    losses = [report["held_out_loss"] for report in reports]
    assert found.best_epoch == 1 + losses.index(min(losses))
    assert found.epochs == len(reports) == min(12, found.best_epoch + 2)
    loss = evaluate(found.model, image_data().loader("architecture", batch_size=4)).loss
    assert loss == pytest.approx(min(losses), rel=1e-5)
    assert trained().best_epoch is None


@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_training_stops_where_it_would_have(at: int, tmp_path: Path) -> None:
    recipe = settings(early_stopping=2, epochs=8, learning_rate=0.3)
    whole = trained(settings=recipe)
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Stop):
        trained(settings=recipe, checkpoint=path, on_epoch=stop_after(at))
    resumed = trained(settings=recipe, checkpoint=path)
    assert same_weights(whole.model, resumed.model)
    assert (whole.epochs, whole.best_epoch) == (resumed.epochs, resumed.best_epoch)
    again = trained(settings=recipe, checkpoint=path, on_epoch=lambda _: pytest.fail("trained on"))
    assert same_weights(whole.model, again.model), "killed between the last epoch and the export"


def test_a_checkpoint_without_its_best_epoch_is_not_gone_on_with(tmp_path: Path) -> None:
    recipe, path = settings(early_stopping=2), tmp_path / "retrain.ckpt"
    with pytest.raises(Stop):
        trained(settings=recipe, checkpoint=path, on_epoch=stop_after(1))
    for file in tmp_path.glob("*.ckpt"):
        state = torch.load(file, weights_only=True)
        del state["stopping"]
        torch.save(state, file)
    with pytest.raises(CheckpointError, match="it lacks stopping"):
        trained(settings=recipe, checkpoint=path)


# ---- layer decay -----------------------------------------------------------------------------------------------------


def rates(network: nn.Module, **changes: Any) -> dict[str, float]:
    """Rates of a network's parameters at the first update."""
    recipe = settings(**changes)
    optimizer = make_optimizer(network, recipe)
    make_scheduler(optimizer, recipe, updates_per_epoch=3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("scheduler", ["cosine", "none"])
def test_every_layer_has_a_rate_of_its_own(scheduler: str) -> None:
    found = rates(build(), layer_decay=0.5, learning_rate=0.4, scheduler=scheduler)
    assert found["classifier.weight"] == found["classifier.bias"] == pytest.approx(0.4)
    # timm counts the last convolution with the last block
    assert found["blocks.1.1.conv_pw.weight"] == found["conv_head.weight"] == pytest.approx(0.2)
    assert found["blocks.1.0.bn1.weight"] == pytest.approx(0.1)
    assert found["blocks.0.0.conv_dw.weight"] == pytest.approx(0.05)
    assert found["conv_stem.weight"] == pytest.approx(0.025)
    assert {*rates(build(), learning_rate=0.4, scheduler=scheduler).values()} == {0.4}


def test_a_first_update_of_sgd_moves_by_these_rates() -> None:
    network, recipe = build(drop_rate=0.0).eval(), settings(layer_decay=0.5, momentum=0.9, weight_decay=0.0)
    optimizer = make_optimizer(network, recipe)
    make_scheduler(optimizer, recipe, updates_per_epoch=3)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    x, y = next(iter(image_data().loader("training", batch_size=8)))
    functional.cross_entropy(network(x), y).backward()
    optimizer.step()
    for name, scale in (("classifier.weight", 1.0), ("conv_stem.weight", 0.0625)):
        parameter = dict(network.named_parameters())[name]
        assert parameter.grad is not None
        # Nesterov's first step is 1 + momentum gradients long.
        torch.testing.assert_close(parameter.detach(), before[name] - 0.05 * scale * 1.9 * parameter.grad)


def test_a_training_with_layer_decay_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe, path, reports = settings(layer_decay=0.7), tmp_path / "retrain.ckpt", []
    whole = trained(settings=recipe, on_epoch=reports.append)
    with pytest.raises(Stop):
        trained(settings=recipe, checkpoint=path, on_epoch=stop_after(2))
    assert same_weights(whole.model, trained(settings=recipe, checkpoint=path).model)
    assert reports[0]["learning_rate"] > 0.8 * 0.05, "the classifier's is reported"


def test_a_network_of_another_kind_has_layers_too() -> None:
    tree = timm.create_model("resnet18", num_classes=3)
    assert len({*rates(tree, layer_decay=0.5).values()}) > 2
