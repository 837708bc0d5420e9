"""Retraining: its result, its randomness, and a killed run that continues as if it had not stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import Dataset

from hardware.errors import CheckpointError, ConfigError, DataError, TrainingError
from proxyless_strategy.config import RetrainSettings
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.retraining.trainer import evaluate, train

SIZE, CLASSES = 8, 3


def build(drop_rate: float = 0.2) -> nn.Module:
    return timm.create_model(
        "proxylessnas",
        arch_def=[["ds_r1_k3_s1_c8_noskip"], ["ir_r1_k3_s2_e3_c8", "ir_r1_k3_s1_e3_c8"]],
        stem_size=8,
        num_features=16,
        num_classes=CLASSES,
        in_chans=1,
        drop_rate=drop_rate,
        drop_path_rate=0.1,
    )


def image_data(augment: str = "crop_flip", *, count: int = 60, scale: float = 1.0) -> ImageData:
    """Noise whose brightness tells the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    images = scale * (torch.randn(count, 1, SIZE, SIZE, generator=generator) + 2.0 * (labels.view(-1, 1, 1, 1) - 1))
    weights, architecture, test = (torch.arange(count)[offset::4] for offset in (0, 1, 2))
    parts = {
        "weights": TensorImages(images, labels, weights, (0.0,), (1.0,), augment),
        "architecture": TensorImages(images, labels, architecture, (0.0,), (1.0,)),
        "training": TensorImages(images, labels, torch.cat([weights, architecture]), (0.0,), (1.0,), augment),
        "test": TensorImages(images, labels, test, (0.0,), (1.0,)),
    }
    return ImageData(CLASSES, 1, SIZE, (0.0,), (1.0,), "bicubic", augment=augment, **parts)


def settings(**changes: Any) -> RetrainSettings:
    values = {"epochs": 4, "batch_size": 8, "learning_rate": 0.05, "ema_decay": 0.9}
    return RetrainSettings(**{**values, "deterministic": torch.cuda.is_available(), **changes})


def trained(data: ImageData | None = None, *, seed: int = 0, **arguments: Any) -> Any:
    recipe = arguments.pop("settings", settings())
    return train(build, data or image_data(), recipe, seed=seed, **arguments)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


class Stop(Exception):
    """Raised by a test to interrupt a training."""


def stop_after(epoch: int) -> Any:
    def on_epoch(report: dict[str, Any]) -> None:
        if report["epoch"] == epoch:
            raise Stop

    return on_epoch


# --- evaluate ------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Gives the image as the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return x * self.scale


def test_evaluate_in_closed_form() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    batches = [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([1]))]
    model = Fixed().train()
    accuracy, loss, top5 = evaluate(model, batches)
    expected = (np.log(2) + np.log(1 + np.exp(3)) + np.log(1 + np.exp(-1))) / 3
    assert accuracy == 2 / 3
    assert top5 == 1.0, "of two classes"
    assert loss == pytest.approx(expected, rel=1e-6)
    assert model.training


def test_evaluate_changes_no_buffer() -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, image_data().loader("test", batch_size=4))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_evaluate_on_nothing() -> None:
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(Fixed(), [])


# --- the training --------------------------------------------------------------------------------------------------


def test_it_learns_and_reports() -> None:
    reports: list[dict[str, Any]] = []
    data = image_data(count=240)
    result = trained(data, settings=settings(epochs=10), on_epoch=reports.append)
    assert result.test_accuracy >= 0.8
    assert result.epochs == 10
    assert [report["epoch"] for report in reports] == list(range(1, 11))
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert reports[-1]["seconds"] == result.seconds
    assert not result.model.training
    assert (result.test_accuracy, result.test_loss, result.test_top5) == evaluate(
        result.model, data.loader("test", batch_size=256)
    )


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_reported_loss_and_accuracy_in_closed_form(mixup: float) -> None:
    def indifferent() -> nn.Module:
        model = build()
        nn.init.zeros_(model.classifier.weight)
        nn.init.zeros_(model.classifier.bias)
        return model

    reports: list[dict[str, Any]] = []
    recipe = settings(epochs=1, batch_size=30, learning_rate=1e-20, mixup=mixup)
    train(indifferent, image_data("none"), recipe, seed=0, on_epoch=reports.append)
    assert reports[0]["loss"] == pytest.approx(np.log(CLASSES), rel=1e-6)
    assert reports[0]["accuracy"] == image_data().training.targets.count(0) / 30


