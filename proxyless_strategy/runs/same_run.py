"""Whether a folder's search may go on with these settings: each phase is bound by those that took part in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from hardware.errors import ConfigError
from hardware.reading import Kind, cut, is_there, read_json

from ..config import TARGETS, Change, SearchConfig
from ..layout import CHECKPOINT, CONFIG_FILE, FINALISTS_FILE, SEARCH_FILE, SUPERNET_FILE

Differences = dict[str, tuple[Any, Any]]
"""The value there and the value here, by dotted key."""

NEVER = ("data.workers", "search.devices", "search.nodes")
"""Settings that may be others: what a loader gives is the same for any number of workers, and a step's images are the
same on any number of processes."""
ANYWAY: dict[Change, tuple[str, ...]] = {"table": ("hardware",), "data": ("data",), "target": TARGETS}
"""The settings that `search.resume_anyway` lets be others."""
DEPLOYED = tuple(f"hardware.{name}" for name in ("backend", "dtype", "options", "threads", "batch", "device", "name"))
"""Settings of the last measurement, and before it of the table, where there is one."""


def check_same_run(config: SearchConfig) -> Differences:
    """Return which settings differ from those of the run in `out`, none of which took part in what it has done.

    Args:
        config: The search.

    Raises:
        ConfigError: One took part, or the folder's settings cannot be read.
    """
    saved = config.out / CONFIG_FILE
    if not is_there(saved):
        return {}
    there = read_json(saved, Kind("the settings", f"choose another out or remove {config.out}", ConfigError))
    differing = differences(there, config.identity(), SearchConfig)
    free = {*NEVER, *_anyway(config), *_later(config)}
    bound = {key: values for key, values in differing.items() if not _is_in(key, free)}
    if bound.get("data.background", ("",))[0] is None:
        # Pictures that it concerns were refused until now, so that nothing has been read otherwise.
        del bound["data.background"]
    kept = (config.out / SUPERNET_FILE).exists()
    if config.retrain is None and "retrain" in differing and (config.out / SEARCH_FILE).exists() and not kept:
        # The search kept no weights of the subnet, as it was to be retrained from others.
        bound["retrain"] = differing["retrain"]
    if not bound:
        return differing
    told = [f"{cut(key)} = {_short(old)} there, {_short(new)} here" for key, (old, new) in bound.items()]
    named = "; ".join([*told[:5], *([f"and {len(told) - 5} more"] if len(told) > 5 else [])])
    remedy = "choose another out or remove it"
    by_retraining = all(_is_in(key, {"retrain"}) for key in bound) and not _finalists_trained(config)
    if by_retraining and config.retrain is not None:
        remedy = f"choose another out, or remove {config.out / CHECKPOINT} to retrain anew"
    raise ConfigError(f"{config.out} holds a search with other settings ({named}); {remedy}")


def differences(there: dict[str, Any], here: dict[str, Any], schema: type[BaseModel], *parents: str) -> Differences:
    """Compare settings key by key; one that is not written down is at its default, as when it did not exist yet.

    Args:
        there: Settings as a file has them.
        here: The same of this version, complete.
        schema: Of both.
        *parents: Where they stand.
    """
    found: Differences = {}
    for key, mine in here.items():
        other = there[key] if key in there else _default(schema, key)
        section = _section(schema, key)
        if section is not None and isinstance(mine, dict) and isinstance(other, dict):
            found |= differences(other, mine, section, *parents, key)
        elif other != mine:
            found[".".join((*parents, key))] = (other, mine)
    # A newer version's setting may have taken part; one of ours that is left out here is at its default.
    for key in there.keys() - here.keys():
        if key in schema.model_fields and there[key] == _default(schema, key):
            continue
        found[".".join((*parents, key))] = (there[key], "unknown")
    return found


def _anyway(config: SearchConfig) -> Iterator[str]:
    """Settings that the user lets be others; once the search has ended, nothing is left that could go on with them."""
    if not (config.out / SEARCH_FILE).exists():
        for change in config.search.resume_anyway:
            yield from ANYWAY[change]


def _later(config: SearchConfig) -> Iterator[str]:
    """Settings of what has not begun yet."""
    if not (config.out / CHECKPOINT).exists() and not _finalists_trained(config):
        yield "retrain"
    # Without a table the search asks nothing of the device; the finished one is measured anew when it is repeated.
    if not config.hardware.uses_table:
        yield from DEPLOYED


def _finalists_trained(config: SearchConfig) -> bool:
    """Return whether finalists were trained as the subnet is to be."""
    return (config.out / FINALISTS_FILE).exists()


def _default(schema: type[BaseModel], key: str) -> Any:
    field = schema.model_fields.get(key)
    value = None if field is None else field.get_default(call_default_factory=True)
    return to_jsonable_python(None if value is PydanticUndefined else value)


def _section(schema: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = schema.model_fields.get(key)
    kinds = () if field is None else get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _is_in(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
