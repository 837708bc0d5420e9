"""Is what `proxyless shrink` finds better than the cheap ways to a network that is as fast?

    .venv/bin/python -m tests.benchmarks.shrink [--quick] [--seeds 3] [--close-seeds 3] [--size 96] [--epochs 16]
                      [--images 2000] [--randoms 20] [--jobs 2] [--weights FILE] [--fashion-mnist ROOT] [--out DIR]
                      [--save]

EfficientNet-Lite0 with its ImageNet weights is made smaller on 2,000 images of Fashion-MNIST. Every network that is
compared begins where the search begins, the original fine-tuned on the weight part (`start`), and is then trained for
equally many epochs, beside the same teacher, by the same recipe. At each share of the original's latency:

- `found`: what `proxyless shrink` exports, fine-tuned from what it inherits of `start`; neither the search's epochs nor
  those of its finalists train its weights. `curve`: further shares derived from the search of the first.
- `supernet_weights`: the same at the first share, fine-tuned from the search's weights; the search's epochs are of the
  network's own then, and no finalist is trained.
- `lower_resolution`: the original on smaller images.
- `random`: subnets that cost 98 to 100 % of the target: the most probable ones under random logits.
- `most_macs`: the feasible subnet of most multiply-accumulates. `uniform`: every block shrunk alike.
- `sensitivity`: the knapsack on each candidate's own loss (`rule: sensitivity`).
- `torch_pruning`: channels cut by group magnitude (torch-pruning, extra `pruning`) until the network is as fast.
- `fresh`: a search and a training of its weights from random ones, with a fresh network's rates, for all epochs.

All networks of a seed are timed in one interleaved run. The test images are read once for each network. Results are
kept as they come: started again, it goes on. `--quick` is one seed and one share. `--close-seeds` gives more seeds to
`found` and to the two ways that come nearest to it, `most_macs` and `sensitivity`. The last line is JSON: `{original:
{accuracy, ms}, rows: [{share, accuracy, ms, params}], lower_resolution, random: {mean, ci}, most_macs, uniform,
sensitivity, torch_pruning, supernet_weights, fresh, minutes}`; accuracies in 0..1, `ci` 95 % of the mean by Student's
t. `found_ahead` is by how much `found` is better than the row, `ahead_of_original` by how much a row is better than the
original, {mean, ci}: the networks of a seed have its start and its teacher in common, so that differences are taken
within each (of random subnets, to their mean). `found_by` counts what led to the subnets that were found. A way that
leads to no network as fast as a share has no accuracy, and says so as `missing`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from scipy.stats import t as student
from torch import nn
from torch.nn import functional

from hardware.files import replacing, write_atomically
from hardware.measuring.nets import measure_model_files
from hardware.measuring.sampling import Plan
from hardware.model import CostModel, macs_model
from proxyless_strategy.config import RetrainSettings, SearchConfig, SearchSettings, config_of
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.export.onnx import export_onnx
from proxyless_strategy.layout import SEARCH_FILE
from proxyless_strategy.retraining.teacher import load_teacher
from proxyless_strategy.retraining.trainer import train
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.playoff import most_macs
from proxyless_strategy.runs.prepare import Library
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.shrinking.layout import ORIGINAL, SEARCH, START
from proxyless_strategy.shrinking.originals import make_original, make_start, metrics_of, weights_of
from proxyless_strategy.shrinking.plan import SUPERNET, subnet_epochs
from proxyless_strategy.shrinking.story import Ready, check_all, run_shrink, search_config
from proxyless_strategy.strategy.architecture import Edge
from proxyless_strategy.strategy.derivation import SLACK, Deriver
from search_spaces import Subnet

from .pool import origin, run_jobs
from .shrink_data import write_folder

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT.parent / "shared" / "data" / "tf_efficientnet_lite0.safetensors"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
RESULT = Path(__file__).with_name("data") / "shrink.json"
NAME = "timm:tf_efficientnet_lite0"
SHARES, CURVE = (0.6, 0.4), (0.8, 0.4)
CLOSE = ("most_macs", "sensitivity")
"""Ways whose networks differ least from what is found: only more seeds tell them apart."""
CHEAP = ("lower_resolution", "most_macs", "uniform", "sensitivity", "torch_pruning", "fresh")
FRESH_RATE = 0.05
"""Learning rate of a search from random weights; its retraining is as a retraining is by default."""
FROM_WEIGHTS = ("start", "weight_paths", "finalists_epochs")
"""Settings of a search that has weights to start from."""
OPTIMISER = ("optimizer", "learning_rate", "momentum", "weight_decay", "layer_decay")
SMALLEST, STEP = 16, 4
"""Of image sides that are tried for a lower resolution."""


class Unreachable(Exception):
    """A way leads to no network as fast as asked for."""


@dataclass(frozen=True)
class Setting:
    """What all networks of a run share.

    Attributes:
        out: Where everything lies.
        weights: The original's.
        size: Side of the images.
        epochs: Of training for each network in all.
        images: Training images.
        randoms: Random subnets for each share, over all seeds.
        seeds: Seeds.
        close_seeds: Seeds of what is found and of `CLOSE`, where more than `seeds`.
        shares: Shares of the original's latency.
        curve: Further shares, from the search of the first.
    """

    out: Path
    weights: Path
    size: int = 96
    epochs: int = 16
    images: int = 2000
    randoms: int = 20
    seeds: int = 3
    close_seeds: int = 0
    shares: tuple[float, ...] = SHARES
    curve: tuple[float, ...] = CURVE

    @property
    def every_seed(self) -> range:
        return range(max(self.seeds, self.close_seeds))

    def folder(self, seed: int, *parts: str) -> Path:
        return self.out.joinpath(f"seed{seed}", *parts)

    def config(self, seed: int, share: float) -> SearchConfig:
        """Return what `proxyless shrink` would be given."""
        values: dict[str, Any] = {
            "space": {"name": NAME, "options": {"weights": str(self.weights)}},
            "data": {"name": "imagefolder", "root": str(self.out / "pictures")},
            "input_size": self.size,
            "hardware": {"backend": "onnxruntime", "threads": 1, "table": str(self.out / "table.yml")},
            "target": f"{share}x",
            "shrink": {"epochs": self.epochs},
            "retrain": {"threads": 1},
            "search": {"threads": 1},
            "seed": seed,
            "out": str(self.folder(seed, f"found-{share}")),
        }
        return config_of(values, {}, folder=Path.cwd(), source="the benchmark")


QUICK: dict[str, Any] = {"size": 64, "epochs": 8, "randoms": 2, "seeds": 1, "shares": (0.6,), "curve": ()}


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        setting: What all share.
        name: The way to it; `shared` is the start and the original of a seed.
        seed: Its seed.
        share: Of the original's latency.
        number: Of a random subnet.
    """

    setting: Setting
    name: str
    seed: int
    share: float
    number: int = 0

    @property
    def key(self) -> str:
        """Its name among the results of its seed."""
        return f"{self.name}{self.number or ''}-{self.share}"

    @property
    def result(self) -> Path:
        return self.setting.folder(self.seed, f"{self.key}.json")

    @property
    def onnx(self) -> Path:
        return self.setting.folder(self.seed, f"{self.key}.onnx")


