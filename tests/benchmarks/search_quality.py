"""Does the search find better subnets than chance, than NNI's own strategies, than hand-made ones?

Every method chooses a subnet of the enumerated space (`tests/benchmarks/enumerated_truth.py`) within a latency target,
and is judged by what that subnet reaches when it is trained stand-alone. All methods that search have the same budget:
CPU seconds of one process on one thread, as this machine may be busy with something else; each one's epochs follow from
what its own epoch takes here. NNI's strategies know no target (their latency penalty has no gradient), so one run of
theirs stands for all targets, and they export what they export.

A subnet's regret is the held-out accuracy, in points, that the best subnet within the target has over it. The best one
is chosen on one half of the seeds, and the regret is read off the other half, both ways round. A subnet over the target
has no regret; it is a violation. With a few trainings a subnet the truth itself is noisy: a good subnet may seem worse
than a lucky one, and the one that looks best is seldom the best. So figures by an additive fit to all trainings (one
term for each edge's candidate) stand beside.

    .venv/bin/python -m tests.benchmarks.search_quality --data ROOT [--quick] [--jobs 2] [--seeds 10] [--out FILE]
    .venv/bin/python -m tests.benchmarks.search_quality --data ROOT --ablation --seeds 3
    .venv/bin/python -m tests.benchmarks.search_quality --data ROOT --budget 16 --seeds 1
    .venv/bin/python -m tests.benchmarks.search_quality --table [--ablation]  prints the table of ./README.md
    .venv/bin/python -m tests.benchmarks.search_quality --judge [--ablation]  judges the committed runs anew
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from scipy.stats import kendalltau

from hardware.files import write_atomically
from proxyless_strategy.config import SearchSettings
from proxyless_strategy.strategy.derivation import CHOICES, SLACK, Derived

from .enumerated_truth import ARCHITECTURE, DATA, SPACE, TRUTH, WEIGHTS, data, latency_model, name_of, subnets, train
from .enumerated_truth import targets as targets_of
from .pool import one_thread, origin, run_jobs

RESULT = DATA / "search_quality.json"
ABLATION = DATA / "search_quality_ablation.json"
BUDGET = 4
"""Stand-alone trainings that a search's CPU time would pay for."""
SEEDS = 10
BATCH = 128
WARMUP_SHARE = 0.35
UNIFORM = ("3x3_e3", "3x3_e6", "5x5_e6")
RULES = ("gradient", "reinforce")
STOCK = ("nni_proxyless", "nni_darts")
MOST_PROBABLE = ", most probable subnet"
RANKED = 60
"""Subnets whose inherited-weight accuracy is compared with the truth."""


