"""Pieces of the page that know nothing of a search: tables, figures, texts to copy, links."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from .charts import Chart


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        html: What stands in it.
        text: Whether it is words, which stand on the left.
    """

    html: str
    text: bool = False


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Build a table whose rows a narrow window shows as cards; the first cell of a row names it.

    Args:
        caption: What it shows, as text; hidden, for those who do not see it.
        columns: Names of the columns, as text.
        rows: A cell a column.
    """
    rows = list(rows)
    head = ""
    for number, name in enumerate(columns):
        words = ' class="text"' if any(row[number].text for row in rows) else ""
        head += f'<th scope="col" role="columnheader"{words}>{escape(name)}</th>'
    lines = []
    for row in rows:
        cells = []
        for number, (name, cell) in enumerate(zip(columns, row, strict=True)):
            kind = ' class="text"' if cell.text or not number else ""
            tag, role = ("th", 'scope="row" role="rowheader"') if not number else ("td", 'role="cell"')
            cells.append(f'<{tag} {role}{kind} data-label="{escape(name)}"><span>{cell.html}</span></{tag}>')
        lines.append(f'<tr role="row">{"".join(cells)}</tr>')
    return (
        f'<table class="cards" role="table"><caption class="unseen">{escape(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table>'
    )


def figures(charts: Sequence[Chart]) -> str:
    """Build the charts side by side, or below one another where the window is narrow."""
    shown = [
        f"<figure>{chart.svg}<figcaption><strong>{escape(chart.title)}.</strong> {escape(chart.text)}</figcaption>"
        "</figure>"
        for chart in charts
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def to_copy(title: str, text: str) -> str:
    """Build a text with a button that copies it; the button shows where scripts run."""
    name = escape(title)
    return (
        f'<div class="copy"><p>{name}</p><pre>{escape(text)}</pre>'
        f'<button type="button" class="copier" aria-label="Copy: {name}" hidden>Copy</button></div>'
    )


def warnings(sentences: Iterable[str]) -> str:
    """Build what must be read first; empty where there is nothing."""
    lines = [f"<li>{escape(sentence)}.</li>" for sentence in sentences]
    if not lines:
        return ""
    return f'<div class="warning"><strong>Warning</strong><ul>{"".join(lines)}</ul></div>'


def link(path: Path, start: Path, words: str) -> str:
    """Build a link to a file or folder, from the folder of the page."""
    place = os.path.relpath(path.resolve(), start.resolve())
    return f'<a href="{escape(quote(os.fsencode(place)))}">{escape(words)}</a>'


def duration(seconds: float) -> str:
    """Say a duration in its unit.

    >>> duration(90), duration(600), duration(9000)
    ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
