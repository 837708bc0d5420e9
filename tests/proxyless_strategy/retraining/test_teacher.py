"""A teacher: its part of the loss in closed form, what it sees, and what is refused as one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from hardware.errors import CheckpointError, ConfigError, ExportError, TrainingError
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.data.reading import Reader
from proxyless_strategy.retraining import trainer
from proxyless_strategy.retraining.teacher import Renormalised, distilled, load_teacher, teacher_digest
from search_spaces.from_timm import weights
from tests.proxyless_strategy.export.samples import FEEDING, a_subnet, export
from tests.proxyless_strategy.retraining.test_trainer import (
    CLASSES,
    SIZE,
    Stop,
    build,
    image_data,
    same_weights,
    settings,
    stop_after,
    trained,
)


class Plain(nn.Module):
    """A network without batch norm and dropout, which is the same in both modes; it notes its mode and its images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = nn.Linear(SIZE * SIZE, CLASSES)
        self.seen: list[torch.Tensor] = []
        self.modes: set[bool] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().clone())
        self.modes.add(self.training)
        found: torch.Tensor = self.linear(x.flatten(1))
        return found


def plain(**changes: Any) -> Any:
    return settings(**{"ema_decay": None, "label_smoothing": 0.0, "weight_decay": 0.0, **changes})


# ---- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_in_closed_form() -> None:
    """Two classes at a temperature of 2: probabilities of 3/4 and 1/2 of the first one."""
    taught, logits = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = distilled(torch.tensor(1.5), logits, taught, temperature=2.0, weight=0.3)
    assert float(found) == pytest.approx(0.7 * 1.5 + 0.3 * 4 * divergence, rel=1e-6)


def test_the_gradient_is_the_difference_of_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(5, CLASSES, generator=generator) for _ in range(2))
    logits.requires_grad_()
    distilled(logits.sum() * 0, logits, taught, temperature=3.0, weight=1.0).backward()
    difference = functional.softmax(logits / 3, 1) - functional.softmax(taught / 3, 1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, 3.0 * difference.detach() / 5)


def test_the_divergence_is_counted_in_float32() -> None:
    logits, taught = torch.randn(4, 10), torch.randn(4, 10)
    half = distilled(torch.tensor(0.0), logits.half(), taught.half(), temperature=1.0, weight=1.0)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(
        float(distilled(torch.tensor(0.0), logits, taught, temperature=1.0, weight=1.0)), rel=1e-2
    )


# ---- a training ----------------------------------------------------------------------------------------------------


def test_a_network_that_is_its_teacher_stays_as_it_is() -> None:
    network = Plain()
    before = copy.deepcopy(network.state_dict())
    recipe = plain(teacher_weight=1.0)
    found = trainer.train(lambda: network, image_data(), recipe, seed=0, teacher=Plain())
    for name, value in before.items():
        assert torch.allclose(found.model.state_dict()[name], value, atol=1e-6)
    other = trainer.train(Plain, image_data(), recipe, seed=0, teacher=Plain(seed=1))
    assert not torch.allclose(other.model.state_dict()["linear.weight"], before["linear.weight"], atol=1e-3)


def test_a_network_learns_what_its_teacher_knows() -> None:
    teacher = Plain(seed=1)
    recipe = plain(teacher_weight=1.0, teacher_temperature=1.0, epochs=60, learning_rate=0.2)
    found = trainer.train(Plain, image_data("none"), recipe, seed=0, teacher=teacher).model
    x = torch.cat([images for images, _ in image_data("none").loader("training", batch_size=20)])

    def divergence(network: nn.Module) -> float:
        with torch.no_grad():
            known, learned = functional.log_softmax(teacher(x), 1), functional.log_softmax(network(x), 1)
        return float(functional.kl_div(learned, known, log_target=True, reduction="batchmean"))

    assert divergence(found) < 0.5 * divergence(Plain())


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_it_sees_the_images_of_the_network_and_stays_in_evaluation_mode(mixup: float) -> None:
    network, teacher = Plain(), Plain(seed=1).train()
    trainer.train(
        lambda: network,
        image_data(count=64),
        plain(mixup=mixup, batch_size=8, epochs=1),
        seed=0,
        teacher=teacher,
    )
    teacher.seen.pop(0)  # the trial
    assert len(teacher.seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(teacher.seen, network.seen, strict=False))
    assert teacher.modes == {False}
    assert teacher.linear.weight.grad is None


