"""Files of strangers run no code: each attack is tried, with a payload that would leave a mark."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardware.errors import DataError, ExportError, ProxylessError, SpaceError, SubnetError, TableError
from hardware.measuring.predictor import LearnedModel
from hardware.tables.table import LatencyTable
from proxyless_strategy.cli.main import main
from proxyless_strategy.config import parse_config
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.export.onnx import export_onnx
from proxyless_strategy.retraining.folder import retrain
from proxyless_strategy.retraining.recipe import load_recipe
from proxyless_strategy.runs.finished import read_run
from search_spaces import Subnet, get_space
from search_spaces.released import read_config
from tests.proxyless_strategy import tiny

FIXTURE = Path(__file__).parents[1] / "data" / "run_bc6f2f8"


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    """What a payload would make; it must not be there at the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "the payload ran"


class Payload:
    """Makes the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status of a command, and all that it says."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    found = capsys.readouterr()
    return int(stopped.value.code or 0), found.out + found.err


def calling(mark: Path) -> str:
    return f"subprocess:run args={json.dumps(['touch', str(mark)], separators=(',', ':'))}"


def test_the_payloads_would_leave_their_mark(tmp_path: Path) -> None:
    """Else these tests would prove nothing."""
    from search_spaces import users_space

    with pytest.raises(SpaceError, match="returned CompletedProcess"):
        users_space("subprocess:run", args=["touch", str(tmp_path / "one")])
    pickle.loads(pickle.dumps(Payload(tmp_path / "two")))
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()


# ---- tables, kits, learned models ----------------------------------------------------------------------------------


def table_of(space: str, path: Path) -> Path:
    document = yaml.safe_load((FIXTURE / "table.yml").read_text())
    document["header"]["space"] = space
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("command", [("show", "--layers", "minimum"), ("check",), ("fit", "--out", "model.json")])
def test_a_table_names_no_code(
    command: tuple[str, ...], mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(calling(mark), tmp_path / "table.yml")
    status, words = said(capsys, "latency", command[0], str(table), *command[1:])
    assert status == 2
    assert f"header.space of the latency table {table}: the space 'subprocess:run' is a function" in words
    assert "give --space subprocess:run" in words


def test_a_kits_results_name_no_code(mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((FIXTURE / "results.json").read_text())
    document["kit"]["space"] = calling(mark)
    (tmp_path / "results.json").write_text(json.dumps(document))
    table = tmp_path / "table.yml"
    assert said(capsys, "latency", "import", str(tmp_path / "results.json"), "--out", str(table))[0] == 0
    status, words = said(capsys, "latency", "show", str(table))
    assert status == 0, "all that it says of itself can be shown"
    assert f"give --space subprocess:run, which header.space of {table} names" in words
    assert said(capsys, "latency", "show", str(table), "--layers", "minimum")[0] == 2


def test_a_table_of_the_users_own_space_is_shown_when_they_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = yaml.safe_load((FIXTURE / "table.yml").read_text())["header"]
    own_space(tmp_path, monkeypatch)
    table = table_of(header["space"].replace("small_mbconv", "own_attacked:space"), tmp_path / "table.yml")
    status, words = said(capsys, "latency", "show", str(table), "--space", "own_attacked:space")
    assert (status, "minimum" in words) == (0, True), words


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"])
def test_a_tables_figures_run_no_code(tag: str, mark: Path, tmp_path: Path) -> None:
    text = (FIXTURE / "table.yml").read_text()
    assert "figures:" in text
    path = tmp_path / "table.yml"
    path.write_text(text.replace("figures:", f"figures: {tag} ['touch {mark}']\n    rest:", 1))
    with pytest.raises(TableError, match=str(path)):
        LatencyTable.load(path)


def test_a_learned_model_runs_no_code(mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(TableError, match=str(path)):
        LearnedModel.load(path)


# ---- folders of searches -------------------------------------------------------------------------------------------


def own_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_attacked.py").write_text(
        "from search_spaces import get_space\ndef space(**options): return get_space('small_mbconv', **options)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "own_attacked", raising=False)


def search_of(folder: Path, **changes: dict[str, Any]) -> Path:
    """A finished search whose config says something else."""
    shutil.copytree(FIXTURE / "gradient", folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["hardware"]["table"] = str(FIXTURE / "table.yml")
    for section, values in changes.items():
        settings[section] |= values
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("command", ["derive", "curve", "report"])
def test_a_search_folder_names_no_code(
    command: str, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"args": ["touch", str(mark)]}
    folder = search_of(
        tmp_path / "run",
        space={"name": "subprocess:run", "options": options},
        data={"name": "subprocess:run", "options": options},
    )
    if command == "report":
        status, words = said(capsys, "report", str(folder), "--out", str(tmp_path / "page.html"))
        assert status == 0, "a report asks neither the space nor the data"
        return
    goal = ["--curve"] if command == "curve" else ["--target", "1.0"]
    status, words = said(capsys, "derive", str(folder), *goal, "--out", str(tmp_path / "out"))
    assert status == 2
    assert f"space.name of {folder / 'config.json'}: the space 'subprocess:run' is a function" in words
    assert "give --space subprocess:run" in words
    assert not (tmp_path / "out").exists()


def test_a_search_of_the_users_own_space_is_derived_from_when_they_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_space(tmp_path, monkeypatch)
    folder = search_of(tmp_path / "run", space={"name": "own_attacked:space"})
    with pytest.raises(SpaceError, match="give --space own_attacked:space"):
        read_run(folder).space  # noqa: B018
    dearest = str(read_run(folder, space="own_attacked:space").cost.maximum()[0])
    arguments = ["derive", str(folder), "--target", dearest, "--out", str(tmp_path / "out")]
    status, words = said(capsys, *arguments, "--space", "own_attacked:space")
    assert status == 0, words
    assert (tmp_path / "out" / "subnet.json").exists()


def test_the_data_of_a_search_folder_are_not_asked_for(mark: Path, tmp_path: Path) -> None:
    folder = search_of(tmp_path / "run", data={"name": "subprocess:run", "options": {"args": ["touch", str(mark)]}})
    assert read_run(folder).config.data.name == "subprocess:run"
    assert read_run(folder).deriver.cheapest().cost > 0


# ---- exports -------------------------------------------------------------------------------------------------------


def export_of(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(FIXTURE / "derived", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", refuse)


ATTACKS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("architecture = 'hf-hub:timm/resnet18'", lambda c: c.update(architecture="hf-hub:timm/resnet18")),
    ("architecture = 'local-dir:/elsewhere'", lambda c: c.update(architecture="local-dir:/elsewhere")),
    ("architecture = 'os:system'", lambda c: c.update(architecture="os:system")),
    ("architecture = None", lambda c: c.update(architecture=None)),
    ("model_args.pretrained = True", lambda c: c["model_args"].update(pretrained=True)),
    ("model_args.checkpoint_path = 'evil.pth'", lambda c: c["model_args"].update(checkpoint_path="evil.pth")),
    ("model_args.pretrained_cfg = ", lambda c: c["model_args"].update(pretrained_cfg={"url": "http://192.0.2.1/x"})),
    ("model_args = 3", lambda c: c.update(model_args=3)),
]


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(("words", "change"), ATTACKS, ids=[words for words, _ in ATTACKS])
def test_an_export_fetches_nothing_and_names_no_code(
    words: str, change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    folder = export_of(tmp_path / "model", change)

    def retrained() -> Any:
        recipe = load_recipe("quick", {})
        return retrain(folder, data=tmp_path, recipe=recipe, out=tmp_path / "out", source="digits")

    for read in (lambda: load_exported(folder), lambda: export_onnx(folder, tmp_path / "net.onnx"), retrained):
        with pytest.raises(ExportError) as raised:
            read()
        assert f"the network of {folder}: its config.json has {words}" in str(raised.value)


def test_an_exports_own_code_and_pickles_are_left_alone(mark: Path, tmp_path: Path) -> None:
    folder = export_of(tmp_path / "model", lambda config: None)
    (folder / "hubconf.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    load_exported(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ExportError, match=str(folder)):
        load_exported(folder)


@pytest.mark.parametrize("key", ["kind", "activation", "name"])
def test_a_subnets_file_names_no_code(key: str, mark: Path, tmp_path: Path) -> None:
    values = json.loads((FIXTURE / "derived" / "subnet.json").read_text())
    values["space"][key] = "subprocess:run"
    values["space"]["args"] = ["touch", str(mark)]
    (tmp_path / "subnet.json").write_text(json.dumps(values))
    with pytest.raises((SubnetError, SpaceError)):
        Subnet.load(tmp_path / "subnet.json")


def test_a_released_config_names_no_code(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"name": "subprocess:run", "args": ["touch", str(mark)]}))
    with pytest.raises(SubnetError, match=r"net\.json describes a network 'subprocess:run'"):
        read_config(tmp_path / "net.json")


# ---- checkpoints and pictures --------------------------------------------------------------------------------------


def test_a_searchs_checkpoint_runs_no_code(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "search.ckpt"
    path.write_bytes(pickle.dumps(Payload(mark)))
    # what a caller leaves open, this variable decides; Lightning leaves it open
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises((ProxylessError, pickle.UnpicklingError)):
        tiny.searched(ckpt_path=path)


def test_a_retrainings_checkpoint_runs_no_code(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "retrain.ckpt").write_bytes(pickle.dumps(Payload(mark)))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    source = ["--source", "digits", "--data", str(tmp_path), "--recipe", "quick", "--set", "input_size=16"]
    status, words = said(capsys, "retrain", str(FIXTURE / "derived"), *source, "--out", str(tmp_path / "out"))
    assert status == 2
    assert str(tmp_path / "out" / "retrain.ckpt") in words


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_cifars_pickles_run_no_code(name: str, mark: Path, tmp_path: Path) -> None:
    drawn = {"classes": 4, "train": 20, "val": 5, "size": 32}
    data = {"name": "torchvision:CIFAR10", "root": str(tmp_path / "cifar"), "draw": drawn}
    config = parse_config({"data": data, "hardware": {"cost": "macs"}}).data
    assert len(load_data(config, input_size=32, seed=0).test) == 20
    (tmp_path / "cifar" / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(
        DataError, match=rf"{name} holds no plain arrays \(it names pathlib\.(_local\.)?Path.*, and nothing but"
    ):
        load_data(config, input_size=32, seed=0)


def test_names_from_files_go_to_get_space() -> None:
    with pytest.raises(SpaceError, match="the space 'my_space:compact' is a function, which only you may name"):
        get_space("my_space:compact")
