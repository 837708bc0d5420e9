"""The YAML schema of one search: space, data, hardware, objective, search and retraining settings.

Besides the fields of `SearchConfig` a file may hold `presets`: settings in the file's own shape, by name, of which
`load_config(..., preset="smoke")` lays one over the others, section by section (`--preset smoke` on the command line,
or `PROXYLESS_PRESET=smoke` in the environment of nnictl). Sweeps and `--set` are laid over that.

    input_size: 224
    search: {epochs: 120, batch_size: 256}
    presets:
      smoke:
        input_size: 64
        search: {epochs: 2}         # batch_size stays 256

YAML is read as `hardware.yaml_text` says: each key once, and no `yes`, `010` or `1:30`, which readers take differently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from hardware.errors import ConfigError
from hardware.reading import DAMAGE, SETTINGS_BYTES, Kind, Unreadable, cut, parse_yaml, read_yaml, reading, shown, why
from hardware.tables.shipped import shipped_names
from search_spaces.from_timm.paths import FOLDER, PREFIX, is_folder, whole_paths
from search_spaces.user_function import search_modules_in

from .sections import MOST_PIXELS, DataConfig, HardwareConfig, SpaceConfig
from .training_sections import Change as Change
from .training_sections import RetrainSettings, Rule, SearchSettings, ShrinkSettings
from .validation import Section, number, share_in, validation_sentence


def key_values(settings: Sequence[str], *, option: str = "--set") -> dict[str, Any]:
    """Read settings of the command line into keys and values, which are YAML.

    Args:
        settings: Texts of the form `key=value`.
        option: The option that they were given with, for the errors.

    Raises:
        ConfigError: One has no value, or its value is not valid YAML.
    """
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise ConfigError(f"{option} {cut(setting)} names no value; write it as key=value")
        try:
            found[key] = parse_yaml(value)
        except Unreadable as error:
            raise ConfigError(f"{option} {cut(setting)}: {error}; write key=value, with a value in YAML") from error
    return found


_MEND = "mend it or give another YAML file"
FILE = Kind("the search config", _MEND, ConfigError, limit=SETTINGS_BYTES, holds="a mapping of settings")
LoggerName = Literal["tensorboard", "csv", "wandb"]


MOST_SEED = 2**63 - 1
TARGETS = ("target", "target_ms", "target_cost")
_NAMED = ("space", "data", "hardware")
_BESIDE = "(by --set, a preset or a sweep)"
"""Sections that a text stands for: their `name`."""


class SearchConfig(Section):
    """One search from start to finished folder."""

    space: SpaceConfig = Field(default_factory=SpaceConfig)
    input_size: int = Field(32, ge=8, le=MOST_PIXELS)
    deploy_input_size: int | None = Field(None, ge=8, le=MOST_PIXELS)
    """Input size of the deployed model and its table; None: `input_size`."""
    data: DataConfig = Field(default_factory=DataConfig)
    hardware: HardwareConfig = Field(default_factory=HardwareConfig)
    platforms: dict[str, HardwareConfig] = Field(default_factory=dict, exclude=True)
    """Hardware by name, for `hardware: NAME`: a sweep over hardware then has one key."""
    rule: Literal[Rule, "sensitivity"] = "gradient"
    """`sensitivity` trains no supernet: the exact knapsack on what each candidate does to the loss of the inherited
    weights, in a `timm:` space."""
    target: float | str | None = None
    """Target as a fraction of the way from the space's cheapest (fastest) to its dearest (slowest) subnet; or, for a
    space of a timm model, as a share of that model's own cost: `0.6x`."""
    target_ms: float | None = Field(None, gt=0)
    """Latency target in (calibrated) milliseconds."""
    target_cost: float | None = Field(None, gt=0)
    """Target of another cost than latency: millions of MACs or parameters, or MB (1e6 bytes) of activations."""
    objective: str = "target"
    objective_options: dict[str, Annotated[float, BeforeValidator(number)]] = Field(default_factory=dict)
    search: SearchSettings = Field(default_factory=SearchSettings)
    retrain: RetrainSettings | None = Field(default_factory=lambda: RetrainSettings())
    shrink: ShrinkSettings | None = None
    """With it the file is one for `proxyless shrink`, which compares the subnet with its fine-tuned original."""
    seed: int = Field(0, ge=0, le=MOST_SEED)
    loggers: tuple[LoggerName, ...] = ()
    """What gets each epoch's figures, in a folder of its name in `out`; `wandb` is offline unless WANDB_MODE=online."""
    out: Path = Path("runs/search")

    @model_validator(mode="before")
    @classmethod
    def _named_hardware(cls, values: Any) -> Any:
        hardware, platforms = values.get("hardware"), values.get("platforms")
        name = hardware.get("name") if isinstance(hardware, dict) else None
        if name is None:
            return values
        platform = platforms.get(name) if isinstance(platforms, dict) else None
        if not isinstance(platform, dict):
            known = cut(", ".join(sorted(map(str, platforms))), 300) if isinstance(platforms, dict) else "none"
            raise ValueError(
                f"hardware = {shown(name)} is none of the platforms ({known}); choose one, or describe it there"
            )
        return {**values, "hardware": {**platform, **hardware}}

    @field_validator("target", mode="before")
    @classmethod
    def _fraction_or_share(cls, value: Any) -> Any:
        if isinstance(value, str):
            share = share_in(value)
            if share is None or not 0 < share <= 1:
                raise ValueError("a share of the original's cost is written 0.6x, and is above 0x and at most 1x")
            return f"{share:.12g}x"
        if value is not None and not (isinstance(value, int | float) and 0 < value <= 1):
            raise ValueError("it must be greater than 0 and less than or equal to 1, or a share such as 0.6x")
        return value

    @model_validator(mode="after")
    def _one_target(self) -> SearchConfig:
        given = {name: getattr(self, name) for name in TARGETS if getattr(self, name) is not None}
        if len(given) > 1:
            named = " and ".join(f"{name} ({value})" for name, value in given.items())
            raise ValueError(f"{named} are {'both' if len(given) == 2 else 'all'} given; keep one of them")
        cost = self.hardware.cost
        right, wrong = ("target_ms", "target_cost") if cost == "latency" else ("target_cost", "target_ms")
        if wrong in given:
            raise ValueError(f"{wrong} = {given[wrong]} is no target for hardware.cost {cost}; give {right} or target")
        if self.share is not None and not self.space.name.startswith(PREFIX):
            raise ValueError(
                f"target = {self.target} is a share of the original's cost, but the space {cut(self.space.name)} has "
                f"no original; name one of {PREFIX}MODEL, or give target as a fraction, or {right}"
            )
        return self

    @property
    def share(self) -> float | None:
        """The target as a share of the original network's cost, where it is given so."""
        return share_in(self.target) if isinstance(self.target, str) else None

    @property
    def update_rule(self) -> Rule:
        """The rule of architecture steps; `sensitivity` has none, and what asks for one gets the default."""
        return "gradient" if self.rule == "sensitivity" else self.rule

    @property
    def retraining(self) -> RetrainSettings | None:
        """How the subnet is trained: `retrain`, with norms and determinism of the search where it does not say."""
        unsaid = [name for name in ("deterministic", "norm") if getattr(self.retrain, name, "") is None]
        return self.retrain and self.retrain.model_copy(update={name: getattr(self.search, name) for name in unsaid})

    @property
    def deterministic(self) -> str | None:
        """The setting that asks for deterministic algorithms somewhere in the run; None where none does."""
        if self.search.deterministic:
            return "search.deterministic"
        return "retrain.deterministic" if self.retrain is not None and self.retrain.deterministic else None

    @property
    def latency_input_size(self) -> int:
        """Input size at which latencies are counted."""
        return self.deploy_input_size or self.input_size

    def identity(self) -> dict[str, Any]:
        """Return the settings that make two searches the same, as plain values.

        They are all but `out`, the loggers, when checkpoints are written, and what may differ in them. A run folder
        keeps them in `config.json`, and only a search with equal ones continues there.
        """
        excluded: Any = {"out": True, "loggers": True}
        excluded |= {"search": {"checkpoint_every", "resume_anyway"}, "retrain": {"checkpoint_every"}}
        settings = json.loads(self.model_dump_json(exclude=excluded))
        # Folders of earlier versions lack the key, and go on all the same.
        for section in filter(None, (settings["search"], settings["retrain"])):
            if section["threads"] is None:
                del section["threads"]
        return settings


