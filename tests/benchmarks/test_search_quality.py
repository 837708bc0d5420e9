"""The benchmark's statistics on made-up truths whose answers are known, and the committed truth's integrity."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("timm")

from tests.benchmarks import enumerated_truth, search_quality
from tests.benchmarks.search_quality import Truth, bootstrap, epochs_within, judged, without_search

# accuracies of two halves, latency, MACs: `b` looks best to half 0 and `c` to half 1; `d` is over a target of 3 ms
HALVES = {"a": (0.80, 0.80), "b": (0.90, 0.84), "c": (0.86, 0.88), "d": (0.99, 0.99)}
MS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
TRUTH = Truth(
    HALVES,
    HALVES,
    MS,
    {"a": 1.0, "b": 9.0, "c": 3.0, "d": 10.0},
    noise=0.02,
    smooth={"a": 0.8, "b": 0.87, "c": 0.87, "d": 0.99},
)


@pytest.mark.parametrize(
    ("name", "judge", "expected"),
    [
        ("a", 1, 100 * (0.84 - 0.80)),  # half 0 chooses b, half 1 judges it against a
        ("a", 0, 100 * (0.86 - 0.80)),
        ("b", 1, 0.0),
        ("c", 1, 100 * (0.84 - 0.88)),  # what the other half chose may be worse: a negative regret
        ("b", 0, 100 * (0.86 - 0.90)),
    ],
)
def test_a_regret_is_chosen_on_one_half_and_read_off_the_other(name, judge, expected):
    assert TRUTH.regret(name, 3.0, judged_by=judge) == pytest.approx(expected)


def test_a_regret_averages_both_ways_round_and_a_violation_has_none():
    assert TRUTH.regret("a", 3.0) == pytest.approx(100 * (0.04 + 0.06) / 2)
    assert TRUTH.regret("d", 3.0) is None
    assert TRUTH.regret("d", 4.0) == pytest.approx(0.0)


def test_beating_random_counts_ties_half():
    assert TRUTH.beats_random("a", 3.0) == 0.0
    assert TRUTH.beats_random("b", 3.0) == pytest.approx((1 + 0.5) / 2)
    assert TRUTH.beats_random("b", 3.0, judged_by=0) == 1.0
    assert TRUTH.beats_random("a", 1.0) == 0.5, "the only one"
    tied = Truth({"a": (1.0, 1.0), "b": (1.0, 1.0)}, HALVES, {"a": 1, "b": 1}, {}, 0.0, {})
    assert tied.beats_random("a", 1.0) == 0.5


def test_figures_of_a_method():
    runs = [{"subnet": name, "target_ms": 3.0} for name in ("a", "b", "d", "d")]
    found = judged(TRUTH, runs)
    regrets = [5.0, (0.0 - 4.0) / 2]
    assert found["regret_mean"] == pytest.approx(np.mean(regrets))
    assert (found["violations"], found["runs"]) == (0.5, 4)
    assert found["within_noise"] == 0.25, "only b, of four runs"
    assert found["beats_random"] == pytest.approx((0 + 1.5 / 2) / 2, abs=1e-3), "b and c tie"

    assert found["regret_by_additive_fit"] == pytest.approx(np.mean([7.0, 0.0]))
    assert found["beats_random_by_additive_fit"] == pytest.approx((0 + 1.5 / 2) / 2, abs=1e-3)


def test_one_run_tells_what_it_would_have_exported_with_one_finalist():
    run = {"variant": "gradient", "method": "gradient", "target_ms": 3.0, "epochs": 2, "cpu_seconds": 1.0}
    found = search_quality.figures(TRUTH, [{**run, "subnet": "b", "most_probable": "a"}], [3.0])
    assert list(found) == ["gradient", "gradient, most probable subnet"]
    assert [row["regret_mean"] for row in found.values()] == [pytest.approx(-2.0), pytest.approx(5.0)]


def test_the_additive_fit_recovers_the_terms_and_weighs_by_trainings():
    edges = {"x": 0.1, "y": 0.3}, {"u": 0.0, "v": 0.05, "w": 0.4}
    names = {f"{a} {b}": edges[0][a] + edges[1][b] for a in edges[0] for b in edges[1]}
    fitted = search_quality.additive({name: [value + 0.01, value - 0.01] for name, value in names.items()})
    assert fitted == pytest.approx(names)
    one = search_quality.additive({"x": [1.0, 1.0, 1.0], "y": [0.0]})
    assert one == pytest.approx({"x": 1.0, "y": 0.0})


def test_runs_that_are_all_over_the_target_have_no_regret():
    found = judged(TRUTH, [{"subnet": "d", "target_ms": 3.0}])
    assert (found["regret_mean"], found["ci"], found["beats_random"]) == (None, None, None)
    assert found["violations"] == 1.0


def test_the_bootstrap_interval_of_normal_values_is_the_textbook_one():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap([[value] for value in values])
    half = 1.96 * values.std() / 20
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.015)
    assert bootstrap([[2.0], [2.0]]) == [2.0, 2.0]
    assert bootstrap([[value] * 3 for value in values]) == [low, high], "copies of a run add nothing"


def test_methods_that_need_no_search():
    truth = Truth(
        {n: (i / 300, i / 300) for i, n in enumerate(_names())},
        {n: (i / 300, i / 300) for i, n in enumerate(_names())},
        {n: float(i) for i, n in enumerate(_names())},
        {n: float(-i) for i, n in enumerate(_names())},
        0.0,
        {n: i / 300 for i, n in enumerate(_names())},
    )
    runs = without_search(truth, [100.0], trainings=101, repeats=4)
    names = _names()
    assert {run["subnet"] for run in runs["random_search"]} == {names[100]}, "as many draws as there are subnets"
    assert judged(truth, runs["random_search"])["regret_mean"] == 0
    assert [run["subnet"] for run in runs["largest_latency"]] == [names[100]]
    assert [run["subnet"] for run in runs["best_of_other_half"]] == [names[100]] * 2
    ceiling = judged(TRUTH, without_search(TRUTH, [3.0], trainings=1, repeats=2)["best_of_other_half"])
    assert ceiling["regret_mean"] == 0.0, "b and c choose each other's judge"
    assert ceiling["beats_random"] == pytest.approx((0.5 + 0.5) / 2), "b loses to c by half 1, c to b by half 0"
    assert [run["subnet"] for run in runs["most_macs"]] == [names[0]]
    on_target = {run["subnet"] for run in runs["any_on_target"]}
    assert on_target <= set(names[96:101]), "98 % of the target leave three subnets, 96 % five"
    assert len(runs["all 3x3_e3"]) == 1


def _names():
    return [enumerated_truth.name_of(dict(subnet.choices)) for subnet in enumerated_truth.subnets()]


@pytest.mark.parametrize(("seconds", "share"), [(30.0, 0.35), (15.0, 0.6), (60.0, 0.2)])
def test_a_budget_is_used_and_kept(seconds, share):
    warmup, epochs = epochs_within(seconds, 1.0, 2.0, share)
    spent = (warmup + 1) * 1.0 + (epochs - 1) * 2.0
    assert seconds - 2.0 < spent <= seconds
    assert warmup == round(share * seconds)


def test_the_committed_truth_is_whole():
    if not enumerated_truth.TRUTH.exists():
        pytest.skip("there is no truth yet: run python -m tests.benchmarks.enumerated_truth --data ROOT")
    record = json.loads(enumerated_truth.TRUTH.read_text())
    rows = record["rows"]
    assert sorted(rows) == sorted(_names())
    assert len(rows) == 252
    assert all(
        sorted(row["accuracies"]) == [str(seed) for seed in range(enumerated_truth.SEEDS)] for row in rows.values()
    )
    assert record["noise"] == enumerated_truth.noise(rows)
    latency = enumerated_truth.latency_model()
    for subnet in list(enumerated_truth.subnets())[::37]:
        choices = dict(subnet.choices)
        assert rows[enumerated_truth.name_of(choices)]["table_ms"] == pytest.approx(latency.latency(choices), abs=1e-6)


def test_the_committed_result_is_of_the_committed_truth():
    if not search_quality.RESULT.exists():
        pytest.skip("there is no result yet: run python -m tests.benchmarks.search_quality --data ROOT")
    result = json.loads(search_quality.RESULT.read_text())
    truth = Truth.load(enumerated_truth.TRUTH)
    for key, value in search_quality.verdict(truth, result, plain=True).items():
        assert result[key] == value, key
    assert search_quality.markdown(result).count("\n") == len(result["methods"]) + 1


def test_the_committed_ablation_is_of_the_committed_truth_and_result():
    if not search_quality.ABLATION.exists():
        pytest.skip("there is no ablation yet: run python -m tests.benchmarks.search_quality --data ROOT --ablation")
    ablation = json.loads(search_quality.ABLATION.read_text())
    for key, value in search_quality.verdict(Truth.load(enumerated_truth.TRUTH), ablation, plain=False).items():
        assert ablation[key] == value, key
    reference = json.loads(search_quality.RESULT.read_text())["runs"]
    own = [run for run in ablation["runs"] if run["variant"] in search_quality.RULES]
    assert own == [r for r in reference if r["method"] in search_quality.RULES and r["seed"] < ablation["seeds"]]
    rows = search_quality.ablation_markdown(ablation).splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == sorted({run["variant"] for run in ablation["runs"]})
    assert rows[0].split(" | ")[2] == f"{ablation['methods']['gradient']['regret_mean']:.2f}"
