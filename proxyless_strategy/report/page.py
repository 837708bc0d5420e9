"""`report.html`: finished searches as one page that needs nothing beside it."""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.reading import Kind, read_text, reading
from search_spaces.blocks import SKIP

from ..runs.finished import RECORD, FinishedRun, read_runs, unfinished
from .drawing import COLOURS, OTHER
from .pictures import MOST_LABELLED_EDGES, candidate_style, probability_picture, progress_picture, trade_off_picture

_OWN = Kind("the page's part", "install this package again", ConfigError)

_COLUMNS = (
    ("target", "target"),
    ("subnet", "subnet"),
    ("table_ms", "table ms"),
    ("latency_ms", "measured ms"),
    ("accuracy", "test accuracy"),
    ("params", "params"),
    ("macs", "MACs"),
    ("seconds", "duration"),
)


def write_page(folder: Path, out: Path) -> Path:
    """Write the page of the search in a folder, or of the searches in its subfolders.

    Args:
        folder: The `out` of a search or an experiment.
        out: A .html file.

    Raises:
        ConfigError: There is no finished search, one cannot be read, or `out` is no .html file or cannot be written.
    """
    if out.suffix != ".html":
        raise ConfigError(f"{out} is no page; end its name with .html")
    with reading(folder, RECORD):
        content = page(read_runs(folder), title=folder.resolve().name, left_out=unfinished(folder))
    write_atomically(out, content, error=ConfigError, remedy="choose another place with --out")
    return out


def page(searches: Sequence[FinishedRun], *, title: str, left_out: Sequence[Path] = ()) -> str:
    """Build the page as text, with its style and its pictures within it; what a search says of itself is escaped.

    Args:
        searches: What is on it, in this order.
        title: Its title.
        left_out: Folders of searches that have not ended, which are named on it.
    """
    spaces = list(dict.fromkeys(search.settings["space"]["name"] for search in searches))
    data = list(dict.fromkeys(search.settings["data"]["name"] for search in searches))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    counted = f"{len(searches)} finished search{'es' if len(searches) > 1 else ''}"
    lead = f"{counted} in {', '.join(spaces)} on {', '.join(data)}; page written {today}"
    sections = [_results(searches, left_out)]
    sections += [_search(number, search) for number, search in enumerate(searches, start=1)]
    here = Path(__file__)
    template, style = (read_text(here.with_name(name), _OWN) for name in ("page.html", "page.css"))
    return Template(template).substitute(
        title=escape(title), style=style.rstrip(), lead=escape(lead), sections="\n".join(sections)
    )


def _results(searches: Sequence[FinishedRun], left_out: Sequence[Path]) -> str:
    """Build the table of results, of the columns for which any search has a value, and the picture of all."""
    shown = [_cells(search) for search in searches]
    columns = [(key, name) for key, name in _COLUMNS if any(cells[key] for cells in shown)]
    head = "".join(f"<th>{name}</th>" for _, name in columns)
    lines = []
    for number, (search, cells) in enumerate(zip(searches, shown, strict=True), start=1):
        name = f'<a class="badge" href="#search{number}">{number}</a>{escape(search.kind)}'
        rest = "".join(f"<td>{cells[key] or '&ndash;'}</td>" for key, _ in columns)
        lines.append(f'<tr><td class="text">{name}</td>{rest}</tr>')
    parts = [
        "<section>",
        "<h2>Results</h2>",
        f'<div class="wide"><table><thead><tr><th class="text">search</th>{head}</tr></thead>',
        f"<tbody>{''.join(lines)}</tbody></table></div>",
    ]
    if left_out:
        names = ", ".join(path.name for path in left_out)
        parts.append(f'<p class="note">Not finished, so not on this page: {escape(names)}.</p>')
    picture = trade_off_picture(searches)
    if picture is not None:
        parts += ["<h3>Accuracy and cost of the exported subnets</h3>", _image(picture, "accuracy over cost")]
    return "\n".join([*parts, "</section>"])


def _cells(search: FinishedRun) -> dict[str, str]:
    """Return what a row of the table of results shows, as HTML; empty where it is not known."""
    row = search.row

    def number(value: Any, spec: str, unit: str = "") -> str:
        return "" if value is None else f"{value:{spec}}{unit}"

    unit = f" {search.unit}"
    subnet = number(row.get("subnet_cost"), "#.4g", unit)
    # The target itself is allowed, and a sum over the edges may end a rounding above it.
    if subnet and search.target is not None and row["subnet_cost"] > search.target * (1 + 1e-9):
        subnet = f'<span class="missed" title="over the target">{escape(subnet)}</span>'
    else:
        subnet = escape(subnet)
    return {
        "target": escape(number(search.target, "#.4g", unit) + _share(search)),
        "subnet": subnet,
        "table_ms": number(row.get("table_ms"), "#.4g"),
        "latency_ms": number(row.get("latency_ms"), "#.4g"),
        "accuracy": number(row.get("accuracy"), ".2%"),
        "params": number(row.get("params"), ","),
        "macs": number(row.get("macs"), ","),
        "seconds": _duration(row["seconds"]) if row.get("seconds") is not None else "",
    }


