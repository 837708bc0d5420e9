"""`report.html`: finished searches as one page that needs nothing beside it."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from hardware.errors import ConfigError, ProxylessError
from hardware.files import write_atomically
from hardware.reading import Kind, is_there, read_text, reading

from ..layout import (
    CONFIG_FILE,
    FAILURE_FILE,
    INT8_FILE,
    MODEL,
    NNICTL_LOG,
    ONNX_FILE,
    SEARCH_FILE,
    STARTS_FILE,
    SUMMARY,
    TRIAL_LOG,
)
from ..runs.finished import RECORD, FinishedRun, read_runs, unfinished
from ..runs.rows import moves
from . import charts
from .architecture import architecture
from .next_steps import next_steps
from .parts import Cell, duration, figures, link, table, to_copy, warnings
from .settings import differing

_OWN = Kind("the page's part", "install this package again", ConfigError)

_COLUMNS = (
    ("front", "Pareto front"),
    ("target", "target"),
    ("subnet", "subnet"),
    ("table_ms", "table ms"),
    ("latency_ms", "measured ms"),
    ("energy_mj", "measured mJ"),
    ("accuracy", "test accuracy"),
    ("params", "params"),
    ("macs", "MACs"),
    ("seconds", "duration"),
)
_FILES = (
    (".", "run folder"),
    (MODEL, "timm model"),
    (ONNX_FILE, "ONNX file"),
    (INT8_FILE, "ONNX file in int8"),
    (CONFIG_FILE, "all settings"),
    (SEARCH_FILE, "record of the search"),
    (STARTS_FILE, "starts"),
    (TRIAL_LOG, "log of later starts"),
    (FAILURE_FILE, "failure"),
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
        runs, left_out = read_runs(folder), unfinished(folder)
        content = page(runs, title=folder.resolve().name, left_out=left_out, start=out.parent)
    write_atomically(out, content, error=ConfigError, remedy="choose another place with --out")
    return out


def page(
    searches: Sequence[FinishedRun], *, title: str, left_out: Sequence[Path] = (), start: Path | None = None
) -> str:
    """Build the page as text, with its style, script and charts within it; what a search says of itself is escaped.

    Args:
        searches: What is on it, in this order.
        title: Its title.
        left_out: Folders of searches that have not ended, which are named on it.
        start: The folder of the page, from which its links lead; None: it has none.
    """
    spaces = list(dict.fromkeys(search.settings["space"]["name"] for search in searches))
    data = list(dict.fromkeys(search.settings["data"]["name"] for search in searches))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    counted = f"{len(searches)} finished search{'es' if len(searches) > 1 else ''}"
    lead = f"{counted} in {', '.join(spaces)} on {', '.join(data)}; page written {today}"
    sections = [_results(searches, left_out, start)]
    alone = len(searches) == 1
    sections += [_search(number, search, start, alone=alone) for number, search in enumerate(searches, start=1)]
    here = Path(__file__)
    template, style, script = (
        read_text(here.with_name(name), _OWN).strip() for name in ("page.html", "page.css", "page.js")
    )
    # The browser runs this script and no other, whatever should stand on the page.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        Template(template).substitute(
            title=escape(title),
            style=style,
            lead=escape(lead),
            sections="\n".join(sections),
            script=script,
            digest=f"sha256-{digest}",
        )
        + "\n"
    )


# ---- all searches ----------------------------------------------------------------------------------------------


def _results(searches: Sequence[FinishedRun], left_out: Sequence[Path], start: Path | None) -> str:
    """Build the comparison: warnings, accuracy over cost, and a row for each search."""
    several = len(searches) > 1
    front = charts.on_front(searches)
    shown = [_cells(search, number in front) for number, search in enumerate(searches)]
    columns = [(key, name) for key, name in _COLUMNS if any(cells[key] for cells in shown)]
    rows = []
    for number, (search, cells) in enumerate(zip(searches, shown, strict=True), start=1):
        name = f'<a class="badge" href="#search{number}">{number}</a>{escape(search.kind)}'
        rows.append([Cell(name, text=True), *(Cell(cells[key] or "&ndash;") for key, _ in columns)])
    title = "Trials" if several else "Result"
    parts = [f'<section aria-labelledby="results"><h2 id="results">{title}</h2>']
    if several:
        told = [(number, sentence) for number, s in enumerate(searches, start=1) for sentence in _warnings(s)]
        parts.append(warnings(f"search {number}: {sentence}" for number, sentence in told))
    else:
        parts.append(warnings(_warnings(searches[0])) if searches else "")
    compared = charts.comparison(searches)
    if compared:
        parts.append(figures(compared))
    parts.append(table("Results of the searches", ["search", *(name for _, name in columns)], rows))
    if left_out:
        names = ", ".join(path.name for path in left_out)
        parts.append(f'<p class="note">Not finished, so not on this page: {escape(names)}.</p>')
    if start is not None and several:
        above = searches[0].folder.parent
        files = [(NNICTL_LOG, "log of nnictl"), (SUMMARY, "rows of the trials")]
        parts.append(_links(above, files, start))
    return "\n".join([*parts, "</section>"])


def _warnings(search: FinishedRun) -> tuple[str, ...]:
    return search.warnings or tuple(str(sentence) for sentence in search.row.get("warnings") or ())


def _where(row: Mapping[str, Any]) -> str:
    """Say on which machine a search ended and which it had lost before; empty where it was this one alone."""
    sentences = [f"ended on {row['machine']}"] if row.get("machine") else []
    return "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in (*sentences, *moves(row)))


def _cells(search: FinishedRun, front: bool) -> dict[str, str]:
    """Return what a row of the table of results shows, as HTML; empty where it is not known."""
    row = search.row

    def number(value: Any, spec: str, unit: str = "") -> str:
        # of a number of as many digits as are asked for, `#` leaves a dot at the end
        return "" if value is None else f"{format(value, spec).removesuffix('.')}{unit}"

    unit = f" {search.unit}"
    target = search.target
    measured_target = target if search.unit.startswith("ms") else None
    return {
        "front": '<span class="front">yes</span>' if front else "",
        "target": escape(number(target, "#.4g", unit) + _share(search)),
        "subnet": _marked(row.get("subnet_cost"), target, escape(number(row.get("subnet_cost"), "#.4g", unit))),
        "table_ms": number(row.get("table_ms"), "#.4g"),
        "latency_ms": _marked(row.get("latency_ms"), measured_target, number(row.get("latency_ms"), "#.4g")),
        "energy_mj": _marked(
            row.get("energy_mj"),
            target if search.unit.startswith("mJ") else None,
            number(row.get("energy_mj"), "#.4g"),
        ),
        "accuracy": number(row.get("accuracy"), ".2%"),
        "params": number(row.get("params"), ","),
        "macs": number(row.get("macs"), ","),
        "seconds": duration(row["seconds"]) if row.get("seconds") is not None else "",
    }


def _share(search: FinishedRun) -> str:
    """Say the target as a share of the original network's cost, where the space is made of one."""
    original = search.row.get("original_cost")
    return f", {search.target / original:.3g}x of the original" if original and search.target is not None else ""


