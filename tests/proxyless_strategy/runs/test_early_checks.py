"""Every setting with every kind of bad value: refused before the first step, with `out` as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from hardware.errors import ConfigError, ProxylessError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.retraining.recipe import load_recipe
from proxyless_strategy.runs import prepare as prepare_module
from proxyless_strategy.runs.prepare import Library, prepare
from proxyless_strategy.runs.search import search_supernet
from proxyless_strategy.strategy.verdict import Plan
from search_spaces import get_space

BAD: dict[str, Any] = {
    "a wrong word": "no_such",
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
    "not a number": math.nan,
    "infinite": math.inf,
    "yes": True,
    "a list": [1],
    "a mapping": {"no_such": 1},
    "nothing": None,
}
PATHS = {"a wrong word"}
NONE = {"nothing"}
ZERO = {"zero"}
FLAG = {"yes", "zero"}
ALLOWED: dict[str, set[str]] = {
    "out": PATHS,
    "data.root": PATHS | NONE,  # digits have no root
    "hardware.name": NONE,
    "hardware.dtype": NONE,  # float32
    "hardware.table": NONE,
    "hardware.fill": NONE,
    "deploy_input_size": NONE,
    "retrain": NONE,
    "target": NONE,
    "target_ms": NONE,
    "target_cost": NONE | {"huge"},  # idle, which a search says
    "seed": ZERO,
    "data.architecture_per_class": NONE,
    "data.workers": ZERO,
    "data.num_classes": NONE,
    "data.background": NONE,
    "data.skip_unreadable": FLAG,
    "data.draw": NONE,
    "shrink": NONE,
    "shrink.epochs": NONE,
    "shrink.start_epochs": NONE | ZERO,
    "shrink.original_epochs": NONE,
    "search.deterministic": FLAG,
    "retrain.deterministic": FLAG | NONE,  # as the search's
    "retrain.norm": NONE,  # likewise
    "search.warmup_epochs": ZERO,
    "search.finalists_epochs": ZERO,
    "search.warmup_learning_rate": NONE,
    "search.start_temperature": NONE,
    "search.architecture_learning_rate": NONE,
    "search.momentum": ZERO,
    "search.weight_decay": ZERO,
    "search.label_smoothing": ZERO,
    "search.layer_decay": NONE,
    "search.channels_last": FLAG,
    "search.capture": ZERO,  # it asks for a GPU
    "search.threads": NONE,
    "retrain.threads": NONE,
    "retrain.weights": NONE,
    "retrain.teacher": NONE,
    "retrain.layer_decay": NONE,
    "retrain.early_stopping": NONE,
    "retrain.weight_decay": ZERO,
    "retrain.warmup_epochs": ZERO,
    "retrain.label_smoothing": ZERO,
    "retrain.dropout": ZERO,
    "retrain.drop_path": ZERO,
    "retrain.ema_decay": NONE,
    "retrain.mixup": ZERO,
    "retrain.rand_augment": NONE,
    "retrain.cutout": ZERO,
    "retrain.channels_last": FLAG,
}
"""What is a value after all."""
# A finite rate may be too high for one network and right for another: a loss that is not finite stops a training.
RATES = ("learning_rate", "architecture_learning_rate", "warmup_learning_rate")


def leaves(schema: type[BaseModel], *parents: str) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        section = next((k for k in (field.annotation, *get_args(field.annotation)) if _is_section(k)), None)
        yield ".".join((*parents, name))
        if section is not None and name != "draw":
            yield from leaves(section, *parents, name)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def settings(out: Path, /, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "space": {
            "name": "small_mbconv",
            "options": {
                "stem_width": 8,
                "first_width": 8,
                "stages": [{"width": 8, "depth": 1, "stride": 2}],
                "head_width": 16,
            },
        },
        "data": {"name": "digits"},
        "input_size": 16,
        "hardware": {"cost": "macs", "device": "this"},
        "target": 0.5,
        "search": {"warmup_epochs": 1, "epochs": 2, "batch_size": 128, "accelerator": "cpu"},
        "retrain": {"epochs": 1, "batch_size": 128},
        "out": str(out),
    }
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
        if last in ("target_ms", "target_cost") and value is not None:
            values.pop("target")
    return values


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.mark.parametrize("key", list(leaves(SearchConfig)))
def test_a_bad_value_of_any_setting_is_refused_before_the_first_step(
    key: str, library: Library, tmp_path: Path
) -> None:
    accepted = set()
    sentences = []
    for kind, value in BAD.items():
        out = tmp_path / kind
        # A missing table of this device would be measured, which is no mistake.
        other = {"hardware.device": "other"} if key == "hardware.table" else {}
        try:
            prepare(parse_config(settings(out, **other, **{key: value})), quiet=True, library=library)
            accepted.add(kind)
        except ProxylessError as error:
            sentences.append(str(error))
        assert not out.exists(), f"{kind}: a refused start leaves out unclaimed"
    assert [sentence for sentence in sentences if "\n" in sentence or sentence.endswith(".")] == []
    allowed = ALLOWED.get(key, set()) | ({"huge"} if key.split(".")[-1] in RATES else set())
    assert accepted == allowed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retrain.optimizer": "sgdd"}, "retrain.optimizer = 'sgdd'"),
        ({"retrain.optimizer": "adamw", "retrain.momentum": 0.8}, "retrain.momentum = 0.8"),
        ({"retrain.optimizer": "adahessian"}, "retrain.optimizer = 'adahessian'"),
        ({"retrain.scheduler": "cosin"}, "retrain.scheduler = 'cosin'"),
        ({"retrain.scheduler": "plateau"}, "retrain.scheduler = 'plateau'"),
        ({"retrain.rand_augment": "rand-q9"}, "rand_augment = 'rand-q9'"),
        ({"retrain.rand_augment": "m9"}, "rand_augment = 'm9'"),
        ({"retrain.rand_augment": "rand-n1000000"}, "rand_augment"),
        ({"retrain.cutout": 16}, "cutout = 16 leaves nothing"),
        ({"retrain.mixup": 0.2, "retrain.batch_size": 63}, "must be even for Mixup"),
        ({"retrain.mixup": 0.2, "retrain.batch_size": 4096}, "fewer than 1 full batch"),
        ({"search.batch_size": 4096}, "search.batch_size = 4096: .* fewer than 1 full batch"),
        ({"search.accelerator": "cudaa"}, "search.accelerator = 'cudaa'"),
        ({"search.accelerator": "tpu"}, "search.accelerator = 'tpu'"),
        ({"search.capture": True}, "search.capture = true: CUDA graphs need an NVIDIA GPU that trains"),
        ({"search.capture": True, "search.devices": 2}, "search.capture = true: .* this search has 2"),
        ({"hardware.threads": 1000}, "hardware.threads = 1000, but this machine has"),
        ({"data.options": {"std": [math.nan]}}, "data.options.std"),
        ({"data.options": {"mean": math.inf}}, "data.options.mean"),
        ({"target_cost": math.inf}, "target_cost = inf"),
        ({"objective_options": {"rho": math.inf}}, "objective_options.rho = inf"),
        ({"objective_options": {"rho": -1}}, "objective_options.rho = -1 of the objective 'target'"),
        ({"objective": "add_linear", "objective_options": {"weight": -1}}, "objective_options.weight = -1"),
        ({"retrain.epochs": 3, "retrain.warmup_epochs": 3}, "warmup_epochs = 3 leaves none of epochs = 3"),
        ({"data.options": {"mean": 127.5}}, "data.options.mean = 127.5; .* as pixels are in 0..1"),
        ({"data.options": {"crop_pct": 1e-6}}, "data.options.crop_pct = 1e-06"),
        ({"data.background": "whitish"}, "data.background = 'whitish' is no colour"),
        ({"space.options": {"bn_momentum": -1}}, "bn_momentum = -1 of the space small_mbconv"),
        ({"search.steps_per_update": {"gradient": True, "reinforce": 2}}, "steps_per_update"),
        ({"space.options": {"stages": [{"width": 8, "depth": 10**6, "stride": 2}]}}, "depth must be 1 to"),
    ],
    ids=str,
)
def test_what_only_a_later_phase_would_refuse(
    changes: dict[str, Any], words: str, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(ProxylessError, match=words) as caught:
        prepare(parse_config(settings(tmp_path / "run", **changes)), quiet=True, library=library)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class NothingMeasured(Exception):
    """Raised in place of a latency table's measurement."""