def test_one_seed_gives_one_network() -> None:
    first, again, other = trained(seed=1), trained(seed=1), trained(seed=2)
    assert same_weights(first.model, again.model)
    assert not same_weights(first.model, other.model)


def test_the_callers_randomness_neither_matters_nor_moves() -> None:
    first = trained()
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)  # noqa: NPY002
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = trained()
    assert same_weights(first.model, second.model)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    assert np.array_equal(state[2], np.random.get_state()[1])  # noqa: NPY002


def test_every_epoch_draws_its_own_random_numbers() -> None:
    states: list[torch.Tensor] = []

    def watched() -> nn.Module:
        model = build()
        model.register_forward_pre_hook(lambda module, _: states.append(torch.get_rng_state()))
        return model

    train(watched, image_data("none"), settings(epochs=3, batch_size=30), seed=0)
    first, second, third, test = states
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(test, torch.get_rng_state())


class Watched(Dataset):
    """A part that notes when it was read."""

    def __init__(self, inner: Any, name: str, reads: list[str]):
        self.inner, self.name, self.reads = inner, name, reads

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        self.reads.append(self.name)
        return self.inner[index]


def test_the_test_part_is_read_once_after_the_last_epoch() -> None:
    data = image_data("none")
    reads: list[str] = []
    watched = {part: Watched(getattr(data, part), part, reads) for part in PARTS}
    trained(ImageData(CLASSES, 1, SIZE, (0.0,), (1.0,), "bicubic", **watched), on_epoch=lambda _: reads.append("epoch"))
    assert reads.count("test") == len(data.test)
    assert reads[-len(data.test) :] == ["test"] * len(data.test)
    assert reads.count("epoch") == 4
    assert set(reads) == {"training", "epoch", "test"}


def test_weight_decay_spares_biases_and_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a, **k: (seen.append(self), original(self, *a, **k))[1])
    trained(settings=settings(epochs=1, weight_decay=0.01))
    groups = {group["weight_decay"]: group["params"] for group in seen[0].param_groups}
    assert set(groups) == {0.0, 0.01}
    assert {parameter.ndim for parameter in groups[0.0]} == {1}
    assert min(parameter.ndim for parameter in groups[0.01]) == 2


def test_learning_rate_falls_to_zero_with_every_update() -> None:
    rates: list[float] = []
    trained(settings=settings(epochs=4), on_epoch=lambda report: rates.append(report["learning_rate"]))
    expected = [0.025 * (1 + np.cos(np.pi * done)) for done in (0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_without_averaging_the_last_weights_are_kept() -> None:
    averaged, last = trained(), trained(settings=settings(ema_decay=None))
    assert not same_weights(averaged.model, last.model)


def test_averaging_of_two_updates_in_closed_form() -> None:
    data = image_data("none", count=16)
    recipe = settings(epochs=3, batch_size=8, learning_rate=0.1)
    steps = []
    for epochs in (1, 2, 3):
        recipe_of = recipe.model_copy(update={"scheduler": "none", "ema_decay": None, "epochs": epochs})
        steps.append(trained(data, settings=recipe_of).model.classifier.weight.detach())
    averaged = trained(data, settings=recipe.model_copy(update={"scheduler": "none"})).model.classifier.weight.detach()
    expected = steps[0]
    for number, weights in enumerate(steps[1:], start=1):
        decay = min(0.9, 1 - (1 + number) ** (-2 / 3))
        expected = decay * expected + (1 - decay) * weights
    assert torch.allclose(averaged, expected, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.2},
        {"optimizer": "adamw", "learning_rate": 0.002},
        {"scheduler": "none"},
        {"scheduler": "step", "warmup_epochs": 1},
        {"channels_last": False},
        {"precision": "bfloat16"},
        {"batch_size": 500, "mixup": 0.0},
    ],
)
def test_recipes(changes: dict[str, Any]) -> None:
    result = trained(settings=settings(epochs=2, **changes))
    assert np.isfinite(result.test_loss)
    assert 0 <= result.test_accuracy <= 1