# ---- the truth -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Truth:
    """What every subnet reaches.

    Attributes:
        halves: Mean held-out accuracy in 0..1 over each half of a subnet's seeds (even ones, odd ones), by name.
        single: Held-out accuracy with each of the first two seeds, by name.
        ms: Latency by the table.
        macs: Multiply-accumulates.
        noise: Seed-to-seed standard deviation of an accuracy.
        smooth: Accuracy by a sum of one term for each edge's candidate, fitted to all trainings; by name.
    """

    halves: dict[str, tuple[float, float]]
    single: dict[str, tuple[float, float]]
    ms: dict[str, float]
    macs: dict[str, float]
    noise: float
    smooth: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `enumerated_truth` wrote."""
        record = json.loads(path.read_text())
        halves, single, trainings = {}, {}, {}
        for name, row in record["rows"].items():
            values = [row["accuracies"][seed] for seed in sorted(row["accuracies"], key=int)]
            if len(values) < 2:
                raise SystemExit(f"{path} has fewer than two trainings of {name}; let enumerated_truth finish")
            trainings[name] = values
            halves[name] = (statistics.fmean(values[0::2]), statistics.fmean(values[1::2]))
            single[name] = (values[0], values[1])
        rows = record["rows"]
        return cls(
            halves,
            single,
            {name: row["table_ms"] for name, row in rows.items()},
            {name: row["macs"] for name, row in rows.items()},
            record["noise"],
            additive(trainings),
        )

    def feasible(self, target: float) -> list[str]:
        """Return the subnets within a target."""
        return [name for name, ms in self.ms.items() if ms <= target * (1 + 1e-9)]

    def mean(self, name: str) -> float:
        """Return the mean accuracy over both halves."""
        return statistics.fmean(self.halves[name])

    def regret(self, name: str, target: float, *, judged_by: int | None = None) -> float | None:
        """Return the points of accuracy that the best subnet within the target has over this one; None over the target.

        Args:
            name: The subnet.
            target: Latency target in ms.
            judged_by: Half of the seeds that judges; None: both ways round, averaged.
        """
        allowed = self.feasible(target)
        if name not in allowed:
            return None
        found = []
        for judge in (0, 1) if judged_by is None else (judged_by,):
            best = max(allowed, key=lambda other: self.halves[other][1 - judge])
            found.append(100 * (self.halves[best][judge] - self.halves[name][judge]))
        return statistics.fmean(found)

    def smooth_regret(self, name: str, target: float) -> float:
        """Return the regret by the additive fit, which has less noise."""
        return 100 * (max(self.smooth[other] for other in self.feasible(target)) - self.smooth[name])

    def smooth_beats(self, name: str, target: float) -> float:
        """Return what `beats_random` does, by the additive fit."""
        return _share_below(self.smooth[name], [self.smooth[n] for n in self.feasible(target) if n != name])

    def beats_random(self, name: str, target: float, *, judged_by: int | None = None) -> float:
        """Return the probability that this subnet beats another one drawn within the target; a tie counts half.

        Args:
            name: The subnet.
            target: Latency target in ms.
            judged_by: Half of the seeds that judges; None: all.
        """

        def accuracy(subnet: str) -> float:
            return self.mean(subnet) if judged_by is None else self.halves[subnet][judged_by]

        return _share_below(accuracy(name), [accuracy(other) for other in self.feasible(target) if other != name])


def _share_below(mine: float, others: list[float]) -> float:
    """Return the share of the others that are below, a tie counting half; 0.5 without any."""
    values = np.array(others)
    return float((values < mine).mean() + 0.5 * (values == mine).mean()) if len(values) else 0.5


def additive(trainings: dict[str, list[float]]) -> dict[str, float]:
    """Fit all trainings by one term for each edge's candidate (least squares); return the fit of each subnet."""
    terms = {term: column for column, term in enumerate(sorted({t for name in trainings for t in _terms(name)}))}
    design = np.zeros((len(trainings), len(terms)))
    for row, name in enumerate(trainings):
        design[row, [terms[term] for term in _terms(name)]] = 1
    weight = np.sqrt([len(values) for values in trainings.values()])
    means = np.array([statistics.fmean(values) for values in trainings.values()])
    solution = np.linalg.lstsq(design * weight[:, None], means * weight, rcond=None)[0]
    return dict(zip(trainings, (design @ solution).tolist(), strict=True))


def _terms(name: str) -> list[tuple[int, str]]:
    return list(enumerate(name.split()))


def bootstrap(groups: list[list[float]], *, seed: int = 0, draws: int = 10_000) -> list[float]:
    """Return the 95 % percentile interval of the mean, drawing whole groups: runs of one seed are not independent."""
    generator = np.random.default_rng(seed)
    sums, counts = (np.array([f(group) for group in groups], dtype=float) for f in (sum, len))
    drawn = generator.integers(len(groups), size=(draws, len(groups)))
    return [round(float(v), 3) for v in np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])]