@pytest.fixture
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings whose latency table is missing; it must not come to be measured."""

    def measured(*_: Any, **__: Any) -> Any:
        raise NothingMeasured

    monkeypatch.setattr(prepare_module, "measure_space", measured)
    return {"hardware.cost": "latency", "hardware.table": str(tmp_path / "table.yml")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search.epochs": 1}, "search.epochs = 1 leaves none after 1 warm-up epochs and one more"),
        ({"search.warmup_epochs": 100_000, "search.epochs": 1}, "search.epochs = 1 leaves none after 100000 warm-up"),
        ({"search.steps_per_update": 8}, "there are 7 weight steps, but search.steps_per_update = 8"),
        ({"search.steps_per_update": {"gradient": 8, "reinforce": 1}}, "search.steps_per_update = 8"),
        ({"rule": "reinforce", "search.steps_per_update": {"gradient": 1, "reinforce": 8}}, "steps_per_update = 8"),
        ({"search.devices": 2, "search.steps_per_update": 8}, "there are 7 weight steps"),
    ],
    ids=str,
)
def test_a_search_without_architecture_steps_is_refused_before_its_table_is_measured(
    changes: dict[str, Any], words: str, unmeasured: dict[str, Any], library: Library, tmp_path: Path
) -> None:
    config = parse_config(settings(tmp_path / "run", **unmeasured, **changes))
    with pytest.raises(ConfigError, match=f"^no architecture step is planned: .*{words}"):
        prepare(config, library=library, trains=False)


def test_a_search_of_few_architecture_steps_says_so_before_its_table_is_measured(
    unmeasured: dict[str, Any], library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = settings(tmp_path / "run", **unmeasured, **{"search.steps_per_update": 7})
    with pytest.raises(NothingMeasured):
        prepare(parse_config(few), library=library)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("only 1 architecture steps are planned")
    assert said.endswith("for 50 set search.epochs to 51, or lower search.steps_per_update (7)")
    enough = settings(tmp_path / "run", **unmeasured, **{"search.epochs": 51, "search.steps_per_update": 7})
    with pytest.raises(NothingMeasured):
        prepare(parse_config(enough), library=library)
    assert capsys.readouterr().err == ""


def test_the_plan_before_the_start_is_that_of_the_training(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plans: list[Plan] = []
    warnings = Plan.warnings

    def noted(plan: Plan, *names: Any) -> Any:
        plans.append(plan)
        return warnings(plan, *names)

    monkeypatch.setattr(Plan, "warnings", noted)
    config = parse_config(settings(tmp_path / "run", **{"hardware.device": "other", "retrain": None}))
    prepared = prepare(config, quiet=True, library=library)
    search_supernet(prepared, lambda report: None)
    assert len(plans) > 1
    assert {plan == plans[0] for plan in plans} == {True}
    said = [record.getMessage() for record in caplog.records]
    assert [sentence for sentence in said if "are planned" in sentence] == [], "prepare has said it"


@pytest.mark.parametrize("trains", [True, False])
def test_a_table_is_measured_where_nothing_can_train(
    trains: bool, unmeasured: dict[str, Any], library: Library, tmp_path: Path
) -> None:
    changes = {"search.accelerator": "tpu", "search.devices": 4}
    config = parse_config(settings(tmp_path / "run", **unmeasured, **changes))
    with pytest.raises(ConfigError if trains else NothingMeasured):
        prepare(config, quiet=True, library=library, trains=trains)


@pytest.mark.parametrize("changes", [{"blocks": 10**6}, {"cell_depth": 40}, {"alpha": 10**9}])
def test_a_space_of_countless_blocks_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ProxylessError, match="at most"):
        get_space("cifar_tree", **changes)


@pytest.mark.parametrize("changes", [{"workers": 10**6}, {"learning_rate": math.inf}, {"seed": True}], ids=str)
def test_a_recipe_has_the_same_bounds(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        load_recipe("quick", changes)
