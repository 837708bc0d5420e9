"""What runs a sweep's trials: which engine, what it refuses, which trials it draws; Ray itself is not needed."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import nni
import pytest
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from nni.algorithms.hpo.random_tuner import RandomTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from rich.console import Console

from hardware.errors import ConfigError, ExperimentError
from proxyless_strategy.layout import PARAMETERS_FILE
from proxyless_strategy.runs import ray_events, ray_session
from proxyless_strategy.runs.engines import choose_engine
from proxyless_strategy.runs.leash import LEASH_VARIABLE, leash
from proxyless_strategy.runs.nni_engine import NniEngine
from proxyless_strategy.runs.ray_engine import RayEngine
from proxyless_strategy.runs.ray_events import Events, failure_in
from proxyless_strategy.runs.ray_session import _is_loopback
from proxyless_strategy.runs.reporting import FileReports
from proxyless_strategy.runs.shares import Node, places, share_of
from proxyless_strategy.runs.sweep import Sweep, read_sweep
from proxyless_strategy.runs.trials import Record, Trial, read_end
from proxyless_strategy.runs.tuners import Drawn, Listed

from .test_experiment import Sandbox
from .test_resume import row_of

CHOICES = {
    "rule": {"_type": "choice", "_value": ["gradient", "reinforce"]},
    "target": {"_type": "choice", "_value": [0.3, 0.4, 0.5]},
}
NUMBERS = {
    "rule": {"_type": "choice", "_value": ["gradient", "reinforce"]},
    "target": {"_type": "uniform", "_value": [0.2, 0.6]},
    "search.epochs": {"_type": "randint", "_value": [4, 40]},
    "search.batch_size": {"_type": "quniform", "_value": [32, 256, 32]},
    "search.learning_rate": {"_type": "loguniform", "_value": [0.001, 0.1]},
    "retrain.epochs": {"_type": "qloguniform", "_value": [2, 64, 2]},
    "seed": {"_type": "qnormal", "_value": [100, 10, 1]},
}


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def sweep_of(sandbox: Sandbox, **changes: Any) -> Sweep:
    return read_sweep(sandbox.write(maxTrialNumber=None, **changes))


def finished(trial: Trial, accuracy: float) -> Trial:
    row = {**row_of(trial.name, {"rule": "gradient"}), "accuracy": accuracy}
    return Trial(trial.name, trial.parameters, trial.number, trial.restarts, row)


# ---- which engine ----------------------------------------------------------------------------------------------


def test_nni_is_the_engine_unless_told_otherwise() -> None:
    assert choose_engine("nni", port=9000) == NniEngine(9000)
    assert choose_engine("ray", address="auto") == RayEngine("auto")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kubeflow", {}, "--engine kubeflow is no engine; give nni or ray"),
        ("nni", {"address": "auto"}, "--address auto is a Ray cluster's; give --engine ray, or leave it out"),
        ("ray", {"port": 8080}, "--port 8080 is of NNI's web page, which --engine ray has not; leave it out"),
    ],
)
def test_what_an_engine_does_not_have_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        choose_engine(name, **options)


def test_without_ray_one_sentence_says_how_to_get_it(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None if name in ("ray", "pyarrow") else object())
    message = "--engine ray needs ray and pyarrow, which are not installed; install it with `pip install 'proxyless-st"
    with pytest.raises(ConfigError, match=message):
        RayEngine().check(sweep_of(sandbox))


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused does not depend on whether Ray is here."""
    monkeypatch.setattr(ray_session, "find_spec", lambda name: object())


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"assessor": {"name": "Medianstop"}},
            "assessor cannot be had on Ray; leave it out, or run the sweep under NNI",
        ),
        (
            {"maxTrialDuration": "1h", "trainingService": {"platform": "local", "gpuIndices": [1]}},
            "maxTrialDuration, trainingService.gpuIndices cannot be had on Ray; leave them out",
        ),
        (
            {"tuner": {"name": "Hyperband"}},
            "the tuner 'Hyperband' runs under NNI alone; on Ray there are GridSearch, R",
        ),
        ({"tuner": None}, "tuner is None; give its name"),
        (
            {"searchSpace": {"seed": {"_type": "zipf", "_value": [1]}}},
            "searchSpace is none of NNI's: ValueError: .*zipf",
        ),
        ({"trialGpuNumber": "two"}, "trialGpuNumber is 'two'; give a whole number from 0 on"),
        ({"trialConcurrency": 0}, "trialConcurrency is 0; give a whole number from 1 on"),
        ({"trialGpuNumber": -1}, "trialGpuNumber is -1; give a whole number"),
        (
            {"trialGpuNumber": 2, "trainingService": {"platform": "local", "maxTrialNumberPerGpu": 2}},
            "on Ray 2 trials can share a GPU .* but trialGpuNumber is 2; lower one of them to 1",
        ),
    ],
)
def test_what_ray_cannot_do_is_refused_by_name(sandbox: Sandbox, changes: dict[str, Any], message: str) -> None:
    sweep = sweep_of(sandbox, **changes)
    with pytest.raises(ConfigError, match=message):
        RayEngine().check(sweep)


