"""What a notebook shows: figures as people read them, and nothing of a file's that a browser would run."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

from hardware import notebook
from hardware.tables.shipped import open_table

EVIL = "<script>alert(1)</script>"


def test_cells_titles_and_captions_are_escaped() -> None:
    text = notebook.table([[EVIL, EVIL]], titles=(EVIL, "&"), caption=EVIL)
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    assert [cell.text for cell in root.iter("td")] == [EVIL]
    assert [cell.text for cell in root.iter("th")] == [EVIL, "&", EVIL]


def test_figures() -> None:
    assert notebook.number(True) == "True"
    assert notebook.number(1e-9) == "1e-09"


def test_a_latency_table_shows_its_device_and_its_slowest_operators() -> None:
    table = open_table("pixel1")
    root = ElementTree.fromstring(f"<div>{table._repr_html_()}</div>")
    about, slow = root.findall("table")
    assert "Google Pixel 1 (phone)" in [cell.text for cell in about.iter("td")]
    slowest = max(table.entries, key=lambda key: table.entries[key].ms)
    assert slow.findall("tr")[1].find("th").text == slowest  # type: ignore[union-attr]
    assert len(slow.findall("tr")) == 11


def test_what_a_tables_file_says_of_itself_is_escaped() -> None:
    table = open_table("pixel1")
    header = dataclasses.replace(table.header, device=EVIL, space=EVIL, backend=EVIL)
    shown = dataclasses.replace(table, header=header)._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 3
