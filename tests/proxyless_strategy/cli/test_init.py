"""`proxyless init`: what it proposes for a folder of pictures can be searched as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hardware.errors import DataError
from proxyless_strategy.config import load_config
from proxyless_strategy.data.drawn import draw_image_folder
from proxyless_strategy.data.survey import Survey, divide, survey
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.proposal import propose, search_yaml
from proxyless_strategy.sections import DrawnImages
from proxyless_strategy.strategy.verdict import FEW_STEPS, Plan

from .test_main import status_of

HERE = {"hardware.cost": "macs"}
"""Counts what needs no table, which would be measured for a minute."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_image_folder(tmp_path / "photos", DrawnImages(classes=3, train=20, val=5, size=70))
    return tmp_path / "photos"


def found(**changes: object) -> Survey:
    classes = {"a": 50, "b": 50}
    sides = (100,)
    made = Survey(Path("x"), classes, dict(classes), sides, grey=0.0, modes={"RGB": 1}, transparent=0, unreadable=0)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_what_it_writes_passes_every_check_of_a_search(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere" / "mine.yml"
    assert status_of("init", str(photos), "--out", str(out)) == 0
    assert "proxyless search" in capsys.readouterr().out
    config = load_config(out, HERE)
    assert config.data.root == photos
    assert config.out == out.parent / "runs" / "mine"
    assert config.input_size == 64
    prepared = prepare(config, quiet=True)
    assert prepared.data.num_classes == 3
    assert prepared.target is not None
    commented = [line for line in out.read_text().splitlines() if " # " in line]
    assert len(commented) > 10


def test_it_never_overwrites(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.yml"
    out.write_text("mine")
    assert status_of("init", str(photos), "--out", str(out)) == 2
    assert "mine.yml exists" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_a_backend_or_device_that_is_not_here_is_refused_first(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.yml"
    for option, value in (("--backend", "abacus"), ("--device", "cuda:99")):
        assert status_of("init", str(photos), "--out", str(out), option, value) == 2
        assert value in capsys.readouterr().err
    assert not out.exists()


def test_the_device_that_is_asked_for_stands_in_the_file(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yml"
    assert status_of("init", str(photos), "--out", str(out), "--device", "cpu", "--json") == 0
    assert load_config(out).hardware.place == "cpu"


def test_classes_without_train_and_val_are_divided_by_links(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, split = photos / "train", tmp_path / "split"
    assert status_of("init", str(plain), "--out", str(tmp_path / "a.yml")) == 2
    assert "--split DIR" in capsys.readouterr().err
    assert status_of("init", str(plain), "--out", str(tmp_path / "a.yml"), "--split", str(split)) == 0
    looked = survey(split)
    assert set(looked.train.values()) == {16}
    assert set(looked.val.values()) == {4}
    everything = {path.resolve() for path in split.rglob("*") if path.is_file()}
    assert everything == {path for path in plain.rglob("*") if path.is_file()}
    assert prepare(load_config(tmp_path / "a.yml", HERE), quiet=True).data.num_classes == 3
    with pytest.raises(DataError, match="is not empty"):
        divide(plain, split)


def test_what_cannot_be_divided_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 class folders"):
        divide(tmp_path / "none", tmp_path / "split")
    for label in ("a", "b"):
        (tmp_path / "few" / label).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "few" / label / "1.png")
    with pytest.raises(DataError, match=r"a \(1\), b \(1\)"):
        divide(tmp_path / "few", tmp_path / "split")


def test_grey_transparent_and_unreadable_pictures_are_told(photos: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(photos.rglob("*.jpg")) or sorted(photos.rglob("*.png"))):
        if number == 0:
            path.write_bytes(b"no picture")
        else:
            Image.new("L", (40, 50), number).save(path.with_suffix(".png"))
            if path.suffix != ".png":
                path.unlink()
    Image.new("LA", (40, 50), (5, 100)).save(next((photos / "val").rglob("*.png")))
    out = tmp_path / "grey.yml"
    assert status_of("init", str(photos), "--out", str(out)) == 0
    data = yaml.safe_load(out.read_text())["data"]
    assert data["options"] == {"channels": 1}
    assert data["background"] == "white"
    assert data["skip_unreadable"] is True
    prepared = prepare(load_config(out, HERE), quiet=True)
    assert prepared.data.channels == 1


@pytest.mark.parametrize("images", [20, 100, 1000, 50_000, 1_000_000])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_proposal_has_enough_architecture_steps(images: int, on_gpu: bool) -> None:
    looked = found(train={"a": images // 2, "b": images // 2})
    proposal = propose(looked, on_gpu=on_gpu, cores=8)
    weights = int(0.7 * images)
    plan = Plan(
        batches=weights // proposal.batch_size,
        epochs=proposal.warmup_epochs + proposal.epochs,
        warmup_epochs=proposal.warmup_epochs,
        steps_per_update=proposal.steps_per_update,
    )
    assert plan.architecture_steps >= 2 * FEW_STEPS
    assert 2 <= proposal.batch_size <= weights


@pytest.mark.parametrize(
    ("side", "on_gpu", "size"), [(20, True, 32), (100, False, 64), (100, True, 96), (999, True, 224)]
)
def test_pictures_are_never_enlarged_but_to_the_least_size(side: int, on_gpu: bool, size: int) -> None:
    assert propose(found(sides=(side,)), on_gpu=on_gpu, cores=2).input_size == size


@pytest.mark.parametrize("name", ["a b.yml", "a: b.yml", "#1.yml", "o'n.yml", "ä.yml", "$x.yml"])
def test_a_strange_name_of_the_file_stays_a_name(name: str, tmp_path: Path) -> None:
    looked = found(root=tmp_path / name)
    text = search_yaml(
        looked, propose(looked, on_gpu=False, cores=2), backend="torch", device=None, out=tmp_path / name
    )
    (tmp_path / name).write_text(text, encoding="utf-8")
    config = load_config(tmp_path / name)
    assert config.out == tmp_path / "runs" / Path(name).stem
    assert config.data.root == tmp_path / name


def test_it_says_what_it_found_as_json(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("init", str(photos), "--out", str(tmp_path / "a.yml"), "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["images"] == 60
    assert len(values["classes"]) == 3