def test_rand_augment_reaches_the_training_images() -> None:
    data = image_data("none")
    uint8 = {part: getattr(data, part) for part in PARTS}
    for part, images in uint8.items():
        pixels = ((images.images + 5) * 25).clamp(0, 255).to(torch.uint8)
        uint8[part] = TensorImages(pixels, images.labels, images.indices, (0.5,), (0.25,))
    data = ImageData(CLASSES, 1, SIZE, (0.5,), (0.25,), "bicubic", **uint8)
    plain, augmented = (trained(data, settings=settings(epochs=1, rand_augment=text)) for text in (None, "rand-m5-n2"))
    assert not same_weights(plain.model, augmented.model)


def test_the_place_goes_from_epoch_to_epoch_in_parts(capfd: pytest.CaptureFixture) -> None:
    places: list[float] = []
    train(build, image_data(), settings(epochs=2), seed=0, on_place=places.append)
    updates = len(places) // 2
    assert updates > 1
    assert places == pytest.approx([number / updates for number in range(2 * updates)])
    assert capfd.readouterr() == ("", "")


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgdd"}, r"retrain\.optimizer = 'sgdd'"),
        ({"optimizer": "lookahead_adamw", "momentum": 0.8}, r"retrain\.momentum = 0\.8, but .* has no momentum"),
        ({"scheduler": "cosin"}, r"retrain\.scheduler = 'cosin': Unknown scheduler"),
        ({"scheduler": "plateau"}, r"retrain\.scheduler = 'plateau'"),
        ({"mixup": 0.2, "batch_size": 7}, r"retrain\.batch_size = 7 must be even for Mixup"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(settings=settings(**changes))


def test_mixup_with_fewer_images_than_a_batch() -> None:
    with pytest.raises(DataError, match="lower the batch size"):
        trained(settings=settings(mixup=0.2, batch_size=500))


def with_bad_pixel() -> ImageData:
    data = image_data("none")
    data.training.images[4, 0, 2, 3] = float("nan")  # type: ignore[attr-defined]
    return data


class Logarithm(nn.Module):
    """A network whose output is no number, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(-self.network(x).abs())


@pytest.mark.parametrize(
    ("data", "changes", "make", "blamed"),
    [
        (image_data("none", scale=float("nan")), {}, build, "its input holds values that are not finite; mend these"),
        (with_bad_pixel(), {}, build, "its input holds values that are not finite; mend these"),
        (with_bad_pixel(), {"mixup": 0.2}, build, "its input holds values that are not finite; mend these"),
        (image_data(), {"learning_rate": 1e30}, build, r"(no longer are|has grown .*); lower retrain.learning_rate"),
        (image_data(), {}, Logarithm, "input and weights are finite .* the loss function or the network gave it"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, data: ImageData, changes: dict[str, Any], make: Any, blamed: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingError, match=rf"loss became (nan|inf) in epoch 1, update \d+.*: .*{blamed}"):
        train(make, data, settings(**changes), seed=0, checkpoint=path)
    assert torch.load(path, weights_only=True)["epoch"] == 0


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "mixup": 0.3, "ema_decay": None}])
@pytest.mark.parametrize("stopped", [1, 3])
def test_an_interrupted_training_continues_bit_for_bit(tmp_path: Path, stopped: int, changes: dict[str, Any]) -> None:
    recipe = settings(**changes)
    whole = trained(settings=recipe)
    path = tmp_path / "new" / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(settings=recipe, checkpoint=path, on_epoch=stop_after(stopped))
    torch.rand(3)
    epochs: list[int] = []
    resumed = trained(settings=recipe, checkpoint=path, on_epoch=lambda report: epochs.append(report["epoch"]))
    assert epochs == list(range(stopped + 1, 5))
    assert same_weights(whole.model, resumed.model)
    assert (whole.test_accuracy, whole.test_loss) == (resumed.test_accuracy, resumed.test_loss)
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    first = trained(checkpoint=path)
    again = trained(checkpoint=path, on_epoch=stop_after(4))
    assert same_weights(first.model, again.model)
    assert again.seconds == first.seconds


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.proxyless_strategy.retraining.test_trainer import trained
def on_epoch(report):
    if report["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
trained(checkpoint=Path({path!r}), on_epoch=on_epoch)
"""


def test_a_killed_process_continues_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    root = str(Path(__file__).parents[3])
    child = CHILD.format(root=root, path=str(path))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", child], env=environment, cwd=root, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    epochs: list[int] = []
    resumed = trained(checkpoint=path, on_epoch=lambda report: epochs.append(report["epoch"]))
    assert epochs == [3, 4]
    assert same_weights(trained().model, resumed.model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 9}, r"is of another retraining \(seed = 0 there, 9 here\); delete it"),
        ({"settings": settings(epochs=5)}, r"\(epochs = 4 there, 5 here\)"),
        ({"data": image_data(count=48)}, r"\(images = \d+ there, \d+ here\)"),
    ],
)
def test_a_checkpoint_of_another_training(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(1))
    with pytest.raises(ConfigError, match=message):
        trained(checkpoint=path, **arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("model", {0.5: 1}),
        ("ema", "text"),
        ("optimizer", "text"),
        ("optimizer", {"state": {}, "param_groups": [[]]}),
        ("optimizer", {"state": [], "param_groups": 3}),
    ],
)
def test_a_checkpoint_that_holds_something_else(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(1), settings=settings(ema_decay=0.5))
    state = torch.load(path, weights_only=True)
    torch.save({**state, name: value}, path)
    for left in tmp_path.glob("*previous*"):
        left.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt.*(delete it|is of another network)"):
        trained(checkpoint=path, settings=settings(ema_decay=0.5))


