"""What is read, and how often, from a config to a finished model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import yaml
from rich.console import Console

from hardware.errors import ConfigError, TargetError
from hardware.tables.table import LatencyTable
from proxyless_strategy.cli.main import main
from proxyless_strategy.config import load_config
from proxyless_strategy.runs import experiment
from proxyless_strategy.runs import prepare as prepare_module
from proxyless_strategy.runs.derive import derive
from proxyless_strategy.runs.prepare import Library, prepare
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.trial import run_trial
from proxyless_strategy.world import World, entered
from tests.proxyless_strategy.runs.test_search import SPACE, table  # noqa: F401


@pytest.fixture
def config(table: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A search config, with a sweep of four trials beside it."""
    values = {
        "space": SPACE,
        "data": "digits",
        "input_size": 16,
        "hardware": {"table": str(table)},
        "target": 0.5,
        "search": {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 2, "batch_size": 128},
        "retrain": {"epochs": 1, "batch_size": 128},
        "out": "run",
    }
    path = tmp_path / "search.yml"
    path.write_text(yaml.safe_dump(values))
    sweep = {
        "trialCommand": "python -m proxyless_strategy.trial search.yml",
        "trainingService": {"platform": "local"},
        "searchSpace": {
            "rule": {"_type": "choice", "_value": ["gradient", "reinforce"]},
            "target": {"_type": "choice", "_value": [0.3, 0.6]},
        },
    }
    path.with_name("sweep.yml").write_text(yaml.safe_dump(sweep))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the files behind the digits and behind any latency table are read."""
    found: Counter[str] = Counter()
    load_digits, load_table = sklearn.datasets.load_digits, LatencyTable.load

    def counted_digits(*arguments: Any, **options: Any) -> Any:
        found["data"] += 1
        return load_digits(*arguments, **options)

    def counted_table(path: Any) -> LatencyTable:
        found["table"] += 1
        return load_table(path)

    monkeypatch.setattr(sklearn.datasets, "load_digits", counted_digits)
    monkeypatch.setattr(LatencyTable, "load", staticmethod(counted_table))
    return found


@pytest.mark.slow
def test_a_trial_and_what_is_derived_from_it_read_everything_once(config: Path, reads: Counter[str]) -> None:
    row = run_trial(config)
    assert reads == {"data": 1, "table": 1}
    reads.clear()
    derive(config.parent / "run", target=row["target_ms"], out=config.parent / "net")
    assert reads == {"table": 1}


def test_latency_prepare_reads_everything_once(config: Path, reads: Counter[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["latency", "prepare", str(config)])
    assert not status.value.code
    assert reads == {"data": 1, "table": 1}


def test_the_check_of_a_sweep_reads_everything_once(
    config: Path, reads: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = read_sweep(config.with_name("sweep.yml"))
    assert len(sweep.configs()) == 4
    experiment._prepare(sweep, Console(width=160))
    assert reads == {"data": 1, "table": 1}
    assert capsys.readouterr().out.count("fastest subnet") == 1


def test_a_library_tells_data_sets_and_tables_apart(config: Path, reads: Counter[str], tmp_path: Path) -> None:
    library = Library()
    other = load_config(config).hardware.table
    assert other is not None
    (tmp_path / "other.yml").write_text(other.read_text())
    first = prepare(load_config(config), quiet=True, library=library)
    second = prepare(load_config(config, {"hardware.table": str(tmp_path / "other.yml")}), quiet=True, library=library)
    assert second.data is first.data
    assert reads == {"data": 1, "table": 2}
    reseeded = prepare(load_config(config, {"seed": 1}), quiet=True, library=library)
    assert reseeded.data is not first.data
    assert reads == {"data": 2, "table": 2}


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"target_ms": 1e-6}, TargetError, "below the fastest subnet"),
        ({"objective": "mul_log"}, ConfigError, "mul_log takes logarithms of milliseconds"),
    ],
)
def test_what_the_table_says_is_refused_before_the_folder_is_taken(
    config: Path, overrides: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run_search(load_config(config, overrides))
    assert not (config.parent / "run").exists()


def test_only_the_first_of_several_processes_measures_a_table(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another host that does not see the file would put a table of its own there, of another machine."""
    monkeypatch.setattr(prepare_module, "SEEN_SECONDS", 0.3)
    missing = tmp_path / "tables" / "missing.yml"
    found = load_config(config, {"hardware.table": str(missing), "target_ms": 1e6, "target": None})
    with (
        entered(World(size=2, rank=1, nodes=2, launcher="srun")),
        pytest.raises(ConfigError, match=r"missing.yml is not there on .*, where process 1 runs, though the first"),
    ):
        prepare(found, quiet=True)
    assert not missing.exists()
    idle = load_config(config, {"target_ms": 1e6, "target": None})
    for rank in range(2):
        with entered(World(size=2, rank=rank, nodes=2, launcher="srun")):
            prepare(idle, quiet=True)
        assert capsys.readouterr().err.count("it is idle") == (rank == 0)
