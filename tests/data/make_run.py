"""Writes `tests/data/run_bc6f2f8`: what commit bc6f2f8 wrote for small searches, finished and killed.

    git checkout bc6f2f8                        # with this file laid into it, and installed
    .venv/bin/python tests/data/make_run.py     # about three minutes on one core; replaces tests/data/run_bc6f2f8

`tests/proxyless_strategy/runs/test_compatibility.py` reads these folders, continues what was killed, and searches
anew. The files are as the commands below wrote them, in `/tmp/run_bc6f2f8`, whose path stands in some of them and means
nothing elsewhere.

Left out is what nothing reads any more: `search.ckpt` of searches that ended, `retrain.ckpt` of the ended retraining by
`proxyless retrain`, and the trade-off's picture.

| file | what |
|---|---|
| `recorded.json` | versions and processor; what `latency show` printed of `table.yml` |
| `results.json`, `table.yml` | results of a latency kit, and the table that `proxyless latency import` made of them |
| `gradient.yml`, `gradient/` | a search under a latency target with its retraining, as a trial |
| `gradient_killed/` | the same, killed in its search |
| `gradient_retraining/` | the same, killed in its retraining |
| `reinforce.yml`, `reinforce/`, `reinforce_killed/` | a search under MACs without retraining; the same, killed |
| `derived/`, `curve/` | another subnet and the trade-off, derived from `gradient` |
| `retrained/`, `retrained_killed/` | `derived` retrained by a recipe; the same, killed |

The table of `gradient` is where a search looks that names none, below `XDG_CACHE_HOME`: so `config.json` holds no path.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

COMMIT = "bc6f2f8"
DATA = Path(__file__).parent
FIXTURE = DATA / f"run_{COMMIT}"
PLACE = Path("/tmp") / f"run_{COMMIT}"
CACHED = "proxyless_strategy/small_mbconv-16px-onnxruntime-1threads-batch1.yml"
MEASURED_ON = "a device that is elsewhere"
UNREAD = (
    "curve/curve.png",
    "gradient/search.ckpt",
    "gradient_retraining/search.ckpt",
    "reinforce/search.ckpt",
    "retrained/retrain.ckpt",
)

SPACE = """\
space:
  name: small_mbconv
  options:
    stem_width: 8
    first_width: 8
    stages: [{width: 8, depth: 2, stride: 2}, {width: 8, depth: 1, stride: 2}]
    kernels: [3, 5]
    expansions: [3, 6]
    head_width: 32
data: digits
input_size: 16
target: 0.5
"""
SPACE_OPTIONS = {
    "stem_width": "8",
    "first_width": "8",
    "stages": '[{"width":8,"depth":2,"stride":2},{"width":8,"depth":1,"stride":2}]',
    "kernels": "[3,5]",
    "expansions": "[3,6]",
    "head_width": "32",
}
CONFIGS = {
    "gradient": SPACE
    + """\
hardware: {device: other}
rule: gradient
search:
  warmup_epochs: 1
  epochs: 4
  steps_per_update: 1
  architecture_learning_rate: 0.05
  batch_size: 128
  precision: 64-true
  accelerator: cpu
retrain: {epochs: 3, batch_size: 128, learning_rate: 0.1}
seed: 11
out: gradient
""",
    "reinforce": SPACE
    + """\
hardware: {cost: macs, device: other}
rule: reinforce
search:
  warmup_epochs: 1
  epochs: 4
  steps_per_update: 2
  samples: 4
  baseline: moving
  architecture_learning_rate: {gradient: 0.006, reinforce: 0.1}
  warmup_paths: fair
  weight_paths: sampled
  batch_size: 128
  accelerator: cpu
