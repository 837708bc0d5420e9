"""A search's checkpoints: continued within an epoch as if it had not stopped, never in silence with something else."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint

from hardware.errors import CheckpointError, ConfigError
from proxyless_strategy.checkpoints import previous_checkpoint, read_checkpoint, write_checkpoint
from proxyless_strategy.config import parse_config
from proxyless_strategy.layout import CONFIG_FILE, SEARCH_CHECKPOINT, SEARCH_FILE
from proxyless_strategy.runs import checkpoints, prepare, search
from proxyless_strategy.runs.checkpoints import FORMAT, SearchCheckpoints, search_identity
from proxyless_strategy.runs.epoch_log import EpochLog
from tests.proxyless_strategy import tiny

STEPS = 6  # of an epoch: 96 images in batches of 16
RULES = ("gradient", "reinforce")
EACH_BATCH = 1e-9
IDENTITY = {"rule": "gradient", "table": "1 to 2 ms, a", "data": "9 images, b", "settings": {"search": {"epochs": 4}}}


class Logging(tiny.Module):
    """Logs sums over an epoch, as `ImageClassifier` does, of every kind that Lightning has."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("epoch_loss", loss, on_step=False, on_epoch=True)
        self.log("both", loss, on_step=True, on_epoch=True)
        self.log("most", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx % 4 == 1:
            self.log("now_and_then", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        return loss


class Log(EpochLog):
    """Keeps every metric."""

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        self.history[-1]["all"] = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Stopped(Exception):
    """Raised by `StopAt`."""


class StopAt(Callback):
    """Ends training as soon as a batch begins; all that was written before is of the batches before."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == self.batches:
            raise Stopped


def searched(path, *, rule="gradient", minutes=EACH_BATCH, stop=-1, resume=False, precision="32-true", **options):
    """Search under one of the rules, and a learning rate that falls with each step or with each epoch."""
    saved = SearchCheckpoints(path, minutes=minutes, identity=IDENTITY)
    log = Log(1, lambda row: None)
    if resume:
        saved.resume()
    strategy = tiny.searched(
        rule=rule,
        module=Logging({"gradient": "step", "reinforce": "epoch"}[rule]),
        space=lambda: tiny.TinySpace(dropout=0.2),
        callbacks=[log, saved, StopAt(stop) if isinstance(stop, int) else stop],
        trainer={"plugins": [saved.files], "precision": precision},
        ckpt_path=saved.latest,
        **{"epochs": 4, "samples": 3, "steps_per_update": 4, **options},
    )
    module = strategy.searched
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return weights, strategy.export(), dict(module.counters), module.finalists, [*log.history, log.film.state_dict()]


def assert_equal(first, second):
    assert first[1:] == second[1:]
    assert [name for name in first[0] if not torch.equal(first[0][name], second[0][name])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the uninterrupted search under a rule."""
    return cache(lambda rule: searched(tmp_path_factory.mktemp(rule) / "search.ckpt", minutes=9, rule=rule))


# In the warm-up, in the epoch after it, in one with architecture steps and at its end, before the last batch of all.
STOPS = [2, STEPS + 1, 2 * STEPS + 5, 3 * STEPS, 4 * STEPS - 1]


@pytest.mark.parametrize(
    ("rule", "stop"),
    [
        pytest.param(rule, stop, marks=() if (rule, stop) == ("gradient", 2 * STEPS + 5) else pytest.mark.slow)
        for rule in RULES
        for stop in STOPS
    ],
)
def test_a_search_stopped_within_an_epoch_ends_as_if_it_had_not(rule, stop, whole, tmp_path):
    """Weights, alpha, finalists, and every metric of every epoch, those of the interrupted epoch too."""
    path = tmp_path / "search.ckpt"
    with pytest.raises(Stopped):
        searched(path, stop=stop, rule=rule)
    assert read_checkpoint(path, what="a search")["global_step"] == stop
    assert read_checkpoint(previous_checkpoint(path), what="a search")["global_step"] == stop - 1
    assert_equal(whole(rule), searched(path, resume=True, minutes=9, rule=rule))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_search_in_another_precision_ends_as_if_it_had_not_stopped(precision, tmp_path):
    with pytest.raises(Stopped):
        searched(tmp_path / "search.ckpt", stop=2 * STEPS + 5, precision=precision)
    whole = searched(tmp_path / "whole.ckpt", minutes=9, precision=precision)
    dtypes = {value.dtype for name, value in whole[0].items() if "conv.weight" in name}
    assert dtypes == {torch.float64 if precision == "64-true" else torch.float32}
    assert_equal(whole, searched(tmp_path / "search.ckpt", resume=True, minutes=9, precision=precision))
    # with nothing left to train, finalists are compared on the weights as they were
    assert_equal(whole[:4], searched(tmp_path / "whole.ckpt", resume=True, minutes=9, precision=precision)[:4])


@pytest.mark.slow
def test_a_search_that_is_stopped_at_each_batch_ends_as_if_it_had_not(whole, tmp_path):
    path = tmp_path / "search.ckpt"
    for stop in range(1, 4 * STEPS):
        with pytest.raises(Stopped):
            searched(path, stop=stop, resume=True)
    assert_equal(whole("gradient"), searched(path, resume=True))


@pytest.mark.slow
def test_a_search_goes_on_from_the_one_before_a_damaged_one(whole, tmp_path, capsys):
    path = tmp_path / "search.ckpt"
    with pytest.raises(Stopped):
        searched(path, stop=2 * STEPS + 5)
    path.write_bytes(path.read_bytes()[:1000])
    assert_equal(whole("gradient"), searched(path, resume=True))
    assert "is damaged: its 1000 bytes are no whole checkpoint; search.previous.ckpt is used" in capsys.readouterr().out


CHILD = """
import sys, torch
from pathlib import Path
from tests.proxyless_strategy.runs.test_checkpoints import searched

torch.set_num_threads(1)
searched(Path(sys.argv[1]), resume=True)
"""


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_ends_as_if_it_had_not(whole, tmp_path):
    """SIGKILL at any moment, mostly while a checkpoint is written; not on TMPDIR's file system, if there is another."""
    shared = Path("/dev/shm")
    folder = shared / f"{tmp_path.name}-{os.getpid()}" if os.access(shared, os.W_OK) else tmp_path
    folder.mkdir(exist_ok=True)
    path, reached = folder / "search.ckpt", 0
    try:
        for _ in range(4):
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", CHILD, str(path)],
                cwd=Path(__file__).parents[3],
                env={**os.environ, "TMPDIR": "/nowhere"},
            )
            seen = set()
            while process.poll() is None and len(seen) < 3:
                if path.exists():
                    seen.add(path.stat().st_mtime_ns)
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
            step = read_checkpoint(path, what="a search")["global_step"]
            assert step > reached, "a start that does not get on would be killed for ever"
            reached = step
        assert_equal(whole("gradient"), searched(path, resume=True))
        assert sorted(entry.name for entry in folder.iterdir()) == ["search.ckpt", "search.previous.ckpt"]
    finally:
        if folder != tmp_path:
            for entry in folder.iterdir():
                entry.unlink()
            folder.rmdir()


# ---- when ------------------------------------------------------------------------------------------------------


def test_checkpoints_are_written_by_the_clock_and_at_the_end_of_an_epoch(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    saved = SearchCheckpoints(tmp_path / "search.ckpt", minutes=2, identity=IDENTITY)
    epoch_loop = SimpleNamespace(_results={})
    trainer = SimpleNamespace(
        is_last_batch=False,
        world_size=1,
        callback_metrics={},
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop),
        save_checkpoint=lambda path: written.append(now[0]),
    )
    saved.on_train_start(trainer, None)
    for batch in range(12):
        now[0] += 50
        trainer.is_last_batch = batch == 11
        saved.on_train_batch_end(trainer, None, None, None, batch)
    assert written == [150, 300, 450], "two minutes later each, and not after the epoch's last batch"
    saved.on_train_epoch_end(trainer, None)
    assert written[3:] == [600]


def test_several_processes_write_when_one_of_them_is_due(tmp_path):
    written, asked = [], []
    saved = SearchCheckpoints(tmp_path / "search.ckpt", minutes=1440, identity=IDENTITY)

    def on_another_one(due):
        asked.append(due)
        return trainer.global_step % 10 == 0

    saved._together = SimpleNamespace(save=on_another_one)
    trainer = SimpleNamespace(
        is_last_batch=False,
        world_size=2,
        global_step=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_results={})),
        save_checkpoint=lambda path: written.append(trainer.global_step),
    )
    for trainer.global_step in range(1, 31):
        saved.on_train_batch_end(trainer, None, None, None, trainer.global_step)
    assert written == [10, 20, 30]
    assert asked == [False] * 30


