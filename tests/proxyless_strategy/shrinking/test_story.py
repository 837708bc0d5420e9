"""A shrinking from start to end: its files, what it reads, and how it goes on after a kill at each stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from hardware.errors import ConfigError
from hardware.operators.quantised import is_quantised
from proxyless_strategy.cli.main import main
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.export.summary import model_summary
from proxyless_strategy.retraining.trainer import TEST_BATCH
from proxyless_strategy.runs import build_back, deployed
from proxyless_strategy.shrinking import originals, story
from proxyless_strategy.shrinking.comparison import Comparison
from proxyless_strategy.shrinking.story import run_shrink
from tests.search_spaces.from_timm.samples import with_weights

from .samples import NAME, settings

# A whole run is half a minute of processor time; the machine may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Killed(BaseException):
    """What no handler of ours catches, as a kill."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shrinking")
    with_weights(NAME, folder)
    return folder


@pytest.fixture(scope="module")
def shrink(place: Path) -> Callable[..., Comparison]:
    def run(out: str, **changes: Any) -> Comparison:
        return run_shrink(settings(place / "drawn", place / f"{NAME}.safetensors", place / out, **changes))

    return run


@pytest.fixture(scope="module")
def read(place: Path, shrink: Callable[..., Comparison]) -> tuple[Comparison, list[str]]:
    """A whole run, and the parts of the images that were read to judge a network, in order."""
    parts: list[str] = []
    loader = ImageData.loader

    def noted(data: ImageData, which: Any, **options: Any) -> Any:
        if options["batch_size"] == TEST_BATCH:
            parts.append(f"{which} of {len(getattr(data, which))}")
        return loader(data, which, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageData, "loader", noted)
        found = shrink("whole")
    return found, parts


