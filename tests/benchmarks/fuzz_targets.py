"""Every reader of this project, as a target of the fuzzer: what it reads, and good files to begin with.

A target does with what it has read what a command would do next, where that costs no more than reading: a value that is
taken and fails there is no better than one that fails at once.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hardware.errors import ProxylessError
from hardware.measuring.kit import import_results, write_kit
from hardware.measuring.predictor import LearnedModel, header_of
from hardware.measuring.predictor import fit as fit_model
from hardware.measuring.sampling import PartialSamples
from hardware.measuring.trtexec import import_trtexec
from hardware.op_spec import OpSpec
from hardware.operators.primitives import macs
from hardware.tables.released import ONCE_FOR_ALL, PROXYLESS, parse_released_key, read_released
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import key_values, load_config
from proxyless_strategy.owner import owned
from proxyless_strategy.retraining.recipe import RECIPES, load_recipe
from proxyless_strategy.runs.experiment import read_record
from proxyless_strategy.runs.film import FilmRecorder
from proxyless_strategy.runs.finished import read_run, read_runs, read_searched
from proxyless_strategy.runs.network import network_record
from proxyless_strategy.runs.same_run import check_same_run
from proxyless_strategy.runs.sensitivity import FORMAT, read_sensitivity
from proxyless_strategy.runs.space_table import costs_of_table, latency_model
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.runs.trials import Trial, note_failure, note_start, read_end, read_trials
from proxyless_strategy.threads import keep_threads, read_threads
from search_spaces import Subnet
from tests.benchmarks import fuzz_weights
from tests.benchmarks.fuzz_cases import ROOT, Target
from tests.benchmarks.fuzz_formats import checkpoint, json_text, key_text, safetensors, yaml_text

RUN = ROOT / "tests" / "data" / "run_bc6f2f8"
EXAMPLES = ROOT / "examples"


def copying(source: Path, name: str) -> Callable[[Path], Any]:
    """Prepare a folder that holds one file, or the files of one folder."""

    def prepare(folder: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / name)

    return prepare


def contents(*paths: Path) -> Callable[[Path], list[bytes]]:
    return lambda folder: [path.read_bytes() for path in paths]


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


# ---- tables, kits, learned models ----------------------------------------------------------------------------------


def _table(folder: Path) -> Any:
    path = folder / "table.yml"
    table = LatencyTable.load(path)

    def use() -> None:
        costs = costs_of_table(table, None, None, None, None, None, file=path)
        model = latency_model(table, costs)
        model.minimum()
        model.report(model.maximum()[1]).total()

    return use


def _foreign_table(folder: Path) -> None:
    read_released(folder / "released.yml").save(folder.parent / "converted.yml")


PROXYLESSNAS_TEXT = """
Conv-input:224x224x3-output:112x112x32: {count: 9, mean: 4.0, var: 0.16}
Conv_1-input:7x7x320-output:7x7x1280: {count: 9, mean: 3.0, var: 0.0}
Logits-input:7x7x1280-output:1000: {count: 9, mean: 0.5, var: 0.01}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1: {count: 7, mean: 5, var: 1.0}
"""
_BLOCK = "expanded_conv-input:28x28x40-output:28x28x40-expand:120-kernel:5-stride:1-idskip:1-se:1-hs:0"
ONCE_FOR_ALL_TEXT = f"""
Conv-input:224x224x3-output:112x112x16: {{count: 9, mean: 4.0, std: 0.16}}
Conv_1-input:7x7x160-output:7x7x960: {{count: 9, mean: 3.0, std: 0.0}}
AvgPool2D-input:7x7x960-output:1x1x960: {{count: 9, mean: 0.1, std: 0.01}}
Conv_2-input:1x1x960-output:1x1x1280: {{count: 9, mean: 0.4, std: 0.01}}
Logits-input:1x1x1280-output:1000: {{count: 9, mean: 0.5, std: 0.01}}
{_BLOCK}: {{count: 7, mean: 5, std: 1.0}}
{_BLOCK.replace("120", "40").replace("se:1", "se:0")}: {{count: 7, mean: 5, std: 1}}
"""


def _proxylessnas(folder: Path) -> None:
    (folder / "released.yml").write_text(PROXYLESSNAS_TEXT)


def _once_for_all(folder: Path) -> None:
    (folder / "released.yml").write_text(ONCE_FOR_ALL_TEXT)


@functools.cache
def _results() -> dict[str, Any]:
    return json.loads((RUN / "results.json").read_text(encoding="utf-8"))


def _kit(folder: Path) -> None:
    graphs = _results()["kit"]["graphs"]
    ops = [OpSpec.from_key(keys[0]) for name, keys in graphs.items() if name.startswith("op_")]
    nets = [[OpSpec.from_key(key) for key in keys] for name, keys in graphs.items() if name.startswith("net_")]
    write_kit(ops, nets, folder / "kit", input_size=16)


def _measured(folder: Path) -> None:
    """Run the kit's script with a runtime that takes no time; it knows no errors of ours, and ends by `sys.exit`."""
    from hardware.measuring import kit_script

    arguments, original = sys.argv, kit_script.onnxruntime_session
    sys.argv = ["measure.py", "--kit", str(folder / "kit"), "--out", str(folder.parent / "measured.json")]
    sys.argv += ["--rounds", "1"]
    kit_script.onnxruntime_session = lambda threads, place: (lambda path: path.stat, {}, place)  # type: ignore[assignment]
    try:
        kit_script.main()
    except SystemExit as ended:
        raise ProxylessError(str(ended)) from ended
    finally:
        sys.argv, kit_script.onnxruntime_session = arguments, original


