"""Presets and platforms of a search config, and how the command line, the environment and a sweep choose them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.cli import main as cli
from proxyless_strategy.config import SearchConfig, load_config, parse_config
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.validation import nearest_key

FILE = """
target: 0.3
input_size: 224
space: imagenet_mbconv
data: {name: imagefolder, root: images, workers: 8}
hardware: phone
platforms:
  phone: {table: pixel1, device: other}
  desk: {table: desk.yml, threads: 4}
search: {epochs: 120, batch_size: 256}
retrain: {epochs: 300}
presets:
  smoke:
    input_size: 64
    target_ms: 2.5
    data.root: made
    search: {epochs: 2}
    space: {options: {width_mult: 0.5, stages: [{width: 8, depth: 1, stride: 2}]}}
    platforms: {desk: {threads: 1}}
    retrain: null
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "search.yml"
    path.write_text(FILE)
    return path


def test_a_preset_is_laid_over_the_file_section_by_section(file: Path) -> None:
    plain, smoke = load_config(file), load_config(file, preset="smoke")
    assert (plain.input_size, plain.target, plain.search.epochs) == (224, 0.3, 120)
    assert (smoke.input_size, smoke.target, smoke.target_ms) == (64, None, 2.5)
    assert (smoke.search.epochs, smoke.search.batch_size) == (2, 256)
    assert (smoke.data.root, smoke.data.workers) == (file.parent / "made", 8)
    assert smoke.space.name == "imagenet_mbconv"
    assert smoke.space.options == {"width_mult": 0.5, "stages": [{"width": 8, "depth": 1, "stride": 2}]}
    assert smoke.retrain is None
    assert smoke.hardware == plain.hardware


def test_a_sweep_is_laid_over_the_preset(file: Path) -> None:
    config = load_config(file, {"search.epochs": 3, "hardware": "desk", "target": 0.6}, preset="smoke")
    assert (config.search.epochs, config.target, config.target_ms) == (3, 0.6, None)
    assert (config.hardware.name, config.hardware.threads) == ("desk", 1)