def _marked(value: float | None, target: float | None, shown: str) -> str:
    """Mark what is over the target; the target itself is allowed, and a sum may end a rounding above it."""
    if value is None or target is None or value <= target * (1 + 1e-9):
        return shown
    over = f"{100 * (value / target - 1):.2g} %" if target > 0 else "all of it"
    return f'<span class="missed">{shown}, {over} over target</span>'


# ---- one search ------------------------------------------------------------------------------------------------


def _search(number: int, search: FinishedRun, start: Path | None, *, alone: bool) -> str:
    """Build one search's section; beside others what is read last is folded away."""
    key = f"search{number}"
    parts = [
        f'<section id="{key}" aria-labelledby="{key}-title">',
        f'<h2 id="{key}-title"><span class="badge">{number}</span>{escape(search.name)}</h2>',
        "" if alone else warnings(_warnings(search)),
        f'<p class="note">{escape(str(search.folder))}</p>',
        _where(search.row),
    ]
    if start is not None:
        parts.append(_links(search.folder, _FILES, start))
    parts += ["<h3>Architecture</h3>", architecture(search)]
    for title, found in (
        ("On the way", charts.progress(search, key)),
        ("Trade-off", _trade_off(search, key)),
        ("Where the cost goes", list(filter(None, [charts.cost_by_block(search, key)]))),
    ):
        if found:
            parts += [f"<h3>{title}</h3>", figures(found)]
    if search.network is None:
        parts.append('<p class="note">Costs by block were not kept by the version that made this search.</p>')
    steps = "\n".join(to_copy(title, text) for title, text in next_steps(search))
    for title, content in (("Next", steps), ("Settings that differ from the defaults", _settings(search))):
        if alone:
            parts.append(f"<h3>{title}</h3>\n{content}")
        else:
            parts.append(f"<details><summary>{title}</summary>\n{content}</details>")
    return "\n".join([*parts, "</section>"])


def _trade_off(search: FinishedRun, key: str) -> list[charts.Chart]:
    try:
        return charts.trade_off(search, key)
    except ProxylessError:
        # Probabilities or costs of another origin that leave the solver nothing to find.
        return []


def _settings(search: FinishedRun) -> str:
    rows = [
        (Cell(escape(name)), Cell(escape(value), text=True), Cell(escape(default), text=True))
        for name, value, default in differing(search.settings)
    ]
    if not rows:
        return '<p class="note">All are the defaults.</p>'
    return table("Settings that differ from the defaults", ("setting", "value", "default"), rows)


def _links(folder: Path, files: Sequence[tuple[str, str]], start: Path) -> str:
    found = [link(folder / name, start, words) for name, words in files if is_there(folder / name)]
    return f'<ul class="links">{"".join(f"<li>{each}</li>" for each in found)}</ul>' if found else ""
