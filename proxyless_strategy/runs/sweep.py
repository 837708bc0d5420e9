"""Read and check an nnictl YAML: the trials that it plans."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError
from hardware.reading import SETTINGS_BYTES, Kind, read_yaml, reading, shown

from ..config import SearchConfig, load_config
from .machines import Machine, read_machines

_LARGEST_CHECKED_GRID = 64
FILE = Kind(
    "the sweep's",
    "mend it or give another YAML file",
    ConfigError,
    limit=SETTINGS_BYTES,
    holds="a mapping of settings",
)


@dataclass(frozen=True)
class Sweep:
    """What an nnictl config asks for.

    Attributes:
        path: The nnictl config.
        search_path: The search config that `trialCommand` names.
        out: Folder that receives one folder a trial, and `summary.json`.
        trials: Parameters of every trial if the search space is a grid of choices, else None.
        preset: Which preset of the search config the trials use.
        narrowed: The nnictl config to run in the place of the file, where only a part of its sweep is wanted.
        config: What the nnictl config holds, as it is run.
        machines: Where its trials run, by SSH; none: on this machine.
    """

    path: Path
    search_path: Path
    out: Path
    trials: tuple[dict[str, Any], ...] | None
    preset: str | None = None
    narrowed: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    machines: tuple[Machine, ...] = ()

    @property
    def command(self) -> str:
        """The shell command that runs a trial in `code_directory`."""
        return str(self.config["trialCommand"])

    @property
    def code_directory(self) -> Path:
        """The folder in which a trial starts."""
        return self.path.parent / Path(str(self.config.get("trialCodeDirectory", "."))).expanduser()

    @property
    def space(self) -> dict[str, Any]:
        """The search space, in NNI's format."""
        return dict(_space(self.path, self.config))

    @property
    def is_grid(self) -> bool:
        """Whether the tuner draws nothing, so that what is left to do is known without it."""
        tuner = self.config.get("tuner")
        return self.trials is not None and isinstance(tuner, dict) and str(tuner.get("name")).lower() == "gridsearch"

    @property
    def limit(self) -> int | None:
        """How many trials the experiment has at most; None where nothing says it."""
        limit = self.config.get("maxTrialNumber")
        known = [limit] if isinstance(limit, int) else []
        return min([*known, *([len(self.trials or ())] if self.is_grid else [])], default=None)

    @property
    def side_by_side(self) -> int:
        """How many trials may run at a time where NNI does not share GPUs out among them."""
        return 1 if self.config.get("trialGpuNumber") else int(self.config.get("trialConcurrency", 1))

    def content(self) -> dict[str, Any]:
        """Return what decides on the trials: whatever else is changed, their results can stand in one table."""
        values = {
            "searchSpace": _space(self.path, self.config),
            "preset": self.preset,
            self.search_path.name: _mapping(self.search_path),
        }
        return json.loads(json.dumps(values, default=str))

    def with_limit(self, limit: int) -> Sweep:
        """Return the same sweep with another number of trials."""
        config = _movable(self.path, {**self.config, "maxTrialNumber": limit}, _space(self.path, self.config))
        return replace(self, narrowed=config, config=config)

    def locally(self, command: str) -> Sweep:
        """Return the same sweep with another command, whose trials take nothing but a process of this machine."""
        left_out = ("trialGpuNumber", "nniManagerIp")
        kept = {key: value for key, value in self.config.items() if key not in left_out}
        values = {**kept, "trialCommand": command, "trainingService": {"platform": "local"}}
        config = _movable(self.path, values, _space(self.path, self.config))
        return replace(self, narrowed=config, config=config)

    def configs(self) -> list[SearchConfig]:
        """Return the search config of every trial, or the bare one if the trials are not known beforehand."""
        trials = self.trials or ({},)
        configs = [_trial_config(self.path, self.search_path, parameters, self.preset) for parameters in trials]
        return [config.model_copy(update={"out": self.out}) for config in configs]


