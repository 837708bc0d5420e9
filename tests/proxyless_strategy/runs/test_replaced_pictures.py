"""A search that a picture ended goes on once the picture was replaced; and what its record says of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hardware.errors import ConfigError, PictureError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.layout import CONFIG_FILE, MODEL, SEARCH_FILE, UNREADABLE_FILE
from proxyless_strategy.runs.same_run import check_same_run
from proxyless_strategy.runs.search import run_search
from tests.proxyless_strategy.data.samples import write_images

SPACE = {
    "name": "small_mbconv",
    "options": {"stages": [{"width": 16, "depth": 2, "stride": 2}], "head_width": 32},
}


def config_of(root: Path, out: Path, **data: Any) -> SearchConfig:
    return parse_config(
        {
            "space": SPACE,
            "data": {"name": "imagefolder", "root": str(root), **data},
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "search": {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 1, "batch_size": 4, "finalists": 1},
            "retrain": {"epochs": 1, "batch_size": 4},
            "out": str(out),
        }
    )


@pytest.mark.parametrize("when", ["search", pytest.param("test", marks=pytest.mark.slow)])
def test_a_search_goes_on_after_a_picture_was_replaced(
    tmp_path: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is damaged while the supernet is trained; of the test pictures, which are read last, one always was."""
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    config = config_of(root, out)
    bad = root / ("val" if when == "test" else "train") / "b" / "4.png"
    epochs: list[tuple[str, int]] = []

    def damage() -> None:
        bad.write_bytes(bytes(bad.stat().st_size))

    def note(metrics: dict[str, Any]) -> None:
        epochs.append((metrics["phase"], metrics["epoch"]))
        if when == "search" and len(epochs) == 2:
            damage()

    if when == "test":
        damage()
    with pytest.raises(PictureError) as raised:
        run_search(config, on_epoch=note)
    assert raised.value.path == str(bad)
    assert set(json.loads((out / UNREADABLE_FILE).read_text())) == {str(bad)}
    done = list(epochs)
    assert len(done) == (2 if when == "search" else 4)
    Image.new("L", (40, 40), 9).save(bad)
    capsys.readouterr()
    result = run_search(config, on_epoch=note)
    assert epochs[: len(done)] == done
    assert [epochs.count(epoch) for epoch in epochs] == [1] * 4, "no epoch was run again"
    assert f"{out} goes on with {bad}, replaced since it could not be read" in capsys.readouterr().err
    assert json.loads((result.folder / "metrics.json").read_text())["replaced"] == [str(bad)]
    assert json.loads((out / SEARCH_FILE).read_text()).get("replaced") == ([str(bad)] if when == "search" else None)


def test_another_picture_that_changed_is_another_data_set(tmp_path: Path) -> None:
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    bad = root / "val" / "b" / "4.png"
    bad.write_bytes(b"no image")
    with pytest.raises(PictureError):
        run_search(config_of(root, out))
    for path in (bad, root / "val" / "b" / "5.png"):
        Image.new("L", (40, 40), 9).save(path)
    with pytest.raises(ConfigError, match=r"is of another retraining \(data = "):
        run_search(config_of(root, out))


def test_what_was_left_out_is_in_the_records(tmp_path: Path) -> None:
    root, out = write_images(tmp_path / "data"), tmp_path / "out"
    for path in (root / "val" / "b" / "4.png", root / "train" / "a" / "0.png"):
        path.write_bytes(b"no image")
    run_search(config_of(root, out, skip_unreadable=True))
    for record in (out / SEARCH_FILE, out / MODEL / "metrics.json"):
        left_out = json.loads(record.read_text())["left_out"]
        assert [line.partition(": ")[0] for line in left_out] == [
            str(root / "train" / "a" / "0.png"),
            str(root / "val" / "b" / "4.png"),
        ]


@pytest.mark.parametrize(
    ("there", "here", "goes_on"),
    [(None, "white", True), ("white", "white", True), ("white", "black", False), ("white", None, False)],
)
def test_a_background_may_be_given_where_none_was_needed_yet(
    tmp_path: Path, there: str | None, here: str | None, goes_on: bool
) -> None:
    before, now = (config_of(tmp_path, tmp_path, background=value) for value in (there, here))
    (tmp_path / CONFIG_FILE).write_text(json.dumps(before.identity()))
    if goes_on:
        check_same_run(now)
        return
    with pytest.raises(ConfigError, match=r"data\.background = "):
        check_same_run(now)
