"""What of a search's settings differs from the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import SearchConfig

NOT_THERE = "none"


def differing(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the dotted name, value and default of every setting that is not the default, as text.

    >>> differing({"rule": "reinforce", "seed": 0, "search": {"epochs": 7}})[0]
    ('rule', 'reinforce', 'gradient')

    Args:
        settings: As `config.json` has them; what it lacks is the default.
    """
    defaults = dict(_leaves(SearchConfig().identity()))
    found = []
    for name, value in _leaves(settings):
        default = defaults.get(name)
        # Of a section that is switched off the default is no value, but that there is one.
        section = name not in defaults and any(key.startswith(f"{name}.") for key in defaults)
        if section or value != default:
            found.append((name, _text(value), "a section of its own" if section else _text(default)))
    return found


def _leaves(settings: Mapping[str, Any], *parents: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, *parents, str(key))
        else:
            yield ".".join((*parents, str(key))), value


def _text(value: Any) -> str:
    if value is None or value == {}:
        return NOT_THERE
    return value if isinstance(value, str) else json.dumps(value)