@pytest.mark.usefixtures("with_ray")
def test_a_client_of_ray_follows_no_trials(sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match=r"--address ray://head:10001 is of Ray's client, .* with --address auto"):
        RayEngine("ray://head:10001").check(sweep_of(sandbox))


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize("name", ["quickstart", "fashion_mnist", "cifar10", "imagenet"])
def test_every_sweep_that_ships_runs_on_ray(name: str) -> None:
    RayEngine().check(read_sweep(Path(__file__).parents[3] / "examples" / f"{name}.yml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("127.0.0.1", "::1", "::ffff:127.0.0.1")),
        *((text, False) for text in ("::", "0.0.0.0", "192.0.2.2", "::ffff:192.0.2.2", "fe80::1%eth0")),
    ],
)
def test_loopback_is_told_from_other_addresses(text: str, expected: bool) -> None:
    assert _is_loopback(text) is expected


# ---- a trial's share of a cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "trials", "gpus", "share"),
    [
        ([Node(16, 0)], 1, 0, 16),
        ([Node(16, 0)], 4, 0, 4),
        ([Node(2, 0)], 4, 0, 0.5),
        ([Node(16, 0), Node(16, 0)], 2, 0, 16),  # one on each
        ([Node(16, 0), Node(16, 0)], 3, 0, 8),
        ([Node(4, 0), Node(64, 0)], 2, 0, 4),  # what is left still has room when the larger one is lost
        ([Node(16, 8)], 8, 1, 2),
        ([Node(16, 4)], 8, 1, 4),  # no more than four at a time, whatever was asked for
        ([Node(16, 4)], 8, 0.5, 2),
        ([Node(16, 4), Node(64, 0)], 2, 2, 8),  # without GPUs no trial goes there
        ([Node(10, 0)], 3, 0, 10 / 3),
        ([Node(16, 1)], 1, 2, None),
        ([Node(0, 8)], 1, 1, None),
        ([], 1, 0, None),
    ],
)
def test_trials_side_by_side_share_the_processors(
    nodes: list[Node], trials: int, gpus: float, share: float | None
) -> None:
    assert share_of(nodes, trials, gpus) == share


def test_the_share_is_the_largest_with_which_all_find_room() -> None:
    """By trying every share in steps of a sixtieth, in exact fractions."""
    for cpus, trials in itertools.product(itertools.product(range(1, 6), repeat=2), range(1, 6)):
        nodes = [Node(each, 0) for each in cpus]
        shares = [Fraction(step, 60) for step in range(1, 60 * min(cpus) + 1)]
        best = max(share for share in shares if sum(each // share for each in cpus) >= trials)
        found = share_of(nodes, trials, 0)
        assert found == pytest.approx(float(best)), (cpus, trials)
        assert sum(places(node, found, 0) for node in nodes) >= trials


# ---- trials of a tuner -----------------------------------------------------------------------------------------


def drawn(source: Drawn, most: int = 100) -> list[Trial]:
    found = itertools.islice(iter(source.next, None), most)
    return [trial for trial in found if trial is not None]


def test_a_grid_is_every_combination_once(sandbox: Sandbox) -> None:
    trials = drawn(Drawn(sweep_of(sandbox, searchSpace=CHOICES), "mark"))
    assert [trial.number for trial in trials] == list(range(6))
    points = [tuple(trial.parameters.values()) for trial in trials]
    assert sorted(points) == sorted(itertools.product(["gradient", "reinforce"], [0.3, 0.4, 0.5]))
    assert len({trial.name for trial in trials}) == 6


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("GridSearch", None, GridSearchTuner),
        ("random", {"seed": 5}, RandomTuner),
        ("TPE", {"seed": 5, "optimize_mode": "maximize", "tpe_args": {"n_startup_jobs": 3}}, TpeTuner),
    ],
)
def test_trials_are_those_that_nni_draws(
    sandbox: Sandbox, name: str, arguments: dict[str, Any] | None, make: Callable[..., Any]
) -> None:
    tuner = {"name": name, **({"classArgs": arguments} if arguments else {})}
    sweep = sweep_of(sandbox, searchSpace=NUMBERS, tuner=tuner)
    source = Drawn(sweep, "mark")
    reference = make(**(arguments or {}))
    reference.update_search_space(sweep.space)
    for number in range(12):
        trial = source.next()
        assert trial is not None
        expected = reference.generate_parameters(number)
        assert trial.parameters == json.loads(nni.dump(expected))
        assert json.loads(json.dumps(trial.parameters)) == trial.parameters, "NumPy's numbers are no settings"
        accuracy = trial.parameters["target"]
        reference.receive_trial_result(number, expected, {"default": accuracy})
        reference.trial_end(number, True)
        source.tell(finished(trial, accuracy))


