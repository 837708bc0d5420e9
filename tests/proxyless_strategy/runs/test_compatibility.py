"""Folders that commit bc6f2f8 wrote are read, and what was killed then ends today as it would have ended then.

Everything goes through the command line, as a user with old folders would go; `tests/data/make_run.py` says what each
folder is. Random streams are part of it: another order of images, other paths or other fresh weights end in other
numbers.

With the processor and the libraries of the recording numbers must be equal, bit for bit. Kernels of another processor
round otherwise. What is computed in float64 (the search of `gradient`) is compared there within `CLOSE`, which is far
less than another random stream makes. A training in float32 carries rounding too far: of retrainings there only the
rough place of the weights is compared, and of the search of `reinforce` what its checkpoint holds.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from safetensors.numpy import load_file

from tests.data.make_run import CACHED, FIXTURE, RECIPE, processor

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((FIXTURE / "recorded.json").read_text())
HERE = {"processor": processor(), "python": platform.python_version()}
EXACT = RECORDED["machine"] == HERE and all(version(name) == v for name, v in RECORDED["versions"].items())
CLOSE = 1e-5
"""Relative. A resumed float64 search needs it too: Lightning rounds the weights to float32 when it restores them."""
ROUGH = frozenset({"accuracy", "top5", "loss"})
"""What float32 gives of a trained network."""
UNCOMPARED = {"folder", "onnx", "seconds"}
CLI, TRIAL = "proxyless_strategy.cli", "proxyless_strategy.trial"
RETRAIN = ["retrain", "derived", "--source", "digits", "--data", ".", "--recipe", "quick", *RECIPE]

SEVERAL = """
import json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise
    print("\\f", end="", flush=True)
    print("\\f", end="", file=sys.stderr, flush=True)
"""
"""Runs modules as `python -m` does, one after the other in one process: importing torch and NNI takes longest."""


def copied(place: Path) -> Path:
    """A copy of the fixture to work in, with the latency table where a search looks for it."""
    run = place / "run"
    shutil.copytree(FIXTURE, run)
    (run / "cache" / CACHED).parent.mkdir(parents=True)
    shutil.copy(run / "table.yml", run / "cache" / CACHED)
    return run


def execute(run: Path, *commands: Sequence[str], out: str | None = None, errors: list[str] | None = None) -> list[str]:
    """What each command prints; the first of its words is the module. `out` is where a trial writes.

    What each prints on standard error is added to `errors`.
    """
    ours = ("NNI_", "PROXYLESS_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    fonts = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    environment.setdefault("MPLCONFIGDIR", str(fonts))
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(run / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment |= {"PROXYLESS_OUT": out} if out else {}
    command = [sys.executable, "-W", "ignore", "-c", SEVERAL, json.dumps(commands)]
    done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    if errors is not None:
        errors += done.stderr.split("\f")[:-1]
    return done.stdout.split("\f")[:-1]


# ---- comparing -------------------------------------------------------------------------------------------------------


def same(
    found: Any, recorded: Any, *, exact: bool = EXACT, rough: frozenset[str] = frozenset(), where: str = ""
) -> None:
    """All that was recorded is found; more may be. Numbers under the names in `rough` may be far off if not `exact`."""
    if isinstance(recorded, dict):
        for key in recorded.keys() - UNCOMPARED:
            assert key in found, f"{where} lacks {key}"
            if key in rough and not exact and recorded[key] is not None:
                assert math.isclose(found[key], recorded[key], abs_tol=0.1), f"{where}/{key}"
            else:
                same(found[key], recorded[key], exact=exact, rough=rough, where=f"{where}/{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for index, pair in enumerate(zip(found, recorded, strict=True)):
            same(*pair, exact=exact, rough=rough, where=f"{where}/{index}")
    elif isinstance(recorded, float) and not exact:
        assert math.isclose(found, recorded, rel_tol=CLOSE), (where, found, recorded)
    else:
        assert found == recorded, where


def same_json(found: Path, recorded: Path, *, exact: bool = EXACT, rough: frozenset[str] = frozenset()) -> None:
    same(json.loads(found.read_text()), json.loads(recorded.read_text()), exact=exact, rough=rough, where=str(found))


def same_network(found: Path, recorded: Path, *, trained: bool = True) -> None:
    """The same export folder; `trained`: its weights were trained since."""
    for name in ("config.json", "subnet.json", "metrics.json"):
        same_json(found / name, recorded / name, rough=ROUGH)
    assert (found / "hubconf.py").exists()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, recorded))
    assert {name: weights.shape for name, weights in ours.items()} == {name: w.shape for name, w in theirs.items()}
    for name, weights in theirs.items():
        assert not EXACT or np.array_equal(ours[name], weights), name
        assert trained or np.allclose(ours[name], weights, rtol=1e-4, atol=1e-6), name
    floats = [name for name, weights in theirs.items() if weights.dtype.kind == "f"]
    found_all, recorded_all = (np.concatenate([w[name].ravel() for name in floats]) for w in (ours, theirs))
    distance = np.linalg.norm(found_all - recorded_all) / np.linalg.norm(recorded_all)
    assert distance < 0.2, "rounding makes up to 0.04, another seed about 1"


def same_search(found: Path, recorded: Path, *, exact: bool = EXACT, trained: bool = True) -> None:
    """The same finished search: its settings, record, row of results and export folder."""
    same_json(found / "config.json", recorded / "config.json", exact=True)
    same_json(found / "search.json", recorded / "search.json", exact=exact)
    same_json(found / "row.json", recorded / "row.json", rough=ROUGH)
    same_network(found / "model", recorded / "model", trained=trained)
    assert (found / "model.onnx").exists()


# ---- what was killed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the searches that were killed have ended, and what they printed."""
    run = copied(tmp_path_factory.mktemp("ended"))
    search = [CLI, "search", "reinforce.yml", "--set", "out=reinforce_killed"]
    return run, execute(run, [TRIAL, "gradient.yml"], search, out="gradient_killed")


