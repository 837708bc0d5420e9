"""A search on two processes (gloo, on the CPU): `python -m tests.proxyless_strategy.strategy.test_ddp FOLDER` is one.

Lightning starts the second process by running this module again; each writes what it saw to FOLDER.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from nni.nas.evaluator.pytorch import DataLoader, Lightning, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from proxyless_strategy.strategy import module as search_module
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from search_spaces import get_space
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.runs.test_search import SPACE
from tests.proxyless_strategy.sockets import listening
from tests.proxyless_strategy.tiny import StopAt, Stopped

WORLD = 2
BATCH = 16
RULES = {
    "paper": {},
    "unbiased": {"estimator": "unbiased"},
    "all": {"paths": "all"},
    "reinforce": {"rule": "reinforce", "samples": 3},
}
NORMS = ("none", "frozen")


class Recorder(tiny.Module):
    """Keeps the gradients of every weight step; freezes batch norms on request."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen
        self.gradients, self.validated = [], []

    def training_step(self, batch, batch_idx):
        if self.frozen:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        named = self.model.named_parameters()
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in named})

    def on_validation_start(self):
        self.validated.append({name: value.clone() for name, value in self.model.state_dict().items()})


def search(*, devices, norm="batch", shuffle=True, epochs=3, ckpt_path=None, callbacks=(), counts=None, **options):
    """One search; returns what can be compared between processes."""
    options = {"cost": tiny.costs(), "target": 8.0, "warmup_epochs": 1, "steps_per_update": 2, **options}
    torch.manual_seed(0)
    space = tiny.TinySpace(norm=norm != "none")
    module = Recorder(frozen=norm == "frozen")
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true" if norm in NORMS else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
    )
    evaluator = Lightning(
        module,
        trainer,
        train_dataloaders=DataLoader(tiny.data(), batch_size=BATCH // devices, shuffle=shuffle),
        val_dataloaders=DataLoader(tiny.data(64, seed=1), batch_size=BATCH // devices, shuffle=shuffle),
    )
    strategy = ProxylessStrategy(**options)
    paths, outcomes = [], []
    with watched(paths, outcomes, counts):
        strategy.search(space, evaluator, ckpt_path=ckpt_path)
    return {
        "paths": paths,
        "outcomes": outcomes,
        "gradients": module.gradients,
        "validated": module.validated,
        "weights": {name: value.clone() for name, value in space.named_parameters()},
        "alpha": strategy.architecture.alpha.detach().clone(),
        "export": strategy.export(),
        "finalists": strategy.searched.finalists,
        "counters": dict(strategy.searched.counters),
    }


@contextlib.contextmanager
def watched(paths, outcomes, counts):
    """Record drawn paths, alpha's gradients and, where `counts` is a list, the size of every all-reduce."""
    draw, apply, reduce = (
        search_module.SearchModule.draw_paths,
        search_module.apply_outcome,
        torch.distributed.all_reduce,
    )

    def drawn(self):
        paths.append(draw(self))
        return paths[-1]

    def applied(architecture, optimizer, outcome):
        outcomes.append(outcome.gradient.clone())
        return apply(architecture, optimizer, outcome)

    def reduced(tensor, *args, **kwargs):
        if counts is not None:
            counts.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    search_module.SearchModule.draw_paths = drawn
    search_module.apply_outcome = applied
    torch.distributed.all_reduce = reduced
    try:
        yield
    finally:
        search_module.SearchModule.draw_paths = draw
        search_module.apply_outcome = apply
        torch.distributed.all_reduce = reduce


def worker(folder):
    """Run every case on this process and save what it saw."""
    found = {}
    for norm in NORMS:
        for rule, options in RULES.items():
            counts = []
            found[norm, rule] = search(devices=WORLD, norm=norm, shuffle=False, counts=counts, **options)
            found[norm, rule]["reduced"] = counts
    for rule in ("paper", "reinforce"):
        found["long", rule] = search(devices=WORLD, epochs=10, **RULES[rule])
        save = ModelCheckpoint(dirpath=folder / rule, every_n_train_steps=1, save_last=True)
        with contextlib.suppress(Stopped):
            search(devices=WORLD, epochs=10, callbacks=[save, StopAt(40)], **RULES[rule])
        last = folder / rule / "last.ckpt"
        found["resumed", rule] = search(devices=WORLD, epochs=10, ckpt_path=last, **RULES[rule])
    found["listening"] = listening()
    torch.save(found, folder / f"rank{os.environ['LOCAL_RANK']}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process saw."""
    folder = tmp_path_factory.mktemp("ddp")
    done = started("tests.proxyless_strategy.strategy.test_ddp", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


def equal(first, second):
    """Names of the tensors that differ."""
    assert set(first) == set(second)
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("rule", ["paper", "reinforce"])
def test_ranks_stay_bit_identical_over_fifty_steps(ranks, rule):
    first, second = (rank["long", rule] for rank in ranks)
    assert first["counters"] == second["counters"]
    assert first["counters"]["weights"] == 60
    assert first["counters"]["architecture"] > 20
    assert first["paths"] == second["paths"]
    assert torch.equal(first["alpha"], second["alpha"])
    assert equal(first["weights"], second["weights"]) == []
    assert first["export"] == second["export"]
    assert first["finalists"] == second["finalists"]


@pytest.mark.parametrize("rule", RULES)
def test_ranks_exchange_one_small_tensor_in_an_architecture_step_and_nothing_for_gates(ranks, rule):
    for rank in ranks:
        found = rank["none", rule]
        assert len(found["outcomes"]) == 3
        single_numbers = [size for size in found["reduced"] if size == 1]
        differences_and_loss = {"all": 6 + 1, "reinforce": 3}.get(rule, 3 + 1)
        assert len(found["finalists"]) > 1
        sizes = [differences_and_loss] * 3 + [len(found["finalists"])]
        assert [size for size in found["reduced"] if size > 1] == sizes
        assert len(single_numbers) <= 3 * 2, "Lightning's own, once an epoch, and the loss of each architecture step"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_those_of_one_process_with_the_joined_batch(ranks, norm, rule):
    single = search(devices=1, norm=norm, shuffle=False, **RULES[rule])
    for rank in ranks:
        found = rank[norm, rule]
        assert found["paths"] == single["paths"]
        assert len(found["gradients"]) == len(single["gradients"]) == 18
        for mine, theirs in zip(found["gradients"], single["gradients"], strict=True):
            for name, expected in theirs.items():
                assert (mine[name] is None) == (expected is None), f"{name}: only sampled paths may have a gradient"
                if expected is not None:
                    torch.testing.assert_close(mine[name], expected, rtol=0, atol=1e-6)
        assert any(gradient.abs().max() > 1e-4 for gradient in found["outcomes"])
        torch.testing.assert_close(found["outcomes"], single["outcomes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found["alpha"], single["alpha"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["paper", "reinforce"])
def test_validation_sees_the_same_statistics_on_all_ranks(ranks, rule):
    first, second = (rank["long", rule]["validated"] for rank in ranks)
    assert len(first) == len(second) == 10
    for mine, theirs in zip(first, second, strict=True):
        assert equal(mine, theirs) == []


@pytest.mark.parametrize("rule", ["paper", "reinforce"])
def test_a_resumed_search_equals_an_uninterrupted_one_on_every_rank(ranks, rule):
    for rank in ranks:
        whole, resumed = rank["long", rule], rank["resumed", rule]
        assert len(resumed["paths"]) == 60 - 39
        assert torch.equal(whole["alpha"], resumed["alpha"])
        assert equal(whole["weights"], resumed["weights"]) == []
        assert whole["counters"] == resumed["counters"]


def test_nobody_outside_the_machine_can_reach_a_search(ranks):
    """Neither the store of torch, which asks for no password, nor gloo."""
    for rank in ranks:
        assert set(rank["listening"]) == {"127.0.0.1"}
    assert len(ranks[0]["listening"]) > len(ranks[1]["listening"]), "the store is the first process's"


def started(*arguments, **variables):
    """Run a module of Python in a process without the environment of an earlier search on several processes."""
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *arguments],
        cwd=Path(__file__).parents[3],
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=280,
    )


def two_process_config(folder, retrain):
    """A search on two processes with a table of "another" device, so that nothing is measured meanwhile."""
    space = get_space(SPACE["name"], **SPACE["options"]).costs(16, num_classes=10, in_chans=1)
    nets = [space.chain(choices) for choices in space.random_choices(8, seed=0)]
    plan = Plan(rounds=25, minimum_rounds=25)
    table = folder / "table.yml"
    build_table(space.distinct(), nets, input_size=16, space="tests", out=table, plan=plan, progress=False)
    config = {
        "space": SPACE,
        "data": "digits",
        "input_size": 16,
        "hardware": {"table": str(table), "device": "other"},
        "target": 0.5,
        "search": {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 2, "batch_size": 64, "devices": WORLD},
        "retrain": retrain,
        "out": str(folder / "run"),
    }
    path = folder / "search.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("retrain", [None, {"epochs": 1, "batch_size": 64}])
def test_a_trial_on_two_processes_ends_with_one_result(tmp_path, retrain):
    path = two_process_config(tmp_path, retrain)
    done = started("proxyless_strategy.trial", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("predicted: about") == done.stdout.count("derived ") == 1
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert row["table_ms"] <= row["target_ms"]
    assert (row["accuracy"] is None) == (retrain is None)
    assert Path(row["onnx"]).exists()


@pytest.mark.slow
def test_two_trials_of_nni_on_two_processes_each_report_under_their_own_ids(tmp_path):
    path = two_process_config(tmp_path, {"epochs": 1, "batch_size": 64})
    experiment = {
        "searchSpace": {"rule": {"_type": "choice", "_value": ["gradient", "reinforce"]}},
        "tuner": {"name": "GridSearch"},
        "trialConcurrency": 1,
        "maxTrialNumber": 2,
        "trialCodeDirectory": str(Path(__file__).parents[3]),
        "trialCommand": f"{sys.executable} -W ignore -m proxyless_strategy.trial {path}",
        "trainingService": {"platform": "local"},
    }
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(experiment))
    home = tmp_path / "home"
    home.mkdir()
    done = started("proxyless_strategy.cli", "experiment", str(tmp_path / "experiment.yml"), HOME=str(home))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["rule"] for row in rows] == ["gradient", "reinforce"]
    (database,) = {found.resolve() for found in home.glob("nni-experiments/*/db/nni.sqlite")}
    with sqlite3.connect(database) as connection:
        reports = list(connection.execute("select trialJobId, parameterId, type, data from MetricData"))
    for number, row in enumerate(rows):
        mine = [report for report in reports if report[0] == row["trial"]]
        assert {report[1] for report in mine} == {str(number)}
        kinds = [report[2] for report in mine]
        assert kinds.count("PERIODICAL") == 1 + 2 + 1, "one report an epoch, from one of the two processes"
        (final,) = [json.loads(json.loads(report[3])) for report in mine if report[2] == "FINAL"]
        assert final["default"] == row["accuracy"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]))
