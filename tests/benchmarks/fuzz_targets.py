"""Every reader of this project, as a target of the fuzzer: what it reads, and good files to begin with.

A target does with what it has read what a command would do next, where that costs no more than reading: a value that is
taken and fails there is no better than one that fails at once.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from proxyless_strategy.config import key_values, load_config
from proxyless_strategy.layout import FLEET_FILE
from proxyless_strategy.owner import owned
from proxyless_strategy.retraining.recipe import RECIPES, load_recipe
from proxyless_strategy.runs.experiment import read_record
from proxyless_strategy.runs.film import FilmRecorder
from proxyless_strategy.runs.finished import read_run, read_runs, read_searched
from proxyless_strategy.runs.fleet import read_errand
from proxyless_strategy.runs.machines import Machine
from proxyless_strategy.runs.network import network_record
from proxyless_strategy.runs.rows import moves, results_table
from proxyless_strategy.runs.same_run import check_same_run
from proxyless_strategy.runs.sensitivity import FORMAT, read_sensitivity
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.runs.trials import Trial, note_failure, note_start, read_end, read_trials
from proxyless_strategy.threads import keep_threads, read_threads
from search_spaces import Subnet
from tests.benchmarks import fuzz_weights
from tests.benchmarks.fuzz_cases import ROOT, RUN, Target, contents, copying, nothing
from tests.benchmarks.fuzz_formats import checkpoint, json_text, key_text, safetensors, yaml_text
from tests.benchmarks.fuzz_tables import table_targets

EXAMPLES = ROOT / "examples"


# ---- settings ------------------------------------------------------------------------------------------------------


def _search(folder: Path) -> None:
    config = load_config(folder / "search.yml")
    config.identity()
    _ = config.latency_input_size


def _preset(folder: Path) -> None:
    load_config(folder / "search.yml", preset="smoke").identity()


def _sweep_files(folder: Path) -> None:
    shutil.copy(EXAMPLES / "quickstart.yml", folder / "sweep.yml")
    for path in EXAMPLES.glob("*_search.yml"):
        shutil.copy(path, folder)


def _sweep(folder: Path) -> None:
    sweep = read_sweep(folder / "sweep.yml", out=folder / "out")
    sweep.content()
    sweep.configs()
    _ = sweep.is_grid, sweep.limit, sweep.side_by_side, sweep.code_directory, sweep.command


def _settings(text: str) -> None:
    lines = [line for line in text.split("\n") if line] or [text]
    load_config(EXAMPLES / "my_search.yml", key_values(lines)).identity()


# ---- run folders ---------------------------------------------------------------------------------------------------


def _run_files(folder: Path) -> None:
    shutil.copytree(RUN / "reinforce", folder / "run", ignore=shutil.ignore_patterns("*.onnx", "*.ckpt"))
    settings = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))
    settings["hardware"]["table"] = str(RUN / "table.yml")
    (folder / "run" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    # what today's searches keep beside what the earlier version kept that left this folder
    run, record = read_run(folder / "run"), json.loads((folder / "run" / "search.json").read_text(encoding="utf-8"))
    film = FilmRecorder()
    film.keep(1, [list(odds.values()) for odds in run.probabilities.values()])
    record["film"] = film.record(list(run.probabilities))
    costs = run.space.costs(run.config.latency_input_size, num_classes=10, in_chans=1)
    record["network"] = network_record(costs, run.cost)
    (folder / "run" / "search.json").write_text(json.dumps(record), encoding="utf-8")


def _run(folder: Path) -> Any:
    run = read_run(folder / "run")

    def use() -> None:
        run.candidates(run.deriver.cheapest())
        _ = run.kind, run.is_measured, run.subnet_cost

    return use


def _runs(folder: Path) -> Any:
    from proxyless_strategy.report.page import page

    runs = read_runs(folder / "run")
    return lambda: page(runs, title="fuzz")


def _begun_files(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(_same_config().identity()), encoding="utf-8")


def _same_run(folder: Path) -> None:
    check_same_run(_same_config().model_copy(update={"out": folder / "run"}))


@functools.cache
def _same_config() -> Any:
    return load_config(RUN / "reinforce.yml")


@functools.cache
def _space() -> Any:
    return Subnet.load(RUN / "derived" / "subnet.json").declaration


def _searched(folder: Path) -> None:
    found = read_searched(folder / "run", _space())
    if found is not None:
        dict(found[1])


def _subnet(folder: Path) -> None:
    subnet = Subnet.load(folder / "subnet.json")
    subnet.model_args()
    subnet.to_dict()


def _threads_files(folder: Path) -> None:
    keep_threads(folder, {"search": 2, "retrain": 1})


def _sensitivity_files(folder: Path) -> None:
    table = {"stage1_block0": {"3x3_e3": 0.0, "5x5_e6": 0.5}, "stage1_block1": {"3x3_e3": 0.0, "skip": None}}
    own = dict.fromkeys(table, "3x3_e3")
    values = {"format": FORMAT, "identity": {}, "loss": 1.0, "images": 8, "original": own, "differences": table}
    (folder / "sensitivity.json").write_text(json.dumps(values))


def _sensitivity(folder: Path) -> None:
    read_sensitivity(folder / "sensitivity.json")


def _trial_files(folder: Path) -> None:
    trial = Trial("abc", {"rule": "gradient", "target": 0.3}, 0, 1)
    (folder / "abc").mkdir()
    note_start(folder / "abc", trial, "exp")
    note_failure(folder / "abc", ValueError("x"), refused=False)
    record = {"id": "exp", "content": {"searchSpace": {}}, "complete": False, "stopped_early": ["abc"]}
    (folder / "experiment.json").write_text(json.dumps({**record, "launcher": {"host": "h", "pid": 1, "started": 1.0}}))
    shutil.copy(RUN / "gradient" / "result.json", folder / "result.json")


def _fleet_files(folder: Path) -> None:
    listed = [
        {"host": "alpha", "sshKeyFile": "key", "gpuIndices": [0, 1], "settings": {"data.root": "/data"}},
        {"host": "10.0.0.2", "port": 2222, "user": "me", "pythonPath": "~/env/bin", "workFolder": "/scratch"},
    ]
    machines = [Machine.model_validate(values).model_dump(mode="json") for values in listed]
    mark = "0123456789abcdef" * 2
    places = [
        {"machine": machines[0], "work": f"/home/me/proxyless/{mark}", "shared": False, "slots": [[0], [1], []]},
        {"machine": machines[1], "work": f"/scratch/{mark}", "shared": True, "slots": [None]},
    ]
    values = {"experiment": mark, "command": "python -m x", "preset": None, "retries": 2, "places": places}
    (folder / FLEET_FILE).write_text(json.dumps(values))


def _fleet(folder: Path) -> None:
    errand = read_errand(folder / FLEET_FILE)
    for place in errand.places:
        place.machine.command()
        _ = place.machine.title, place.key, Path(place.runs(folder)), Path(place.code(folder))
        for gpus in place.slots:
            ",".join(map(str, gpus or ()))
    json.dumps([errand.command, errand.preset, *(place.machine.settings for place in errand.places)]).encode()


def _end(folder: Path) -> None:
    row = read_end(folder, Trial("abc", {}, 0, 0)).row
    if row is not None:
        Console(file=io.StringIO()).print(results_table([row]))
        list(moves(row))


def _result_files(folder: Path) -> None:
    _trial_files(folder)
    lost = {"machine": "a", "reason": "gone", "then": "b", "from": "the start"}
    row = json.loads((RUN / "gradient" / "result.json").read_text(encoding="utf-8"))
    (folder / "abc" / "result.json").write_text(json.dumps({**row, "trial": "abc", "machine": "b", "lost": [lost]}))


def _starts_files(folder: Path) -> None:
    with owned(folder / "run"):
        pass


def _starts(folder: Path) -> None:
    from proxyless_strategy import owner

    owner._read(folder / "run" / "starts.json", warn=True)


# ---- exports -------------------------------------------------------------------------------------------------------


def _released_config_files(folder: Path) -> None:
    (folder / "net.json").write_text(json.dumps(fuzz_weights.released_config()))


def targets() -> tuple[Target, ...]:
    """Return every target."""
    search = contents(RUN / "gradient.yml", RUN / "reinforce.yml", *sorted(EXAMPLES.glob("*_search.yml")))
    presets = contents(*(EXAMPLES / f"{name}_search.yml" for name in ("cifar10", "imagenet")))
    sweeps = contents(*(EXAMPLES / f"{name}.yml" for name in ("cifar10", "fashion_mnist", "imagenet")))
    recipes = contents(*sorted(RECIPES.glob("*.yml")))
    settings = [
        b"search.epochs=3",
        b"rule=reinforce\ntarget=0.3",
        b"space={name: small_mbconv, options: {kernels: [3]}}",
    ]
    settings += [b"hardware={cost: macs}\nhardware.threads=2\ntarget_cost=1", b"data.options.mean=[0.5]\nretrain=null"]
    return (
        Target(
            "search YAML",
            copying(RUN / "gradient.yml", "search.yml"),
            "search.yml",
            _search,
            yaml_text,
            search,
            share=0.5,
        ),
        Target(
            "preset",
            copying(EXAMPLES / "imagenet_search.yml", "search.yml"),
            "search.yml",
            _preset,
            yaml_text,
            presets,
            share=0.3,
        ),
        Target(
            "sweep YAML",
            _sweep_files,
            "sweep.yml",
            _sweep,
            yaml_text,
            sweeps,
            share=0.2,
        ),
        Target(
            "settings of --set",
            nothing,
            "",
            _settings,
            key_text,
            lambda folder: settings,
            ("--set", "my_search.yml"),
        ),
        Target(
            "recipe",
            copying(RECIPES / "quick.yml", "mine.yml"),
            "mine.yml",
            lambda folder: load_recipe(folder / "mine.yml"),
            yaml_text,
            recipes,
        ),
        *table_targets(),
        Target("search.json", _run_files, "run/search.json", _run, json_text, share=0.5),
        Target("config.json of a search", _run_files, "run/config.json", _run, json_text, share=0.5),
        Target("row.json", _run_files, "run/row.json", _run, json_text, share=0.5),
        Target(
            "config.json of a search that goes on",
            _begun_files,
            "run/config.json",
            _same_run,
            json_text,
            names=("./run",),
        ),
        Target("search.json of a report", _run_files, "run/search.json", _runs, json_text, share=0.01),
        Target("row.json of a report", _run_files, "run/row.json", _runs, json_text, share=0.01),
        Target("subnet.json", copying(RUN / "derived", "."), "subnet.json", _subnet, json_text),
        Target("threads.json", _threads_files, "threads.json", read_threads, json_text, share=0.5),
        Target("sensitivity.json", _sensitivity_files, "sensitivity.json", _sensitivity, json_text, share=0.5),
        Target("starts.json", _starts_files, "run/starts.json", _starts, json_text, share=0.5),
        Target("experiment.json", _trial_files, "experiment.json", read_record, json_text, share=0.5),
        Target(
            "parameters.json",
            _trial_files,
            "abc/parameters.json",
            lambda folder: read_trials(folder, "exp"),
            json_text,
            share=0.5,
        ),
        Target("machines.json", _fleet_files, FLEET_FILE, _fleet, json_text, share=0.5),
        Target("failure.json", _trial_files, "abc/failure.json", _end, json_text, share=0.5),
        Target("result.json", _result_files, "abc/result.json", _end, json_text, share=0.5),
        Target("released config", _released_config_files, "net.json", fuzz_weights.read_released_config, json_text),
        Target(
            "released checkpoint",
            fuzz_weights.released_files,
            "net.pth",
            fuzz_weights.read_released_checkpoint,
            checkpoint,
            share=0.1,
            large=True,
        ),
        Target(
            "config.json of an export",
            copying(RUN / "derived", "model"),
            "model/config.json",
            fuzz_weights.read_exported,
            json_text,
            share=0.03,
        ),
        Target(
            "safetensors of an export",
            copying(RUN / "derived", "model"),
            "model/model.safetensors",
            fuzz_weights.read_exported,
            safetensors,
            share=0.03,
            large=True,
        ),
        Target("supernet.pt", _run_files, "run/supernet.pt", _searched, checkpoint, share=0.1, large=True),
        Target(
            "checkpoint of a search",
            copying(RUN / "gradient_killed", "."),
            "search.ckpt",
            fuzz_weights.read_search_checkpoint,
            checkpoint,
            share=0.05,
            large=True,
        ),
        Target(
            "checkpoint of a retraining",
            fuzz_weights.retraining_files,
            "retrain.ckpt",
            fuzz_weights.read_retraining_checkpoint,
            checkpoint,
            share=0.03,
            large=True,
            writes=True,
        ),
        *fuzz_weights.data_targets(),
    )


torch.set_num_threads(1)
