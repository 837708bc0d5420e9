"""Numbers that make no sense, in every place that takes numbers beside the fields of a search config.

Those are in `runs/test_early_checks.py`. Each is refused in one sentence that names its key, or is said to mean
something.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from hardware.errors import ConfigError, ProxylessError, SpaceError
from proxyless_strategy.config import DataConfig, HardwareConfig, parse_config
from proxyless_strategy.data.sources import check_data
from proxyless_strategy.retraining.recipe import Recipe, load_recipe
from proxyless_strategy.sections import DrawnImages
from proxyless_strategy.strategy.objectives import make_objective
from proxyless_strategy.strategy.options import SearchOptions
from search_spaces import SPACES, get_space
from tests.proxyless_strategy import tiny

BAD = {
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
    "not a number": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "yes": True,
}


def accepted(make: Any, *words: str) -> set[str]:
    """Return which of the bad values `make` accepts; what it refuses must be one sentence with these words."""
    found = set()
    for kind, value in BAD.items():
        try:
            make(value)
            found.add(kind)
        except ProxylessError as error:
            said = str(error)
            assert "\n" not in said
            assert not said.endswith(".")
            assert [word for word in words if word not in said] == [], said
    return found


# ---- objectives ------------------------------------------------------------------------------------------------

OBJECTIVES = [
    ("gradient", "target", {"rho": 10.0, "eta": 0.05, "approach": 0.5}),
    ("gradient", "add_linear", {"weight": 0.1}),
    ("gradient", "expected", {"weight": 0.1}),
    ("gradient", "mul_log", {"alpha": 0.2, "beta": 0.3}),
    ("reinforce", "target", {"rho": 10.0, "eta": 0.05, "approach": 0.5}),
    ("reinforce", "paper", {"exponent": 0.1}),
    ("reinforce", "absolute", {"beta": -0.07}),
    ("reinforce", "hard", {"exponent": -0.07}),
]


@pytest.mark.parametrize(
    ("rule", "name", "option"), [(rule, name, option) for rule, name, options in OBJECTIVES for option in options]
)
def test_options_of_an_objective(rule: str, name: str, option: str) -> None:
    def made(value: float) -> Any:
        return make_objective(name, rule=rule, target=8.0, minimum=2.0, **{option: value})

    for value in (1e30, -1e30, math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match=rf"objective_options\.{option} = .* of the objective '{name}'"):
            made(value)
    below, above = made_signs(made)
    negative = name in ("absolute", "hard")
    assert (below, above) == ((True, False) if negative else (False, True)), "one sign rewards what is slow"


def made_signs(made: Any) -> tuple[bool, bool]:
    def accepts(value: float) -> bool:
        try:
            made(value)
        except ConfigError:
            return False
        return True

    return accepts(-0.5), accepts(0.5)


def test_defaults_of_objectives_are_within_their_bounds() -> None:
    for rule, name, options in OBJECTIVES:
        made = make_objective(name, rule=rule, target=8.0, minimum=2.0)
        assert {option: getattr(made, option) for option in options}.keys() == options.keys()
        make_objective(name, rule=rule, target=8.0, minimum=2.0, **{key: getattr(made, key) for key in options})


# ---- the strategy's own options --------------------------------------------------------------------------------

OF_NUMBERS = [
    field.name for field in dataclasses.fields(SearchOptions) if field.type in ("int", "float", "float | None")
]
OPTIONS_ALLOWED = {
    "warmup_epochs": {"zero"},
    "calibration_batches": {"zero"},
    "seed": {"zero"},
    "slack": {"zero"},  # only subnets that cost just the target, until it is doubled
    "target": {"huge", "yes"},  # idle, which is said
    "target_share": {"zero", "yes"},  # the cheapest subnet, and the dearest
    "baseline_decay": {"zero"},  # the step before
    "learning_rate": {"huge", "yes"},
    "gradient_clip_val": {"huge", "yes"},
}


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_options_of_the_strategy(name: str) -> None:
    assert accepted(lambda value: SearchOptions(**{"cost": tiny.costs(), name: value}), name) == OPTIONS_ALLOWED.get(
        name, set()
    )


def test_every_option_that_is_a_number_is_looked_at() -> None:
    given = {field.name for field in dataclasses.fields(SearchOptions) if type(field.default) in (int, float)}
    assert given - set(OF_NUMBERS) == set()


# ---- data, recipes, platforms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("channels", {"yes"}),
        ("crop_pct", set()),
        ("mean", {"zero"}),
        ("std", set()),
        ("interpolation", set()),
    ],
)
def test_options_of_pictures(option: str, allowed: set[str]) -> None:
    assert accepted(lambda value: check_data(DataConfig(options={option: value})), option) == allowed


ZERO_IN_A_RECIPE = {
    *("weight_decay", "warmup_epochs", "label_smoothing", "dropout", "drop_path", "mixup", "cutout", "momentum"),
    *("workers", "seed"),
}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, field in Recipe.model_fields.items()
        if any(kind in str(field.annotation) for kind in ("int", "float")) and "Literal" not in str(field.annotation)
    ],
)
def test_numbers_of_a_recipe(name: str) -> None:
    allowed = {"zero"} if name in ZERO_IN_A_RECIPE else {"huge"} if name == "learning_rate" else set()
    assert accepted(lambda value: load_recipe("quick", {name: value}), name) == allowed


@pytest.mark.parametrize(("warmup", "epochs"), [(1, 1), (3, 3), (4, 3)])
def test_a_warm_up_leaves_epochs(warmup: int, epochs: int) -> None:
    with pytest.raises(ConfigError, match=f"warmup_epochs = {warmup} leaves none of epochs = {epochs}; lower it"):
        load_recipe("quick", {"warmup_epochs": warmup, "epochs": epochs})
    assert load_recipe("quick", {"warmup_epochs": warmup, "epochs": warmup + 1}).warmup_epochs == warmup


@pytest.mark.parametrize("name", DrawnImages.model_fields)
def test_numbers_of_drawn_images(name: str) -> None:
    def made(value: Any) -> Any:
        return parse_config({"data": {"name": "imagefolder", "root": "a", "draw": {name: value}}})

    assert accepted(made, f"data.draw.{name}") == set()


@pytest.mark.parametrize(
    "name", [name for name, field in HardwareConfig.model_fields.items() if field.annotation is int]
)
def test_numbers_of_a_platform(name: str) -> None:
    def made(value: Any) -> Any:
        return parse_config({"hardware": "mine", "platforms": {"mine": {name: value}}})

    assert accepted(made, f"hardware.{name}") == set()


# ---- spaces ----------------------------------------------------------------------------------------------------

FIELDS = [(name, field.name) for name, space in SPACES.items() for field in dataclasses.fields(space)]
NOTHING_TO_CHOOSE = "needs at least one stage, one kernel and one expansion"


@pytest.mark.parametrize(("space", "field"), FIELDS)
def test_fields_of_a_space(space: str, field: str) -> None:
    words = () if field in ("stages", "kernels", "expansions") else (field,)
    # A tree of which every block is as wide as the stem.
    allowed = {"zero"} if field == "alpha" else set()
    assert accepted(lambda value: get_space(space, **{field: value}), *words) == allowed


@pytest.mark.parametrize("field", ["kernels", "expansions"])
def test_candidates_of_a_space(field: str) -> None:
    assert accepted(lambda value: get_space("small_mbconv", **{field: [3, value]}), field[:-1]) == set()
    assert accepted(lambda value: get_space("small_mbconv", **{field: [3, value + 0.5]}), field[:-1]) == set()


@pytest.mark.parametrize("field", ["width", "depth", "stride"])
def test_stages_of_a_space(field: str) -> None:
    def made(value: Any) -> Any:
        return get_space("small_mbconv", stages=[{"width": 24, "depth": 1, "stride": 2, field: value}])

    assert accepted(made, field) == set()
    assert accepted(lambda value: made(value + 0.5), field) == set()


NAME = "timm:mobilenetv3_small_050"
TIMM = get_space(NAME, weights="none")
BLOCK = TIMM.stages[2][0]


@pytest.mark.parametrize("option", ["kernels", "expansions"])
def test_candidates_of_a_timm_model(option: str) -> None:
    def made(value: Any) -> Any:
        return get_space(NAME, weights="none", **{option: value})

    assert accepted(made, option) == set(), "no list"
    assert accepted(lambda value: made([3, value]), option[:-1]) == set()
    with pytest.raises(SpaceError, match=option[:-1]):
        made([10**400])


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TIMM) if field.name != "model"])
def test_fields_of_a_timm_model(field: str) -> None:
    words = () if field in ("stages", "kernels", "expansions") else (field,)
    allowed = {"drop_rate": {"zero"}, "drop_path_rate": {"zero"}, "head_bias": {"yes"}}

    def made(value: Any) -> Any:
        try:
            return dataclasses.replace(TIMM, **{field: value})
        except TypeError as error:  # no list where there must be one, of which the readers make a sentence
            assert not words
            raise SpaceError(str(error)) from error

    assert accepted(made, *words) == allowed.get(field, set())


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BLOCK)])
def test_blocks_of_a_timm_model(field: str) -> None:
    def made(value: Any) -> Any:
        stages = [[dataclasses.replace(BLOCK, **{field: value})], *TIMM.stages[3:]]
        return dataclasses.replace(TIMM, stages=(*TIMM.stages[:2], *map(tuple, stages)))

    assert accepted(made, field) == {"squeeze": {"zero"}}.get(field, set())
    assert accepted(lambda value: made([value]), field) == set()


def test_a_timm_model_is_not_grown_beyond_every_use() -> None:
    wide = dataclasses.replace(BLOCK, width=4096)
    stages = (*TIMM.stages[:2], (wide, dataclasses.replace(wide, stride=1)))
    with pytest.raises(SpaceError, match=r"block 2\.1 .* 262144 hidden channels with expansions = \[64\]; 65536 is"):
        dataclasses.replace(TIMM, stages=stages, expansions=(64,))


@pytest.mark.parametrize("space", SPACES)
def test_a_factor_of_widths(space: str) -> None:
    assert accepted(lambda value: get_space(space, width_mult=value), "width") == {"yes"}
