"""The one reader of a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError


@dataclass(frozen=True)
class FinishedSearch:
    """What a search folder says.

    Attributes:
        folder: Where it lies.
        name: What the pictures call it.
        target: Its target; None where there was none.
        unit: What target and expected cost are in.
        history: One row per epoch, see `EpochLog`.
        choices: Candidate by edge.
        argmax: The most probable candidate by edge; what is derived may be another one, to keep to the target or
            by the finalists' losses.
        probabilities: Probability by edge and candidate, at the end of the search.
        row: The result's row; empty while the search has not been retrained and measured.
        settings: Its config.
    """

    folder: Path
    name: str
    target: float | None
    unit: str
    history: list[dict[str, Any]]
    choices: dict[str, str]
    argmax: dict[str, str]
    probabilities: dict[str, dict[str, float]]
    row: dict[str, Any]
    settings: dict[str, Any]

    @property
    def kind(self) -> str:
        """Its rule, and its hardware where that has a name."""
        return ", ".join(filter(None, (self.settings["rule"], self.settings["hardware"].get("name"))))

    @property
    def is_measured(self) -> bool:
        """Whether the target's cost is a latency, and the exported subnet's was measured."""
        return self.unit.startswith("ms") and self.row.get("latency_ms") is not None

    @property
    def subnet_cost(self) -> float | None:
        """What the exported subnet costs: measured where `is_measured`, else as counted or by the table."""
        return self.row["latency_ms"] if self.is_measured else self.row.get("subnet_cost")


def read_searches(folder: Path) -> list[FinishedSearch]:
    """The search in `folder`, or the searches in its subfolders.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    found = [path.parent for path in (folder / "search.json", *sorted(folder.glob("*/search.json"))) if path.exists()]
    if not found:
        raise ConfigError(f"{folder} holds no finished search (no search.json); give the `out` of a search")
    searches = [_read_search(place) for place in found]
    return sorted(searches, key=lambda search: (search.name.split(",")[0], search.unit, search.target or 0))


def unfinished(folder: Path) -> list[Path]:
    """Folders of searches that have settings, but have not ended."""
    places = [path.parent for path in (folder / "config.json", *sorted(folder.glob("*/config.json"))) if path.exists()]
    return [place for place in places if not (place / "search.json").exists() and not (place / "hubconf.py").exists()]


def _read_search(place: Path) -> FinishedSearch:
    def read(name: str) -> Any:
        try:
            return json.loads((place / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {place / name}: {error}; remove {place} or search again") from error

    search, settings = read("search.json"), read("config.json")
    row = read("row.json") if (place / "row.json").exists() else {}
    try:
        unit, goal = search["unit"], search["target"]
        hardware = settings["hardware"].get("name")
        target = "no target" if goal is None else f"target {goal:.4g} {unit}"
        return FinishedSearch(
            folder=place,
            name=", ".join(filter(None, (settings["rule"], hardware, target))),
            target=goal,
            unit=unit,
            history=search["history"],
            choices=search["subnet"]["choices"],
            argmax={label: str(choice) for label, choice in search["argmax"].items()},
            probabilities=search["probabilities"],
            row=row,
            settings=settings,
        )
    except KeyError as error:
        raise ConfigError(
            f"the search in {place} lacks {error}, so another version of this project wrote it; search again"
        ) from error
