"""A search of shards is the search of a folder of the same pictures, also where it is stopped within an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.cli.next_steps import next_commands
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.layout import SEARCH_CHECKPOINT, SEARCH_FILE
from proxyless_strategy.retraining.folder import _data_config
from proxyless_strategy.retraining.recipe import load_recipe
from proxyless_strategy.runs import search
from proxyless_strategy.runs.checkpoints import SearchCheckpoints
from tests.proxyless_strategy.data.samples import write_images, write_shards

SPACE = {
    "name": "small_mbconv",
    "options": {"stages": [{"width": 8, "depth": 1, "stride": 2}], "head_width": 32, "kernels": [3]},
}
SECONDS = ("seconds", "duration", "started", "ended")


def config_of(name: str, root: Path, out: Path, **data: Any) -> SearchConfig:
    return parse_config(
        {
            "space": SPACE,
            "data": {"name": name, "root": str(root), "augment": "imagenet", "workers": 1, **data},
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "target": 0.5,
            "search": {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 1, "batch_size": 4, "finalists": 2}
            | {"checkpoint_every": 1e-9},
            "retrain": None,
            "out": str(out),
        }
    )


class Stopped(Exception):
    """Raised in the place of a batch."""


def stop_at(batch: int, patched: pytest.MonkeyPatch) -> None:
    seen, due = [0], SearchCheckpoints.on_train_batch_end

    def counted(*arguments: Any) -> None:
        due(*arguments)
        seen[0] += 1
        if seen[0] == batch:
            raise Stopped

    patched.setattr(SearchCheckpoints, "on_train_batch_end", counted)


def found(config: SearchConfig) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    result = search.run_search(config, on_epoch=rows.append)
    record = json.loads((config.out / SEARCH_FILE).read_text())
    return result.subnet, [{k: v for k, v in row.items() if k not in SECONDS} for row in rows], record


def test_a_search_of_shards_is_that_of_the_folder_and_goes_on_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "measure_deployed", lambda *arguments, **options: ([None], None))
    folder = write_images(tmp_path / "folder")
    shards = write_shards(folder, tmp_path / "shards")
    expected = found(config_of("imagefolder", folder, tmp_path / "expected"))
    config = config_of("webdataset", shards, tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_at(5, patched)  # of 3 in an epoch
        with pytest.raises(Stopped):
            search.run_search(config)
    assert (config.out / SEARCH_CHECKPOINT).exists()

    labels = (shards / "train-0000.tar").read_bytes()
    write_shards(write_images(tmp_path / "other", count=7), shards)
    with pytest.raises(ConfigError, match=r"data = .* there, .* here"):
        search.run_search(config)
    for path in shards.glob("*.tar"):
        path.unlink()
    write_shards(folder, shards)
    assert (shards / "train-0000.tar").read_bytes() == labels

    subnet, rows, record = found(config)
    assert subnet == expected[0]
    assert rows == expected[1][-len(rows) :]
    assert 0 < len(rows) < len(expected[1])
    assert record == expected[2]


def test_what_is_typed_next_reads_the_same_shards(tmp_path: Path) -> None:
    options = {"train": "a-{0..1}.tar", "label": "json.class", "crop_pct": 0.9}
    config = config_of("webdataset", tmp_path, tmp_path / "out", options=options)
    command = next(command for command in next_commands(config) if " retrain " in command)
    assert "--source webdataset" in command
    assert """--set 'source_options={"train": "a-{0..1}.tar", "label": "json.class"}'""" in command


def test_a_recipe_says_what_the_source_takes_and_not_how_pictures_are_read() -> None:
    assert load_recipe("cifar", {"source_options": {"label": "json.class"}}).source_options == {"label": "json.class"}
    with pytest.raises(ConfigError, match=r"source_options: crop_pct is how pictures are read"):
        load_recipe("cifar", {"source_options": {"crop_pct": 0.5}})


@pytest.mark.parametrize("source", ["webdataset", "hfds/mine", "my_data:parts"])
def test_a_retraining_hands_them_on(tmp_path: Path, source: str) -> None:
    recipe = load_recipe("cifar", {"source_options": {"label": "y"}})
    size = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"pretrained_cfg": {**size, "crop_pct": 1.0, "crop_mode": "center"}}
    data = _data_config(tmp_path, config, tmp_path / "root", recipe, source)
    assert data.options["label"] == "y"
    assert ("mean" in data.options) == (source != "my_data:parts")
    assert data.root == (None if source == "hfds/mine" else tmp_path / "root")