def test_a_teacher_changes_neither_its_statistics_nor_what_is_drawn() -> None:
    teacher = build()
    before = copy.deepcopy(teacher.state_dict())
    assert not same_weights(trained().model, trained(teacher=teacher).model)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    barely = trained(teacher=teacher, settings=settings(teacher_weight=1e-30)).model
    assert same_weights(trained().model, barely), "dropout, Mixup and order are drawn as without one"


def test_it_works_in_bfloat16() -> None:
    found = trained(teacher=build(), settings=settings(precision="bfloat16", epochs=1))
    assert math.isfinite(found.test_loss)


def test_a_killed_training_goes_on_with_its_teacher_alone(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        teacher, other = build(), build()
    whole = trained(teacher=teacher)
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Stop):
        trained(teacher=teacher, checkpoint=path, on_epoch=stop_after(2))
    state = torch.load(path, weights_only=True)
    assert state["identity"]["teacher_network"] == teacher_digest(teacher)
    assert not any("teacher" in name for name in state["model"])
    for wrong in (other, None):
        with pytest.raises(CheckpointError, match="another retraining \\(teacher_network = "):
            trained(teacher=wrong, checkpoint=path)
    assert same_weights(whole.model, trained(teacher=teacher, checkpoint=path).model)


def test_a_training_of_an_older_version_takes_no_teacher_on(tmp_path: Path) -> None:
    path = tmp_path / "retrain.ckpt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(2))
    state = torch.load(path, weights_only=True)
    new = ("weights", "teacher", "teacher_temperature", "teacher_weight", "layer_decay", "early_stopping")
    for key in (*new, "teacher_network", "starting_weights"):
        del state["identity"][key]
    torch.save(state, path)
    for change in ({"teacher": build()}, {"settings": settings(layer_decay=0.8)}):
        with pytest.raises(CheckpointError, match="another retraining"):
            trained(checkpoint=path, **change)
    with pytest.raises(CheckpointError, match="starting_weights = None there"):
        trained(checkpoint=path, identity={"starting_weights": "abc"})
    assert same_weights(trained().model, trained(checkpoint=path).model)