def read_sweep(
    path: Path | str,
    *,
    out: Path | None = None,
    preset: str | None = None,
    only: Mapping[str, Any] | None = None,
) -> Sweep:
    """Read an nnictl config and the search config that it names.

    Args:
        path: The nnictl config, a YAML file.
        out: Folder for the results instead of the search config's `out`.
        preset: One of the search config's presets, unless `trialCommand` names one by `--preset`.
        only: A value for some keys of the search space; only trials that have them are run.

    Raises:
        ConfigError: A file is missing or malformed, or the experiment is not one of local `proxyless` trials.
    """
    path = Path(path).absolute()
    config = _mapping(path)
    with reading(path, FILE):
        sweep = _sweep(path, config, out=out, preset=preset, only=only)
        # looked up here, where a text for a number is still a mistake of this file
        _ = sweep.side_by_side, sweep.limit
        return sweep


def _sweep(
    path: Path, config: dict[str, Any], *, out: Path | None, preset: str | None, only: Mapping[str, Any] | None
) -> Sweep:
    service = config.get("trainingService")
    platform = service.get("platform") if isinstance(service, dict) else service
    if platform not in ("local", "remote"):
        raise ConfigError(
            f"{path}: trainingService.platform is {shown(platform)}, but only the results of local trials and of those "
            "on machines by SSH (remote) can be gathered here; set it to one of these, or start the experiment with "
            "nnictl"
        )
    machines = read_machines(path, config)
    command = str(config.get("trialCommand", ""))
    try:
        words = shlex.split(command)
        arguments = words[words.index("proxyless_strategy.trial") + 1 :]
        name = arguments[0]
        preset = arguments[arguments.index("--preset") + 1] if "--preset" in arguments else preset
    except (ValueError, IndexError):
        raise ConfigError(
            f"{path}: trialCommand is {shown(command)}; it must run `python -m proxyless_strategy.trial CONFIG.yml "
            "[--preset NAME]`"
        ) from None
    search_path = path.parent / Path(str(config.get("trialCodeDirectory", "."))).expanduser() / name
    space = _space(path, config)
    if not isinstance(space, dict):
        raise ConfigError(f"{path}: searchSpace is {shown(space)}; it must name the settings that the trials sweep")
    if "out" in space:
        raise ConfigError(f"{path}: searchSpace sweeps `out`; leave it out, every trial has its own folder anyway")
    narrowed = _narrowed(path, config, space, only) if only else None
    trials = _grid(space if narrowed is None else narrowed["searchSpace"])
    first = _trial_config(path, search_path, trials[0] if trials else {}, preset)
    place = first.out if out is None else out.absolute()
    sweep = Sweep(path, search_path, place, trials, preset, narrowed, narrowed or config, machines)
    _refuse_hosts(sweep, space, first)
    _check_machines(sweep, space, name)
    return sweep


def _refuse_hosts(sweep: Sweep, space: Mapping[str, Any], first: SearchConfig) -> None:
    """Refuse trials on several hosts: one process is started for each, and a host's needs a launcher."""
    swept = "search.nodes" in space or "search" in space
    found = [first.search.nodes, *(config.search.nodes for config in (sweep.configs() if swept else ()))]
    if max(found) > 1 or (swept and sweep.trials is None):
        said = f"search.nodes = {max(found)}" if max(found) > 1 else "searchSpace sweeps search.nodes"
        raise ConfigError(
            f"{sweep.path}: {said}, but a trial of an experiment has one host; remove it, and search on several hosts "
            "by `proxyless search` under torchrun or srun"
        )


