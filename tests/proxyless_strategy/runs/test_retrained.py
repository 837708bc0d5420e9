"""What a subnet's training starts from, and what teaches it: of a search on an export folder's network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from hardware.errors import ConfigError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.layout import SEARCH_FILE, SUPERNET_FILE
from proxyless_strategy.retraining.setup import training_loader
from proxyless_strategy.retraining.teacher import teacher_digest, weights_digest
from proxyless_strategy.runs import retrained, search
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.strategy import recalibration
from tests.proxyless_strategy.export.samples import FEEDING, a_subnet, export

DIGITS = {**FEEDING, "input_size": [1, 16, 16]}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder that spaces are made of; its classes are not named."""
    feeding = {key: value for key, value in DIGITS.items() if key != "label_names"}
    return export(tmp_path_factory.mktemp("original") / "net", a_subnet(stem_stride=1), pretrained_cfg=feeding)[1]


def settings(original: Path, out: Path, **changes: Any) -> SearchConfig:
    """A search whose subnet's training starts with a rate that moves nothing."""
    retrain = {"epochs": 1, "batch_size": 128, "learning_rate": 1e-30, "ema_decay": None, "label_smoothing": 0.0}
    return parse_config(
        {
            "space": {"name": f"timm:local-dir:{original}", "options": {"kernels": [3, 5], "expansions": [3]}},
            "data": "digits",
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "target": 0.5,
            "search": {
                "warmup_epochs": 0,
                "epochs": 1,
                "batch_size": 128,
                "steps_per_update": 4,
                "finalists": 2,
                "accelerator": "cpu",
                "threads": 1,
            },
            "retrain": {**retrain, "threads": 1, **changes.pop("retrain", {})},
            "out": str(out),
            **changes,
        }
    )


class Stopped(Exception):
    """Raised in place of the training."""