@pytest.mark.slow
def test_a_trial_killed_in_its_search_ends_as_it_did_then(ended: tuple[Path, list[str]]) -> None:
    run, printed = ended
    assert [printed[0].count(f"'phase': '{phase}'") for phase in ("warmup", "search", "retrain")] == [0, 2, 3]
    same_search(run / "gradient_killed", FIXTURE / "gradient", exact=False)
    same_json(run / "gradient_killed" / "result.json", FIXTURE / "gradient" / "result.json", rough=ROUGH)


@pytest.mark.slow
def test_a_killed_search_ends_bit_for_bit(ended: tuple[Path, list[str]]) -> None:
    found, recorded = ended[0] / "reinforce_killed", FIXTURE / "reinforce"
    if EXACT:
        same_search(found, recorded)
        return
    now, then = (json.loads((folder / "search.json").read_text()) for folder in (found, recorded))
    assert now["history"][:3] == then["history"][:3], "of before it was killed"
    assert now["counters"] == then["counters"]
    assert now.keys() >= then.keys()


@pytest.mark.slow
def test_a_search_killed_in_its_retraining_ends_as_it_did_then(tmp_path: Path) -> None:
    run = copied(tmp_path)
    execute(run, [CLI, "search", "gradient.yml", "--set", "out=gradient_retraining"])
    same_search(run / "gradient_retraining", FIXTURE / "gradient", exact=True)