def _profiles(folder: Path) -> None:
    """A kit, and of each of its graphs a profile that takes as long as the graph took in the kept results."""
    results = _results()
    manifest = {**results["kit"], "weights": "full"}
    for part in ("kit", "profiles"):
        (folder / part).mkdir(parents=True)
    (folder / "kit/kit.json").write_text(json.dumps(manifest))
    for name, figure in results["graphs"].items():
        times = {"timeMs": 8 * figure["ms"], "averageMs": figure["ms"], "medianMs": figure["ms"], "percentage": 100}
        profile = [{"count": 8}, {"name": "/0/Conv + /1/Relu", **times}]
        (folder / "profiles" / name).with_suffix(".json").write_text(json.dumps(profile))


def _profiled(folder: Path) -> None:
    import_trtexec(folder / "profiles", folder / "kit", device="a board")


def _learned_files(folder: Path) -> None:
    graphs = _results()["kit"]["graphs"]
    nets = [[OpSpec.from_key(key) for key in keys] for name, keys in graphs.items() if name.startswith("net_")]
    table = LatencyTable.load(RUN / "table.yml")
    header = header_of(backend=table.header.backend, input_size=16, device=table.header.device)
    nets = (nets * 20)[:40]
    measured = [0.01 + sum(0.001 + 1e-7 * macs(op) for op in net) for net in nets]
    fit_model(nets, measured, header=header).save(folder / "model.json")


def _learned(folder: Path) -> Any:
    model = LearnedModel.load(folder / "model.json")

    def use() -> None:
        ops = [OpSpec.from_key(key) for keys in _results()["kit"]["graphs"].values() for key in keys]
        known = [op for op in dict.fromkeys(ops) if not model.unknown(op)]
        model.table(known).calibrated_ms(known)

    return use


def _partial_files(folder: Path) -> None:
    PartialSamples(folder / "table.partial", {"device": "x", "threads": 1}).save({"op": [1.0, 2.0], "net": [3.0]})


def _partial(folder: Path) -> None:
    for samples in PartialSamples(folder / "table.partial", {"device": "x", "threads": 1}).load().values():
        sum(samples)


def _key(text: str) -> None:
    OpSpec.from_key(text)


def _released_key(text: str) -> None:
    alone = text.startswith(("AvgPool2D", "Conv_2")) or "-se:" in text
    parse_released_key(text, dialect=ONCE_FOR_ALL if alone else PROXYLESS)


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


def _end(folder: Path) -> None:
    read_end(folder, Trial("abc", {}, 0, 0))


def _result_files(folder: Path) -> None:
    _trial_files(folder)
    row = json.loads((RUN / "gradient" / "result.json").read_text(encoding="utf-8"))
    (folder / "abc" / "result.json").write_text(json.dumps({**row, "trial": "abc"}))


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
    table = RUN / "table.yml"
    search = contents(RUN / "gradient.yml", RUN / "reinforce.yml", *sorted(EXAMPLES.glob("*_search.yml")))
    presets = contents(*(EXAMPLES / f"{name}_search.yml" for name in ("cifar10", "imagenet")))
    sweeps = contents(*(EXAMPLES / f"{name}.yml" for name in ("cifar10", "fashion_mnist", "imagenet")))
    recipes = contents(*sorted(RECIPES.glob("*.yml")))
    keys = list(_results()["kit"]["graphs"]["net_000.onnx"])
    released = [line.partition(": ")[0].encode() for line in ONCE_FOR_ALL_TEXT.split("\n") if line]
    settings = [
        b"search.epochs=3",
        b"rule=reinforce\ntarget=0.3",
        b"space={name: small_mbconv, options: {kernels: [3]}}",
    ]
    settings += [b"hardware={cost: macs}\nhardware.threads=2\ntarget_cost=1", b"data.options.mean=[0.5]\nretrain=null"]
    nothing = SimpleNamespace(none=lambda folder: None)
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
            nothing.none,
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
        Target("latency table", copying(table, "table.yml"), "table.yml", _table, yaml_text),
        Target("table of ProxylessNAS", _proxylessnas, "released.yml", _foreign_table, yaml_text),
        Target("table of Once-for-all", _once_for_all, "released.yml", _foreign_table, yaml_text),
        Target(
            "key of an operator", nothing.none, "", _key, key_text, lambda folder: [key.encode() for key in keys], ()
        ),
        Target("key of a released table", nothing.none, "", _released_key, key_text, lambda folder: released, ()),
        Target("kit", _kit, "kit/kit.json", _measured, json_text, share=0.5),
        Target(
            "results of a kit",
            copying(RUN / "results.json", "results.json"),
            "results.json",
            lambda folder: import_results(folder / "results.json"),
            json_text,
        ),
        Target(
            "profile of trtexec",
            _profiles,
            "profiles/op_000.json",
            _profiled,
            json_text,
            share=0.3,
            # where profiles contradict one another, none of them can be named
            names=("op_000.json", "./profiles"),
        ),
        Target("kit of profiles", _profiles, "kit/kit.json", _profiled, json_text, share=0.3),
        Target("learned latency model", _learned_files, "model.json", _learned, json_text),
        Target("partial samples", _partial_files, "table.partial", _partial, json_text),
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