retrain: null
seed: 12
out: reinforce
""",
}
LIBRARIES = ("torch", "torchvision", "timm", "nni", "pytorch-lightning", "numpy", "scipy", "scikit-learn", "pillow")
RECIPE = [f"--set={value}" for value in ("epochs=3", "batch_size=128", "augment=crop", "workers=0", "seed=13")]


def main() -> None:
    subprocess.run(["git", "diff", "--quiet", COMMIT, "--", "*.py", ":!tests"], check=True, cwd=DATA.parents[1])
    for folder in (PLACE, FIXTURE):
        shutil.rmtree(folder, ignore_errors=True)
    PLACE.mkdir()
    for name, text in CONFIGS.items():
        (PLACE / f"{name}.yml").write_text(text)
    shown = measure()

    trial = ["-m", "proxyless_strategy.trial", "gradient.yml"]
    run(*trial)
    run(*trial, out="gradient_killed", stop=("search.ckpt", 3))
    run(*trial, out="gradient_retraining", stop=("retrain.ckpt", 2))
    cli("search", "reinforce.yml")
    cli("search", "reinforce.yml", "--set", "out=reinforce_killed", stop=("search.ckpt", 3))

    target = f"{0.95 * json.loads((PLACE / 'gradient' / 'row.json').read_text())['target_ms']:.6f}"
    cli("derive", "gradient", "--target", target, "--out", "derived")
    cli("derive", "gradient", "--curve", "--points", "6", "--out", "curve")
    retrain = ["retrain", "derived", "--source", "digits", "--data", ".", "--recipe", "quick", *RECIPE]
    cli(*retrain, "--out", "retrained")
    cli(*retrain, "--out", "retrained_killed", stop=("retrain.ckpt", 2))

    recorded = {
        "commit": COMMIT,
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {name: version(name) for name in LIBRARIES},
        "derive_target": target,
        "latency_show": shown,
    }
    (PLACE / "recorded.json").write_text(json.dumps(recorded, indent=2) + "\n")
    for unread in UNREAD:
        (PLACE / unread).unlink()
    shutil.copytree(PLACE, FIXTURE, ignore=shutil.ignore_patterns("kit", "cache", ".*"))


def measure() -> str:
    """The kit, its results, and the table of them; returns what `latency show` prints of it."""
    options = [part for item in SPACE_OPTIONS.items() for part in ("--space-option", "=".join(item))]
    sizes = ["--input-size", "16", "--classes", "10", "--channels", "1", "--nets", "12", "--held-out", "4"]
    cli("latency", "kit", "--space", "small_mbconv", *options, *sizes, "--out", "kit")
    run("kit/measure.py", "--out", "results.json", "--device", MEASURED_ON)
    cli("latency", "import", "results.json", "--out", "table.yml")
    (PLACE / "cache" / CACHED).parent.mkdir(parents=True)
    shutil.copy(PLACE / "table.yml", PLACE / "cache" / CACHED)
    return cli("latency", "show", "table.yml")


def cli(*arguments: str, stop: tuple[str, int] | None = None) -> str:
    return run("-m", "proxyless_strategy.cli", *arguments, stop=stop)


def run(*arguments: str, out: str | None = None, stop: tuple[str, int] | None = None) -> str:
    """Runs Python in `PLACE`; with `stop` it is killed when a checkpoint there is of that epoch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"XDG_CACHE_HOME": str(PLACE / "cache"), "PYTHONPATH": str(DATA.parents[1])}
    environment |= {"PROXYLESS_OUT": out} if out else {}
    command = [sys.executable, "-W", "ignore", *arguments]
    print(" ".join(command), flush=True)
    if stop is None:
        done = subprocess.run(command, cwd=PLACE, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout
    folder = out or arguments[-1].rpartition("=")[2]
    process = subprocess.Popen(command, cwd=PLACE, env=environment, stdout=subprocess.DEVNULL)
    while not held(process, PLACE / folder / stop[0], epochs=stop[1]):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    return ""


def held(process: subprocess.Popen[bytes], checkpoint: Path, *, epochs: int) -> bool:
    """Whether a whole checkpoint has so many epochs behind it; then the process stands still, else it goes on."""
    import torch

    if not checkpoint.exists():
        return False
    process.send_signal(signal.SIGSTOP)
    try:
        state = torch.load(checkpoint, weights_only=True)
        done = state["epoch"] + ("loops" in state)  # Lightning counts from 0
    except (RuntimeError, EOFError):
        done = 0
    assert done <= epochs, f"{checkpoint} is of {done} epochs already"
    if done < epochs:
        process.send_signal(signal.SIGCONT)
    return done == epochs


def processor() -> str:
    """The processor's maker, family, model and stepping, where they are known: what decides which kernels compute."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    names = ("vendor_id", "cpu family", "model", "stepping")
    return " ".join([platform.machine(), *(values[name] for name in names if name in values)])


if __name__ == "__main__":
    main()
