"""What every schema of settings has in common: which numbers it takes, no unknown keys, and mistakes as a sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from hardware.reading import cut, shown

MOST_MISTAKES = 5
"""That one sentence names."""
MOST_CHARACTERS = 560
"""Of all of them: of a recipe's longest list of known keys, but not of two."""
_ALTERNATIVES = ("function-", "dict[", "constrained-")


def number(value: Any) -> Any:
    """Refuse truths, which Python takes for 1 and 0, and texts, of which pydantic would take `010` and `inf`."""
    if isinstance(value, bool):
        raise ValueError("it takes a value, neither yes nor no")
    if isinstance(value, str):
        raise ValueError("it takes a number, not a text")
    return value


_SHARE = re.compile(r"(\d+\.?\d*|\.\d+) ?x")


def share_in(text: str) -> float | None:
    """Read a share of the original network's own cost, such as `0.6x`; None where the text is none.

    >>> share_in("0.6x"), share_in("1x"), share_in("0.6")
    (0.6, 1.0, None)
    """
    found = _SHARE.fullmatch(text.strip())
    return None if found is None else float(found[1])


def _takes_numbers(annotation: Any) -> bool:
    kinds = {annotation, *get_args(annotation)}
    return bool(kinds & {int, float}) and str not in kinds


class Section(BaseModel):
    """Settings that stand together."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if bool in (annotation, *get_args(annotation)) or (isinstance(value, str) and not _takes_numbers(annotation)):
            return value
        return number(value)


def validation_sentence(error: ValidationError, schema: type[BaseModel]) -> str:
    """Say in one sentence what pydantic found wrong with settings of a schema, with each key and value."""
    parts: list[str] = []
    listed: set[tuple[int | str, ...]] = set()
    for item in error.errors():
        # what pydantic says of a union's alternatives is no key
        keys = [str(part) for part in item["loc"] if not str(part).startswith(_ALTERNATIVES)]
        where = cut(".".join(keys))
        message = cut(item["msg"].removeprefix("Value error, "), 400)
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"], schema)
            near = nearest_key(keys, schema)
            meant = f"; did you mean {near}" if near else ""
            parts.append(f"unknown key {where!r}{meant}" + (f" ({known})" if item["loc"][:-1] not in listed else ""))
            listed.add(item["loc"][:-1])
        else:
            parts.append(f"{where} = {shown(item['input'])}: {message}" if where else message)
    told = [cut(parts[0], MOST_CHARACTERS)]
    for part in parts[1:MOST_MISTAKES]:
        if len("; ".join([*told, part])) > MOST_CHARACTERS:
            break
        told.append(part)
    more = [f"and {len(parts) - len(told)} more"] if len(parts) > len(told) else []
    return "; ".join([*told, *more])


def nearest_key(keys: Sequence[str], schema: type[BaseModel]) -> str | None:
    """Return the dotted key that an unknown one was meant as, by a slip of the hand or in another section; else None.

    Args:
        keys: The unknown key, section by section.
        schema: What it is none of.
    """
    *sections, last = ["hardware", *keys[2:]] if keys[0] == "platforms" and len(keys) > 2 else keys
    known = list(_all_keys(schema))
    shown_parents = keys[: len(keys) - 1]
    beside = {key.rpartition(".")[2]: key for key in known if key.split(".")[:-1] == list(sections)}
    close = difflib.get_close_matches(last, beside, n=1, cutoff=0.7)
    if close:
        return ".".join([*shown_parents, close[0]])
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    close = difflib.get_close_matches(last, elsewhere, n=1, cutoff=0.8)
    return elsewhere[close[0]] if close else None


def _all_keys(schema: type[BaseModel], *parents: str) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield ".".join((*parents, name))
        candidates = get_args(field.annotation) or (field.annotation,)
        for section in candidates:
            if (
                isinstance(section, type)
                and issubclass(section, BaseModel)
                and len(parents) < 2
                and name != "platforms"
            ):
                yield from _all_keys(section, *parents, name)


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