@pytest.mark.parametrize("name", ["GridSearch", "Random", "TPE"])
def test_what_was_begun_is_not_drawn_again(sandbox: Sandbox, name: str) -> None:
    arguments = {} if name == "GridSearch" else {"classArgs": {"seed": 3}}
    sweep = sweep_of(sandbox, searchSpace=CHOICES, tuner={"name": name, **arguments})
    whole = drawn(Drawn(sweep, "mark"), 6)
    earlier: Sequence[Trial] = [finished(whole[0], 0.9), whole[1]]
    rest = drawn(Drawn(sweep, "mark", earlier), 4)
    points = [tuple(trial.parameters.values()) for trial in (*earlier, *rest)]
    assert sorted(points) == sorted(itertools.product(["gradient", "reinforce"], [0.3, 0.4, 0.5]))
    assert [trial.number for trial in rest] == [2, 3, 4, 5]


TUNER = """
import json, os
from nni.tuner import Tuner

class Noting(Tuner):
    def __init__(self, fails=False):
        self.fails, self.notes = fails, open(os.path.join(os.path.dirname(__file__), "notes"), "a")
        self.note(os.environ["PROXYLESS_EXPERIMENT"])
    def note(self, *what):
        self.notes.write(json.dumps(what) + "\\n")
        self.notes.flush()
    def update_search_space(self, space):
        self.note(sorted(space))
    def import_data(self, data):
        self.note(data)
    def generate_parameters(self, number, **_):
        if self.fails:
            raise ValueError("broken on purpose")
        return {"target": 0.3 + number / 10}
    def receive_trial_result(self, number, parameters, value, **_):
        self.note(number, parameters, value)
    def trial_end(self, number, success, **_):
        self.note(number, success)
"""


def test_a_tuner_of_ones_own_learns_how_each_trial_has_ended(sandbox: Sandbox) -> None:
    (sandbox.folder / "noting.py").write_text(TUNER)
    sweep = sweep_of(sandbox, searchSpace=CHOICES, tuner={"className": "noting.Noting", "codeDirectory": "."})
    earlier = finished(Trial("old", {"target": 0.9}), 0.7)
    source = Drawn(sweep, "the mark", [earlier])
    first, second = (source.next() for _ in range(2))
    assert first is not None
    assert second is not None
    source.tell(finished(second, 0.8))
    source.tell(first)
    assert [json.loads(line) for line in (sandbox.folder / "notes").read_text().splitlines()] == [
        ["the mark"],
        [["rule", "target"]],
        [[{"parameter": {"target": 0.9}, "value": 0.7}]],
        [1, {"target": 0.4}, {"default": 0.8}],
        [1, True],
        [0, False],
    ]
    assert "PROXYLESS_EXPERIMENT" not in os.environ, "whatever has it is ended with the experiment's trials"


def test_a_tuner_that_fails_is_named(sandbox: Sandbox) -> None:
    (sandbox.folder / "noting.py").write_text(TUNER)
    tuner = {"className": "noting.Noting", "codeDirectory": ".", "classArgs": {"fails": True}}
    source = Drawn(sweep_of(sandbox, searchSpace=CHOICES, tuner=tuner), "mark")
    with pytest.raises(
        ExperimentError, match=r"the tuner of .*experiment.yml failed: ValueError: broken on purpose; men"
    ):
        source.next()
    wrong = sweep_of(sandbox, tuner={"name": "TPE", "classArgs": {"speed": 1}})
    with pytest.raises(
        ConfigError, match=r"experiment.yml: cannot make its tuner \(TypeError: .*'speed'.*\); mend `tuner`"
    ):
        Drawn(wrong, "mark")


def test_known_trials_come_in_their_order() -> None:
    trials = [Trial("a", {"seed": 1}), Trial("b", {"seed": 2})]
    source = Listed(trials)
    assert [source.next() for _ in range(3)] == [*trials, None]


# ---- what happens to trials ------------------------------------------------------------------------------------


def events_of(sandbox: Sandbox, nodes: list[Node]) -> tuple[Events, io.StringIO]:
    page = io.StringIO()
    record = Record("mark", {})
    events = Events(sweep_of(sandbox), record, Console(file=page, width=300), lambda: nodes, Node(4, 1))
    return events, page