class Caught:
    """Stands for `train`: keeps what it was called with, and ends the run there."""

    def __init__(self) -> None:
        self.network: nn.Module | None = None
        self.arguments: dict[str, Any] = {}

    def __call__(self, build: Any, *_: Any, **arguments: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = build()
        self.arguments = arguments
        raise Stopped


def start(config: SearchConfig, monkeypatch: pytest.MonkeyPatch, *, searches: bool = False) -> Caught:
    """Run a search up to its training."""
    caught = Caught()
    with monkeypatch.context() as patch:
        patch.setattr(retrained, "train", caught)
        if not searches:
            patch.setattr(search, "search_supernet", lambda *_: pytest.fail("searched again"))
        with pytest.raises(Stopped):
            search.run_search(config)
    return caught


@pytest.fixture(scope="module")
def ended(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run was killed between the search and the training."""
    out = tmp_path_factory.mktemp("ended") / "run"
    with pytest.MonkeyPatch.context() as patch:
        start(settings(original, out), patch, searches=True)
    return out


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ended, tmp_path / "run"))


def kept(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out / SUPERNET_FILE, weights_only=True)
    return found


def equal(network: nn.Module | None, weights: dict[str, torch.Tensor]) -> bool:
    assert network is not None
    own = network.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], value) for name, value in weights.items())


# ---- what it starts from -------------------------------------------------------------------------------------------


def test_a_killed_run_starts_from_the_subnets_weights_in_the_supernet(
    original: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = start(settings(original, run), monkeypatch)
    assert equal(caught.network, kept(run)), "classifier and statistics too"
    assert caught.arguments["identity"]["starting_weights"] == weights_digest(kept(run))
    assert not equal(caught.network, load_exported(original).state_dict())


def test_the_training_starts_at_the_loss_of_the_supernets_weights(original: Path, run: Path) -> None:
    """At a rate that moves nothing the first epoch has the loss of the kept weights, with each batch's statistics."""
    config = settings(original, run, retrain={"teacher": "none"})
    epochs: list[dict[str, Any]] = []
    result = search.run_search(config, on_epoch=epochs.append)
    prepared = prepare(config, quiet=True)
    network = timm.create_model("proxylessnas", **result.subnet.model_args(num_classes=10, in_chans=1))
    network.load_state_dict(kept(run))
    assert config.retrain is not None
    loader = training_loader(prepared.data, config.retrain, seed=0, rank=0, replicas=1)
    with torch.no_grad():
        losses = [float(functional.cross_entropy(network.train()(images), labels)) for images, labels in loader]
    assert epochs[-1]["phase"] == "retrain"
    assert epochs[-1]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    exported = load_exported(result.folder).state_dict()
    assert all(torch.equal(exported[name], value) for name, value in kept(run).items() if name.endswith("weight"))


def test_its_statistics_are_those_of_the_subnet(original: Path, run: Path) -> None:
    """Not the mixture of the supernet's paths, nor the pretrained ones: they fit the images of the part `weights`."""
    prepared = prepare(settings(original, run), quiet=True)
    choices = json.loads((run / SEARCH_FILE).read_text())["subnet"]["choices"]
    arguments = prepared.space.model_args(choices, num_classes=10, in_chans=1)
    network = timm.create_model("proxylessnas", **arguments)
    network.load_state_dict(kept(run))
    before = {name: norm.running_mean.clone() for name, norm in _norms(network)}
    loader = prepared.data.loader("weights", batch_size=128, shuffle=True)
    recalibration.recalibrate(network, loader, lambda batch: network(batch[0]), count=6, seed=0)
    inherited = prepared.space.build(num_classes=10, in_chans=1).timm_state_dict(choices)
    distances = {"kept": 0.0, "inherited": 0.0}
    for name, norm in _norms(network):
        deviation = norm.running_var.sqrt() + 1e-3
        for which, found in (("kept", before[name]), ("inherited", inherited[f"{name}.running_mean"])):
            distances[which] = max(distances[which], float(((found - norm.running_mean) / deviation).abs().max()))
    assert distances["kept"] < 0.3 < 3 * distances["kept"] + 0.3 < distances["inherited"], distances


def _norms(network: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def test_inherited_weights_are_the_spaces(original: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(original, run, retrain={"weights": "inherited"})
    choices = json.loads((run / SEARCH_FILE).read_text())["subnet"]["choices"]
    space = prepare(config, quiet=True).space
    expected = space.build(num_classes=10, in_chans=1).timm_state_dict(choices)
    caught = start(config, monkeypatch)
    assert equal(caught.network, expected)
    assert torch.equal(expected["classifier.weight"], load_exported(original).state_dict()["classifier.weight"])


def test_fresh_weights_are_fresh(original: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(original, run, retrain={"weights": "fresh"})
    choices = json.loads((run / SEARCH_FILE).read_text())["subnet"]["choices"]
    arguments = prepare(config, quiet=True).space.model_args(choices, num_classes=10, in_chans=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = timm.create_model("proxylessnas", **arguments).state_dict()
    caught = start(config, monkeypatch)
    assert equal(caught.network, expected)
    assert "starting_weights" not in caught.arguments["identity"]


def test_weights_that_are_gone_are_missed(original: Path, run: Path) -> None:
    (run / SUPERNET_FILE).unlink()
    with pytest.raises(ConfigError, match=r"supernet\.pt of the searched subnet are gone; put it back, or remove"):
        search.run_search(settings(original, run))


def test_an_older_versions_search_goes_on_from_fresh_weights(
    original: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / SUPERNET_FILE).unlink()
    record = json.loads((run / SEARCH_FILE).read_text())
    del record["keeps_weights"]
    (run / SEARCH_FILE).write_text(json.dumps(record))
    caught = start(settings(original, run), monkeypatch)
    assert "starting_weights" not in caught.arguments["identity"]
    assert "goes on as an older version began it: retraining from fresh weights" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"retrain\.weights = supernet, but the search in .* kept no weights"):
        search.run_search(settings(original, run, retrain={"weights": "supernet"}))


def test_a_space_without_weights_has_none_to_inherit(tmp_path: Path) -> None:
    config = parse_config({"hardware": {"cost": "macs"}, "retrain": {"weights": "inherited"}, "out": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"retrain\.weights = inherited, but the space small_mbconv has no weights"):
        prepare(config, quiet=True)


@pytest.mark.parametrize(("options", "weights"), [({}, "supernet"), ({"weights": "none"}, "fresh")])
def test_the_default_is_what_there_is(options: dict[str, str], weights: str, original: Path, tmp_path: Path) -> None:
    space = {"name": f"timm:local-dir:{original}", "options": {"kernels": [5], "expansions": [3], **options}}
    config = settings(original, tmp_path, space=space)
    assert retrained.starting_weights(config, prepare(config, quiet=True).space) == weights
    plain = parse_config({})
    assert retrained.starting_weights(plain, prepare(_macs(plain), quiet=True).space) == "fresh"


def _macs(config: SearchConfig) -> SearchConfig:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"cost": "macs"})})


# ---- what teaches it -----------------------------------------------------------------------------------------------


def test_the_original_network_is_the_teacher(
    original: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    caught = start(settings(original, run), monkeypatch)
    teacher = caught.arguments["teacher"]
    data = prepare(settings(original, run), quiet=True).data
    own = load_exported(original)
    images, _ = next(iter(data.loader("weights", batch_size=8)))
    pixels = images * torch.tensor(data.std).view(-1, 1, 1) + torch.tensor(data.mean).view(-1, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(teacher(images), own((pixels - 0.3) / 0.4), atol=1e-4, rtol=1e-4)
    assert not teacher.training
    assert "retraining with the original network, timm:local-dir:" in capsys.readouterr().out
    caught = start(settings(original, run, retrain={"teacher": "none"}), monkeypatch)
    assert caught.arguments["teacher"] is None


def test_a_model_of_other_classes_is_no_default_teacher(original: Path, tmp_path: Path) -> None:
    config = settings(original, tmp_path)
    prepared = prepare(config, quiet=True)
    for changes in ({"num_classes": 11, "class_names": None}, {"num_classes": 3, "class_names": ("a", "b", "c")}):
        name, said = retrained.teacher_of(config, prepared.space, replace(prepared.data, **changes))
        assert name is None
        assert said is not None
        assert "without a teacher, as timm:local-dir:" in said
    imagenet = {"name": "timm:mobilenetv3_small_050", "options": {"weights": "pretrained"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search_spaces.from_timm.declaration.TimmDeclaration.check_weights", lambda _: None)
        prepared = prepare(settings(original, tmp_path, space=imagenet), quiet=True)
    name, said = retrained.teacher_of(config, prepared.space, prepared.data)
    assert (name, said is None) == (None, False)


def test_classes_of_other_names_are_other_classes(original: Path, tmp_path: Path) -> None:
    named = Path(shutil.copytree(original, tmp_path / "named"))
    values = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**values, "label_names": list("zyxwvutsrq")}))
    config = settings(named, tmp_path / "run")
    prepared = prepare(config, quiet=True)
    name, said = retrained.teacher_of(config, prepared.space, prepared.data)
    assert name is None
    assert said is not None
    assert "has not learned these classes" in said


def test_a_teacher_of_other_classes_is_refused_before_the_search(original: Path, tmp_path: Path) -> None:
    config = settings(original, tmp_path / "run", retrain={"teacher": "mobilenetv2_100"})
    with pytest.raises(ConfigError, match="teacher = mobilenetv2_100 has 1000 classes, but the data have 10"):
        search.run_search(config)
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_the_one_that_is_named(original: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeding = {**DIGITS, "label_names": None, "mean": [0.5]}
    other = export(run.parent / "other", a_subnet(stem_stride=1, last=True), pretrained_cfg=feeding)
    caught = start(settings(original, run, retrain={"teacher": str(other[1])}), monkeypatch)
    assert teacher_digest(caught.arguments["teacher"].network) == teacher_digest(load_exported(other[1]))


def test_a_training_that_an_older_version_began_gets_no_teacher(
    original: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrained, "begun_with", lambda path: {"format": "proxyless-retrain/1"})
    assert start(settings(original, run), monkeypatch).arguments["teacher"] is None


@pytest.mark.parametrize(
    ("retrain", "told"),
    [
        ({}, True),
        ({"weights": "inherited"}, True),
        ({"weights": "fresh"}, False),
        ({"optimizer": "sgd"}, True),
        ({"learning_rate": 0.05}, False),
        (None, False),
    ],
)
def test_a_fine_tuning_at_the_rate_of_fresh_weights_is_told_so(
    retrain: dict[str, Any] | None, told: bool, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(original, tmp_path / "run").model_dump(exclude_unset=True)
    values["retrain"] = None if retrain is None else {"epochs": 1, "batch_size": 128, **retrain}
    prepare(parse_config(values))
    sentence = "trained weights go on with sgd at 0.05, which is for fresh ones; the recipe finetune has adamw at 0.002"
    assert (sentence in capsys.readouterr().err) == told
    values |= {"space": "small_mbconv", "retrain": {"epochs": 1, "batch_size": 128}}
    prepare(parse_config(values))
    assert "fresh ones" not in capsys.readouterr().err