def load_config(
    path: Path | str, overrides: dict[str, Any] | None = None, *, preset: str | None = None
) -> SearchConfig:
    """Read a search config, lay one of its presets over it, and `overrides` over both.

    Relative paths in the file count from the file's own folder, as in NNI's configs. A search therefore writes to the
    same place whether a shell in another folder, NNI or a script starts it. Paths in `overrides`, and the default
    `out`, count from the current folder.

    Modules of a `module:function` that it names may lie beside it: its folder becomes the last one of `sys.path`.

    Args:
        path: A YAML file.
        overrides: Dotted keys, as an NNI search space names them: `{"rule": "reinforce", "search.epochs": 3}`.
        preset: One of the file's `presets`.

    Raises:
        ConfigError: The file is missing or no mapping, it has no such preset, a key is unknown, or a value is
            impossible.
    """
    path, overrides = Path(path), overrides or {}
    values = read_yaml(path, FILE)
    presets = values.pop("presets", {})
    if not isinstance(presets, dict) or not all(isinstance(settings, dict) for settings in presets.values()):
        raise ConfigError(f"{path}: presets must map each name to settings, but is {shown(presets)}")
    if preset is not None:
        if preset not in presets:
            raise ConfigError(
                f"{path} has no preset {shown(preset)}; its presets: {cut(', '.join(map(str, presets)), 300) or 'none'}"
            )
        with reading(path, FILE):
            _refuse_erasing(dict(_leaves(presets[preset])))
            for dotted, value in _leaves(presets[preset]):
                _lay_over(values, dotted, value)
    config = config_of(values, overrides, folder=path.absolute().parent, source=path)
    if ":" in config.space.name or ":" in config.data.name:
        search_modules_in(path.parent)
    return config