# ---- one network -------------------------------------------------------------------------------------------------


def carry_out(job: Job) -> Job:
    """Make a job's network and write down what it is; one that is there stays."""
    if not job.result.exists():
        began = time.monotonic()
        ready = _ready(job)
        try:
            found = WAYS[job.name](job, ready)
        except Unreachable as error:
            found = {"missing": str(error)}
        row = {**found, "minutes": round((time.monotonic() - began) / 60, 2)}
        write_atomically(job.result, json.dumps(row, indent=1))
    return job


def _ready(job: Job) -> Ready:
    """Return the checked settings of a shrinking whose start and original lie where all of its seed find them."""
    config = job.setting.config(job.seed, job.share)
    return check_all(config.model_copy(update={"out": job.setting.folder(job.seed, "common")}))


def _shared(job: Job, ready: Ready) -> dict[str, Any]:
    config, space = ready.config, ready.model.space
    make_start(config, space, ready.data)
    make_original(config, space, ready.data, start=ready.start)
    model = load_exported(config.out / ORIGINAL, exportable=True)
    _write_onnx(model, job.onnx, job.setting.size)
    return {"accuracy": metrics_of(config.out / ORIGINAL)["accuracy"], "params": _params(model)}


def _found(job: Job, ready: Ready) -> dict[str, Any]:
    config = job.setting.config(job.seed, job.share)
    row = _shrunk(job, ready, config)
    taken, *_ = json.loads((config.out / SEARCH / SEARCH_FILE).read_text(encoding="utf-8"))["finalists"]
    return {**row, "found_by": " + ".join(taken["found_by"])}