def test_trials_that_no_node_can_take_are_told_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_events, "_WAITING_SECONDS", 0.0)
    nodes = [Node(4, 1)]
    events, page = events_of(sandbox, nodes)
    events.goes_on(running=0, pending=1)
    events.goes_on(running=0, pending=1)
    assert page.getvalue() == "", "there is a node, and Ray takes its time"
    nodes[:] = [Node(8, 0)]
    events.goes_on(running=1, pending=1)
    for _ in range(3):
        events.goes_on(running=0, pending=1)
    assert page.getvalue().count("no node of the Ray cluster has 4 processors and 1 GPUs any more") == 1


def test_a_start_that_left_nothing_behind_is_noted_for_the_trial(sandbox: Sandbox) -> None:
    events, page = events_of(sandbox, [])
    settings = {"name": "abcde", "parameters": {"rule": "gradient"}, "number": 0, "restarts": 0}
    events.fails(
        settings, "Failure # 1 (occurred at noon)\nThe actor is unavailable: its node is dead.\n\tname: trial\n"
    )
    assert (sandbox.out / "abcde" / PARAMETERS_FILE).exists()
    trial = read_end(sandbox.out, Trial("abcde", {"rule": "gradient"}))
    assert (trial.failure, trial.refused) == ("ExperimentError: The actor is unavailable: its node is dead.", False)
    assert "trial 1 abcde (rule gradient): The actor is unavailable: its node is dead.\n" in page.getvalue()
    events.fails(settings, "")
    assert read_end(sandbox.out, trial) == trial, "what is known of a failure is kept"


def test_the_reason_is_what_the_trial_has_said() -> None:
    first = "Failure # 1 (occurred at noon)\nhardware.errors.ExperimentError: it ended with exit status 1\n"
    second = 'Failure # 2 (occurred at one)\n  File "x.py", line 1, in x\n    raise\nModuleNotFoundError: no module\n'
    assert failure_in(first) == "it ended with exit status 1"
    assert failure_in(first + second) == "ModuleNotFoundError: no module"
    assert failure_in("").startswith("it ended without a word")


def test_each_start_says_which_one_it_is(sandbox: Sandbox) -> None:
    events, page = events_of(sandbox, [])
    fresh = {"name": "abcde", "parameters": {}, "number": 0, "restarts": 0}
    for settings in (fresh, fresh, {**fresh, "name": "fghij", "restarts": 3}):
        events.starts(settings)
    told = [line.rpartition(": ")[2] for line in page.getvalue().splitlines()]
    assert told == ["started", "started again, restart 1", "started again, restart 3"]


def test_epochs_are_in_a_file_for_whoever_started_the_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = FileReports(tmp_path / "trial" / "reports.json")
    for epoch in range(3):
        reports.intermediate({"epoch": epoch, "loss": None})
        assert json.loads((tmp_path / "trial" / "reports.json").read_text())[-1] == {"epoch": epoch, "loss": None}
    assert len(json.loads((tmp_path / "trial" / "reports.json").read_text())) == 3
    (tmp_path / "file").touch()
    lost = FileReports(tmp_path / "file" / "reports.json")
    lost.intermediate({})
    lost.intermediate({})
    assert capsys.readouterr().err.count("the trial goes on without reporting its epochs") == 1


def test_a_trial_does_not_outlive_the_process_that_follows_it(tmp_path: Path) -> None:
    held = "import time; from proxyless_strategy.runs import leash; leash.hold(); print(1, flush=True); time.sleep(100)"
    starter = "import os, subprocess, sys, time\nfrom proxyless_strategy.runs.leash import LEASH_VARIABLE, leash\n"
    starter += f"child = subprocess.Popen([sys.executable, '-c', {held!r}], start_new_session=True,\n"
    starter += "    env={**os.environ, LEASH_VARIABLE: leash()}, stdout=subprocess.PIPE)\n"
    starter += "child.stdout.readline(); print(child.pid, flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(1)
        os.kill(pid, 0)
        parent.kill()
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        time.sleep(0.1)


def test_a_process_number_that_another_one_has_got_is_not_waited_for() -> None:
    pid, started = leash().split()
    program = "import time; from proxyless_strategy.runs import leash; leash.hold(); time.sleep(100)"
    environment = {**os.environ, LEASH_VARIABLE: f"{pid} {float(started) - 100}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert done.returncode == -signal.SIGTERM


def test_an_exit_by_a_signal_keeps_its_status_through_rays_c_code() -> None:
    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    def as_ray_does() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            raise SystemExit(1) from None

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match=r"^143$"), ray_session._status_kept():
            as_ray_does()
        assert signal.getsignal(signal.SIGTERM) is leave
        with pytest.raises(SystemExit, match=r"^7$"), ray_session._status_kept():
            sys.exit(7)
    finally:
        signal.signal(signal.SIGTERM, before)