def test_other_images_of_the_same_number_are_another_training(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(1))
    with pytest.raises(CheckpointError, match=r"another retraining \(data = '.* images of .* there, '.* here\)"):
        trained(image_data(scale=0.5), checkpoint=path)


def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(3))
    previous = tmp_path / "checkpoint.previous.pt"
    assert [torch.load(file, weights_only=True)["epoch"] for file in (path, previous)] == [3, 2]
    path.write_bytes(path.read_bytes()[:100])
    epochs: list[int] = []
    resumed = trained(checkpoint=path, on_epoch=lambda report: epochs.append(report["epoch"]))
    assert epochs == [3, 4]
    assert "checkpoint.pt, it is damaged: its 100 bytes" in capsys.readouterr().out
    assert same_weights(trained().model, resumed.model)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint.damaged.pt", "checkpoint.pt"]


def test_a_checkpoint_of_before_there_were_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(2))
    state = torch.load(path, weights_only=True)
    del state["identity"]["data"]
    torch.save(state, path)
    assert same_weights(trained().model, trained(checkpoint=path).model)
    assert "as older versions wrote it: it is continued" in capsys.readouterr().out
    state["identity"]["format"] = "proxyless-retrain/2"
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"delete it to start anew \(it was written by another version .*retrain/2"):
        trained(checkpoint=path)


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop_after(1))
    with pytest.raises(ConfigError, match="is of another network; delete it"):
        train(
            lambda: timm.create_model("mobilenetv2_035", num_classes=CLASSES, in_chans=1),
            image_data(),
            settings(),
            seed=0,
            checkpoint=path,
        )


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def broken_checkpoints() -> Iterator[Any]:
    yield b""
    yield b"not a checkpoint"
    yield {"weights": 1}
    yield [1, 2]
    yield {"identity": Evil()}


@pytest.mark.parametrize("content", broken_checkpoints(), ids=["empty", "text", "keys", "list", "code"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConfigError, match="is no checkpoint of a retraining; delete it"):
        trained(checkpoint=path)
    assert not (tmp_path / "evil").exists()


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write the checkpoint .*give a path that can be written"):
        trained(checkpoint=tmp_path / "file" / "checkpoint.pt", on_epoch=stop_after(1))
