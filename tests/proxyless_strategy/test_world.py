"""Which processes a run is made of: the settings decide, and a launcher that has really started this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from hardware.errors import ConfigError
from proxyless_strategy.runs.placement import placed
from proxyless_strategy.world import LAUNCHED_BY, World, current, entered, find_world, is_first
from tests.proxyless_strategy.environments import KUBEFLOW, LEFT, step, torchrun, without
from tests.proxyless_strategy.runs.test_early_checks import settings

ROOT = Path(__file__).parents[2]


def environment(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name in os.environ.keys() - without(os.environ).keys():
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("left", LEFT)
def test_a_run_that_was_started_as_one_process_is_one(left: str) -> None:
    world = find_world(environ=LEFT[left])
    assert (world.size, world.first, world.launched) == (1, True, False)
    if left != "a rank alone" and left != "salloc in a step of its own":
        assert (
            "one process, as search.devices = 1 and search.nodes = 1 say; what the environment holds of"
            in world.sentence()
        )


def test_nothing_is_said_where_the_environment_says_nothing() -> None:
    assert find_world(environ={}) == World()
    assert find_world(environ=step(0, size=1, nodes=1)).note is None


@pytest.mark.parametrize("left", LEFT)
def test_lightning_follows_no_leftovers(left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, LEFT[left])
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as its import sets it by some of these variables
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **placed(find_world()))
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert (trainer.world_size, trainer.global_rank, rank_zero_only.rank) == (1, 0, 0)


@pytest.mark.parametrize("left", [name for name in LEFT if name != "srun of another program"])
def test_leftovers_do_not_keep_the_first_process_from_starting_the_others(left: str) -> None:
    variables = {**LEFT[left], "SLURM_TASK_PID": "1"}
    if left in ("Open MPI", "MPICH", "LSF"):
        with pytest.raises(ConfigError, match=r"has started 2 processes, .* cannot be joined; start it by torchrun or"):
            find_world(2, environ=variables)
        return
    world = find_world(2, environ=variables)
    assert (world.size, world.local_size, world.rank, world.launcher) == (2, 2, 0, "here")


def test_processes_of_mpirun_that_a_parent_was_given_are_not_this_ones() -> None:
    """Also of torchrun: what it has started has this program as its child."""
    program = (
        "import sys; from proxyless_strategy.world import find_world\n"
        "print(find_world(int(sys.argv[1])).launcher, find_world().launcher)"
    )
    inner = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {program!r}, '2']))"
    for variables, found in ((LEFT["Open MPI"], "here none"), (torchrun(1, size=4, nodes=2), "here none")):
        done = subprocess.run(
            [sys.executable, "-c", inner],
            env=without(os.environ) | dict(variables),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == found, done.stderr


@pytest.mark.parametrize(
    ("variables", "asked", "expected"),
    [
        (torchrun(1), (1, 2), World(2, 1, 1, 0, 2, "torchrun", "127.0.0.1", 29400)),
        (torchrun(1, nodes=1), (2, 1), World(2, 1, 2, 1, 1, "torchrun", "127.0.0.1", 29400)),
        (torchrun(5, size=8), (4, 2), World(8, 5, 4, 1, 2, "torchrun", "127.0.0.1", 29400)),
        (step(1), (1, 2), World(2, 1, 1, 0, 2, "srun", "node03", 15000 + 4711)),
        (step(5, size=8), (4, 2), World(8, 5, 4, 1, 2, "srun", "node03", 15000 + 4711)),
        (step(0, nodes=1, MASTER_PORT="29777"), (2, 1), World(2, 0, 2, 0, 1, "srun", "node03", 29777)),
        (step(0, SLURM_STEP_ID="1"), (1, 2), World(2, 0, 1, 0, 2, "srun", "node03", 15000 + 4711 + 4999)),
        (KUBEFLOW, (1, 2), World(2, 1, 1, 0, 2, "variables", "job-master-0", 23456)),
        # torchrun's agents are tasks of srun
        (step(1, size=2) | torchrun(3, size=4), (2, 2), World(4, 3, 2, 1, 2, "torchrun", "127.0.0.1", 29400)),
    ],
)
def test_a_launchers_processes_are_joined_where_the_settings_ask_for_as_many(
    variables: Mapping[str, str], asked: tuple[int, int], expected: World
) -> None:
    assert find_world(*asked, environ=variables) == expected
    assert expected.launched


@pytest.mark.parametrize(
    ("variables", "asked", "message"),
    [
        ({}, (2, 2), r"nodes = 2, but no launcher has started 4 processes; start it on every host by `torchrun --nn"),
        (torchrun(0), (1, 1), r"torchrun has started 2 processes, .* set search.devices = 1 and search.nodes = 2"),
        (torchrun(0), (2, 2), r"torchrun has started 2 processes, but .* ask for 4; let them be the same"),
        (torchrun(0, nodes=1), (1, 2), r"started processes on hosts as 2 on each of 1, .* start 1 on each of 2"),
        (step(0), (2, 2), r"srun has started 2 processes, but .* ask for 4"),
        (step(0), (2, 1), r"srun has started processes on hosts as 1 on each of 2"),
        (step(0, MASTER_PORT="any"), (1, 2), "MASTER_PORT is no number; set it to a free port"),
        (torchrun(2), (1, 2), "no launcher has started 2 processes"),
        (KUBEFLOW | {"RANK": "2"}, (1, 2), "no launcher has started 2 processes"),
        (KUBEFLOW | {"LOCAL_WORLD_SIZE": "0", "LOCAL_RANK": "0"}, (1, 2), "no launcher has started 2 processes"),
        (step(0, size=4, SLURM_STEP_TASKS_PER_NODE="3,1"), (2, 2), r"on hosts as 3,1, but search.devices = 2"),
    ],
)
def test_a_launcher_of_other_processes_is_refused(
    variables: Mapping[str, str], asked: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_world(*asked, environ=variables)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node[03-04,7],gpu1", "node03"),
        ("a,b", "a"),
        ("n[1-3]-ib", "n1-ib"),
        ("alone", "alone"),
        ("r[01]n[5-6]", "r01n5"),
    ],
)
def test_tasks_meet_on_the_first_host_of_their_step(hosts: str, first: str) -> None:
    assert find_world(1, 2, environ=step(0, SLURM_STEP_NODELIST=hosts)).address == first


def test_a_process_knows_itself_by_the_one_that_has_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {"SLURM_NTASKS": "1"})
    with entered(find_world(2)) as first:
        assert first.first
        assert os.environ[LAUNCHED_BY] == str(os.getpid())
        started = {LAUNCHED_BY: str(os.getppid()), "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}
        second = find_world(2, environ=started)
        assert (second.rank, second.size, second.port, second.launched) == (1, 2, 29500, False)
        with pytest.raises(ConfigError, match="has started 2 in all, but the settings ask for 4"):
            find_world(4, environ=started)
        with entered(second):
            assert (is_first(), current()) == (False, second)
        os.environ["WORLD_SIZE"] = "2"  # as Lightning does
        assert find_world(2, environ={**started, LAUNCHED_BY: str(os.getpid())}).first
    assert not {LAUNCHED_BY, "WORLD_SIZE"} & os.environ.keys()
    assert (is_first(), current()) == (True, World())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("left", [*LEFT, "all of them"])
def test_a_search_in_such_an_environment(left: str, tmp_path: Path) -> None:
    """It ends with all of its files, which another rank than the first would not write."""
    variables = LEFT.get(left) or {name: value for values in LEFT.values() for name, value in values.items()}
    values = settings(tmp_path / "run", **{"hardware.device": "other", "loggers": ["csv"], "retrain.epochs": 1})
    path = tmp_path / "search.yml"
    path.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.trial", str(path)],
        env={**without(os.environ), **variables, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"] > 0
    assert list((tmp_path / "run" / "csv").rglob("*.csv"))