def test_a_teacher_that_gives_nan_ends_the_training() -> None:
    teacher = Plain()
    teacher.linear.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="the teacher's outputs in epoch 1, update 1 are not finite"):
        trainer.train(Plain, image_data(), plain(), seed=0, teacher=teacher)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, CLASSES + 1)), r"gives \(1, 4\) for one image, but"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), r"cannot take images of 1 x 8 x 8: "),
    ],
)
def test_a_teacher_of_other_images_is_refused(teacher: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        trained(teacher=teacher)


def test_a_network_is_not_its_own_teacher() -> None:
    network = build()
    with pytest.raises(ConfigError, match="give a copy"):
        trainer.train(lambda: network, image_data(), settings(), seed=0, teacher=network)


# ---- loading one ---------------------------------------------------------------------------------------------------


LABELS = FEEDING["label_names"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A network of grey images of 10 classes with mean 0.3 and std 0.4, and its folder."""
    return export(tmp_path_factory.mktemp("teacher") / "net", a_subnet(stem_stride=1))


def data_of(**changes: Any) -> ImageData:
    fitting = {"num_classes": 10, "class_names": tuple(LABELS), "mean": (0.3,), "std": (0.4,)}
    return replace(image_data(), **{**fitting, **changes})


def test_a_folder_is_loaded_with_its_weights(exported: tuple[nn.Module, Path]) -> None:
    model, folder = exported
    teacher = load_teacher(str(folder), data_of())
    assert same_weights(model, teacher)
    assert not teacher.training
    assert same_weights(model, load_teacher(f"local-dir:{folder}", data_of(class_names=None)))


def test_images_of_another_normalisation_are_shown_as_it_knows_them(exported: tuple[nn.Module, Path]) -> None:
    model, folder = exported
    pixels = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    teacher = load_teacher(str(folder), data_of(mean=(0.5,), std=(0.25,)))
    with torch.inference_mode():
        expected = model.eval()((pixels - 0.3) / 0.4)
        torch.testing.assert_close(teacher((pixels - 0.5) / 0.25), expected)
        assert not torch.allclose(model((pixels - 0.5) / 0.25), expected, atol=1e-2)
    assert not teacher.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 3, "class_names": None}, "has 10 classes, but the data have 3"),
        ({"channels": 3, "mean": (0.3,) * 3, "std": (0.4,) * 3}, "has 1 channels, but the data have 3"),
        ({"class_names": (*LABELS[:8], LABELS[9], LABELS[8])}, "knows other classes .*'digit 8', not 'digit 9'"),
        (
            {"reader": Reader(1, value_range=(0.0, 4095.0))},
            r"reads pictures with range = None, .* \[0.0, 4095",
        ),
    ],
)
def test_a_folder_of_other_data_is_refused(
    changes: dict[str, Any], words: str, exported: tuple[nn.Module, Path]
) -> None:
    with pytest.raises(ConfigError, match=f"teacher = .*net {words}.*give a teacher of the same, or none"):
        load_teacher(str(exported[1]), data_of(**changes))


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher = no_such is no model of timm; .* folder as \./no_"):
        load_teacher("no_such", data_of())
    with pytest.raises(ExportError, match="is no export folder"):
        load_teacher(str(tmp_path), data_of())
    with pytest.raises(ConfigError, match="timm has no weights of teacher = proxylessnas_mobile"):
        load_teacher("proxylessnas_mobile", data_of())


def test_a_model_of_other_classes_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="teacher = mobilenetv2_100 has 1000 classes, but the data have 10"):
        load_teacher("mobilenetv2_100", data_of())


def test_a_model_of_timm_is_loaded_with_its_own_weights_and_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    create = timm.create_model

    def fetched(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        asked.update(arguments, pretrained=pretrained)
        return create(name)

    monkeypatch.setattr(timm, "create_model", fetched)
    monkeypatch.setattr(weights, "without_network", lambda name: {"overlay": name})
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = replace(
        image_data(), num_classes=1000, channels=3, input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, class_names=None
    )
    teacher = load_teacher("mobilenetv3_small_050", data)
    assert asked == {"pretrained": True, "overlay": "mobilenetv3_small_050"}
    assert isinstance(teacher, Renormalised)
    torch.testing.assert_close(teacher.scale.flatten(), torch.tensor([0.5 / value for value in std]))
    torch.testing.assert_close(
        teacher.shift.flatten(), torch.tensor([(0.5 - m) / s for m, s in zip(mean, std, strict=True)])
    )


def test_the_digest_tells_a_weight_a_statistic_and_a_stride() -> None:
    first = build()
    digests = {teacher_digest(first)}
    assert teacher_digest(copy.deepcopy(first)) in digests
    for name in ("conv_stem.weight", "bn1.running_mean"):
        other = copy.deepcopy(first)
        other.state_dict()[name].view(-1)[0] += 1e-3
        digests.add(teacher_digest(other))
    strided = copy.deepcopy(first)
    strided.conv_stem.stride = (3, 3)  # type: ignore[union-attr,assignment]
    digests.add(teacher_digest(strided))
    assert len(digests) == 4
