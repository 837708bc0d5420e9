"""Predictions from step counts and measured batches, and the learning rates of the two phases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from proxyless_strategy.config import SearchSettings, load_config, parse_config
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.runs import forecast as module
from proxyless_strategy.runs import search
from proxyless_strategy.runs.classifier import ImageClassifier
from proxyless_strategy.runs.forecast import (
    CaptureForecast,
    Forecast,
    StepCost,
    capture_forecast,
    forecast,
    loader_rate,
    schedule,
    step_cost,
)
from proxyless_strategy.strategy.supernet.recorders import PlainRecorder
from search_spaces import get_space
from tests.benchmarks import imagenet_scale

SPACE = {"stages": [{"width": 16, "depth": 1, "stride": 2}, {"width": 16, "depth": 1, "stride": 1}], "head_width": 32}


@pytest.mark.parametrize(("warmup", "epochs", "expected"), [(40, 120, (160, 119)), (0, 3, (3, 3)), (1, 1, (2, 0))])
def test_steps_of_a_schedule(warmup: int, epochs: int, expected: tuple[int, int]) -> None:
    settings = SearchSettings(warmup_epochs=warmup, epochs=epochs, steps_per_update={"gradient": 5, "reinforce": 16})
    counted = schedule(4809, settings, "gradient")
    assert (counted.weights, counted.architecture) == (4809 * expected[0], 4809 * expected[1] // 5)
    assert schedule(4809, settings, "reinforce").architecture == 4809 * expected[1] // 16


@pytest.mark.parametrize(("loader_images", "slower"), [(1e9, False), (50.0, True)])
def test_a_forecast_is_steps_times_their_cost(
    monkeypatch: pytest.MonkeyPatch, loader_images: float, slower: bool
) -> None:
    config = parse_config(
        {
            "data": "digits",
            "search": {"warmup_epochs": 1, "epochs": 3, "batch_size": 100, "steps_per_update": 2, "devices": 2},
            "retrain": {"epochs": 4},
        }
    )
    space = get_space("small_mbconv", **SPACE)
    data = load_data(config.data, input_size=config.input_size, seed=0)
    monkeypatch.setattr(module, "loader_rate", lambda data, batch: loader_images)
    monkeypatch.setattr(module, "_step_cost", lambda *_: (StepCost(0.01, 0.002, 1000.0), "paper"))
    found = forecast(config, space, space.costs(32, num_classes=10, in_chans=1), data)
    per_epoch = len(data.weights) // 50 // 2  # type: ignore[arg-type]
    per_image = max(0.01, 1 / loader_images)
    expected = 50 * (per_epoch * 4 * per_image + per_epoch * 2 // 2 * module.GRADIENT_STEP * 0.01)
    trained, weights, tested = (len(part) for part in (data.training, data.weights, data.test))  # type: ignore[arg-type]
    expected += 4 * trained * per_image + tested * max(0.002, 1 / loader_images)
    assert found.seconds == pytest.approx(expected)
    # two networks of the search itself: there is no target
    search = config.search.model_copy(update={"finalists_epochs": 3})
    more = forecast(
        config.model_copy(update={"search": search}), space, space.costs(32, num_classes=10, in_chans=1), data
    )
    assert more.seconds == pytest.approx(expected + 2 * 3 * weights * per_image)
    assert more.epoch_seconds["finalists"] == pytest.approx(weights * per_image)
    parameters = sum(p.numel() for p in space.build(num_classes=10, in_chans=1).parameters())
    assert found.memory_bytes == 12 * parameters + 50 * 1000
    assert found.loader_is_slower == slower
    assert found.feeding is not None
    assert found.sentence().endswith(f"; {found.feeding.sentence()}")
    assert (found.feeding.loader_images, found.feeding.step_images) == (loader_images, pytest.approx(100))
    assert "100 of a training step" in found.sentence()
    monkeypatch.undo()
    reinforce = config.model_copy(update={"rule": "reinforce", "retrain": None})
    monkeypatch.setattr(module, "loader_rate", lambda data, batch: 1e9)
    monkeypatch.setattr(module, "_step_cost", lambda *_: (StepCost(0.01, 0.002, 1000.0), "paper"))
    found = forecast(reinforce, space, space.costs(32, num_classes=10, in_chans=1), data)
    assert found.seconds == pytest.approx(50 * per_epoch * (4 * 0.01 + 10 * 0.002))
    # One GPU decodes and trains in turn, so that both times count.
    monkeypatch.setattr(module, "loader_rate", lambda data, batch: 200.0)
    decoding = replace(data, decoder="nvjpeg")
    found = forecast(reinforce, space, space.costs(32, num_classes=10, in_chans=1), decoding)
    assert found.seconds == pytest.approx(50 * per_epoch * (4 * (0.01 + 1 / 200) + 10 * 0.002))


def test_rates_are_measured() -> None:
    config = parse_config({"data": "digits", "search": {"channels_last": True, "precision": "bf16-mixed"}})
    data = load_data(config.data, input_size=16, seed=0)
    assert 0 < loader_rate(data, 64) < math.inf
    space = get_space("small_mbconv", **SPACE)
    choices = {label: names[0] for label, names in space.candidates().items()}
    x, y = torch.randn(4, 1, 16, 16), torch.arange(4)
    cost = step_cost(space, choices, x, y, num_classes=10, settings=config.search)
    assert cost.seconds > 0
    assert cost.forward_seconds > 0
    doubled = step_cost(space, choices, torch.cat([x, x]), torch.cat([y, y]), num_classes=10, settings=config.search)
    assert doubled.saved_bytes < cost.saved_bytes < 2 * doubled.saved_bytes, "parameters are shared by the batch"


def test_what_capturing_saves_is_measured_on_the_supernet() -> None:
    config = parse_config({"data": "digits", "input_size": 16, "search": {"batch_size": 8}})
    data = load_data(config.data, input_size=16, seed=0)
    device, state = torch.device("cpu"), torch.get_rng_state()
    space = get_space("small_mbconv", **SPACE)
    found = capture_forecast(config, space, data, recorder=PlainRecorder(), device=device)
    assert torch.equal(torch.get_rng_state(), state)
    assert min(found.seconds, found.captured_ms, found.eager_ms) > 0


def test_captured_steps_are_timed_with_the_norms_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[str, str]] = []

    class Noted:
        def __init__(self, network: torch.nn.Module, kind: str, *, setting: str):
            self.asked = kind, setting

        def __enter__(self) -> None:
            entered.append(self.asked)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "FusedNorms", Noted)
    config = parse_config({"data": "digits", "input_size": 16, "search": {"batch_size": 8, "norm": "cudnn"}})
    data = load_data(config.data, input_size=16, seed=0)
    space = get_space("small_mbconv", **SPACE)
    capture_forecast(config, space, data, recorder=PlainRecorder(), device=torch.device("cpu"))
    assert entered == [("cudnn", "search.norm")] * 8, "every step"


@pytest.mark.parametrize(
    ("eager", "words"), [(12.0, "takes about 30 s, which 15000 steps win back"), (9.0, "does not pay; leave it out")]
)
def test_whether_capturing_pays_is_said(eager: float, words: str) -> None:
    """30 s are won back by 15,000 steps that are 2 ms faster each."""
    assert CaptureForecast(30.0, captured_ms=10.0, eager_ms=eager).sentence().endswith(words)


def test_long_forecasts_are_in_hours() -> None:
    assert "about 200 hours on a GPU" in Forecast(200 * 3600, 1, 2, 3, 4, "a GPU").sentence()
    assert "about 1.5 minutes on a GPU" in Forecast(90, 1, 2, 3, 4, "a GPU").sentence()


def test_the_warm_up_and_the_search_have_a_cosine_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates: list[float] = []
    step = ImageClassifier.training_step

    def noted(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        rates.extend(o.param_groups[0]["lr"] for o in self.trainer.optimizers if isinstance(o, torch.optim.SGD))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", noted)
    config = parse_config(
        {
            "space": {"name": "small_mbconv", "options": SPACE},
            "data": "digits",
            "input_size": 16,
            "hardware": {"cost": "macs"},
            "target": 0.5,
            "search": {
                "warmup_epochs": 2,
                "warmup_learning_rate": 0.05,
                "epochs": 3,
                "learning_rate": 0.025,
                "batch_size": 256,
                "steps_per_update": 1,
            },
            "retrain": None,
            "out": str(tmp_path / "run"),
        }
    )
    search.search_supernet(search.prepare(config), lambda _: None)
    per_epoch = len(rates) // 5
    assert len(rates) == 5 * per_epoch > 10
    warmup = [0.5 * 0.05 * (1 + math.cos(math.pi * t / (2 * per_epoch))) for t in range(2 * per_epoch)]
    rest = [0.5 * 0.025 * (1 + math.cos(math.pi * t / (3 * per_epoch))) for t in range(3 * per_epoch)]
    assert rates == pytest.approx([*warmup, *rest])


def test_gpu_hours_are_steps_times_cost_over_the_assumed_rate() -> None:
    config = load_config(imagenet_scale.CONFIG)
    measured = imagenet_scale.Measured(
        weight=1.0,
        gradient=0.5,
        reinforce=0.25,
        darts=6.0,
        saved_bytes=1e8,
        saved_gradient=0.75,
        saved_darts=5.0,
        relative_cost=2.0,
        parameters=10**7,
    )
    found = imagenet_scale.predict(config, measured, 1000.0)
    assert found["steps_per_epoch"] == 1_231_167 // 256 == 4809
    assert found["weight_steps"] == 4809 * 160
    assert found["architecture_steps"] == {"gradient": 4809 * 119 // 5, "reinforce": 4809 * 119 // 16}
    seconds = 256 * 2.0 / 1000
    assert found["gpu_hours"]["gradient"] == round((4809 * 160 + 0.5 * (4809 * 119 // 5)) * seconds / 3600, 1)
    assert found["gpu_hours"]["reinforce"] == round((4809 * 160 + 2.5 * (4809 * 119 // 16)) * seconds / 3600, 1)
    rate = found["images_per_second_of_reference_for_paper_hours"]["gradient"]
    assert imagenet_scale.predict(config, measured, rate)["gpu_hours"]["gradient"] == pytest.approx(200, rel=2e-3)
    memory = found["memory_gib"]
    assert memory["one_path"] == pytest.approx((256e8 + 12e7) / 2**30, abs=0.01)
    assert memory["gradient"] < memory["one_path"] < memory["darts"]
