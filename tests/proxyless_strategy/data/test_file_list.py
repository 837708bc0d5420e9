"""A million files in arrays: what is asked for is what was given, and the digest is that of a list."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.file_list import FileList
from proxyless_strategy.data.sources import load_data
from tests.proxyless_strategy.data.samples import write_images

PAIRS = [("", 3), ("a/ä.png", 0), (os.fsdecode(b"b/\xff.png"), 1_000_000), ("c" * 300, 0)]


def test_it_is_a_sequence_of_the_pairs() -> None:
    files = FileList(iter(PAIRS))
    assert list(files) == PAIRS
    assert [files[-1], files[np.int64(2)]] == [PAIRS[-1], PAIRS[2]]
    assert files[::2] == PAIRS[::2]
    assert files.labels.tolist() == [label for _, label in PAIRS]
    assert list(pickle.loads(pickle.dumps(files))) == PAIRS
    assert list(FileList([])) == []
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            files[beyond]


def test_a_folder_is_known_as_when_its_files_were_a_list(tmp_path) -> None:
    """Runs of earlier versions go on with their data."""
    write_images(tmp_path / "pictures")
    config = DataConfig.model_validate({"name": "imagefolder", "root": tmp_path / "pictures"})
    data = load_data(config, input_size=16, seed=0)
    source = data.weights.source
    assert isinstance(source.samples, FileList)
    digest = data_digest(data)
    for part in (source, data.test.source):
        part.samples = part.imgs = list(part.samples)
        part.targets = [label for _, label in part.samples]
    for part in (data.weights, data.architecture, data.training):
        object.__setattr__(part, "indices", part.indices.tolist())
    assert data_digest(data) == digest