def judged(truth: Truth, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a method's figures over its runs, each with `subnet` and `target_ms`.

    Regrets are in points of accuracy, over the runs within their target.
    """
    groups: dict[Any, list[float]] = {}
    beats, close = [], 0
    smooth: dict[str, list[float]] = {"regret": [], "beats": []}
    for number, run in enumerate(runs):
        judge = run.get("judged_by")
        regret = truth.regret(run["subnet"], run["target_ms"], judged_by=judge)
        if regret is None:
            continue
        groups.setdefault(run.get("seed", f"run {number}"), []).append(regret)
        beats.append(truth.beats_random(run["subnet"], run["target_ms"], judged_by=judge))
        close += regret <= 100 * truth.noise
        smooth["regret"].append(truth.smooth_regret(run["subnet"], run["target_ms"]))
        smooth["beats"].append(truth.smooth_beats(run["subnet"], run["target_ms"]))
    within = [regret for group in groups.values() for regret in group]
    return {
        "runs": len(runs),
        "runs_within_target": len(within),
        "regret_mean": round(statistics.fmean(within), 3) if within else None,
        "ci": bootstrap(list(groups.values())) if within else None,
        "within_noise": round(close / len(runs), 3),
        "violations": round(1 - len(within) / len(runs), 3),
        "beats_random": round(statistics.fmean(beats), 3) if beats else None,
        "regret_by_additive_fit": round(statistics.fmean(smooth["regret"]), 3) if beats else None,
        "beats_random_by_additive_fit": round(statistics.fmean(smooth["beats"]), 3) if beats else None,
    }


# ---- methods that need no search -------------------------------------------------------------------------------------


def without_search(truth: Truth, targets: list[float], trainings: int, repeats: int = 200) -> dict[str, list[dict]]:
    """Choose by random search with the budget of `trainings`, uniform nets, and those that only ask for size.

    `best_of_other_half` is what regrets are measured from: how surely it beats a random subnet is as much as the
    truth's noise lets any method reach. `any_on_target` is every subnet that an export could have been: within the
    target, and using all but the slack of it.
    """
    runs: dict[str, list[dict]] = {"random_search": [], "any_on_target": [], "most_macs": [], "largest_latency": []}
    generator = np.random.default_rng(0)
    for target in targets:
        allowed = truth.feasible(target)
        for repeat in range(repeats):
            drawn = generator.choice(allowed, size=min(trainings, len(allowed)), replace=False)
            selecting = repeat % 2
            best = str(max(drawn, key=lambda name: truth.single[name][selecting]))
            runs["random_search"].append({"subnet": best, "target_ms": target, "judged_by": 1 - selecting})
        slack = SLACK
        while len(band := [name for name in allowed if truth.ms[name] >= (1 - slack) * target]) < CHOICES and slack < 1:
            slack *= 2
        drawn = np.random.default_rng(1).choice(band, size=repeats)
        runs["any_on_target"] += [{"subnet": str(name), "target_ms": target} for name in drawn]
        for judge in (0, 1):
            chosen = max(allowed, key=lambda name: truth.halves[name][1 - judge])
            runs.setdefault("best_of_other_half", []).append(
                {"subnet": chosen, "target_ms": target, "judged_by": judge}
            )
        for method, value in (("most_macs", truth.macs), ("largest_latency", truth.ms)):
            runs[method].append({"subnet": max(allowed, key=lambda name: value[name]), "target_ms": target})
        for candidate in UNIFORM:
            subnet = " ".join([candidate] * len(SPACE.edges()))
            runs.setdefault(f"all {candidate}", []).append({"subnet": subnet, "target_ms": target})
    return runs


# ---- searches --------------------------------------------------------------------------------------------------------


class Clock(Callback):
    """CPU seconds at the end of each epoch."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())


def _trainer(epochs: int, clock: Any) -> Any:
    from nni.nas.evaluator.pytorch import Trainer

    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )


def _evaluator(root: Path, seed: int, settings: SearchSettings, trainer: Any) -> Any:
    from nni.nas.evaluator.pytorch import Lightning

    from proxyless_strategy.runs.classifier import ImageClassifier

    images = data(root)
    return Lightning(
        ImageClassifier(settings),
        trainer,
        train_dataloaders=images.loader("weights", batch_size=BATCH, shuffle=True, drop_last=True, seed=seed),
        val_dataloaders=images.loader("architecture", batch_size=BATCH, shuffle=True, drop_last=True, seed=seed),
    )