def _share(search: FinishedRun) -> str:
    """Say the target as a share of the original network's cost, where the space is made of one."""
    original = search.row.get("original_cost")
    return f", {search.target / original:.3g}x of the original" if original and search.target is not None else ""


def _search(number: int, search: FinishedRun) -> str:
    settings = json.dumps(search.settings, indent=2)
    parts = [
        f'<section id="search{number}">',
        f'<h2><span class="badge">{number}</span>{escape(search.name)}</h2>',
        f'<p class="note">{escape(str(search.folder))}</p>',
        *(f'<p class="missed">{escape(sentence)}</p>' for sentence in search.row.get("warnings", ())),
        "<h3>Derived subnet</h3>",
        _subnet(search),
        "<h3>On the way</h3>",
        _image(progress_picture(search), "expected cost, entropy and accuracy by epoch"),
        "<h3>Probabilities at the end</h3>",
        _image(probability_picture(search), "probability of every candidate of every edge"),
        f'<p class="note">{escape(_moved(search))}</p>',
        f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>",
    ]
    return "\n".join([*parts, "</section>"])


def _subnet(search: FinishedRun) -> str:
    """Draw the blocks of a small net; count how often each candidate occurs in a large one."""
    if len(search.choices) > MOST_LABELLED_EDGES:
        counts = Counter(search.choices.values()).most_common()
        lines = "".join(f'<tr><td class="text">{escape(name)}</td><td>{count}</td></tr>' for name, count in counts)
        return (
            f'<table style="width: auto"><thead><tr><th class="text">candidate</th><th>of {len(search.choices)} edges'
            f"</th></tr></thead><tbody>{lines}</tbody></table>"
        )
    groups = []
    styles = {}
    for stage, members in groupby(search.choices.items(), key=lambda item: re.split(r"[_./]", item[0])[0]):
        blocks = []
        for label, choice in members:
            title = escape(f"{label}: {choice}", quote=True)
            if choice == SKIP:
                blocks.append(f'<div class="skip" title="{title}"></div>')
                continue
            colour, height, text = candidate_style(choice)
            styles[colour] = next((f"{k}x{k}" for k, c in COLOURS.items() if c == colour), "other")
            style = f"background: {colour}; height: {round(96 * height)}px"
            blocks.append(f'<div class="block" style="{style}" title="{title}">{escape(text)}</div>')
        groups.append(f'<div class="stage"><div>{"".join(blocks)}</div><small>{escape(stage)}</small></div>')
    order = [*COLOURS.values(), OTHER]
    key = "".join(
        f'<span style="background: {colour}"></span>{styles[colour]}' for colour in sorted(styles, key=order.index)
    )
    note = "colour: kernel; height: expansion; thin line: skipped" if OTHER not in styles else "thin line: skipped"
    return f'<div class="net">{"".join(groups)}</div><div class="key">{note}{key}</div>'


def _moved(search: FinishedRun) -> str:
    """Say how the derived subnet differs from the most probable one."""
    text = "Red frame: derived."
    if len(search.probabilities) <= MOST_LABELLED_EDGES:
        text += " Dot: most probable."
    other = [
        label
        for label, choice in search.choices.items()
        if search.argmax.get(label) not in (None, choice) and label in search.probabilities
    ]
    if not other:
        return f"{text} The derived subnet is the most probable one."
    named = _listed(f"{label} ({search.argmax[label]} to {search.choices[label]})" for label in other)
    edges = "edge differs" if len(other) == 1 else "edges differ"
    return (
        f"{text} {len(other)} {edges} from the most probable subnet, by the target or the finalists' losses: {named}."
    )


def _listed(items: Iterable[str], *, most: int = 8) -> str:
    items = list(items)
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _image(svg: bytes, alternative: str) -> str:
    # As a picture and not inline: matplotlib gives its elements the same ids in every figure of a page.
    content = base64.b64encode(svg).decode("ascii")
    return f'<img alt="{escape(alternative, quote=True)}" src="data:image/svg+xml;base64,{content}">'