@pytest.mark.parametrize("minutes", [0, -1, 1441, float("inf"), float("nan"), "often"])
def test_the_time_between_checkpoints_has_bounds(minutes, tmp_path):
    with pytest.raises(ConfigError, match=r"search\.checkpoint_every = "):
        settings(tmp_path, search={"checkpoint_every": minutes})
    assert settings(tmp_path).search.checkpoint_every == 10


def test_what_may_change_is_named(tmp_path):
    assert settings(tmp_path, search={"resume_anyway": ["table", "data"]}).search.resume_anyway == ("table", "data")
    with pytest.raises(ConfigError, match=r"search\.resume_anyway\.0 = 'rule': .*'table', 'data' or 'target'"):
        settings(tmp_path, search={"resume_anyway": ["rule"]})


# ---- what it belongs to ----------------------------------------------------------------------------------------


SPACE = {
    "name": "small_mbconv",
    "options": {"stages": [{"width": 8, "depth": 1, "stride": 2}], "head_width": 32},
}


def settings(out, **changes):
    values = {
        "space": SPACE,
        "data": "digits",
        "input_size": 16,
        "hardware": {"cost": "macs", "device": "other"},
        "target": 0.5,
        "search": {"warmup_epochs": 0, "epochs": 2, "steps_per_update": 2, "batch_size": 128},
        "retrain": None,
        "out": str(out),
    }
    return parse_config({**values, **changes})


