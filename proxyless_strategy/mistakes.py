"""What pydantic finds wrong with settings, in the one sentence that a person gets."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hardware.reading import cut, shown

MOST_MISTAKES = 5
"""That one sentence names."""


def validation_sentence(error: ValidationError, schema: type[BaseModel]) -> str:
    """Say in one sentence what pydantic found wrong with settings of a schema, with each key and value."""
    parts = []
    for item in error.errors():
        where = cut(".".join(str(part) for part in item["loc"]))
        message = cut(item["msg"].removeprefix("Value error, "), 600)
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {where!r} ({_known_keys(item['loc'], schema)})")
        else:
            parts.append(f"{where} = {shown(item['input'])}: {message}" if where else message)
    more = [f"and {len(parts) - MOST_MISTAKES} more"] if len(parts) > MOST_MISTAKES else []
    return "; ".join([*parts[:MOST_MISTAKES], *more])


def _known_keys(location: tuple[int | str, ...], schema: type[BaseModel]) -> str:
    section: Any = schema
    parts = location[:1] + location[2:] if location[0] == "platforms" else location
    for part in parts[:-1]:
        field = section.model_fields.get(str(part))
        candidates = get_args(field.annotation) or [field.annotation] if field else []
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if section is None:
            return "remove it"
    return "known keys: " + ", ".join(sorted(section.model_fields))