def _supernet_weights(job: Job, ready: Ready) -> dict[str, Any]:
    config = job.setting.config(job.seed, job.share)
    assert config.retrain is not None
    retrain = config.retrain.model_copy(update={"weights": SUPERNET})
    out = job.setting.folder(job.seed, job.key)
    return _shrunk(job, ready, config.model_copy(update={"retrain": retrain, "out": out}))


def _shrunk(job: Job, ready: Ready, config: SearchConfig) -> dict[str, Any]:
    for name in (START, ORIGINAL):
        if not (config.out / name).exists():
            shutil.copytree(ready.config.out / name, config.out / name)
    subnet = run_shrink(config).subnet
    shutil.copyfile(subnet.onnx, job.onnx)
    choices = dict(read_run(config.out / SEARCH).choices)
    return {"accuracy": subnet.accuracy, "params": subnet.params, "table_ms": subnet.table_ms, "choices": choices}


def _curve(job: Job, ready: Ready) -> dict[str, Any]:
    run = read_run(job.setting.folder(job.seed, f"found-{job.setting.shares[0]}", SEARCH))
    derived = run.deriver.within(_target(ready), slack=SLACK)
    return _subnet(job, ready, run.candidates(derived))


def _random(job: Job, ready: Ready) -> dict[str, Any]:
    generator = np.random.default_rng((job.seed, job.number, round(100 * job.share)))
    logits = generator.standard_normal(ready.prepared.cost.costs.shape)
    return _subnet(job, ready, _best(ready, logits))


def _most_macs(job: Job, ready: Ready) -> dict[str, Any]:
    costs, cost = ready.prepared.costs, ready.prepared.cost
    found = most_macs(_edges(cost), cost, macs_model(costs.fixed, costs.edges), _target(ready))
    return _subnet(job, ready, {label: str(name) for label, name in found.names.items()})


def _uniform(job: Job, ready: Ready) -> dict[str, Any]:
    choices = uniform_subnets(ready.model.space.candidates(), ready.model.space.original())
    cost = ready.prepared.cost
    feasible = [each for each in choices if cost.cost(each) <= _target(ready)]
    if not feasible:
        raise Unreachable(f"no subnet whose blocks are shrunk alike is within {job.share}x")
    return _subnet(job, ready, max(feasible, key=cost.cost))