def _network(seed: int) -> Any:
    from proxyless_strategy.seeds import isolated_seed

    with isolated_seed(seed):
        return SPACE.build(num_classes=10, in_chans=1).to(memory_format=torch.channels_last)


def ours(root: Path, rule: str, seed: int, target: float, warmup: int, epochs: int, options: dict[str, Any]) -> dict:
    """Run one search of ours; weights take options of `SearchSettings`, all others are those of `ProxylessStrategy`."""
    from proxyless_strategy.strategy.proxyless import ProxylessStrategy

    options = {"steps_per_update": 2, **options}
    weights = {
        key: options.pop(key) for key in list(options) if key in SearchSettings.model_fields and key in WEIGHTS_KEYS
    }
    if "architecture_learning_rate" in options:  # the config's name of it
        options["learning_rate"] = options.pop("architecture_learning_rate")
    settings = SearchSettings(
        epochs=epochs, warmup_epochs=warmup, batch_size=BATCH, channels_last=True, **{**WEIGHTS_DEFAULTS, **weights}
    )
    clock = Clock()
    strategy = ProxylessStrategy(
        rule=rule, cost=latency_model(), target=target, warmup_epochs=warmup, seed=seed, **options
    )
    module = strategy.search(_network(seed), _evaluator(root, seed, settings, _trainer(warmup + epochs, clock)))
    after = time.process_time() - clock.ends[-1]
    p = module.architecture.probabilities()

    def named(derived: Derived) -> str:
        return name_of({label: str(value) for label, value in module.architecture.export(derived.choice).items()})

    return {
        "subnet": named(module.derive()),
        "most_probable": named(module.deriver().within(target, slack=module.options.slack)),
        "target_ms": target,
        "expected_ms": module.problem.fixed + module.architecture.expected_cost(p, module.problem.costs),
        "entropy": float(-(p * p.clamp(min=1e-12).log()).sum(-1).mean()),
        "ends": clock.ends,
        "after": after,
        "module": module,
        "strategy": strategy,
    }


WEIGHTS_KEYS = ("learning_rate", "warmup_learning_rate", "weight_decay", "label_smoothing", "momentum")
WEIGHTS_DEFAULTS: dict[str, Any] = {"learning_rate": 0.1, "label_smoothing": 0.0}


def stock(root: Path, method: str, seed: int, epochs: int) -> dict:
    """Run one search of NNI's own, as it is; it knows no latency."""
    from nni.nas.strategy import DARTS, Proxyless

    from proxyless_strategy.seeds import seed_everything

    seed_everything(seed)
    settings = SearchSettings(epochs=epochs, warmup_epochs=0, batch_size=BATCH, channels_last=True, **WEIGHTS_DEFAULTS)
    clock = Clock()
    strategy = {"nni_proxyless": Proxyless, "nni_darts": DARTS}[method]()
    network = strategy.mutate_model(_network(seed))
    evaluator = strategy.mutate_evaluator(_evaluator(root, seed, settings, _trainer(epochs, clock)))
    evaluator.evaluate(network)
    evaluator.module.set_model(network)
    choices = {label: str(value) for label, value in evaluator.module.export().items()}
    return {"subnet": name_of(choices), "ends": clock.ends}


