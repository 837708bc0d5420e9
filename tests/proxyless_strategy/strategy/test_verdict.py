"""Worthless searches: what is said before the start and at the end, and that sound ones are left alone."""

import logging
import re
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint

from hardware.errors import ConfigError
from proxyless_strategy.config import load_config
from proxyless_strategy.strategy.finalists import Contest
from proxyless_strategy.strategy.verdict import CONFIG_NAMES, Plan, done_warnings, target_warnings
from tests.proxyless_strategy import tiny

EXAMPLES = Path(__file__).parents[3] / "examples"
IMAGES = {  # for weight steps
    "quickstart_search.yml": 0.7 * 1437,  # of the digits, a fifth is for the test
    "fashion_mnist_search.yml": 0.7 * 60_000,
    "cifar10_search.yml": 45_000,
    "imagenet_search.yml": 1_281_167 - 50_000,
    "my_search.yml": 400,  # the default of its data
    "timm_search.yml": 0.7 * 2_000,
    "shards_search.yml": 1_281_167 - 50_000,
}


def plan(**changes):
    return Plan(**{"batches": 15, "epochs": 21, "warmup_epochs": 5, "steps_per_update": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "words", "in_config"),
    [
        ({"batches": 0}, "an epoch has no training batch; .* smaller batch_size", "no training batch"),
        (
            {"epochs": 6},
            r"max_epochs = 6 .* for at least 7 epochs, or lower warmup_epochs",
            r"search.epochs = 1 .* 2 epo",
        ),
        ({"epochs": 5}, "max_epochs = 5 leaves none after 5 warm-up epochs", "search.epochs = 0 leaves none"),
        ({"steps_per_update": 226}, "steps_per_update = 226; set it to 225 at most", "search.steps_per_update = 226"),
        ({"accumulate": 226}, "accumulate_grad_batches = 226 is more than", "accumulate_grad_batches = 226"),
    ],
)
def test_without_a_planned_step_the_setting_to_blame_is_named(changes, words, in_config):
    for found, pattern in ((plan(**changes).warnings(), words), (plan(**changes).warnings(CONFIG_NAMES), in_config)):
        (warning,) = found
        assert warning.code == "no_steps_planned"
        assert_sentence(warning, f"no architecture step is planned: .*{pattern}")


def assert_sentence(warning, pattern):
    assert re.search(pattern, warning.sentence), warning.sentence
    assert not warning.sentence.endswith(".")
    assert "\n" not in warning.sentence