@pytest.mark.parametrize(
    ("overrides", "target", "target_ms"),
    [
        ({"target": 0.4, "target_ms": None}, 0.4, None),
        ({"target_ms": None, "target": 0.4}, 0.4, None),
        ({"target_ms": None}, 0.3, None),
        ({"target": None}, None, None),
        ({"target": None, "target_ms": 30.0}, None, 30.0),
        ({"target_ms": 30.0}, None, 30.0),
    ],
)
def test_no_target_of_one_kind_erases_no_target_of_another(
    file: Path, overrides: dict[str, float | None], target: float | None, target_ms: float | None
) -> None:
    config = load_config(file, overrides)
    assert (config.target, config.target_ms) == (target, target_ms)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"target": 0.4, "target_ms": 30.0},
            r"target = 0.4 and target_ms = 30.0 are given together \(by --set, a preset or a sweep\)",
        ),
        (
            {"target_cost": 2.0, "target": 0.4},
            r"target = 0.4 and target_cost = 2.0 are given together \(by --set, a preset or a sweep\)",
        ),
        (
            {"search.epochs": 3, "search": {"batch_size": 8}},
            r"search = .* would erase search.epochs = 3, given before it \(by --set",
        ),
        ({"hardware.threads": 2, "hardware": "desk"}, r"hardware = 'desk' would erase hardware.threads = 2"),
    ],
)
def test_settings_that_erase_one_another_are_refused(file: Path, overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(file, overrides)
    with_search_first = dict(reversed(overrides.items()))
    if not set(overrides) & {"target"}:
        assert load_config(file, with_search_first)


def test_hardware_is_a_platform_and_what_is_given_beside_its_name(file: Path) -> None:
    assert (load_config(file).hardware.table, load_config(file).hardware.device) == (Path("pixel1"), "other")
    assert load_config(file, {"hardware": "desk"}).hardware.threads == 4
    for overrides in ({"hardware": "desk", "hardware.threads": 2}, {"hardware": {"name": "desk", "threads": 2}}):
        config = load_config(file, overrides)
        assert (config.hardware.table, config.hardware.threads) == (file.parent / "desk.yml", 2)


def test_which_platforms_there_are_is_no_setting_of_a_search(file: Path) -> None:
    assert "platforms" not in json.loads(load_config(file).model_dump_json())


def test_paths_of_a_platform_count_from_the_file(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(file, {"hardware": "desk"}).hardware.table == tmp_path / "desk.yml"
    assert load_config(file, {"hardware": "desk"}, preset="smoke").data.root == tmp_path / "made"
    assert load_config(file).hardware.table == Path("pixel1")
    given = {"hardware": {"name": "desk", "table": "t.yml"}}
    assert load_config(file, given).hardware.table == tmp_path / "elsewhere" / "t.yml"


@pytest.mark.parametrize(
    ("change", "overrides", "preset", "words"),
    [
        ("", {}, "smok", "has no preset 'smok'; its presets: smoke"),
        ("", {"hardware": "watch"}, None, r"hardware = 'watch' is none of the platforms \(desk, phone\)"),
        ("platforms: {phone: {thread: 1}}", {}, None, "'platforms.phone.thread'; did you mean platforms.phone.threads"),
        ("platforms: {phone: {threads: 0}}", {}, None, "platforms.phone.threads = 0"),
        ("platforms: [phone]", {}, None, "none of the platforms"),
        ("presets: [smoke]", {}, "smoke", "presets must map each name to settings"),
        ("presets: {smoke: {search: {epoch: 2}}}", {}, "smoke", r"'search.epoch'; did you mean search.epochs \(known"),
        ("presets: {smoke: {input_size.x: 2}}", {}, "smoke", "input_size is 224, not a section"),
    ],
)
def test_wrong_names_are_refused_in_one_sentence(
    file: Path, change: str, overrides: dict[str, str], preset: str | None, words: str
) -> None:
    key = change.partition(":")[0]
    text = re.sub(rf"^{key}:.*\n(  .*\n)*", change + "\n", FILE, flags=re.MULTILINE) if change else FILE
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file, overrides, preset=preset)
    assert "\n" not in str(caught.value)


def test_a_file_without_presets_says_so() -> None:
    with pytest.raises(ConfigError, match="has no preset 'smoke'; its presets: none"):
        load_config(Path(__file__).parents[2] / "examples" / "quickstart_search.yml", preset="smoke")
    with pytest.raises(ConfigError, match=r"hardware = 'phone' is none of the platforms \(none\)"):
        parse_config({"hardware": "phone"})


@pytest.mark.parametrize(
    ("option", "environment", "expected"), [("smoke", "", "64"), ("", "smoke", "64"), ("", "", "224")]
)
def test_command_line_and_environment_choose_a_preset(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    environment: str,
    expected: str,
) -> None:
    from proxyless_strategy import trial
    from proxyless_strategy.runs import search

    def refused(config: object, **_: object) -> None:
        raise ConfigError(f"input size {config.input_size}")  # type: ignore[attr-defined]

    monkeypatch.setattr(search, "run_search", refused)
    if environment:
        monkeypatch.setenv("PROXYLESS_PRESET", environment)
    options = ["--preset", option] if option else []
    with pytest.raises(SystemExit, match="2"):
        cli.main(["search", str(file), *options])
    assert trial.main([str(file), *options]) == 2
    assert capsys.readouterr().err == f"input size {expected}\n" * 2


@pytest.mark.parametrize(
    ("command", "preset", "size"), [("", None, 224), ("", "smoke", 64), (" --preset smoke", "", 64)]
)
def test_an_experiment_hands_its_preset_to_every_trial(file: Path, command: str, preset: str, size: int) -> None:
    experiment = file.with_name("experiment.yml")
    experiment.write_text(
        f"trialCommand: python -m proxyless_strategy.trial search.yml{command}\n"
        "trainingService: {platform: local}\n"
        "searchSpace: {hardware: {_type: choice, _value: [phone, desk]}}\n"
    )
    configs = read_sweep(experiment, preset=preset or None).configs()
    assert [config.input_size for config in configs] == [size] * 2
    assert [config.hardware.name for config in configs] == ["phone", "desk"]


@pytest.mark.parametrize(("written", "target", "share"), [("0.60x", "0.6x", 0.6), ("1 x", "1x", 1.0), (0.6, 0.6, None)])
def test_a_target_may_be_a_share_of_the_original(written: object, target: object, share: float | None) -> None:
    config = parse_config({"space": "timm:mobilenetv2_035", "target": written})
    assert (config.target, config.share) == (target, share)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target": "0.6x"}, "target = 0.6x is a share of the original's cost, but the space small_mbconv has no orig"),
        ({"target": "0.6x", "target_ms": 2.0}, r"target \(0\.6x\) and target_ms \(2\.0\) are both given"),
        ({"target": "1.01x"}, "target = '1.01x': .* is above 0x and at most 1x"),
        ({"target": "0x"}, "target = '0x': .* is above 0x and at most 1x"),
        ({"target": "half"}, "target = 'half': a share of the original's cost is written 0.6x"),
        ({"target": 1.5}, "target = 1.5: it must be greater than 0 and less than or equal to 1, or a share such as"),
        ({"target": [0.5]}, r"target = \[0\.5\]: it must be greater than 0"),
        ({"target": True}, "target = True"),
    ],
)
def test_other_targets_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(values)


@pytest.mark.parametrize(
    ("keys", "meant"),
    [
        ("epochs", "search.epochs"),  # of another section
        ("search.batchsize", "search.batch_size"),
        ("data.draw.clases", "data.draw.classes"),
        ("serach", "search"),
        ("hardware.thread", "hardware.threads"),
        ("platforms.phone.treads", "platforms.phone.threads"),
        ("retrain.warmup_epoch", "retrain.warmup_epochs"),
        ("colour", None),
        ("search.x", None),
        ("platforms", "platforms"),
    ],
)
def test_a_slip_of_the_hand_is_told_what_was_meant(keys: str, meant: str | None) -> None:
    assert nearest_key(keys.split("."), SearchConfig) == meant


def test_loggers_do_not_make_another_search() -> None:
    plain, logged = parse_config({}), parse_config({"loggers": ["csv", "tensorboard"]})
    assert plain.identity() == logged.identity()
    with pytest.raises(ConfigError, match=r"loggers\.0 = 'tensorbord'"):
        parse_config({"loggers": ["tensorbord"]})
