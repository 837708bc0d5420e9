"""A trial on its own, and as one of NNI's processes; NNI itself runs in test_experiment.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nni
import pytest

from hardware.errors import ConfigError, ExperimentError, TargetError
from proxyless_strategy import trial
from proxyless_strategy.config import load_config
from proxyless_strategy.layout import EXPERIMENT_VARIABLE, OUT_VARIABLE, RESULT, START_VARIABLE
from proxyless_strategy.runs import reporting
from proxyless_strategy.runs.trials import read_trials
from proxyless_strategy.trial import PARAMETERS_VARIABLE, main, run_trial
from search_spaces.nni_import import FALSE_ALARMS
from tests.proxyless_strategy.environments import torchrun


class Nni:
    """Stands for NNI's side of a trial: hands parameters out once, keeps what is reported."""

    def __init__(self, parameters: dict[str, Any] | None) -> None:
        self.parameters = parameters
        self.asked = 0
        self.intermediate: list[dict[str, Any]] = []
        self.final: list[dict[str, Any]] = []

    def get_next_parameter(self) -> dict[str, Any] | None:
        self.asked += 1
        assert self.asked == 1, "NNI hands a trial's parameters out once"
        return self.parameters


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fake search module, where the real one would be imported."""
    path = Path(__file__).parent / "runs" / "fake_search" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("fake_search", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "proxyless_strategy.runs.search", module)
    return module


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "search.yml"
    path.write_text("{rule: gradient, target: 0.3, out: runs}")
    return path


def as_trial(monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any] | None, *, identifier: str = "abcde") -> Nni:
    side = Nni(parameters)
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setattr(nni, "get_trial_id", lambda: identifier)
    monkeypatch.setattr(nni, "get_next_parameter", side.get_next_parameter)
    monkeypatch.setattr(nni, "report_intermediate_result", side.intermediate.append)
    monkeypatch.setattr(nni, "report_final_result", side.final.append)
    return side


def test_without_nni_the_config_runs_as_it_is(search: Any, config: Path) -> None:
    row = run_trial(config)
    assert (row["trial"], row["rule"], row["accuracy"]) == (None, "gradient", 0.3)
    assert json.loads((config.parent / "runs" / "result.json").read_text()) == row


def test_parameters_are_laid_over_the_config(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = as_trial(monkeypatch, {"rule": "reinforce", "target": 0.6})
    row = run_trial(config)
    assert (row["rule"], row["target_ms"]) == ("reinforce", 6.0)
    assert json.loads((config.parent / "runs" / "abcde" / "result.json").read_text()) == row
    assert row["trial"] == "abcde"
    assert [(step["phase"], step["epoch"]) for step in side.intermediate] == [("search", epoch) for epoch in range(3)]
    assert side.final == [
        {
            "default": row["accuracy"],
            "latency_ms": row["latency_ms"],
            "table_ms": row["table_ms"],
            "target_ms": 6.0,
        }
    ]


def test_a_search_of_another_cost_reports_that_cost() -> None:
    row = {"accuracy": 0.9, "cost": "macs", "target_cost": 2.0, "subnet_cost": 1.9}
    none: dict[str, Any] = {"latency_ms": None, "table_ms": None, "target_ms": None}
    assert trial._final_metrics({**row, **none}) == {"default": 0.9, "target_cost": 2.0, "subnet_cost": 1.9}


def test_what_json_lacks_is_reported_as_none(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = as_trial(monkeypatch, {})
    run_trial(config)
    assert [step["loss"] for step in side.intermediate] == [None] * 3
    json.dumps(side.intermediate, allow_nan=False)


def test_a_trial_without_retraining_is_refused_before_it_searches(
    search: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("{rule: gradient, target: 0.3, out: runs, retrain: null}")
    side = as_trial(monkeypatch, {})
    monkeypatch.setattr(search, "run_search", lambda *_, **__: pytest.fail("it searched"))
    with pytest.raises(ConfigError, match=r"search.yml has `retrain: null`, but NNI ranks trials by"):
        run_trial(config)
    assert side.final == []


def test_numbers_of_other_libraries_become_plain() -> None:
    number = SimpleNamespace(item=lambda: 0.5)
    assert trial._plain({"a": number, "b": Path("c"), "d": "e", "f": 1}) == {"a": 0.5, "b": "c", "d": "e", "f": 1}


def test_the_folder_of_the_experiment_replaces_the_config(
    search: Any, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_trial(monkeypatch, {})
    monkeypatch.setenv(OUT_VARIABLE, str(tmp_path / "elsewhere"))
    run_trial(config)
    assert (tmp_path / "elsewhere" / "abcde" / "result.json").exists()


def test_other_ranks_neither_ask_nor_report(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = as_trial(monkeypatch, {"target": 0.6})
    run_search = search.run_search

    def with_a_second_rank(loaded: Any, *, on_epoch: Any) -> Any:
        if on_epoch is not None:
            assert json.loads(os.environ[PARAMETERS_VARIABLE])["parameters"] == {"target": 0.6}
            monkeypatch.setenv("LOCAL_RANK", "1")
            assert run_trial(config)["target_ms"] == 6.0
            monkeypatch.delenv("LOCAL_RANK")
        return run_search(loaded, on_epoch=on_epoch)

    monkeypatch.setattr(search, "run_search", with_a_second_rank)
    run_trial(config)
    assert (side.asked, len(side.intermediate), len(side.final)) == (1, 3, 1)
    assert PARAMETERS_VARIABLE not in os.environ


def test_parameters_of_another_trial_are_not_taken(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = as_trial(monkeypatch, {"target": 0.6})
    monkeypatch.setenv(PARAMETERS_VARIABLE, json.dumps({"trial": "other", "parameters": {"target": 0.1}}))
    assert run_trial(config)["target_ms"] == 6.0
    assert side.asked == 1


def test_a_rank_that_its_launcher_did_not_start_is_refused(
    search: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = as_trial(monkeypatch, {})
    for name, value in torchrun(1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ExperimentError, match=r"rank 1 of trial abcde .* search\.devices"):
        run_trial(config)
    assert side.asked == 0


def test_a_tuner_without_parameters_is_told(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_trial(monkeypatch, None)
    with pytest.raises(ExperimentError, match="no parameters for trial abcde; lower maxTrialNumber"):
        run_trial(config)


def test_a_trial_without_an_accuracy_is_a_failure(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = as_trial(monkeypatch, {})
    monkeypatch.setitem(search.RULES, "gradient", float("nan"))
    with pytest.raises(ExperimentError, match="trial abcde has no finite test accuracy"):
        run_trial(config)
    assert side.final == []
    assert not (config.parent / "runs" / "abcde" / RESULT).exists(), "it would pass for a finished trial"


def test_reports_that_fail_do_not_fail_the_trial(
    search: Any, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_trial(monkeypatch, {})
    result = config.parent / "runs" / "abcde" / RESULT

    def broken(metrics: dict[str, Any]) -> None:
        assert "latency_ms" not in metrics or result.exists(), "the result is on disk before it is reported"
        raise ConnectionResetError(104, "Connection reset by peer")

    for name in ("report_intermediate_result", "report_final_result"):
        monkeypatch.setattr(nni, name, broken)
    for name in ("INTERMEDIATE_SECONDS", "FINAL_SECONDS"):
        monkeypatch.setattr(reporting, name, 0.2)
    assert main([str(config)]) == 0
    assert json.loads(result.read_text())["accuracy"] == 0.3
    error = capsys.readouterr().err
    assert error.count("did not take an intermediate result") == 1
    assert "did not take the final result (ConnectionResetError" in error


def test_a_trial_is_started_without_nni(search: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = {"trial": "abcde", "parameters": {"rule": "reinforce", "target": 0.6}, "restarts": 2}
    monkeypatch.setattr(nni, "get_trial_id", lambda: "abcde")
    monkeypatch.setattr(nni, "get_next_parameter", lambda: pytest.fail("it asked NNI"))
    monkeypatch.setenv(START_VARIABLE, json.dumps(handed))
    monkeypatch.setenv(OUT_VARIABLE, str(config.parent / "out"))
    row = run_trial(config)
    assert (row["trial"], row["rule"], row["target_ms"], row["restarts"]) == ("abcde", "reinforce", 6.0, 2)
    assert json.loads((config.parent / "out" / "abcde" / RESULT).read_text()) == row
    monkeypatch.setenv(START_VARIABLE, json.dumps({**handed, "trial": "other"}))
    as_trial(monkeypatch, {})
    assert run_trial(config)["restarts"] == 0, "what another trial was started with is not its own"


@pytest.mark.parametrize("refused", [True, False])
def test_a_trial_of_an_experiment_notes_how_it_starts_and_fails(
    search: Any, config: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    as_trial(monkeypatch, {"rule": "reinforce"})
    monkeypatch.setenv(OUT_VARIABLE, str(config.parent / "out"))
    monkeypatch.setenv(EXPERIMENT_VARIABLE, "mark")
    monkeypatch.setenv("FAKE_REFUSED_RULE" if refused else "FAKE_FAILING_RULE", "reinforce")
    with pytest.raises(TargetError if refused else RuntimeError):
        run_trial(config)
    (ended,) = read_trials(config.parent / "out", "mark")
    assert (ended.name, ended.parameters, ended.refused) == ("abcde", {"rule": "reinforce"}, refused)
    assert ended.failure == (
        "target 0.3 is refused; choose another" if refused else "RuntimeError: the fake search failed as it was told to"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rul: gradient}", "unknown key 'rul'"),
        ("{rule: gradiend}", "rule = 'gradiend'"),
        ("{rule: reinforce, target: 0.3}", "target 0.3 is refused; choose another"),
    ],
)
def test_a_bad_setting_is_one_sentence_and_status_2(
    search: Any,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    monkeypatch.setenv("FAKE_REFUSED_RULE", "reinforce")
    config.write_text(text)
    assert main([str(config)]) == 2
    output, error = capsys.readouterr()
    assert message in error
    assert len(error.splitlines()) == 1
    assert output == ""


def test_a_trial_is_a_module_that_python_runs(config: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "proxyless_strategy.trial", str(config)],
        env={
            **os.environ,
            "HOME": str(config.parent),
            "FAKE_SEARCH": "1",
            "PYTHONPATH": str(Path(__file__).parent / "runs" / "fake_search"),
        },
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert (config.parent / "runs" / "result.json").exists()


def test_paths_in_a_config_count_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "a.yml").write_text("{out: ../runs, hardware: {table: t.yaml}, data: {root: /images}}")
    monkeypatch.chdir(tmp_path)
    for path in ("examples/a.yml", folder / "a.yml"):
        config = load_config(path)
        assert config.out == tmp_path / "runs"
        assert config.hardware.table == folder / "t.yaml"
        assert config.data.root == Path("/images")


def test_paths_in_overrides_and_defaults_count_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "a.yml").write_text("{hardware: {table: t.yaml}}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    overrides = {"hardware.table": "u.yaml", "data": {"name": "imagefolder", "root": "~/images"}}
    config = load_config(folder / "a.yml", overrides)
    assert config.out == tmp_path / "runs" / "search"
    assert config.hardware.table == tmp_path / "u.yaml"
    assert config.data.root == Path("/home/someone/images")
    assert load_config(folder / "a.yml").data.root is None


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the search config"):
        load_config(tmp_path / "none.yml")


@pytest.mark.parametrize(
    "first",
    [
        "from proxyless_strategy import ProxylessStrategy",
        pytest.param("from search_spaces import get_space", marks=pytest.mark.slow),
        pytest.param("from proxyless_strategy.strategy.proxyless import ProxylessStrategy", marks=pytest.mark.slow),
        pytest.param("import proxyless_strategy.strategy.module", marks=pytest.mark.slow),
        pytest.param("import proxyless_strategy.strategy.supernet.layers", marks=pytest.mark.slow),
    ],
)
def test_nnis_own_strategies_work_beside_ours(first: str) -> None:
    program = f"{first}\nfrom nni.nas.strategy import Proxyless\nassert hasattr(Proxyless, 'mutate_model')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_nni_is_imported_without_its_two_false_alarms() -> None:
    program = (
        "import warnings; warnings.simplefilter('always')\n"
        "from search_spaces.nni_import import import_nni; import_nni()\n"
        "warnings.warn('another', RuntimeWarning)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "is found to be not a nn.Module" not in finished.stderr
    assert "RuntimeWarning: another" in finished.stderr


def test_only_the_two_false_alarms_are_silenced() -> None:
    assert len(FALSE_ALARMS) == 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trial.silence_false_alarms()
        for name in ("parameter.Buffer", "modules.linear_cross_entropy_options.LinearCrossEntropyOptions", "New"):
            warnings.warn(f"<class 'torch.nn.{name}'> is found to be not a nn.Module, which", RuntimeWarning)
    assert [str(warning.message) for warning in caught] == [
        "<class 'torch.nn.New'> is found to be not a nn.Module, which"
    ]