def config_of(values: dict[str, Any], overrides: dict[str, Any], *, folder: Path, source: Path | str) -> SearchConfig:
    """Lay `overrides` over settings that are already a mapping, and make their paths whole.

    Args:
        values: The settings; they are changed.
        overrides: See `load_config`; their paths count from the current folder.
        folder: What paths in `values` count from.
        source: Where the values come from, for the errors.

    Raises:
        ConfigError: A key is unknown, or a value is impossible.
    """
    _refuse_erasing(overrides)
    for dotted, value in overrides.items():
        _lay_over(values, dotted, value)
    config = parse_config(values, source=str(source))
    with reading(Path(source), FILE):  # `~nobody` in a path
        return _with_whole_paths(config, folder, overrides)


def _with_whole_paths(config: SearchConfig, folder: Path, overrides: dict[str, Any]) -> SearchConfig:
    """Make the config's paths absolute: those of its file from `folder`, others from the current folder."""

    def whole(value: Path, section: BaseModel, *key: str) -> Path:
        # `hardware: NAME` in the overrides, also within a mapping, chooses a platform that the file describes.
        given = overrides.get(key[0])
        overridden = ".".join(key) in overrides or (isinstance(given, dict) and key[-1] in given)
        from_file = key[-1] in section.model_fields_set and not overridden
        return Path(os.path.normpath((folder if from_file else Path.cwd()) / value.expanduser()))

    hardware, data = config.hardware, config.data
    # A shipped table is known by its name, which is no path.
    if hardware.table is not None and str(hardware.table) not in shipped_names():
        hardware = hardware.model_copy(update={"table": whole(hardware.table, hardware, "hardware", "table")})
    if hardware.fill is not None:
        hardware = hardware.model_copy(update={"fill": whole(hardware.fill, hardware, "hardware", "fill")})
    if data.root is not None:
        data = data.model_copy(update={"root": whole(data.root, data, "data", "root")})
    out = whole(config.out, config, "out")
    retrain = config.retrain
    if retrain is not None and retrain.teacher is not None and is_folder(retrain.teacher):
        teacher = whole(Path(retrain.teacher.removeprefix(FOLDER)), retrain, "retrain", "teacher")
        retrain = retrain.model_copy(update={"teacher": str(teacher)})

    def folder_of(key: str) -> Path:
        return Path.cwd() if any(f"{key}.".startswith(f"{given}.") for given in overrides) else folder

    name, options = whole_paths(config.space.name, config.space.options, folder_of)
    space = SpaceConfig(name=name, options=options)
    found = {"space": space, "hardware": hardware, "data": data, "retrain": retrain, "out": out}
    return config.model_copy(update=found)


def parse_config(values: dict[str, Any], *, source: str = "the search config") -> SearchConfig:
    """Validate settings that are already a mapping; see `load_config` for the errors. Paths stay as they are."""
    named = {key: {"name": values[key]} for key in _NAMED if isinstance(values.get(key), str)}
    values = {**values, **named}
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {validation_sentence(error, SearchConfig)}") from error
    except DAMAGE as error:  # a list where a validator looks a name up, ...
        raise ConfigError(f"{source}: {why(error)}; mend it") from error


def _leaves(settings: dict[str, Any], *parents: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, *parents, str(key))
        else:
            yield ".".join((*parents, str(key))), value


def _lay_over(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if isinstance(child, str) and parent in _NAMED and node is values:
            child = node[parent] = {"name": child}
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {dotted} {_BESIDE}: {parent} is {shown(child)}, not a section of settings")
        node = child
    # A target takes the place of the file's own, of whichever kind; none takes the place of its own kind alone.
    if last in TARGETS and not parents and value is not None:
        for name in TARGETS:
            node.pop(name, None)
    node[last] = value


def _refuse_erasing(settings: dict[str, Any]) -> None:
    """Refuse settings of which a later one would silently erase an earlier one that was given beside it."""
    given = [f"{name} = {cut(str(settings[name]))}" for name in TARGETS if settings.get(name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given together {_BESIDE}; keep one of them")
    seen: list[str] = []
    for dotted in settings:
        erased = next((name for name in seen if name.startswith(f"{dotted}.")), None)
        if erased is not None:
            here, there = f"{dotted} = {shown(settings[dotted])}", f"{erased} = {shown(settings[erased])}"
            first = f"give {cut(dotted)} first, or leave one out"
            raise ConfigError(f"{cut(here)} would erase {cut(there)}, given before it {_BESIDE}; {first}")
        seen.append(dotted)
