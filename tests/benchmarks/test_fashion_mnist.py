"""The example on Fashion-MNIST and its benchmark: what they ask for, whom the found subnet is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("timm")

from hardware.model import macs_model
from proxyless_strategy.config import load_config
from proxyless_strategy.strategy.derivation import SLACK
from search_spaces import get_space
from tests.benchmarks import fashion_mnist


@pytest.mark.parametrize(
    ("preset", "root", "download"), [(None, "fashion_mnist", True), ("debian", "fashion-mnist", False)]
)
def test_the_example_reads_the_files_where_they_are(preset, root, download):
    config = load_config(fashion_mnist.EXAMPLE, preset=preset)
    assert (config.data.root.name, config.data.options["download"]) == (root, download)
    assert (config.space.name, config.input_size, config.retrain.ema_decay) == ("small_mbconv", 28, None)


def test_the_benchmark_changes_only_where_files_lie():
    own = fashion_mnist.example(Path("/images"), "reinforce", Path("/kept"))
    example = load_config(fashion_mnist.EXAMPLE, {"rule": "reinforce"})
    assert own.search == example.search
    assert own.retrain == example.retrain
    assert (own.space, own.target, own.data.architecture_fraction) == (example.space, example.target, 0.3)
    assert own.out == Path("/kept/reinforce")


def test_random_subnets_are_those_that_the_export_could_have_been():
    costs = get_space("small_mbconv").costs(28, num_classes=10, in_chans=1)
    model = macs_model(costs.fixed, costs.edges)
    target = (model.minimum()[0] + model.maximum()[0]) / 2
    found = fashion_mnist.equals(model, target, 8)
    assert len({fashion_mnist.key_of(choices) for choices in found}) == 8
    assert all((1 - SLACK) * target <= model.cost(choices) <= target for choices in found)
    with pytest.raises(SystemExit, match="of 99999 random subnets are as fast as"):
        fashion_mnist.equals(model, target, 99_999)


def test_the_found_subnet_is_ranked_among_the_random_ones():
    accuracies = (0.80, 0.82, 0.84, 0.90)
    rows = [{"network": f"random {n}", "accuracies": [value]} for n, value in enumerate(accuracies)]
    rows += [{"network": "found, gradient", "accuracies": [0.85, 0.87]}, {"network": "all 3x3_e3", "accuracies": [0.9]}]
    summary = fashion_mnist.summary(rows)
    assert summary["random_mean"] == pytest.approx(0.84)
    assert summary["random_best"] == 0.90
    found = summary["found"]["found, gradient"]
    assert (found["mean"], found["points_over_random_mean"], found["better_than"]) == (0.86, 2.0, 0.75)
    variances = (0.0016 + 0.0004 + 0.0036) / 3, 2 * 0.01**2
    assert found["error"] == pytest.approx(100 * (variances[0] / 4 + variances[1] / 2) ** 0.5, abs=1e-3)