def identity(config):
    return search_identity(prepare.prepare(config, quiet=True))


def state(named=IDENTITY, **changes):
    """What a checkpoint of a search holds, as far as `resume` looks."""
    run = {"format": checkpoints.FORMAT, "identity": named, "resumed_with": [], "sums": {}, "metrics": {}}
    empty = {"state_dict": {}, "loops": {}, "optimizer_states": [], "lr_schedulers": []}
    return {
        "epoch": 3,
        "global_step": 40,
        **empty,
        "proxyless_strategy": {"seed": 0},
        "proxyless_strategy_run": run,
        **changes,
    }


def resumed(tmp_path, found, here=IDENTITY, **options):
    write_checkpoint(tmp_path / "search.ckpt", found)
    saved = SearchCheckpoints(tmp_path / "search.ckpt", minutes=9, identity=here)
    assert saved.resume(**options) == saved.latest == tmp_path / "search.ckpt"
    return saved


def test_the_identity_of_a_search_names_what_changes_it(tmp_path):
    def of(**changes):
        return identity(settings(tmp_path, **changes))

    first = of()
    assert first == of()
    assert first == json.loads(json.dumps(first)), "plain values"
    assert first["target"] == "target 0.5"
    assert first["data"].startswith("1004 + 434 + 359 images of 10 classes, ")
    assert " M MACs, " in first["table"]
    assert first["space"].startswith("small_mbconv, ")
    fast = {**settings(tmp_path).search.model_dump(), "learning_rate": 0.1}
    wider = {**SPACE, "options": {**SPACE["options"], "head_width": 40}}
    for changes, differing in [
        ({"rule": "reinforce"}, {"rule"}),
        ({"target": 0.6}, {"target"}),
        ({"target": None}, {"target"}),
        ({"hardware": {"cost": "params", "device": "other"}}, {"table"}),
        ({"data": {"name": "digits", "architecture_fraction": 0.4}}, {"data"}),
        ({"seed": 1}, {"seed", "data"}),
        ({"space": wider}, {"space", "table"}),
        ({"search": fast}, {"settings"}),
    ]:
        other = of(**changes)
        assert {name for name in first if first[name] != other[name]} == differing


def test_when_checkpoints_are_written_makes_it_no_other_search(tmp_path):
    plain = settings(tmp_path)
    changed = plain.model_copy(
        update={"search": plain.search.model_copy(update={"checkpoint_every": 1.0, "resume_anyway": ("data",)})}
    )
    assert changed.identity() == plain.identity()
    assert identity(changed) == identity(plain)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(plain.identity()))
    prepare.prepare(changed, quiet=True)


