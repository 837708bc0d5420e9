"""The page and the pictures of finished searches, made from the files that a search leaves."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.cli.main import main
from proxyless_strategy.report import pictures
from proxyless_strategy.report.drawing import OTHER
from proxyless_strategy.report.page import write_page
from proxyless_strategy.report.pictures import candidate_style
from proxyless_strategy.runs.finished import read_runs, unfinished

CANDIDATES = ("3x3_e3", "5x5_e6", "skip")


def leave(folder, *, rule="gradient", hardware=None, unit="ms", target=2.0, choices=None, row=None):
    """Writes the files of a finished search of three edges."""
    choices = choices or {"stage1_block0": "3x3_e3", "stage1_block1": "skip", "stage2_block0": "5x5_e6"}
    names = list(dict.fromkeys([*CANDIDATES, *choices.values()]))
    probabilities = {
        label: {name: 0.8 if name == choice else 0.2 / (len(names) - 1) for name in names}
        for label, choice in choices.items()
    }
    history = [
        {"phase": "warmup", "epoch": 1, "default": 0.1, "loss": 2.3, "expected": None, "unit": unit, "entropy": None},
        {"phase": "search", "epoch": 2, "default": 0.4, "loss": 1.9, "expected": 3.0, "unit": unit, "entropy": 1.0},
        {"phase": "search", "epoch": 3, "default": 0.6, "loss": 1.2, "expected": 2.1, "unit": unit, "entropy": 0.5},
    ]
    record = {
        "subnet": {"choices": choices},
        "probabilities": probabilities,
        "unit": unit,
        "expected": 2.1,
        "target": target,
        "argmax": choices,
        "counters": {},
        "history": history,
    }
    settings = {"rule": rule, "hardware": {"name": hardware}, "space": {"name": "three"}, "data": {"name": "digits"}}
    folder.mkdir(parents=True)
    for name, content in (("search.json", record), ("config.json", settings), ("row.json", row)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return record


def result(**changes):
    values = {
        "hardware": None,
        "subnet_cost": 1.9,
        "table_ms": 1.9,
        "latency_ms": 1.95,
        "accuracy": 0.9125,
        "params": 12345,
        "macs": 678901,
        "seconds": 200.0,
    }
    return {**values, **changes}


class Page(HTMLParser):
    """Parses a page: texts, pictures, what it refers to, and whether every tag is closed in its turn."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.pictures, self.references, self.ids, self.styles = [], [], [], [], [], []
        self.tags = set()
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        values = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            kind, _, content = values["src"].partition(";base64,")
            assert kind == "data:image/svg+xml"
            self.pictures.append(ElementTree.fromstring(base64.b64decode(content, validate=True)))
            assert values["alt"]
        elif "src" in values or "href" in values:
            self.references.append(values.get("src") or values["href"])
        if "id" in values:
            self.ids.append(values["id"])
        if "block" in values.get("class", ""):
            self.styles.append((values["title"], values["style"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def page_of(folder):
    return Page(write_page(folder, folder / "report.html").read_text(encoding="utf-8"))


def test_a_page_shows_every_search_and_refers_to_nothing_outside_itself(tmp_path):
    leave(tmp_path / "b", row=result())
    leave(tmp_path / "a", rule="reinforce", target=None, row=result(accuracy=0.93, latency_ms=1.2))
    page = page_of(tmp_path)
    assert page.references == ["#search1", "#search2"]
    assert page.ids == ["search1", "search2"]
    assert not page.tags & {"script", "link", "iframe"}
    assert len(page.pictures) == 1 + 2 * 2
    for words in ("2 finished searches in three on digits", "gradient, target 2 ms", "reinforce, no target"):
        assert words in page.text
    for cell in ("2.000 ms", "1.900 ms", "1.950", "91.25%", "93.00%", "12,345", "678,901", "3 min"):
        assert cell in page.texts
    assert '"rule": "reinforce"' in page.text


def test_a_single_search_without_a_result_has_a_page_too(tmp_path):
    leave(tmp_path / "run", target=None)
    page = page_of(tmp_path / "run")
    assert "1 finished search in three" in page.text
    assert len(page.pictures) == 2
    assert "measured ms" not in page.text


def test_the_page_holds_its_style_and_no_mark_of_its_template(tmp_path):
    leave(tmp_path / "run", row=result())
    text = write_page(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert ".badge {" in style
    assert style.count("{") == style.count("}") > 20
    assert "$" not in text
    assert text.endswith("</html>\n")


def test_blocks_are_drawn_by_kernel_and_expansion(tmp_path):
    leave(tmp_path / "run", row=result())
    page = page_of(tmp_path / "run")
    first, last = page.styles
    assert first == ("stage1_block0: 3x3_e3", f"background: {pictures.COLOURS[3]}; height: 43px")
    assert last == ("stage2_block0: 5x5_e6", f"background: {pictures.COLOURS[5]}; height: 86px")
    assert "The derived subnet is the most probable one." in page.text


@pytest.mark.parametrize(
    ("name", "colour", "height", "text"),
    [
        ("3x3_e3", pictures.COLOURS[3], 0.45, "3x3\ne3"),
        ("7x7_e6", pictures.COLOURS[7], 0.9, "7x7\ne6"),
        ("9x9_e12", OTHER, 1.0, "9x9\ne12"),
        ("sep_5x5", pictures.COLOURS[5], 0.7, "sep\n5x5"),
        ("identity", OTHER, 0.7, "identity"),
    ],
)
def test_a_candidate_has_the_colour_of_its_kernel(name, colour, height, text):
    found = candidate_style(name)
    assert (found[0], found[2]) == (colour, text)
    assert found[1] == pytest.approx(height)


def test_edges_that_differ_from_the_most_probable_subnet_are_named(tmp_path):
    record = leave(tmp_path / "run", row=result())
    record["argmax"] = {**record["argmax"], "stage1_block1": "5x5_e6"}
    (tmp_path / "run" / "search.json").write_text(json.dumps(record))
    said = "1 edge differs from the most probable subnet, by the target or the finalists' losses: stage1_block1 (5x5_e6"
    assert said in page_of(tmp_path / "run").text


def test_a_subnet_over_its_target_is_marked(tmp_path):
    leave(tmp_path / "over", row=result(subnet_cost=2.1))
    leave(tmp_path / "within", row=result(subnet_cost=2.0))
    text = write_page(tmp_path, tmp_path / "report.html").read_text()
    assert text.count('class="missed"') == 1
    assert '<span class="missed" title="over the target">2.100 ms</span>' in text


def test_a_large_space_is_counted_instead_of_drawn(tmp_path):
    labels = [f"cell{i}" for i in range(60)]
    choices = {label: "sep_3x3" if i % 3 else "identity" for i, label in enumerate(labels)}
    leave(tmp_path / "run", choices=choices)
    page = page_of(tmp_path / "run")
    assert "of 60 edges sep_3x3 40 identity 20" in page.text
    assert page.styles == []
    pictures.draw_searches(tmp_path, tmp_path / "report.png")


def test_searches_of_different_spaces_share_a_picture(tmp_path):
    leave(tmp_path / "a")
    leave(tmp_path / "b", choices={"cell1": "identity", "cell2": "sep_3x3"})
    assert pictures.draw_searches(tmp_path, tmp_path / "r.svg").read_bytes().startswith(b"<?xml")


def test_what_a_search_says_is_text_and_never_markup(tmp_path):
    evil = '<script>alert("1")</script>'
    leave(tmp_path / "a&b", hardware=evil, choices={evil: "3x3_e3"}, row=result(hardware=evil))
    page = page_of(tmp_path)
    assert "script" not in page.tags
    assert evil in page.text


def test_searches_that_have_not_ended_are_named(tmp_path):
    leave(tmp_path / "done", row=result())
    leave(tmp_path / "running")
    (tmp_path / "running" / "search.json").unlink()
    export = tmp_path / "model"
    export.mkdir()
    for name in ("config.json", "hubconf.py"):
        (export / name).write_text("{}")
    assert unfinished(tmp_path) == [tmp_path / "running"]
    assert "Not finished, so not on this page: running." in page_of(tmp_path).text


def test_the_trade_off_is_drawn_where_two_searches_have_an_accuracy(tmp_path):
    leave(tmp_path / "a", hardware="cpu", row=result(hardware="cpu"))
    assert pictures.trade_off_picture(read_runs(tmp_path)) is None
    leave(tmp_path / "b", hardware="gpu", unit="M MACs", row=result(hardware="gpu", latency_ms=None))
    assert pictures.trade_off_picture(read_runs(tmp_path)).startswith(b"<?xml")


def test_a_cost_is_the_measured_one_where_a_latency_was_measured(tmp_path):
    leave(tmp_path / "a", row=result())
    leave(tmp_path / "b", unit="M MACs", row=result())
    leave(tmp_path / "c", unit="ms, uncalibrated", row=result(latency_ms=None))
    costs = {search.folder.name: search.subnet_cost for search in read_runs(tmp_path)}
    assert costs == {"a": 1.95, "b": 1.9, "c": 1.9}


def test_the_same_searches_give_the_same_page(tmp_path):
    leave(tmp_path / "a", row=result())
    first = write_page(tmp_path, tmp_path / "report.html").read_bytes()
    assert write_page(tmp_path, tmp_path / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ([], ["report.html", "report.png"]),
        (["--out", "{}/other.html"], ["other.html"]),
        (["--out", "{}/o.pdf"], ["o.pdf"]),
    ],
)
def test_the_command_writes_a_page_and_a_picture(tmp_path, capsys, arguments, written):
    leave(tmp_path / "run", row=result())
    with pytest.raises(SystemExit) as status:
        main(["report", str(tmp_path), *(argument.format(tmp_path) for argument in arguments)])
    assert not status.value.code
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in written]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(written)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "search.json").unlink(), "holds no finished search"),
        (lambda run: (run / "search.json").write_text("{"), r"cannot read .*search\.json: .*search again"),
        (lambda run: (run / "config.json").unlink(), r"cannot read .*config\.json"),
        (lambda run: (run / "row.json").write_bytes(b"\xff"), r"cannot read .*row\.json"),
        (lambda run: (run / "search.json").write_text('{"target_ms": 3}'), "lacks 'unit', so another version"),
    ],
)
def test_a_folder_that_is_no_finished_search_is_one_sentence(tmp_path, capsys, spoil, words):
    leave(tmp_path / "run", row=result())
    spoil(tmp_path / "run")
    with pytest.raises(ConfigError, match=words) as error:
        write_page(tmp_path, tmp_path / "report.html")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["report.txt", "report"])
def test_another_kind_of_file_is_refused(tmp_path, capsys, name):
    leave(tmp_path / "run", row=result())
    with pytest.raises(SystemExit) as status:
        main(["report", str(tmp_path), "--out", str(tmp_path / name)])
    assert status.value.code == 2
    assert "end its name with .html, .png, .svg, .pdf" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    leave(tmp_path / "run", row=result())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another place with --out"):
        write_page(tmp_path, tmp_path / "file" / "report.html")


def test_a_target_of_a_timm_space_is_said_as_a_share_of_the_original(tmp_path):
    leave(tmp_path / "timm", row=result(original_cost=4.0))
    leave(tmp_path / "usual", target=1.5, row=result())
    write_page(tmp_path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("of the original") == 1
    assert "2.000 ms, 0.5x of the original" in text