def test_both_networks_are_there_and_what_is_said_of_them_holds(
    place: Path, read: tuple[Comparison, list[str]]
) -> None:
    found, _ = read
    assert found == Comparison.load(place / "whole")
    for net in (found.original, found.subnet):
        model = timm.create_model(f"local-dir:{net.folder}", pretrained=True)
        summary = model_summary(model, (3, 32, 32))
        assert (net.params, net.macs, net.epochs) == (summary.params, summary.macs, 3)
        assert net.cost == pytest.approx(summary.macs / 1e6)
        assert net.ms is not None
        assert net.ms > 0
        assert Path(net.onnx).is_file()
        assert 0 <= net.accuracy <= 1
    assert found.subnet.cost <= found.limit == pytest.approx(0.7 * found.original.cost)
    assert (place / "whole" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    feeding = [json.loads((Path(net.folder) / "config.json").read_text()) for net in (found.original, found.subnet)]
    assert feeding[0]["pretrained_cfg"] == feeding[1]["pretrained_cfg"], "both see the same images"
    build_back.main([found.original.folder, found.subnet.folder])


def test_test_images_are_read_once_for_each_network(read: tuple[Comparison, list[str]]) -> None:
    _, parts = read
    # The start and the finalists are judged by the architecture part, which stands for their test part.
    assert {part for part in parts if part.startswith("test")} == {"test of 12", "test of 15"}
    assert len([part for part in parts if part == "test of 15"]) == 2


def test_the_start_has_not_seen_the_architecture_part(
    place: Path, shrink: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, ImageData] = {}
    train = originals.train

    def noted(build: Any, data: ImageData, options: Any, **others: Any) -> Any:
        given[others["checkpoint"].stem] = data
        return train(build, data, options, **others)

    monkeypatch.setattr(originals, "train", noted)
    monkeypatch.setattr(story, "run_search", lambda config: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        shrink("seen")
    start, original = given["start"], given["original"]
    seen, held = set(start.training.indices), set(original.architecture.indices)
    assert not seen & held
    assert seen | held == set(original.training.indices)


def test_the_original_goes_on_from_the_start(place: Path, read: tuple[Comparison, list[str]]) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    given, start, original = (
        load_exported(place / "whole" / "start"),
        load_exported(place / "whole" / "start"),
        load_exported(place / "whole" / "original"),
    )
    with torch.inference_mode():
        assert (start(images) - given(images)).abs().max() == 0.0
        assert (start(images) - original(images)).abs().max() > 0.0
    config = json.loads((place / "whole" / "search" / "config.json").read_text())
    assert config["space"]["options"]["weights"] == str(place / "whole" / "start" / "model.safetensors")
    assert config["retrain"]["teacher"] == str(place / "whole" / "original")


def test_a_second_run_only_shows_what_is_there(
    shrink: Callable[..., Comparison], read: tuple[Comparison, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("check_all", "make_start", "make_original", "run_search", "measure_deployed"):
        monkeypatch.setattr(story, name, None)
    assert shrink("whole") == read[0]


@pytest.mark.parametrize("stage", ["make_original", "run_search", "measure_deployed", "draw"])
def test_what_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    place: Path,
    shrink: Callable[..., Comparison],
    read: tuple[Comparison, list[str]],
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(story, stage, killed)
        with pytest.raises(Killed):
            shrink(stage)
    before = {path: path.stat().st_mtime_ns for path in (place / stage).rglob("*.safetensors")}
    found, whole = shrink(stage), read[0]
    assert before, "the start at least"
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was made is not made again"
    for name in ("original", "subnet"):
        same = {"folder": "", "onnx": "", "ms": None}
        assert replace(getattr(found, name), **same) == replace(getattr(whole, name), **same)


def test_for_int8_both_networks_are_quantised_judged_and_measured_so(
    shrink: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Path] = []
    measure = deployed.measure_model_files
    monkeypatch.setattr(deployed, "measure_model_files", lambda files, **k: timed.extend(files) or measure(files, **k))
    found = shrink("int8", hardware={"cost": "macs", "dtype": "int8"})
    files = [found.original.int8_onnx, found.subnet.int8_onnx]
    assert timed[-2:] == [Path(str(file)) for file in files], "of both in one run"
    assert all(is_quantised(str(file)) for file in files)
    assert found.place["dtype"] == "int8"
    for net in (found.original, found.subnet):
        assert net.ms is not None
        assert net.int8_accuracy is not None
        assert not is_quantised(net.onnx)


def test_another_target_in_the_same_folder_is_refused(
    place: Path, shrink: Callable[..., Comparison], read: tuple[Comparison, list[str]]
) -> None:
    with pytest.raises(ConfigError, match=r"other settings \(target = '0\.7x' there, '0\.8x' here\)"):
        shrink("whole", target="0.8x")
    assert shrink("whole", data={"workers": 1}) == read[0], "no result depends on it"


def test_an_export_of_the_same_classes_needs_no_start(
    place: Path, shrink: Callable[..., Comparison], read: tuple[Comparison, list[str]]
) -> None:
    again = shutil.copytree(read[0].original.folder, place / "mine")
    own = {"name": f"timm:local-dir:{again}", "options": {"kernels": [3], "expansions": [2], "weights": "pretrained"}}
    found = shrink("again", space=own, shrink={"start_epochs": None, "original_epochs": None, "epochs": None})
    assert not (place / "again" / "start").exists()
    assert (found.original.epochs, found.subnet.epochs) == (2, 2)


def test_the_command_prints_the_table_last(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [NAME, "--weights", str(place / f"{NAME}.safetensors"), "--data", str(place / "drawn")]
    arguments += ["--target", "0.7x", "--out", str(place / "command"), "--input-size", "32", "--epochs", "4"]
    arguments += ["--set", "hardware.cost=macs", "--set", "space.options.kernels=[3]"]
    with pytest.raises(SystemExit) as ended:
        main(["shrink", *arguments])
    assert not ended.value.code
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-1].startswith("subnet / original")
    assert lines[-2].startswith("subnet")
    assert lines[-3].startswith("original")
    config = json.loads((place / "command" / "search" / "config.json").read_text())
    assert (config["retrain"]["weights"], config["retrain"]["epochs"]) == ("inherited", 3)