def test_a_plan_of_few_steps_says_how_many_epochs_would_do():
    few = plan(steps_per_update=5)
    assert few.architecture_steps == 45
    (warning,) = few.warnings()
    assert_sentence(
        warning, "only 45 architecture steps are planned, .* for 50 set max_epochs to 23, or lower steps_per"
    )
    assert plan(steps_per_update=5, epochs=23).warnings() == []
    (in_config,) = few.warnings(CONFIG_NAMES)
    assert_sentence(in_config, "set search.epochs to 18, or lower search.steps_per_update")


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*_search.yml"))])
def test_the_examples_start_without_a_warning(name):
    for rule in ("gradient", "reinforce"):
        config = load_config(EXAMPLES / name, {"rule": rule})
        search = config.search
        made = Plan(
            batches=int(IMAGES[name] // search.batch_size),
            epochs=search.warmup_epochs + search.epochs,
            warmup_epochs=search.warmup_epochs,
            steps_per_update=search.steps_between(config.rule),
        )
        assert made.warnings(CONFIG_NAMES) == []
        found = target_warnings(target=config.target, dearest=2.0, unit="ms", objective=config.objective)
        assert found == []


def of(warnings):
    return [warning.code for warning in warnings]


def test_targets():
    given = {"unit": "ms", "objective": "target"}
    (none,) = target_warnings(target=None, dearest=13.0, **given)
    assert none.code == "no_target"
    assert_sentence(none, "there is no target.*set one, or objective none")
    assert target_warnings(target=None, dearest=13.0, unit="ms", objective="none") == []
    (unused,) = target_warnings(target=8.0, dearest=13.0, unit="ms", objective="none")
    assert unused.code == "unused_target"
    assert_sentence(unused, "target 8 ms takes no part .*set objective target")
    for target in (13.0, 40.0):
        (idle,) = target_warnings(target=target, dearest=13.0, **given)
        assert idle.code == "idle_target"
        assert_sentence(idle, f"target {target:g} ms is idle: the dearest subnet costs 13, .*lower the target")
    assert target_warnings(target=12.9, dearest=13.0, **given) == []


SOUND = {
    "planned": 100,
    "done": 100,
    "skipped": 0,
    "expected": 8.0,
    "target": 8.0,
    "unit": "ms",
    "objective": "target",
}


@pytest.mark.parametrize(
    ("changes", "codes", "words"),
    [
        ({}, [], ""),
        ({"done": 0}, ["no_steps_done"], "of 100 planned, .*drawn at random: look at max_epochs or an early end"),
        ({"done": 3, "skipped": 3}, ["no_steps_done", "steps_skipped"], "all 3 were skipped"),
        ({"done": 49}, ["half_steps_done"], "only 49 of 100 planned .* fewer than half; look at max_epochs"),
        ({"done": 50}, [], ""),
        ({"skipped": 1}, [], ""),
        ({"skipped": 2}, ["steps_skipped"], "2 of 100 .* lower learning_rate, or set precision"),
        ({"done": 60, "skipped": 11}, ["half_steps_done", "steps_skipped"], "only 49"),
        ({"expected": 8.15}, [], ""),
        ({"expected": 8.17}, ["off_target"], r"8.17 ms, \+2.1 % off the target 8: .*raise max_epochs"),
        ({"expected": 7.83}, ["off_target"], r"7.83 ms, -2.1 % off the target 8"),
        ({"expected": 9.0, "objective": "add_linear"}, ["off_target"], "objective add_linear does not land"),
        ({"expected": 7.0, "idle": True}, [], ""),
        ({"expected": 7.0, "target": None}, [], ""),
        ({"planned": None, "done": 1}, [], ""),
        ({"lost_to": Contest(0.52, 0.5)}, ["not_better"], "did not beat the contender: .* 0.52, that one 0.5, "),
    ],
)
def test_the_end_of_a_search(changes, codes, words):
    found = done_warnings(**{**SOUND, **changes})
    assert of(found) == codes
    if found:
        assert_sentence(found[0], words)


def test_the_settings_of_a_config_are_named_as_there():
    found = done_warnings(**{**SOUND, "done": 10, "skipped": 5, "expected": 9.0}, names=CONFIG_NAMES)
    assert of(found) == ["half_steps_done", "steps_skipped", "off_target"]
    assert all("search." in warning.sentence for warning in found)


# ---- searches --------------------------------------------------------------------------------------------------


def codes_of(**options):
    return of(tiny.searched(**options).searched.warnings())


def test_a_sound_search_has_no_warning():
    strategy = tiny.searched(epochs=30, steps_per_update=1)
    assert of(strategy.searched.planned_warnings()) == []
    assert "half_steps_done" not in of(strategy.searched.warnings())


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"cost": None, "target": None}, "no_target"),
        ({"target": 13.0}, "idle_target"),
        ({"target": 99.0}, "idle_target"),
        ({"epochs": 4}, "few_steps_planned"),
        ({"target": 3.0}, "off_target"),
        ({"epochs": 6, "trainer": {"max_steps": 2 * tiny.STEPS + 3}}, "half_steps_done"),
        ({"epochs": 6, "trainer": {"max_steps": 2 * tiny.STEPS}}, "no_steps_done"),
    ],
)
def test_each_kind_is_found_in_a_search_and_said_on_the_console(options, code, caplog, recwarn):
    with caplog.at_level(logging.WARNING, logger="proxyless_strategy"):
        found = tiny.searched(**options).searched.warnings()
    assert code in of(found)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("proxyless_strategy")]
    assert sorted(said) == sorted(warning.sentence for warning in found), "each of them once"
    assert not [warning for warning in recwarn if "target" in str(warning.message)]


def test_a_search_without_cost_that_says_so_has_no_warning_of_its_target():
    assert codes_of(cost=None, target=None, objective="none") == ["few_steps_planned"]


def test_a_finished_search_that_is_read_again_has_the_same_warnings(tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    whole = tiny.searched(callbacks=[save]).searched.warnings()
    assert tiny.searched(ckpt_path=tmp_path / "last.ckpt").searched.warnings() == whole


def test_steps_per_update_is_blamed_for_a_search_without_steps_and_not_its_epochs():
    with pytest.raises(ConfigError, match=f"steps_per_update = 100; set it to {2 * tiny.STEPS} at most"):
        tiny.searched(steps_per_update=100)
    with pytest.raises(ConfigError, match="max_epochs = -1 has no end"):
        tiny.searched(epochs=-1, trainer={"max_steps": 40})
