"""What a notebook shows of an object: HTML in which everything that comes from a file or a user is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


def number(value: Any) -> str:
    """Write a figure as people read it; what is missing as `none`.

    >>> [number(value) for value in (None, 1234567, 0.123456, "ms")]
    ['none', '1,234,567', '0.1235', 'ms']
    """
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(rows: Iterable[Sequence[Any]], *, titles: Sequence[str] = (), caption: str = "") -> str:
    """Build an HTML table, a row of cells a line; the first cell of a row names it.

    >>> table([["<b>", 2.5]], caption="a")
    '<table><caption>a</caption><tr><th scope="row">&lt;b&gt;</th><td>2.5</td></tr></table>'

    Args:
        rows: The cells, see `number`.
        titles: Of the columns; none: they have no titles.
        caption: What the table is of.
    """
    parts = [f"<caption>{escape(caption)}</caption>"] if caption else []
    if titles:
        named = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
        parts.append(f"<tr>{named}</tr>")
    for first, *others in rows:
        cells = "".join(f"<td>{escape(number(cell))}</td>" for cell in others)
        parts.append(f'<tr><th scope="row">{escape(number(first))}</th>{cells}</tr>')
    return f"<table>{''.join(parts)}</table>"


def pairs(values: Mapping[str, Any], *, caption: str = "") -> str:
    """Build an HTML table of names and values."""
    return table(list(values.items()), caption=caption)