def test_the_settings_file_of_an_older_version_is_recognised(tmp_path):
    old = json.loads(settings(tmp_path).model_dump_json(exclude={"out"}))
    for name in ("checkpoint_every", "resume_anyway"):
        del old["search"][name]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(old))
    prepare.prepare(settings(tmp_path), quiet=True)


@pytest.mark.parametrize(
    ("changed", "words", "remedy"),
    [
        ({"table": "3 ms"}, "table = 3 ms there, 1 to 2 ms, a here", r"or go on with search\.resume_anyway=\[table\]$"),
        (
            {"table": "3 ms", "data": "none"},
            "table = 3 ms there, 1 to 2 ms, a here; data = none there, 9 images, b here",
            r"or go on with search\.resume_anyway=\[table,data\]$",
        ),
        ({"rule": "reinforce"}, "rule = reinforce there, gradient here", r"delete search\.ckpt to start anew$"),
        ({"rule": "reinforce", "data": "none"}, "rule = .*; data = none there", r"delete search\.ckpt to start anew$"),
        ({"settings": {"search": {"epochs": 5}}}, r"search\.epochs = 5 there, 4 here", r"to start anew$"),
    ],
)
def test_a_checkpoint_of_another_search_is_refused_by_name(changed, words, remedy, tmp_path):
    with pytest.raises(CheckpointError, match=rf"search\.ckpt is of another search \({words}") as error:
        resumed(tmp_path, state({**IDENTITY, **changed}))
    error.match(r"; choose another out, or delete search\.ckpt to start anew")
    error.match(remedy)


def test_what_an_older_version_did_not_write_down_is_no_difference(tmp_path, capsys):
    older = {name: value for name, value in IDENTITY.items() if name != "data"} | {"settings": {"search": {}}}
    assert resumed(tmp_path, state(older)).record() == {}
    assert capsys.readouterr().out == ""


def test_another_table_is_accepted_where_it_is_named_and_is_recorded(tmp_path, capsys):
    found = state({**IDENTITY, "table": "3 ms"})
    saved = resumed(tmp_path, found, anyway=("table", "target"))
    out = capsys.readouterr().out
    assert out.endswith("another table (3 ms there, 1 to 2 ms, a here), as search.resume_anyway says\n")
    once = {"changed": "table", "from": "3 ms", "to": "1 to 2 ms, a", "epoch": 3, "step": 40}
    assert saved.record() == {"resumed_with": [once]}
    with pytest.raises(CheckpointError, match=r"\(data = none there.*search\.resume_anyway=\[table,data\]$"):
        resumed(tmp_path, state({**IDENTITY, "table": "3 ms", "data": "none"}), anyway=("table",))
    # Its own later checkpoints are of the table that it went on with, and remember.
    found["proxyless_strategy_run"].update(identity=IDENTITY, resumed_with=[once])
    assert resumed(tmp_path, found).record() == {"resumed_with": [once]}
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_before_there_were_digests_is_continued_and_says_so(tmp_path, capsys):
    found = state()
    del found["proxyless_strategy_run"]
    assert resumed(tmp_path, found).record() == {}
    assert "as older versions wrote it: it is continued unchecked" in capsys.readouterr().out
    assert resumed(tmp_path, found, first=False).latest is not None
    assert capsys.readouterr().out == "", "one process speaks for all"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "it was written by another program"),
        (state(proxyless_strategy=3), "it was written by another program"),
        (
            state(proxyless_strategy_run={"format": "proxyless-search/2"}),
            "it was written by another version of this project: format 'proxyless-search/2', where this one has",
        ),
        (state(proxyless_strategy_run=None, loops=None), None),
        ({k: v for k, v in state().items() if k not in ("loops", "lr_schedulers")}, "it lacks loops, lr_schedulers"),
        (state(global_step=None), "its global_step is None, which must be a whole number"),
        (state(epoch=1.5), "its epoch is 1.5, which"),
        (state(epoch=-1), "its epoch is -1, which"),
        (state(optimizer_states=[{"state": {}}]), "its optimizer_states are "),
        (state(optimizer_states={"param_groups": []}), "its optimizer_states are "),
        (state(proxyless_strategy_run={"format": FORMAT}), "it does not say of which search it is"),
        (
            state(proxyless_strategy_run={"format": FORMAT, "identity": {}, "resumed_with": [], "processes": "two"}),
            "its processes are 'two'",
        ),
    ],
)
def test_a_foreign_checkpoint_is_named(found, reason, tmp_path):
    if reason is None:
        resumed(tmp_path, found)
        return
    with pytest.raises(CheckpointError, match=r"is no checkpoint of a search; delete it to start anew \(" + reason):
        resumed(tmp_path, found)