def _check_machines(sweep: Sweep, space: Mapping[str, Any], name: str) -> None:
    """Refuse settings of machines that no search has or that the sweep draws, and a file that is not sent there."""
    if sweep.machines and Path(name).is_absolute():
        raise ConfigError(
            f"{sweep.path}: trialCommand names {name}, which is no place on another machine; name it from "
            "trialCodeDirectory, whose copy a trial starts in"
        )
    for machine in sweep.machines:
        taken = [key for key in machine.settings if key in space or key == "out"]
        if taken:
            owner = "every trial has of its own" if taken[0] == "out" else "searchSpace sweeps"
            raise ConfigError(
                f"{sweep.path}: the settings of {machine.title} have {taken[0]}, which {owner}; leave it out there"
            )
        try:
            _trial_config(
                sweep.path, sweep.search_path, {**(sweep.trials or ({},))[0], **machine.settings}, sweep.preset
            )
        except ConfigError as error:
            raise ConfigError(f"settings of {machine.title}: {error}") from error


def _trial_config(path: Path, search_path: Path, parameters: dict[str, Any], preset: str | None) -> SearchConfig:
    """Read the search config of a trial; what the sweep alone has made wrong is said of the sweep's file."""
    try:
        return load_config(search_path, parameters, preset=preset)
    except ConfigError as error:
        if not parameters or not _is_good(search_path, preset):
            raise
        raise ConfigError(f"{path}, a trial with {shown(parameters, width=80)}: {error}") from error


def _is_good(search_path: Path, preset: str | None) -> bool:
    with suppress(ConfigError):
        load_config(search_path, preset=preset)
        return True
    return False


def _space(path: Path, config: Mapping[str, Any]) -> Any:
    space = config.get("searchSpace")
    if space is None and "searchSpaceFile" in config:
        space = _mapping(path.parent / Path(str(config["searchSpaceFile"])).expanduser())
    return space


def _mapping(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(path, FILE)
    return found


def _grid(space: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """Return every combination of the space's choices; None for other types, or too many to check beforehand."""
    choices = []
    size = 1
    for entry in space.values():
        values = entry.get("_value") if isinstance(entry, dict) and entry.get("_type") == "choice" else None
        if not isinstance(values, list) or any(isinstance(value, dict) for value in values):
            return None
        choices.append(values)
        size *= len(values)
    if size > _LARGEST_CHECKED_GRID:
        return None
    return tuple(dict(zip(space, values, strict=True)) for values in itertools.product(*choices))


def _narrowed(path: Path, config: dict[str, Any], space: dict[str, Any], only: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nnictl config with one value for some keys, and with paths that hold wherever it is written."""
    space = dict(space)
    for key, value in only.items():
        entry = space.get(key)
        values = entry.get("_value") if isinstance(entry, dict) and entry.get("_type") == "choice" else None
        if not isinstance(values, list) or value not in values:
            offered = ", ".join(map(str, values)) if isinstance(values, list) else "no choice"
            raise ConfigError(f"--only {key}={value}: {path} sweeps {', '.join(space)}, and {key} over {offered}")
        space[key] = {"_type": "choice", "_value": [value]}
    changed = _movable(path, config, space)
    grid = _grid(space)
    if grid is not None:
        # The file's number counts the whole sweep; a tuner that draws at random would repeat trials up to it.
        changed["maxTrialNumber"] = min(len(grid), config.get("maxTrialNumber", len(grid)))
    return changed


def _movable(path: Path, config: Mapping[str, Any], space: Any) -> dict[str, Any]:
    """Return the nnictl config with its search space in it, and with paths that hold wherever it is written."""

    def absolute(value: Any) -> str:
        return str(path.parent / Path(str(value)).expanduser())

    changed = {key: value for key, value in config.items() if key != "searchSpaceFile"}
    changed |= {"searchSpace": space, "trialCodeDirectory": absolute(config.get("trialCodeDirectory", "."))}
    if "experimentWorkingDirectory" in config:
        changed["experimentWorkingDirectory"] = absolute(config["experimentWorkingDirectory"])
    for algorithm in ("tuner", "assessor", "advisor"):
        if isinstance(config.get(algorithm), dict) and "codeDirectory" in config[algorithm]:
            directory = absolute(config[algorithm]["codeDirectory"])
            changed[algorithm] = {**config[algorithm], "codeDirectory": directory}
    return changed