def kendall(root: Path, truth: Truth, seed: int, warmup: int) -> dict[str, float]:
    """Return Kendall's tau of inherited-weight accuracy and loss on architecture images against the truth.

    The supernet is trained on uniform paths; each subnet's BN statistics are estimated anew.
    """
    import copy

    found = ours(root, "gradient", seed, max(truth.ms.values()), warmup, 2, {"steps_per_update": WEIGHTS // BATCH})
    module, images = found["module"], data(root)
    generator = np.random.default_rng(seed)
    names = [str(name) for name in generator.choice(sorted(truth.ms), size=RANKED, replace=False)]
    loader = list(images.loader("architecture", batch_size=500))[:4]
    calibration = list(images.loader("weights", batch_size=BATCH, shuffle=True, seed=seed, drop_last=True))[:8]
    candidates = SPACE.candidates()
    accuracies, losses = [], []
    for name in names:
        sample = dict(zip(candidates, name.split(), strict=True))
        net = copy.deepcopy(module.training_module.model).freeze(sample)
        norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        net.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for x, _ in calibration:
                net(x.contiguous(memory_format=torch.channels_last))
            net.eval()
            outputs = [(net(x), y) for x, y in loader]
        accuracies.append(sum(int((output.argmax(-1) == y).sum()) for output, y in outputs))
        losses.append(sum(float(torch.nn.functional.cross_entropy(output, y)) for output, y in outputs))
    means = [truth.mean(name) for name in names]
    tau = {"accuracy": kendalltau(accuracies, means).statistic, "loss": -kendalltau(losses, means).statistic}
    return {name: round(float(value), 3) for name, value in tau.items()}


# ---- the benchmark ---------------------------------------------------------------------------------------------------


def _quiet() -> None:
    one_thread()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero", "nni"):
        logging.getLogger(name).setLevel(logging.ERROR)


@cache
def _truth(path: Path) -> Truth:
    return Truth.load(path)


def epochs_within(seconds: float, weight_epoch: float, search_epoch: float, share: float) -> tuple[int, int]:
    """Return warm-up and search epochs whose CPU time adds up to `seconds` at most.

    Args:
        seconds: The budget.
        weight_epoch: CPU seconds of an epoch of weight steps.
        search_epoch: CPU seconds of an epoch of weight and architecture steps.
        share: Of the budget, for the warm-up.
    """
    warmup = max(1, round(share * seconds / weight_epoch))
    # the first epoch after the warm-up takes no architecture step
    rest = seconds - (warmup + 1) * weight_epoch
    return warmup, max(2, 1 + int(rest / search_epoch))


def calibrate(root: Path, method: str, options: dict[str, Any]) -> tuple[float, float, float]:
    """Time an epoch of weight steps, one with architecture steps too, and what follows the last epoch, in CPU seconds.

    Of a training or of a strategy of NNI, all that it takes (an epoch of it) is the first and the second.
    """
    if method == "training":
        subnets_ = list(subnets())
        seconds = statistics.median(
            train(subnets_[i], root, 0)[1] for i in (len(subnets_) // 3, len(subnets_) // 2, 250)
        )
        return seconds, seconds, 0.0
    if method in STOCK:
        ends = stock(root, method, 0, 3)["ends"]
        epoch = min(np.diff(ends))
        return float(epoch), float(epoch), 0.0
    found = ours(root, method, 0, middle(), 2, 3, dict(options))
    steps = np.diff(found["ends"])
    return float(min(steps[:2])), float(min(steps[2:])), found["after"]


def middle() -> float:
    """Return the middle of the space's latencies in ms."""
    model = latency_model()
    return (model.minimum()[0] + model.maximum()[0]) / 2


def _calibrate_job(arguments: tuple[Path, str, dict[str, Any]]) -> tuple[float, float, float]:
    return calibrate(*arguments)


def _job(job: dict[str, Any]) -> dict[str, Any]:
    root, method = Path(job["root"]), job["method"]
    start = time.process_time()
    if method == "kendall":
        return {**job, "kendall": kendall(root, _truth(Path(job["truth"])), job["seed"], job["warmup"])}
    if method in STOCK:
        found = stock(root, method, job["seed"], job["epochs"])
    else:
        found = ours(root, method, job["seed"], job["target_ms"], job["warmup"], job["epochs"], dict(job["options"]))
    kept = {key: found[key] for key in ("subnet", "most_probable", "expected_ms", "entropy") if key in found}
    return {**job, **kept, "cpu_seconds": round(time.process_time() - start, 2)}


def key_of(job: dict[str, Any]) -> str:
    """Return what makes a run the same run."""
    parts = ("variant", "method", "seed", "target_ms", "warmup", "epochs", "options")
    return json.dumps({name: job.get(name) for name in parts}, sort_keys=True)


def run_all(jobs: list[dict[str, Any]], processes: int, kept: Path) -> list[dict[str, Any]]:
    """Run what is not kept yet, and keep every run as it ends."""
    done = {key_of(run): run for run in json.loads(kept.read_text())} if kept.exists() else {}
    missing = [job for job in jobs if key_of(job) not in done]
    print(f"{len(missing)} of {len(jobs)} runs to do", flush=True)
    for run, progress in run_jobs(_job, missing, processes, prepare=_quiet):
        done[key_of(run)] = run
        write_atomically(kept, json.dumps(list(done.values())))
        shown = {k: run.get(k) for k in ("method", "seed", "target_ms", "subnet", "kendall", "cpu_seconds")}
        print(f"{progress}: {shown}", flush=True)
    return [done[key_of(job)] for job in jobs]


def searches(
    root: Path,
    truth_file: Path,
    methods: dict[str, tuple[str, dict[str, Any], float | None]],
    targets: list[float],
    seeds: int,
    trainings: int,
    processes: int,
) -> tuple[list[dict[str, Any]], float]:
    """Plan the runs to do, and the budget of each in CPU seconds.

    The budget and every method's epochs are timed now, together, so that the machine's state counts for all alike.

    Args:
        root: Folder of the images.
        truth_file: The truth.
        methods: A variant's rule or strategy, options and warm-up share (None: the epochs of the committed result).
        targets: Latency targets in ms.
        seeds: Runs of each method and target.
        trainings: Stand-alone trainings that the budget pays for.
        processes: Runs at a time.
    """
    names = list(methods)
    timed = [(root, "training", {}), *((root, methods[n][0], methods[n][1]) for n in names)]
    measured = run_jobs(_calibrate_job, timed, processes, prepare=_quiet, in_order=True)
    (training, *_), *costs = (seconds for seconds, _ in measured)
    seconds = trainings * training
    jobs = []
    for name, (weight_epoch, search_epoch, after) in zip(names, costs, strict=True):
        method, options, share = methods[name]
        common = {"root": str(root), "truth": str(truth_file), "variant": name, "method": method, "options": options}
        for seed in range(seeds):
            if method in STOCK:
                jobs.append({**common, "seed": seed, "epochs": max(1, int(seconds / search_epoch))})
                continue
            if share is None:
                warmup, epochs = committed_epochs(method)
            else:
                warmup, epochs = epochs_within(seconds - after, weight_epoch, search_epoch, share)
            jobs += [{**common, "seed": seed, "target_ms": t, "warmup": warmup, "epochs": epochs} for t in targets]
    return jobs, seconds


def committed_epochs(rule: str) -> tuple[int, int]:
    """Return warm-up and search epochs of a rule's runs in the committed result."""
    run = next(run for run in json.loads(RESULT.read_text())["runs"] if run["variant"] == rule)
    return run["warmup"], run["epochs"]


def figures(truth: Truth, runs: list[dict[str, Any]], targets: list[float]) -> dict[str, Any]:
    """Return the figures of each variant, and of what it would have exported with one finalist."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["method"] in STOCK:
            methods.setdefault(run["variant"], []).extend({**run, "target_ms": t} for t in targets)
        elif run["method"] != "kendall":
            methods.setdefault(run["variant"], []).append(run)
            probable = {**run, "subnet": run["most_probable"]}
            methods.setdefault(run["variant"] + MOST_PROBABLE, []).append(probable)
    result = {}
    for name, found in methods.items():
        result[name] = judged(truth, found)
        result[name]["cpu_seconds"] = round(statistics.median(run["cpu_seconds"] for run in found), 1)
        epochs = [(run.get("warmup", 0), run["epochs"]) for run in found]
        result[name]["epochs"] = f"{epochs[0][0]} + {epochs[0][1]}" if epochs[0][0] else str(epochs[0][1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="ROOT")
    parser.add_argument("--truth", type=Path, default=TRUTH)
    parser.add_argument("--quick", action="store_true", help="3 seeds, half the budget, the middle target only")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="TRAININGS")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ablation", action="store_true", help="the variants")
    parser.add_argument("--variants", nargs="+", help="of the ablation")
    parser.add_argument("--judge", action="store_true", help="judge the committed runs anew, without running any")
    parser.add_argument("--table", action="store_true", help="print the committed result as Markdown")
    arguments = parser.parse_args()
    committed = ABLATION if arguments.ablation else RESULT
    if arguments.table:
        print((ablation_markdown if arguments.ablation else markdown)(json.loads(committed.read_text())))
        return
    if arguments.judge:
        result = json.loads(committed.read_text())
        result |= verdict(Truth.load(arguments.truth), result, plain=not arguments.ablation)
        write_atomically(committed, json.dumps(result, indent=1) + "\n")
        print(json.dumps({key: value for key, value in result.items() if key != "runs"}))
        return
    if arguments.ablation and not RESULT.exists():
        parser.error(f"--ablation compares with {RESULT}; run the benchmark without it first")
    if arguments.ablation and (arguments.quick or arguments.budget != BUDGET):
        parser.error(f"--ablation compares with runs of {BUDGET} trainings at all targets; leave out --quick, --budget")
    if arguments.data is None:
        parser.error("--data ROOT is missing: the folder of Fashion-MNIST's four idx files (see enumerated_truth)")
    _quiet()
    truth = Truth.load(arguments.truth)
    targets = targets_of(truth.ms.values())
    if arguments.quick:
        targets = targets[1:2]
    seeds = 3 if arguments.quick else arguments.seeds
    trainings = BUDGET // 2 if arguments.quick else arguments.budget
    if arguments.ablation:
        chosen = arguments.variants or list(VARIANTS)
        methods = {name: VARIANTS[name] for name in chosen}
    else:
        methods = {name: (name, {}, WARMUP_SHARE) for name in (*RULES, *STOCK)}
    out = arguments.out or committed
    if arguments.out is None and arguments.budget != BUDGET:
        out = out.with_stem(f"{out.stem}_budget_{arguments.budget}")
    if arguments.quick and arguments.out is None:
        out = Path("runs/search_quality_quick.json")
        out.parent.mkdir(exist_ok=True)
    plan, kept = out.with_suffix(".plan.json"), out.with_suffix(".runs.json")
    if plan.exists():
        jobs, seconds = json.loads(plan.read_text())
    else:
        jobs, seconds = searches(arguments.data, arguments.truth, methods, targets, seeds, trainings, arguments.jobs)
        write_atomically(plan, json.dumps([jobs, seconds]))
    if not arguments.ablation and (arguments.quick or trainings == BUDGET):
        warmup = next(job["warmup"] for job in jobs if job["variant"] == "gradient")
        common = {"root": str(arguments.data), "truth": str(arguments.truth), "variant": "kendall", "method": "kendall"}
        epochs = (2 * warmup,) if arguments.quick else (2 * warmup, 8 * warmup)
        jobs += [{**common, "seed": seed, "warmup": n} for n in epochs for seed in range(1 if arguments.quick else 2)]
    runs = run_all(jobs, arguments.jobs, kept)
    own = ("variant", "method", "seed", "target_ms", "warmup", "epochs", "cpu_seconds", "subnet", "most_probable")
    result = {
        **origin(
            "python -m tests.benchmarks.search_quality --data ROOT"
            + (" --quick" if arguments.quick else "")
            + (" --ablation" if arguments.ablation else "")
            + (f" --seeds {seeds}" if not arguments.quick and seeds != SEEDS else "")
            + (f" --budget {trainings}" if not arguments.quick and trainings != BUDGET else "")
        ),
        "budget": {"trainings": trainings, "cpu_seconds": round(seconds, 1)},
        "images": {"weights": WEIGHTS, "architecture": ARCHITECTURE},
        "targets_ms": targets,
        "seeds": seeds,
        "runs": [{key: run[key] for key in (*own, "kendall") if key in run} for run in runs],
    }
    if arguments.ablation:
        result["runs"] += [
            run for run in json.loads(RESULT.read_text())["runs"] if run["method"] in RULES and run["seed"] < seeds
        ]
    result |= verdict(truth, result, plain=not arguments.ablation)
    write_atomically(out, json.dumps(result, indent=1) + "\n")
    for path in (plan, kept):
        path.unlink()
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}))


def verdict(truth: Truth, result: dict[str, Any], *, plain: bool) -> dict[str, Any]:
    """Return what a result says, from its runs alone.

    Args:
        truth: What they are judged by.
        result: Holds `runs`, `targets_ms` and `budget`.
        plain: Whether to judge what needs no search as well.
    """
    methods = figures(truth, result["runs"], result["targets_ms"])
    if plain:
        without = without_search(truth, result["targets_ms"], result["budget"]["trainings"])
        methods |= {name: judged(truth, found) for name, found in without.items()}
    return {
        "noise_points": round(100 * truth.noise, 3),
        "kendall": [{"epochs": run["warmup"], **run["kendall"]} for run in result["runs"] if "kendall" in run],
        "methods": methods,
    }


VARIANTS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "gradient, sampled weight paths": ("gradient", {"weight_paths": "sampled"}, None),
    "gradient, fair warm-up": ("gradient", {"warmup_paths": "fair"}, None),
    "gradient, unbiased": ("gradient", {"estimator": "unbiased"}, None),
    "gradient, all paths": ("gradient", {"paths": "all"}, WARMUP_SHARE),
    "gradient, warm-up 60 %": ("gradient", {}, 0.6),
    "gradient, every 5 steps": ("gradient", {"steps_per_update": 5}, WARMUP_SHARE),
    "reinforce, sampled weight paths": ("reinforce", {"weight_paths": "sampled"}, None),
    "reinforce, moving baseline": ("reinforce", {"baseline": "moving"}, None),
    "reinforce, warm-up 60 %": ("reinforce", {}, 0.6),
    "reinforce, every 5 steps": ("reinforce", {"steps_per_update": 5}, WARMUP_SHARE),
}
"""What `--ablation` compares with the committed result's runs of the same seeds: rule, options of the strategy, share
of the budget for the warm-up; None where a step costs what the plain rule's does, whose epochs it then has."""


def markdown(result: dict[str, Any]) -> str:
    """Write the table of tests/benchmarks/README.md."""
    lines = [
        "| method | regret, points | 95 % interval | by additive fit | within noise | over target "
        "| beats a random feasible one | by additive fit |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    for name, row in result["methods"].items():
        interval = "-" if row["ci"] is None else f"{row['ci'][0]:.2f} to {row['ci'][1]:.2f}"
        regrets = f"{shown(row['regret_mean'])} | {interval} | {shown(row['regret_by_additive_fit'])}"
        beats = f"{shown(row['beats_random'])} | {shown(row['beats_random_by_additive_fit'])}"
        lines.append(f"| {name} | {regrets} | {row['within_noise']:.0%} | {row['violations']:.0%} | {beats} |")
    return "\n".join(lines)


def ablation_markdown(result: dict[str, Any]) -> str:
    """Write that file's table of the ablation: each variant's best finalist, and its most probable subnet."""
    lines = [
        "| variant | epochs | regret, points | 95 % interval | by additive fit | with one finalist | by additive fit |",
        "|---|---|---|---|---|---|---|",
    ]
    methods = result["methods"]
    for name in sorted(name for name in methods if not name.endswith(MOST_PROBABLE)):
        row, probable = methods[name], methods[name + MOST_PROBABLE]
        figures = [
            f"{method[key]:.2f}" for method in (row, probable) for key in ("regret_mean", "regret_by_additive_fit")
        ]
        interval = f"{row['ci'][0]:.2f} to {row['ci'][1]:.2f}"
        lines.append(f"| {name} | {row['epochs']} | {figures[0]} | {interval} | {' | '.join(figures[1:])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