def test_the_first_process_alone_tidies_up(tmp_path):
    leftover = tmp_path / f".search.ckpt.{os.uname().nodename}.{os.getpid()}.tmp"
    leftover.write_bytes(b"half")
    saved = SearchCheckpoints(tmp_path / "search.ckpt", minutes=9, identity=IDENTITY)
    assert saved.resume(first=False) is None
    assert leftover.exists()
    assert saved.resume() is None
    assert not leftover.exists()


@pytest.mark.slow
def test_a_checkpoint_by_lightnings_own_callback_is_continued(whole, tmp_path, capsys, recwarn):
    """As versions before this one wrote it."""
    save = ModelCheckpoint(dirpath=tmp_path, filename="search", save_on_train_epoch_end=True)
    options = {"epochs": 4, "samples": 3, "steps_per_update": 4, "space": lambda: tiny.TinySpace(dropout=0.2)}
    log = Log(1, lambda row: None)
    with pytest.raises(Stopped):
        tiny.searched(module=Logging("step"), callbacks=[log, save, StopAt(3 * STEPS)], **options)
    assert_equal(whole("gradient"), searched(tmp_path / "search.ckpt", resume=True))
    assert "continued unchecked" in capsys.readouterr().out
    assert not [warning for warning in recwarn if "callbacks used to create the checkpoint" in str(warning.message)]


# ---- a whole search --------------------------------------------------------------------------------------------


class Clock:
    """Makes each batch due, and ends the search at one of them."""

    def __init__(self, monkeypatch, stop):
        self.batches = 0
        due = SearchCheckpoints.on_train_batch_end

        def counted(saved, *arguments):
            due(saved, *arguments)
            self.batches += 1
            if self.batches == stop:
                raise Stopped

        monkeypatch.setattr(SearchCheckpoints, "on_train_batch_end", counted)


@pytest.mark.slow
def test_run_search_continues_within_an_epoch_and_refuses_what_changed(tmp_path, monkeypatch, capsys):
    def often(out, **changes):
        plain = settings(out, **changes)
        quick = {"checkpoint_every": EACH_BATCH, **changes.get("search", {})}
        return plain.model_copy(update={"search": plain.search.model_copy(update=quick)})

    monkeypatch.setattr(search, "measure_deployed", lambda *arguments, **options: ([None], None))
    whole = search.run_search(often(tmp_path / "whole"))
    out = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        Clock(patched, 11)  # of 7 batches an epoch
        with pytest.raises(Stopped):
            search.run_search(often(out))
    assert (out / SEARCH_CHECKPOINT).exists()
    (out / CONFIG_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"target = target 0\.5 there, target 0\.6 here"):
        search.run_search(often(out, target=0.6))
    assert not (out / CONFIG_FILE).exists(), "a refused start claims nothing"

    resumed = search.run_search(often(out))
    assert resumed.subnet == whole.subnet
    records = [json.loads((place / SEARCH_FILE).read_text()) for place in (out, tmp_path / "whole")]
    assert records[0] == records[1]
    assert not previous_checkpoint(out / SEARCH_CHECKPOINT).exists(), "a search that has ended needs one at most"

    out = tmp_path / "changed"
    with monkeypatch.context() as patched:
        Clock(patched, 11)
        with pytest.raises(Stopped):
            search.run_search(often(out))
    with pytest.raises(ConfigError, match=r"holds a search with other settings \(target = 0.5 there, 0.6 here\)"):
        search.run_search(often(out, target=0.6))
    anyway = often(out, target=0.6)
    anyway = anyway.model_copy(update={"search": anyway.search.model_copy(update={"resume_anyway": ("target",)})})
    result = search.run_search(anyway)
    record = json.loads((out / SEARCH_FILE).read_text())
    assert [{**entry, "step": None} for entry in record["resumed_with"]] == [
        {"changed": "target", "from": "target 0.5", "to": "target 0.6", "epoch": 1, "step": None}
    ]
    assert result.target_cost == pytest.approx(record["target"])
    with pytest.raises(ConfigError, match=r"other settings \(target = "):
        search.run_search(dataclasses.replace(result).config.model_copy(update={"target": 0.7}))
