"""What a search was fed with travels in the export: retraining, and timm itself, feed the network with the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from hardware.errors import ConfigError, DataError, ExportError, PictureError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.digest import file_mark
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.data.reading import Reader
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.export.folder import read_export
from proxyless_strategy.layout import CHECKPOINT, MODEL, UNREADABLE_FILE
from proxyless_strategy.retraining import folder as retraining
from proxyless_strategy.retraining.folder import retrain
from proxyless_strategy.retraining.recipe import Recipe, load_recipe
from tests.proxyless_strategy.data.samples import Listed, batches, write_images
from tests.proxyless_strategy.export.samples import FEEDING, a_subnet, export

GREY = {"channels": 1, "mean": [0.25], "std": [0.125]}
COLOUR = {"channels": 3, "mean": [0.1, 0.2, 0.7], "std": [0.3, 0.9, 0.5]}


def tiny(**changes: Any) -> Recipe:
    settings = {"epochs": 1, "batch_size": 4, "workers": 0, "input_size": 16, "augment": "none"}
    return load_recipe("quick", {**settings, **changes})


def exported_of(folder: Path, data: ImageData) -> Path:
    """Export a fresh network as a search on these data does."""
    subnet = a_subnet(stem_stride=1)
    arguments = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(subnet.timm_name, **arguments)
    return export(folder, subnet, model=model, model_args=arguments, pretrained_cfg=data.pretrained_cfg())[1]


def retrained_on(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **keywords: Any) -> ImageData:
    """Return the images that a retraining starts with."""
    seen: list[ImageData] = []

    class Enough(Exception):
        pass

    def note(images: ImageData, *rest: Any, **more: Any) -> None:
        seen.append(images)
        raise Enough

    monkeypatch.setattr(retraining, "check_training", note)
    with pytest.raises(Enough):
        retrain(*arguments, **keywords)
    return seen[0]


@pytest.mark.parametrize("colours", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "crop_mode"),
    [("bicubic", 1.0, "center"), ("bilinear", 0.875, "center"), ("nearest", 0.6, "squash"), ("lanczos", 1.0, "border")],
)
def test_search_retraining_and_timm_see_equal_pixels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    colours: dict[str, Any],
    interpolation: str,
    crop_pct: float,
    crop_mode: str,
) -> None:
    root = write_images(tmp_path / "data", count=2)
    options = {**colours, "interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    searched = load_data(DataConfig(name="imagefolder", root=root, options=options), input_size=16, seed=0)
    folder = exported_of(tmp_path / "net", searched)
    again = retrained_on(monkeypatch, folder, data=root, recipe=tiny(), out=tmp_path / "out")
    assert (again.channels, again.mean, again.std) == (searched.channels, searched.mean, searched.std)
    model = timm.create_model(f"local-dir:{folder}")
    transform = create_transform(**resolve_data_config(model=model))
    mode = "L" if colours is GREY else "RGB"
    expected = [transform(Image.open(path).convert(mode)) for path, _ in searched.test.source.samples]
    for data in (searched, again):
        found = [image for images, _ in batches(data, "test", shuffle=False) for image in images]
        assert len(found) == len(expected) == 6
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # The architecture part is what a search validates on: the same pictures, read in the same way.
    places = [searched.architecture.source.samples[index][0] for index in searched.architecture.indices]
    validation = [image for images, _ in batches(searched, "architecture", shuffle=False) for image in images]
    assert all(
        torch.equal(image, transform(Image.open(path).convert(mode)))
        for image, path in zip(validation, places, strict=True)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_see_the_same_too(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their mean and std are measured by the search, and no longer by the retraining on other images."""
    config = DataConfig(name="digits", options={"channels": channels, "interpolation": "bilinear"})
    searched = load_data(config, input_size=16, seed=0)
    folder = exported_of(tmp_path / "net", searched)
    again = retrained_on(monkeypatch, folder, data=tmp_path, recipe=tiny(seed=5), out=tmp_path / "out", source="digits")
    assert (again.channels, again.mean, again.std) == (channels, searched.mean, searched.std)
    transform = create_transform(**resolve_data_config(model=timm.create_model(f"local-dir:{folder}")))
    pixels = load_data(config, input_size=8, seed=0).test  # 8 pixels: as they are
    for index in range(5):
        picture = Image.fromarray(pixels.images[index].numpy().transpose(1, 2, 0).squeeze())
        assert torch.equal(searched.test[index][0], transform(picture))