def uniform_subnets(candidates: Mapping[str, Sequence[str]], original: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the subnets all of whose blocks have the same expansion and kernel, or their own.

    >>> candidates = {"first": ("3x3_e1", "5x5_e1"), "second": ("3x3_e2", "3x3_e6", "5x5_e2", "5x5_e6", "skip")}
    >>> for each in uniform_subnets(candidates, {"first": "3x3_e1", "second": "5x5_e6"}):
    ...     print(*each.values())
    3x3_e1 5x5_e6
    3x3_e1 5x5_e2
    3x3_e1 3x3_e6
    3x3_e1 3x3_e2
    5x5_e1 5x5_e6
    5x5_e1 5x5_e2
    """
    parts = [name.split("_", 1) for names in candidates.values() for name in names if name != "skip"]
    kernels = [None, *sorted({kernel for kernel, _ in parts})]
    expansions = [None, *sorted({expansion for _, expansion in parts})]
    found = []
    for kernel in kernels:
        for expansion in expansions:
            choices = {}
            for label, names in candidates.items():
                own_kernel, own_expansion = original[label].split("_", 1)
                kernels_here = (kernel or own_kernel, own_kernel)
                expansions_here = (expansion or own_expansion, own_expansion)
                wanted = [f"{k}_{e}" for k in kernels_here for e in expansions_here]
                choices[label] = next(name for name in wanted if name in names)
            if choices not in found:
                found.append(choices)
    return found


def _sensitivity(job: Job, ready: Ready) -> dict[str, Any]:
    config = search_config(ready.config, start=ready.start)
    out = job.setting.folder(job.seed, f"sensitivity-{job.share}")
    result = run_search(config.model_copy(update={"rule": "sensitivity", "out": out}))
    shutil.copyfile(result.onnx, job.onnx)
    return {"accuracy": result.accuracy, "params": result.params, "choices": dict(result.subnet.choices)}


def _fresh(job: Job, ready: Ready) -> dict[str, Any]:
    assert ready.config.shrink is not None
    searched = search_config(ready.config, start=ready.start)
    out = job.setting.folder(job.seed, f"fresh-{job.share}")
    result = run_search(fresh(searched, ready.config.shrink.start_epochs or 0).model_copy(update={"out": out}))
    shutil.copyfile(result.onnx, job.onnx)
    return {"accuracy": result.accuracy, "params": result.params, "choices": dict(result.subnet.choices)}


def fresh(config: SearchConfig, start_epochs: int) -> SearchConfig:
    """Return a search from trained weights as one from random weights, which the subnet keeps: it has no others.

    Args:
        config: The search.
        start_epochs: Those that the original was trained before it.
    """
    assert config.retrain is not None
    search = config.search.model_copy(
        update={
            "warmup_epochs": config.search.warmup_epochs + start_epochs,
            "learning_rate": FRESH_RATE,
            "layer_decay": None,
            # no weights that say anything, nor candidates that can do without equal shares of the training; and a
            # subnet that goes on from the supernet's weights is chosen by them
            **{name: SearchSettings.model_fields[name].default for name in FROM_WEIGHTS},
        }
    )
    tuned = subnet_epochs(config) - config.search.warmup_epochs - config.search.epochs
    usual = {name: RetrainSettings.model_fields[name].default for name in OPTIMISER}
    retrain = config.retrain.model_copy(update={"weights": SUPERNET, "epochs": tuned, **usual})
    space = config.space.model_copy(update={"options": {**config.space.options, "weights": "none"}})
    return config.model_copy(update={"space": space, "search": search, "retrain": retrain})


def _lower_resolution(job: Job, ready: Ready) -> dict[str, Any]:
    setting = job.setting
    original = load_exported(ready.config.out / ORIGINAL, exportable=True)
    side = lower_side(original, setting.size, job.share, setting.folder(job.seed, "sides"))
    smaller = ready.config.model_copy(update={"input_size": side})
    data = Library().data(smaller, ready.model.space.feeding())
    start = ready.config.out / START
    row = _trained(job, ready, lambda: load_exported(start), data=data, side=side)
    return {**row, "input_size": side}


def lower_side(original: nn.Module, size: int, share: float, folder: Path) -> int:
    """Return the greatest side of images on which a network takes at most a share of what it takes on `size`."""
    files = {side: folder / f"{side}.onnx" for side in range(SMALLEST, size + 1, STEP)}
    for side, path in files.items():
        if not path.exists():
            _write_onnx(original, path, side)
    figures = measure_model_files(list(files.values()), plan=_plan(len(files)))
    ms = {side: figure.ms for side, figure in zip(files, figures, strict=True)}
    fitting = [side for side in files if ms[side] <= share * ms[size]]
    if not fitting:
        raise Unreachable(f"on images of {SMALLEST} pixels the original takes {ms[SMALLEST] / ms[size]:.2f}x")
    return max(fitting)


def _torch_pruning(job: Job, ready: Ready) -> dict[str, Any]:
    start = ready.config.out / START
    reference = job.setting.folder(job.seed, f"shared-{job.setting.shares[0]}.onnx")
    path = job.setting.folder(job.seed, "pruning.onnx")

    def ratio_of(model: nn.Module) -> float:
        _write_onnx(model, path, job.setting.size)
        pruned, whole = measure_model_files([path, reference], plan=_plan(2))
        return pruned.ms / whole.ms

    # kept, as a repeated measurement would lead to another network than the one whose training goes on
    kept = job.result.with_suffix(".pt")
    if not kept.exists():
        found = pruned_to(lambda: load_exported(start), job.share, job.setting.size, ratio_of)
        with replacing(kept) as beside:
            torch.save(found, beside)
    network = torch.load(kept, weights_only=False)
    return _trained(job, ready, lambda: copy.deepcopy(network))


def pruned_to(
    build: Callable[[], nn.Module], share: float, size: int, ratio_of: Callable[[nn.Module], float], *, tries: int = 7
) -> nn.Module:
    """Return the least pruned network that takes at most a share of the original's time; the ratio is bisected.

    Args:
        build: Makes the network with its weights.
        share: Of the original's time.
        size: Side of its images.
        ratio_of: Measures a network's time as a share of the original's.
        tries: Steps of the bisection.
    """
    try:
        import torch_pruning
    except ImportError:
        raise SystemExit(
            "the row torch_pruning needs torch-pruning; `pip install 'proxyless-strategy[pruning]'`"
        ) from None
    low, high, best = 0.0, 0.95, None
    for _ in range(tries):
        ratio = (low + high) / 2
        network = build()
        pruner = torch_pruning.pruner.BasePruner(
            network,
            torch.zeros(1, 3, size, size),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            iterative_steps=5,
            round_to=8,
            ignored_layers=[network.get_classifier()],  # type: ignore[operator]
        )
        for _ in range(5):
            pruner.step()
        if ratio_of(network) <= share:
            high, best = ratio, network
        else:
            low = ratio
    if best is None:
        raise Unreachable(f"torch-pruning comes to no network within {share}x")
    return best


WAYS: dict[str, Callable[[Job, Ready], dict[str, Any]]] = {
    "shared": _shared,
    "found": _found,
    "curve": _curve,
    "lower_resolution": _lower_resolution,
    "random": _random,
    "most_macs": _most_macs,
    "uniform": _uniform,
    "sensitivity": _sensitivity,
    "torch_pruning": _torch_pruning,
    "supernet_weights": _supernet_weights,
    "fresh": _fresh,
}


def _target(ready: Ready) -> float:
    assert ready.prepared.target is not None
    return ready.prepared.target


def _edges(cost: CostModel) -> list[Edge]:
    return [Edge(label, names) for label, names in zip(cost.labels, cost.candidates, strict=True)]


def _best(ready: Ready, logits: np.ndarray) -> dict[str, str]:
    """Return the subnet of the greatest sum of logits on the target."""
    cost: CostModel = ready.prepared.cost
    derived = Deriver(_edges(cost), logits, cost.costs, cost.fixed).within(_target(ready), slack=SLACK)
    return {label: str(name) for label, name in derived.names.items()}


def _subnet(job: Job, ready: Ready, choices: Mapping[str, str]) -> dict[str, Any]:
    """Train a subnet from what it inherits of the start."""
    data, space = ready.data, replace(ready.model.space, weights=str(weights_of(ready.config.out / START)))
    subnet = Subnet(space, choices)
    network = space.build(num_classes=data.num_classes, in_chans=data.channels)
    weights = network.timm_state_dict(choices)
    arguments = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)

    def build() -> nn.Module:
        model = timm.create_model(subnet.timm_name, **arguments)
        model.load_state_dict(weights)
        return model

    row = _trained(job, ready, build)
    return {**row, "table_ms": ready.prepared.table_ms(subnet), "choices": dict(choices)}


def _trained(
    job: Job, ready: Ready, build: Callable[[], nn.Module], *, data: ImageData | None = None, side: int | None = None
) -> dict[str, Any]:
    """Train a network as long as the found one from the start on, beside the same teacher, and write its ONNX file."""
    settings = ready.config.retrain
    assert settings is not None
    taught = load_teacher(str(ready.config.out / ORIGINAL), ready.data)
    teacher: nn.Module = taught if side is None else _Enlarged(taught, job.setting.size)
    result = train(
        build,
        data or ready.data,
        settings.model_copy(update={"epochs": subnet_epochs(ready.config)}),
        seed=job.seed,
        checkpoint=job.result.with_suffix(".ckpt"),
        teacher=teacher.eval(),
    )
    _write_onnx(result.model, job.onnx, side or job.setting.size)
    for left in job.result.parent.glob(f"{job.key}*.ckpt"):
        left.unlink()
    return {"accuracy": result.test_accuracy, "params": _params(result.model)}


class _Enlarged(nn.Module):
    """A teacher that sees small images as large as it was trained on."""

    def __init__(self, teacher: nn.Module, size: int):
        super().__init__()
        self.teacher = teacher
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.teacher(functional.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False))


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _write_onnx(model: nn.Module, path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # its outputs are compared on random images, on which a trained network's are large
    export_onnx(model, path, input_shape=(3, side, side), tolerance=1e-2)


def _plan(files: int) -> Plan:
    return Plan(rounds=400, minimum_rounds=20, seconds=1.5 * files)


# ---- all of them -------------------------------------------------------------------------------------------------


def jobs_of(setting: Setting) -> list[Job]:
    """Return every network of a run, in the order in which they are needed."""
    jobs = []
    for seed in setting.every_seed:
        whole = seed < setting.seeds
        mine = range(1 + seed, 1 + setting.randoms, setting.seeds) if whole else ()
        for share in setting.shares:
            jobs += [Job(setting, name, seed, share) for name in ("found", *(CHEAP if whole else CLOSE))]
            jobs += [Job(setting, "random", seed, share, number) for number in mine]
        if whole:
            jobs.append(Job(setting, "supernet_weights", seed, setting.shares[0]))
            jobs += [Job(setting, "curve", seed, share) for share in setting.curve]
    return jobs


def measured(setting: Setting, seed: int, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the ms of every network of a seed, timed in one interleaved run; kept, as the networks do not change."""
    path = setting.folder(seed, "ms.json")
    files = {job.key: job.onnx for job in jobs if job.seed == seed}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if set(kept) != set(files):
        figures = measure_model_files(list(files.values()), plan=_plan(len(files)))
        kept = {key: figure.ms for key, figure in zip(files, figures, strict=True)}
        write_atomically(path, json.dumps(kept, indent=1))
    return kept


def interval(values: Sequence[float]) -> list[float] | None:
    """Return 95 % of the mean by Student's t; None of a single value.

    >>> interval([0.5])
    >>> [round(bound, 3) for bound in interval([0.8, 0.9])]
    [0.215, 1.485]
    """
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(student.ppf(0.975, len(values) - 1)) * error
    return [mean - reach, mean + reach]


def ahead_of(found: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return, for each seed that has both, the found network's accuracy less the mean of the others'.

    >>> found = [{"seed": 0, "accuracy": 0.75}, {"seed": 1, "accuracy": 0.5}]
    >>> ahead_of(found, [{"seed": 0, "accuracy": 0.25}, {"seed": 0, "accuracy": 0.75}])
    [0.25]
    """
    differences = []
    for row in found:
        same = [other["accuracy"] for other in others if other["seed"] == row["seed"]]
        if same:
            differences.append(row["accuracy"] - statistics.fmean(same))
    return differences


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of values, and its interval.

    >>> spread([0.5])
    {'mean': 0.5, 'ci': None}
    """
    ci = interval(values)
    return {"mean": round(statistics.fmean(values), 5), "ci": None if ci is None else [round(bound, 5) for bound in ci]}


def summary(setting: Setting, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return what the last line says: means over seeds, by share; minutes of all networks together."""
    every = [*[Job(setting, "shared", seed, setting.shares[0]) for seed in setting.every_seed], *jobs]
    results = {job: json.loads(job.result.read_text(encoding="utf-8")) for job in every}
    networks = [job for job, row in results.items() if "missing" not in row]
    ms = {seed: measured(setting, seed, networks) for seed in setting.every_seed}
    rows: dict[tuple[str, float], list[dict[str, Any]]] = {}
    missing: dict[tuple[str, float], str] = {}
    for job, row in results.items():
        if "missing" in row:
            missing.setdefault((job.name, job.share), row["missing"])
            continue
        own = ms[job.seed][job.key]
        whole = ms[job.seed][Job(setting, "shared", job.seed, setting.shares[0]).key]
        rows.setdefault((job.name, job.share), []).append({**row, "seed": job.seed, "ms": own, "ratio": own / whole})

    def of(name: str, share: float) -> dict[str, Any]:
        if (name, share) not in rows:
            return {"accuracy": None, "missing": missing[name, share]}
        found = rows[name, share]
        ahead = {}
        if name in ("found", "curve"):
            ahead = {"ahead_of_original": spread(ahead_of(found, rows["shared", setting.shares[0]]))}
        elif name != "shared":
            ahead = {"found_ahead": spread(ahead_of(rows["found", share], found))}
        return {
            "accuracy": (own := spread([row["accuracy"] for row in found]))["mean"],
            "ci": own["ci"],
            **ahead,
            "ms": round(statistics.fmean(row["ms"] for row in found), 4),
            "measured_share": round(statistics.fmean(row["ratio"] for row in found), 4),
            "params": round(statistics.fmean(row["params"] for row in found)),
            "count": len(found),
            **({"found_by": dict(Counter(row["found_by"] for row in found))} if name == "found" else {}),
        }

    random = {}
    for share in setting.shares:
        row = of("random", share)
        random[str(share)] = {"mean": row.pop("accuracy"), **row}
    return {
        "original": of("shared", setting.shares[0]),
        "rows": [{"share": share, **of("found", share)} for share in setting.shares]
        + [{"share": share, "derived_from": setting.shares[0], **of("curve", share)} for share in setting.curve],
        "random": random,
        **{name: {str(share): of(name, share) for share in setting.shares} for name in CHEAP},
        "supernet_weights": {str(setting.shares[0]): of("supernet_weights", setting.shares[0])},
        "minutes": round(sum(row["minutes"] for row in results.values()), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one share, small images, few epochs")
    numbers = ("seeds", "size", "epochs", "images", "randoms", "close_seeds")
    for name in numbers:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, metavar="FILE.safetensors")
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, metavar="ROOT")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR")
    parser.add_argument("--save", action="store_true", help=f"write the result to {RESULT.name} beside the benchmark")
    arguments = parser.parse_args()
    for path, what in (
        (arguments.weights, "weights of EfficientNet-Lite0"),
        (arguments.fashion_mnist, "Fashion-MNIST"),
    ):
        if not path.exists():
            raise SystemExit(f"there are no {what} at {path}; see --help")
    out = (arguments.out or ROOT / "runs" / ("shrink_quick" if arguments.quick else "shrink")).absolute()
    setting = Setting(out, arguments.weights.absolute(), **(QUICK if arguments.quick else {}))
    given = {name: value for name, value in vars(arguments).items() if name in numbers and value is not None}
    setting = replace(setting, **given)
    if not (out / "pictures").exists():
        write_folder(arguments.fashion_mnist, out / "pictures", train=setting.images, test=10_000, seed=0)
    jobs = jobs_of(setting)
    first = [Job(setting, "shared", seed, setting.shares[0]) for seed in setting.every_seed]
    # the table is measured here, before anything trains
    _ready(first[0])
    for stage in (first, [job for job in jobs if job.name != "curve"], [job for job in jobs if job.name == "curve"]):
        missing = [job for job in stage if not job.result.exists()]
        for job, progress in run_jobs(carry_out, missing, arguments.jobs):
            row = json.loads(job.result.read_text(encoding="utf-8"))
            said = row.get("missing") or f"{row['accuracy']:.4f}"
            print(f"{progress}: seed {job.seed} {job.key}: {said}, {row['minutes']} minutes", flush=True)
    last = summary(setting, jobs)
    if arguments.save:
        options = [f" --{name.replace('_', '-')} {value}" for name, value in given.items()]
        command = "python -m tests.benchmarks.shrink" + " --quick" * arguments.quick + "".join(options)
        shown = {key: value for key, value in asdict(setting).items() if key not in ("out", "weights")}
        write_atomically(RESULT, json.dumps({**origin(command), "setting": shown, **last}, indent=1) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