# ---- what is done anew -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", ["gradient", "reinforce"])
def test_the_same_settings_give_the_same_search(config: str, tmp_path: Path) -> None:
    if config == "reinforce" and not EXACT:
        pytest.skip("recorded in float32 with another processor or other libraries")
    run = copied(tmp_path)
    execute(run, [CLI, "search", f"{config}.yml", "--set", "out=anew"])
    same_search(run / "anew", FIXTURE / config)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_network(tmp_path: Path) -> None:
    run = copied(tmp_path)
    # A retraining then measured mean and std of its own images; now it has those of its folder.
    then = json.loads((FIXTURE / "retrained" / "model" / "config.json").read_text())["pretrained_cfg"]
    folder = run / RETRAIN[1] / "config.json"
    config = json.loads(folder.read_text())
    config["pretrained_cfg"] |= {name: then[name] for name in ("mean", "std")}
    folder.write_text(json.dumps(config))
    execute(run, [CLI, *RETRAIN, "--out", "anew"])
    same_network(run / "anew" / "model", FIXTURE / "retrained" / "model")


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A folder in which the commands that read old files have run, what they printed, and what on standard error."""
    run = copied(tmp_path_factory.mktemp("reading"))
    settings = json.loads((run / "gradient" / "config.json").read_text())
    settings["hardware"]["table"] = str(run / "table.yml")
    shutil.copytree(run / "gradient", run / "named_table")
    (run / "named_table" / "config.json").write_text(json.dumps(settings))
    target = ["--target", RECORDED["derive_target"]]
    errors: list[str] = []
    printed = execute(
        run,
        [CLI, "latency", "import", "results.json", "--out", "imported.yml"],
        [CLI, "latency", "show", "table.yml"],
        [CLI, "derive", "gradient", *target, "--out", "of_gradient"],
        [CLI, "derive", "named_table", *target, "--out", "of_named_table"],
        [CLI, "derive", "gradient", "--curve", "--points", "6", "--out", "trade_off"],
        [CLI, *RETRAIN, "--out", "retrained_killed"],
        [CLI, "report", ".", "--out", "report.html"],
        errors=errors,
    )
    return run, printed, errors


@pytest.mark.slow
def test_a_kits_results_give_the_same_table(reading: tuple[Path, list[str], list[str]]) -> None:
    same(*(yaml.safe_load((reading[0] / name).read_text()) for name in ("imported.yml", "table.yml")))


def test_a_table_shows_the_same(reading: tuple[Path, list[str], list[str]]) -> None:
    assert reading[1][1] == RECORDED["latency_show"]


@pytest.mark.parametrize("search", ["gradient", "named_table"])
def test_another_subnet_is_the_same(search: str, reading: tuple[Path, list[str], list[str]]) -> None:
    same_network(reading[0] / f"of_{search}", FIXTURE / "derived", trained=False)


def test_the_trade_off_is_the_same(reading: tuple[Path, list[str], list[str]]) -> None:
    same_json(reading[0] / "trade_off" / "curve.json", FIXTURE / "curve" / "curve.json")


def test_a_killed_retraining_ends_as_it_did_then(reading: tuple[Path, list[str], list[str]]) -> None:
    assert "continuing the retraining at epoch 3 of 3" in reading[2][5]
    assert [f"retrain {epoch}/3" in reading[2][5] for epoch in (1, 2, 3)] == [False, False, True]
    same_network(reading[0] / "retrained_killed" / "model", FIXTURE / "retrained" / "model")


def test_finished_searches_are_reported_and_unfinished_ones_named(reading: tuple[Path, list[str], list[str]]) -> None:
    page = (reading[0] / "report.html").read_text()
    accuracy = json.loads((FIXTURE / "gradient" / "row.json").read_text())["accuracy"]
    for words in (f"{accuracy:.2%}", "small_mbconv", "M MACs", "gradient_killed", "reinforce_killed"):
        assert words in page


@pytest.mark.slow
@pytest.mark.parametrize("config", ["gradient", "reinforce"])
def test_a_finished_search_stays_as_it_is_and_is_exported_again(config: str, tmp_path: Path) -> None:
    run = copied(tmp_path)
    execute(
        run,
        [CLI, "search", f"{config}.yml"],
        [CLI, "export", f"{config}/model", "--onnx", "again.onnx"],
        [CLI, "report", config, "--out", "report.png"],
    )
    same_search(run / config, FIXTURE / config, exact=True, trained=False)
    image = np.random.default_rng(0).standard_normal((1, 1, 16, 16), dtype=np.float32)
    logits = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for path in (FIXTURE / config / "model.onnx", run / config / "model.onnx", run / "again.onnx")
    ]
    assert np.allclose(logits[1], logits[0], atol=1e-4)
    assert np.allclose(logits[2], logits[0], atol=1e-4)


@pytest.mark.slow
def test_other_settings_are_refused_in_an_old_folder(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"holds a search with other settings \(seed = .* there, 5 here\)"):
        execute(copied(tmp_path), [CLI, "search", "gradient.yml", "--set", "seed=5"])