def test_a_network_of_grey_pictures_is_retrained_as_one(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    searched = load_data(DataConfig(name="imagefolder", root=root, options=GREY), input_size=16, seed=0)
    written = retrain(exported_of(tmp_path / "net", searched), data=root, recipe=tiny(), out=tmp_path / "out")
    feeding = read_export(written)["pretrained_cfg"]
    assert (feeding["input_size"], feeding["mean"], feeding["std"]) == ([1, 16, 16], [0.25], [0.125])
    assert timm.create_model(f"local-dir:{written}", pretrained=True).conv_stem.in_channels == 1


def test_the_recipe_may_say_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "data")
    folder = export(tmp_path / "net", a_subnet(stem_stride=1))[1]
    images = retrained_on(monkeypatch, folder, data=root, recipe=tiny(channels=3), out=tmp_path / "out")
    assert (images.channels, len(images.mean)) == (3, 3)


@pytest.mark.parametrize("background", [None, "black"])
def test_background_and_range_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: str | None) -> None:
    root = tmp_path / "data"
    for path in write_images(root).glob("*/*/*"):
        Image.new("LA", (16, 16), (100, 51)).save(path)
    settings = {"background": "white", "options": {**GREY, "range": [0, 4095]}}
    searched = load_data(DataConfig(name="imagefolder", root=root, **settings), input_size=16, seed=0)
    folder = exported_of(tmp_path / "net", searched)
    assert read_export(folder)["pictures"] == {"background": "#ffffff", "range": [0.0, 4095.0]}
    recipe = tiny(background=background)
    images = retrained_on(monkeypatch, folder, data=root, recipe=recipe, out=tmp_path / "out")
    beneath = (0, 0, 0) if background else (255, 255, 255)
    assert images.reader == Reader(1, beneath, (0.0, 4095.0))
    wanted = ((100 * 51 + beneath[0] * 204) / 255 / 255 - 0.25) / 0.125
    assert float(images.test[0][0][0, 8, 8]) == pytest.approx(wanted, abs=0.5 / 255 / 0.125)


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "by hand"}, {"mean": ["x"]}, {"mean": [0.1, 0.2]}, {"std": 3}, {"crop_mode": "middle"}],
    ids=str,
)
def test_an_export_that_does_not_say_how_it_is_fed_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = export(tmp_path / "net", a_subnet(stem_stride=1))[1]
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"config\.json does not say what its network is fed with: .*; export it ag"):
        retrain(folder, data=write_images(tmp_path / "data"), recipe=tiny(), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("RGB", {}, r"a:b gives images of 3 channels, but the network of .* was searched with 1; give such images, or"),
        ("L", {}, r"a:b gives images normalised with mean \(0\.5,\), but .* searched with \(0\.3,\); return an"),
        ("L", {"mean": [0.5], "std": [0.5]}, None),
    ],
)
def test_a_users_function_must_give_what_the_search_was_fed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, changes: dict[str, Any], message: str | None
) -> None:
    def function(root: Any, **options: Any) -> list[Listed]:
        return [Listed([Image.new(mode, (16, 16))] * 4, [0, 1] * 2) for _ in range(3)]

    monkeypatch.setattr("proxyless_strategy.data.function_source.import_function", lambda name: function)
    folder = export(tmp_path / "net", a_subnet(stem_stride=1), pretrained_cfg={**FEEDING, **changes})[1]
    arguments: dict[str, Any] = {"data": tmp_path, "recipe": tiny(), "out": tmp_path / "out", "source": "a:b"}
    if message is None:
        assert retrained_on(monkeypatch, folder, **arguments).channels == 1
    else:
        with pytest.raises(DataError, match=message):
            retrain(folder, **arguments)


