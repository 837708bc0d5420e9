"""Retraining an export folder by a recipe: what it takes from where, several processes, and timm's own script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import nn

from hardware.errors import ConfigError, DataError, ExportError
from proxyless_strategy.cli.main import main
from proxyless_strategy.config import DataConfig, RetrainSettings, SearchConfig
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.layout import CHECKPOINT, MODEL
from proxyless_strategy.retraining.folder import retrain
from proxyless_strategy.retraining.recipe import Recipe, load_recipe
from proxyless_strategy.retraining.trainer import train
from proxyless_strategy.world import unused_port
from tests.proxyless_strategy.data.samples import write_images
from tests.proxyless_strategy.export.samples import a_subnet, export

TINY: dict[str, Any] = {"epochs": 2, "batch_size": 4, "workers": 0, "input_size": 16, "augment": "crop_flip"}
TINY["channels"] = 3  # the exported network is one of grey images, the pictures are in colour


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("export") / "net", a_subnet(stem_stride=1))[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def tiny(**changes: Any) -> Recipe:
    return load_recipe("quick", {**TINY, **changes})


# ---- retraining ------------------------------------------------------------------------------------------------------


def test_a_folder_is_retrained_into_a_new_one(exported: Path, pictures: Path, tmp_path: Path) -> None:
    written = retrain(exported, data=pictures, recipe=tiny(), out=tmp_path / "out")
    model = load_exported(written)
    assert written == tmp_path / "out" / MODEL
    assert (model.num_classes, model.conv_stem.in_channels) == (3, 3), "of data and recipe, not of the old export"
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (exported, written))
    assert new["model_args"]["arch_def"] == old["model_args"]["arch_def"]
    assert new["architecture"] == old["architecture"]
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["epochs"] == 2
    assert metrics["top5"] == 1.0, "of three classes"
    assert json.loads((written / "subnet.json").read_text()) == json.loads((exported / "subnet.json").read_text())


def test_it_starts_from_fresh_weights_and_inherits_nothing_of_the_search(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    """The result is that of the recipe's settings on a fresh network; the export's weights and search have no say."""
    written = retrain(exported, data=pictures, recipe=tiny(), out=tmp_path / "out")
    config = DataConfig.model_validate({"name": "imagefolder", "root": pictures, "augment": "crop_flip"})
    expected = train(
        lambda: timm.create_model("proxylessnas", **a_subnet(stem_stride=1).model_args(num_classes=3, in_chans=3)),
        load_data(config, input_size=16, seed=0),
        RetrainSettings(epochs=2, batch_size=4, learning_rate=0.1, ema_decay=0.99),
        seed=0,
    )
    found = load_exported(written).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.model.state_dict().items())
    fields = set(Recipe.model_fields) - set(RetrainSettings.model_fields)
    assert fields == {"augment", "workers", "input_size", "seed", "channels", "background", "skip_unreadable"} | {
        "source_options",
        "decoder",
    }
    assert not set(Recipe.model_fields) & (set(SearchConfig.model_fields) - {"input_size", "seed"})


def test_a_killed_retraining_continues_bit_for_bit(exported: Path, pictures: Path, tmp_path: Path) -> None:
    whole = retrain(exported, data=pictures, recipe=tiny(epochs=3), out=tmp_path / "whole")
    command = [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.cli", "retrain", str(exported)]
    command += ["--data", str(pictures), "--out", str(tmp_path / "killed"), "--recipe", "quick"]
    command += [f"--set={key}={value}" for key, value in {**TINY, "epochs": 3}.items()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert any(line.startswith("retrain 1/3: loss ") for line in process.stdout)
    process.kill()
    process.communicate()
    assert (tmp_path / "killed" / CHECKPOINT).exists()
    assert not (tmp_path / "killed" / MODEL).exists()
    resumed = retrain(exported, data=pictures, recipe=tiny(epochs=3), out=tmp_path / "killed")
    first, second = (load_exported(folder).state_dict() for folder in (whole, resumed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"folder": "nowhere"}, ExportError, r"nowhere is no export folder: its config.json cannot be read"),
        ({"data": Path("nowhere")}, DataError, r"nowhere"),
        ({"out": "same"}, ConfigError, r"would replace the network that it trains"),
    ],
)
def test_what_cannot_be_retrained_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, exported: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / change["folder"] if "folder" in change else exported
    out = exported if change.get("out") == "same" else tmp_path / "out"
    with pytest.raises(error, match=message):
        retrain(folder, data=change.get("data", pictures), recipe=tiny(), out=out)


def test_a_result_that_could_not_be_written_is_noticed_before_training(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / MODEL).mkdir(parents=True)
    (tmp_path / "out" / MODEL / "notes.txt").touch()
    with pytest.raises(ExportError, match=r"holds 'notes.txt', which is no part of an export"):
        retrain(exported, data=pictures, recipe=tiny(), out=tmp_path / "out")
    assert not (tmp_path / "out" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "nothing"}, r"'nothing', which is no registered architecture of timm; give the folder"),
        ({"model_args": {"arch_deff": 1}}, r"TypeError.*; export it again"),
    ],
)
def test_an_export_of_no_network_is_refused(
    change: dict[str, Any], message: str, exported: Path, pictures: Path, tmp_path: Path
) -> None:
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExportError, match=rf"cannot build the network of .*{message}"):
        retrain(tmp_path, data=pictures, recipe=tiny(), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network", r"retrain.ckpt is of another retraining \(network = "),
        ("augment", r"retrain.ckpt is of another retraining \(augment = 'crop_flip' there, 'none' here\)"),
        ("classes", r"retrain.ckpt is of another retraining \(classes = "),
    ],
)
def test_the_checkpoint_of_another_training_is_not_taken_for_this_ones(
    change: str, message: str, exported: Path, pictures: Path, tmp_path: Path
) -> None:
    """Strides, augmentation and class names leave no trace in the shapes of the weights."""
    retrain(exported, data=pictures, recipe=tiny(epochs=1), out=tmp_path / "out")
    folder, data, recipe = exported, pictures, tiny(epochs=1)
    if change == "network":
        folder = export(tmp_path / "other", a_subnet(stem_stride=2))[1]
    elif change == "augment":
        recipe = tiny(epochs=1, augment="none")
    else:
        data = write_images(tmp_path / "other", classes="xyz")
    with pytest.raises(ConfigError, match=message):
        retrain(folder, data=data, recipe=recipe, out=tmp_path / "out")


def test_a_damaged_export_is_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"its config.json lacks 'architecture'; give the folder that a search"):
        retrain(tmp_path, data=pictures, recipe=tiny(), out=tmp_path / "out")


# ---- several processes -----------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def one_of_two(rank: int, folder: Path, batch: int) -> None:
    os.environ.update(
        {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        | {"MASTER_PORT": (folder / "port").read_text()}
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    config = DataConfig.model_validate({"name": "imagefolder", "root": folder / "pictures"})
    result = train(
        Plain,
        load_data(config, input_size=16, seed=0),
        RetrainSettings(epochs=3, batch_size=batch, learning_rate=0.05, ema_decay=0.9),
        seed=0,
        checkpoint=folder / "both.ckpt",
        device="cpu",
    )
    torch.save(result.model.state_dict(), folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 32])
def test_two_processes_train_as_one_with_the_joined_batch(batch: int, tmp_path: Path) -> None:
    """Also where one process has 16 of the 18 images there are, and the other one 2."""
    write_images(tmp_path / "pictures")
    (tmp_path / "port").write_text(str(unused_port()))
    torch.multiprocessing.start_processes(one_of_two, (tmp_path, batch), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    config = DataConfig.model_validate({"name": "imagefolder", "root": tmp_path / "pictures"})
    alone = train(
        Plain,
        load_data(config, input_size=16, seed=0),
        RetrainSettings(epochs=3, batch_size=batch, learning_rate=0.05, ema_decay=0.9),
        seed=0,
        device="cpu",
    ).model.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert torch.allclose(value, alone[name], atol=1e-6)


def test_a_batch_that_processes_cannot_share_is_refused(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyless_strategy.retraining.trainer.place", lambda: (0, 2))
    images = load_data(DataConfig(name="imagefolder", root=pictures), input_size=16, seed=0)
    with pytest.raises(ConfigError, match="batch_size = 5 is not divisible by 2 processes"):
        train(Plain, images, RetrainSettings(epochs=1, batch_size=5), seed=0)
    with pytest.raises(ConfigError, match=r"gives each of 2 processes 3 images, which must be even .* a multiple of 4"):
        train(Plain, images, RetrainSettings(epochs=1, batch_size=6, mixup=0.2), seed=0)


@pytest.mark.slow
def test_an_error_of_one_of_several_processes_is_one_sentence(
    exported: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["retrain", str(exported), "--data", str(pictures), "--recipe", "quick", "--devices", "2"]
    arguments += [f"--set={key}={value}" for key, value in TINY.items()]
    for change, sentence in (
        ("learning_rate=1.0e+20", "the training loss became nan in epoch"),
        ("optimizer=sgdd", "retrain.optimizer = 'sgdd'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--out", str(tmp_path / change), "--set", change])
        assert stop.value.code == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if "Terminating process" not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith(sentence)


@pytest.mark.slow
def test_a_killed_retraining_on_two_processes_continues_bit_for_bit(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    whole = retrain(exported, data=pictures, recipe=tiny(epochs=3), out=tmp_path / "whole", devices=2)
    command = [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.cli", "retrain", str(exported)]
    command += ["--data", str(pictures), "--out", str(tmp_path / "killed"), "--recipe", "quick", "--devices", "2"]
    command += [f"--set={key}={value}" for key, value in {**TINY, "epochs": 3}.items()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert any(line.startswith("retrain 1/3: loss ") for line in process.stdout)
    process.kill()
    process.communicate()  # ends once the further processes, which share the pipe, have ended too
    assert not (tmp_path / "killed" / MODEL).exists()
    resumed = retrain(exported, data=pictures, recipe=tiny(epochs=3), out=tmp_path / "killed", devices=2)
    first, second = (load_exported(folder).state_dict() for folder in (whole, resumed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--devices", "torchrun"])
def test_the_command_on_two_processes(launcher: str, exported: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = ["retrain", str(exported), "--data", str(pictures), "--out", str(tmp_path / "out"), "--recipe", "quick"]
    arguments += [f"--set={key}={value}" for key, value in TINY.items()]
    module = ["-m", "proxyless_strategy.cli", *arguments]
    run = [sys.executable, "-W", "ignore"]
    if launcher == "torchrun":
        run += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *module]
    else:
        run += [*module, "--devices", "2"]
    done = subprocess.run(
        run, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("retrain 2/2: loss ") == 1
    assert load_exported(tmp_path / "out" / MODEL).num_classes == 3


@pytest.mark.slow
def test_timms_own_script_needs_nothing_but_the_module(exported: Path, tmp_path: Path) -> None:
    script = os.environ.get("TIMM_TRAIN")
    if not script:
        pytest.skip("TIMM_TRAIN is not set: give the path of timm's train.py, which is in no wheel")
    write_images(tmp_path / "data", count=8)
    command = [sys.executable, "-W", "ignore", script, "--device", "cpu"]
    command += ["--data-dir", str(tmp_path / "data"), "--model", f"local-dir:{exported}", "--num-classes", "3"]
    command += ["--in-chans", "3", "--img-size", "32", "--epochs", "1", "--batch-size", "4", "--workers", "0"]
    command += ["--output", str(tmp_path / "out")]
    shared: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 280}
    done = subprocess.run(command, **shared)
    assert "Unknown model (proxylessnas)" in done.stderr
    done = subprocess.run([*command, "--device-modules", "proxyless_strategy"], **shared)
    assert done.returncode == 0, done.stderr[-3000:]
    (summary,) = (tmp_path / "out").rglob("summary.csv")
    trained = torch.load(summary.with_name("last.pth.tar"), weights_only=False)["state_dict"]
    model = timm.create_model(f"local-dir:{exported}", num_classes=3, in_chans=3)
    model.load_state_dict(trained)


def test_recipes_are_yaml_files_of_a_users_own_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({**TINY, "optimizer": "adamw"}))
    assert load_recipe(tmp_path / "mine.yml").settings.optimizer == "adamw"