# ---- pictures that were replaced -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_retraining_goes_on_after_a_picture_was_replaced(tmp_path: Path, workers: int) -> None:
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    searched = load_data(DataConfig(name="imagefolder", root=root, options=GREY), input_size=16, seed=0)
    folder = exported_of(tmp_path / "net", searched)
    bad = root / "val" / "b" / "3.png"
    bad.write_bytes(b"no image")
    arguments: dict[str, Any] = {"data": root, "recipe": tiny(workers=workers), "out": out}
    with pytest.raises(PictureError, match=r"cannot read .*val/b/3\.png: no format"):
        retrain(folder, **arguments)
    assert (out / CHECKPOINT).exists(), "it was trained; its test has failed"
    assert json.loads((out / UNREADABLE_FILE).read_text()) == {str(bad): file_mark(str(bad))}
    trained = (out / CHECKPOINT).read_bytes()
    shutil.copy(root / "val" / "b" / "2.png", bad)
    written = retrain(folder, **arguments)
    assert written == out / MODEL
    assert (out / CHECKPOINT).read_bytes() == trained, "nothing was trained again"
    assert json.loads((written / "metrics.json").read_text())["replaced"] == [str(bad)]


def test_what_was_left_out_is_in_the_record(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data")
    bad = root / "train" / "b" / "3.png"
    bad.write_bytes(np.random.default_rng(0).bytes(99))
    folder = export(tmp_path / "net", a_subnet(stem_stride=1))[1]
    written = retrain(folder, data=root, recipe=tiny(skip_unreadable=True), out=tmp_path / "out")
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["left_out"] == [f"{bad}: no format that Pillow knows"]


def test_other_pictures_are_another_retraining(tmp_path: Path) -> None:
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    searched = load_data(DataConfig(name="imagefolder", root=root, options=COLOUR), input_size=16, seed=0)
    folder = exported_of(tmp_path / "net", searched)
    retrain(folder, data=root, recipe=tiny(), out=out)
    with pytest.raises(ConfigError, match=r"is of another retraining \(pictures = "):
        retrain(folder, data=root, recipe=tiny(channels=1), out=out)
    # Until now transparent pictures were refused, so a background changes nothing that was done.
    retrain(folder, data=root, recipe=tiny(background="white", epochs=1), out=out)
    shutil.rmtree(out)
    retrain(folder, data=root, recipe=tiny(background="white"), out=out)
    with pytest.raises(ConfigError, match=r"\(background = 'white' there, 'black' here\)"):
        retrain(folder, data=root, recipe=tiny(background="black"), out=out)


def test_a_retraining_that_an_older_version_began_reads_its_pictures_as_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older checkpoints do not say how pictures were read: by default, in colour, and so they are to the end."""
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    folder = export(tmp_path / "net", a_subnet(stem_stride=1))[1]
    monkeypatch.setattr(retraining, "begun_with", lambda checkpoint: {"classes": "abc"})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            retrain_until_the_first_epoch(monkeypatch, folder, root, out)
        monkeypatch.undo()
    assert "goes on as an older version began it" in capsys.readouterr().err
    images = retrained_on(monkeypatch, folder, data=root, recipe=tiny(), out=out)
    assert images.channels == 3


def retrain_until_the_first_epoch(monkeypatch: pytest.MonkeyPatch, folder: Path, root: Path, out: Path) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("proxyless_strategy.retraining.trainer._Training.run_epoch", stop)
    retrain(folder, data=root, recipe=tiny(), out=out)
