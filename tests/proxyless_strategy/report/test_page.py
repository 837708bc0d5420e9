"""The page and the pictures of finished searches, made from the files that a search leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.cli.main import main
from proxyless_strategy.report import pictures
from proxyless_strategy.report.boxes import groups, kinds, shape_of, stills
from proxyless_strategy.report.charts import on_front, pareto_front
from proxyless_strategy.report.drawing import OTHER
from proxyless_strategy.report.next_steps import next_steps
from proxyless_strategy.report.page import write_page
from proxyless_strategy.report.parts import Cell, table
from proxyless_strategy.report.pictures import candidate_style
from proxyless_strategy.report.settings import differing
from proxyless_strategy.runs.finished import read_runs, unfinished
from tests.proxyless_strategy.report.left import large, leave, result, with_film

ROOT = Path(__file__).parents[3]
EVIL = '"\'><script>alert("1")</script><img src=x onerror=alert(1)> $\\frac{1}$ </svg>'


class Page(HTMLParser):
    """Parses a page: texts, scripts, what it refers to, and whether every tag is closed in its turn."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.references, self.ids, self.blocks, self.headings = [], [], [], [], [], []
        self.tags, self.attributes, self.scripts, self.used = [], set(), [], []
        self.policy = ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.attributes |= set(values)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag == "use" or "url(#" in str(values):
            self.used += re.findall(r"#([\w-]+)", values.get("href", "") + str(values.get("clip-path", "")))
        elif "src" in values or "href" in values:
            self.references.append(values.get("src") or values["href"])
        if "id" in values:
            self.ids.append(values["id"])
        if values.get("class") == "block":
            self.blocks.append([values["title"]])
        if values.get("class", "").startswith("box") and "span" in self.open[-2:-1] and self.blocks:
            self.blocks[-1] += [values["class"], values["style"]]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)


def page_of(folder):
    return Page(write_page(folder, folder / "report.html").read_text(encoding="utf-8"))


def test_a_page_shows_every_search_and_refers_to_nothing_outside_itself(tmp_path):
    leave(tmp_path / "b", row=result())
    leave(tmp_path / "a", rule="reinforce", target=None, row=result(accuracy=0.93, latency_ms=1.2))
    for name in "ab":
        with_film(tmp_path / name)
    page = page_of(tmp_path)
    links = [reference for reference in page.references if not reference.startswith("#")]
    assert [reference for reference in page.references if reference.startswith("#")] == ["#search1", "#search2"]
    assert sorted(links) == sorted(
        f"{run}{name}" for run in ("a", "b") for name in ("", "/config.json", "/search.json")
    )
    assert not set(page.tags) & {"link", "iframe", "img", "object", "base", "form"}
    for words in ("2 finished searches in three on digits", "gradient, target 2 ms", "reinforce, no target"):
        assert words in page.text
    for cell in ("2.000 ms", "1.900 ms", "1.950", "91.25%", "93.00%", "12,345", "678,901", "3 min"):
        assert cell in page.texts


def test_the_pages_parts_are_well_formed(tmp_path):
    """Ids are used once, and what refers to one finds it; headings go down by one; the policy allows one script."""
    for name in "ab":
        leave(tmp_path / name, row=result(latency_ms=1.0 if name == "a" else 1.5))
        with_film(tmp_path / name)
    page = page_of(tmp_path)
    assert len(set(page.ids)) == len(page.ids)
    assert page.used
    assert set(page.used) <= set(page.ids)
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.headings.count(1) == 1
    *films, script = page.scripts
    assert [len(json.loads(film)["stills"]) for film in films] == [5, 5]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert page.tags.count("script") == 3


def test_a_single_search_without_a_result_has_a_page_too(tmp_path):
    leave(tmp_path / "run", target=None)
    page = page_of(tmp_path / "run")
    assert "1 finished search in three" in page.text
    assert page.tags.count("figure") == 3
    assert "measured ms" not in page.text
    assert "retrain" not in page.text


def test_a_page_needs_no_torch(tmp_path):
    leave(tmp_path / "run", row=result())
    with_film(tmp_path / "run")
    program = (
        "import sys; from pathlib import Path\n"
        "from proxyless_strategy.report import film, page, pictures\n"
        "folder = Path(sys.argv[1])\n"
        "page.write_page(folder, folder / 'r.html'); film.draw_architecture(folder, folder / 'r.svg')\n"
        "pictures.draw_searches(folder, folder / 'r.png')\n"
        "print([name for name in ('torch', 'timm', 'nni') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "log-probability" in (tmp_path / "run" / "r.html").read_text()


def test_the_page_holds_its_style_and_no_mark_of_its_template(tmp_path):
    leave(tmp_path / "run", row=result())
    text = write_page(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert ".badge {" in style
    assert style.count("{") == style.count("}") > 20
    assert "$" not in text.partition("<script>")[0]
    assert text.endswith("</html>\n")


# ---- the drawing -------------------------------------------------------------------------------------------------


def test_blocks_are_drawn_by_kernel_expansion_and_probability(tmp_path):
    leave(tmp_path / "run", row=result())
    page = page_of(tmp_path / "run")
    first, skipped, last = page.blocks
    assert first == ["stage1_block0: 3x3_e3, 80%", "box k0", "--h:0.4;--w:0.56;--p:0.800"]
    assert skipped[:2] == ["stage1_block1: skip, 80%", "box passes"]
    assert last == ["stage2_block0: 5x5_e6, 80%", "box k1", "--h:0.6;--w:0.92;--p:0.800"]
    assert "The derived subnet is the most probable one." in page.text
    assert "No probabilities by epoch" in page.text
    assert "input" not in page.tags


@pytest.mark.parametrize(
    ("name", "kind", "side", "height", "width"),
    [
        ("3x3_e3", "MB3", "3x3", 0.4, 0.56),
        ("7x7_e6", "MB6", "7x7", 0.8, 0.92),
        ("5x5_e2_5", "MB2.5", "5x5", 0.6, 0.5),
        ("99x99_e64", "MB64", "99x99", 1.0, 1.0),
        ("sep_5x5", "sep", "5x5", 0.6, 0.5),
        ("avg_pool_3x3", "avg pool", "3x3", 0.4, 0.5),
        ("3x3", "conv", "3x3", 0.4, 0.5),
        ("dense", "dense", "", 0.4, 0.5),
    ],
)
def test_a_candidate_is_as_high_as_its_kernel_and_as_wide_as_its_expansion(name, kind, side, height, width):
    shape = shape_of(name)
    assert (shape.kind, shape.side, shape.passes) == (kind, side, False)
    assert (shape.height, shape.width) == pytest.approx((height, width))


def test_the_network_is_drawn_from_stem_to_head_with_what_each_block_costs(tmp_path):
    leave(tmp_path / "run", row=result())
    with_film(tmp_path / "run")
    (search,) = read_runs(tmp_path)
    parts = groups(search)
    assert [(part.name, len(part.blocks)) for part in parts] == [
        ("stem", 1),
        ("stage 1", 2),
        ("stage 2", 1),
        ("head", 1),
    ]
    assert parts[1].size == "8 wide, 16x16, stride 1"
    assert parts[1].blocks[0].costs == (0.25, 0.5, 0.0)
    assert parts[0].blocks[0].costs == (0.25,)
    # stem and head have a colour of their own, candidates one a kind
    assert kinds(parts) == {"MB3": 0, "MB6": 1, "conv": None, "head": None}


def test_the_film_shows_the_likeliest_subnet_of_each_epoch_and_the_exported_one_at_last(tmp_path):
    record = leave(tmp_path / "run", row=result())
    with_film(tmp_path / "run")
    (search,) = read_runs(tmp_path)
    film = stills(search)
    assert [still.name for still in film] == ["epoch 1", "epoch 2", "epoch 3", "epoch 4", "exported subnet"]
    assert set(film[0].choices.values()) == {"skip"}  # the last candidate leads in the first epoch
    assert film[3].choices == film[4].choices == record["subnet"]["choices"]
    # constant 0.5, stem 0.25, head 0.125; 3x3_e3 costs 0.25, 5x5_e6 costs 0.5, skip nothing
    assert [still.cost for still in film] == pytest.approx([0.875, 1.625, 1.625, 1.625, 1.625])
    assert film[0].expected == pytest.approx(0.875 + 3 * 0.75 / 3, abs=0.05)
    page = page_of(tmp_path / "run")
    data = json.loads(page.scripts[0])
    assert [still["chosen"] for still in data["stills"]] == [[2, 2, 2], *[[0, 2, 1]] * 4]
    assert data["stills"][4]["odds"][0] == [800, 100, 100]
    assert "Likeliest subnet of epoch 1, 0.875 ms" in data["stills"][0]["said"]


def test_a_long_film_is_thinned_on_the_page_which_says_so(tmp_path):
    leave(tmp_path / "run")
    with_film(tmp_path / "run", epochs=500)
    page = page_of(tmp_path / "run")
    shown = [still["name"] for still in json.loads(page.scripts[0])["stills"]]
    assert shown[:3] == ["epoch 1", "epoch 4", "epoch 7"]
    assert shown[-1] == "exported subnet"
    assert len(shown) == 168
    assert "Of 500 epochs kept, each third is shown." in page.text


def test_a_large_space_is_drawn_small_and_counted(tmp_path):
    leave(tmp_path / "run", choices=large())
    with_film(tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "sep_3x3 40 identity 20" in page.text
    assert len(page.blocks) == 62  # the stem and the head too
    assert "data-odds" not in page.attributes
    odds = json.loads(page.scripts[0])["stills"][-1]["odds"]
    assert odds == [[800]] * 60
    pictures.draw_searches(tmp_path, tmp_path / "report.png")


def test_blocks_without_a_stem_or_a_known_operator_are_drawn(tmp_path):
    leave(tmp_path / "run", choices={"first": "dense", "second": "skip"})
    record = with_film(tmp_path / "run", fixed=False)
    for options in record["network"]["edges"].values():
        options["dense"] = ["a kind of its own", 1.0]
    (tmp_path / "run" / "search.json").write_text(json.dumps(record))
    page = page_of(tmp_path / "run")
    assert [block[0] for block in page.blocks] == ["first: dense, 80%", "second: skip, 80%"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r["film"]["epochs"].append(4), "film.epochs do not rise"),
        (lambda r: r["film"]["epochs"].append(5), "has 4 epochs, not 5"),
        (lambda r: r["film"]["probabilities"].popitem(), "its film has 2 edges, which are not the search's 3"),
        (lambda r: r["film"]["probabilities"]["stage1_block0"][1].pop(), "has 2 candidates, not 3"),
        (lambda r: r["film"]["probabilities"]["stage1_block0"][1].__setitem__(0, 2), "holds 2, no probability"),
        (lambda r: r["film"].pop("epochs"), "lacks 'epochs'"),
        (lambda r: r.update(film=[]), "its film is .*, not a mapping"),
        (lambda r: r["network"]["edges"].popitem(), "its network has 2 edges"),
        (lambda r: r["network"]["edges"]["stage1_block0"].popitem(), "other candidates than its probabilities"),
        (lambda r: r["network"]["order"].append("nowhere"), "names nowhere, which is no edge"),
        (lambda r: r["network"]["order"].append(["conv"]), "not a key and a cost"),
        (lambda r: r["network"].update(constant=1e300), "which nothing costs"),
        (lambda r: r["finalists"].append({}), "lacks 'choices'"),
        (lambda r: r.update(warnings=[3]), "its warnings is 3, not a text"),
    ],
)
def test_a_damaged_film_or_network_is_one_sentence(tmp_path, spoil, words):
    leave(tmp_path / "run", row=result())
    record = with_film(tmp_path / "run")
    spoil(record)
    (tmp_path / "run" / "search.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=words) as error:
        write_page(tmp_path, tmp_path / "report.html")
    assert len(str(error.value).splitlines()) == 1
    assert "search.json" in str(error.value)


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


# ---- what stands beside it -----------------------------------------------------------------------------------------


def test_edges_that_differ_from_the_most_probable_subnet_are_named(tmp_path):
    record = leave(tmp_path / "run", row=result())
    record["argmax"] = {**record["argmax"], "stage1_block1": "5x5_e6"}
    (tmp_path / "run" / "search.json").write_text(json.dumps(record))
    said = "1 edge differs from the most probable subnet, by the target or the finalists' losses: stage1_block1 (5x5_e6"
    assert said in page_of(tmp_path / "run").text


def test_a_subnet_over_its_target_is_marked_by_the_table_and_as_measured(tmp_path):
    leave(tmp_path / "over", row=result(subnet_cost=2.1, latency_ms=2.2))
    leave(tmp_path / "within", row=result(subnet_cost=2.0, latency_ms=2.0))
    leave(tmp_path / "counted", unit="M MACs", row=result(subnet_cost=2.0, latency_ms=9.0))
    text = write_page(tmp_path, tmp_path / "report.html").read_text()
    assert text.count('class="missed"') == 2
    assert '<span class="missed">2.100 ms, 5 % over target</span>' in text
    assert '<span class="missed">2.200, 10 % over target</span>' in text


def test_a_search_of_several_machines_says_which(tmp_path):
    lost = {"machine": "alpha", "reason": "Timeout, server <alpha>", "then": "beta", "from": "its last checkpoint"}
    leave(tmp_path / "a", row=result(machine="beta", lost=[lost]))
    leave(tmp_path / "b", row=result())
    text = page_of(tmp_path).text
    assert text.count("ended on ") == text.count("ended on beta") == 1
    assert "alpha was lost (Timeout, server <alpha>); it went on on beta from its last checkpoint" in text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"machine": 3}, "its machine is 3, not a text"),
        ({"lost": {}}, "its lost is .*, not a list"),
        ({"lost": ["alpha"]}, "its lost is 'alpha', not a mapping"),
        ({"lost": [{"machine": "alpha"}]}, "lacks 'reason'"),
    ],
)
def test_damaged_words_of_machines_are_one_sentence(tmp_path, row, words):
    leave(tmp_path / "a", row=result(**row))
    with pytest.raises(ConfigError, match=words):
        page_of(tmp_path)


def test_warnings_stand_before_all_else(tmp_path):
    for name, where in (("new", "record"), ("old", "row")):
        row = result(warnings=["too <few> steps"]) if where == "row" else result()
        record = leave(tmp_path / name, row=row)
        if where == "record":
            record["warnings"] = ["no architecture step was done"]
            (tmp_path / name / "search.json").write_text(json.dumps(record))
    text = page_of(tmp_path).text
    assert text.index("no architecture step was done") < text.index("Results of the searches")
    assert text.index("too <few> steps") < text.index("Results of the searches")


def test_a_warning_is_said_once_on_a_page_of_one_search(tmp_path):
    for name in ("a", "b"):
        leave(tmp_path / name, row=result(warnings=["too few steps"]))
    assert page_of(tmp_path / "a").text.count("too few steps") == 1
    # of several each one's own stands over its section too
    assert page_of(tmp_path).text.count("too few steps") == 4


def test_the_heads_of_columns_of_words_and_numbers_stand_over_them():
    head = table("", ["name", "words", "number"], iter([[Cell("a"), Cell("b", text=True), Cell("1")]])).split("<tbody")[
        0
    ]
    heads = head.split("<th ")[1:]
    assert [' class="text"' in each for each in heads] == [False, True, False]


def test_an_accuracy_axis_shows_accuracies_or_losses_and_says_what_a_probability_is(tmp_path):
    leave(tmp_path / "run", row=result())
    with_film(tmp_path / "run")
    text = page_of(tmp_path / "run").text
    for words in ("log-probability of the subnet", "which is not its accuracy", "loss on architecture images"):
        assert words in text
    assert "2 subnets within the target with the supernet's weights: loss 0.5 to 0.75." in text
    assert "91.25% test accuracy after retraining" in text
    # 3 edges: 0.875 without any block, 1.625 with those that are likeliest
    assert "from 0.875 to 1.625 ms" in text


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 0.7), (2.0, 0.9), (3.0, 0.8)], {0, 1}),
        ([(1.0, 0.9), (2.0, 0.9), (2.0, 0.95)], {0, 2}),
        ([(1.0, 0.9), (1.0, 0.9)], {0, 1}),
        ([], set()),
    ],
)
def test_the_front_is_what_no_other_outdoes(points, front):
    assert pareto_front(points) == front


def test_trials_are_compared_within_their_hardware_and_unit(tmp_path):
    leave(tmp_path / "a", hardware="cpu", row=result(hardware="cpu"))
    assert "Pareto" not in page_of(tmp_path).text
    leave(tmp_path / "b", hardware="gpu", unit="M MACs", row=result(hardware="gpu", latency_ms=None))
    assert "Pareto" not in page_of(tmp_path).text
    leave(tmp_path / "c", hardware="cpu", row=result(hardware="cpu", latency_ms=1.0, accuracy=0.9))
    leave(tmp_path / "d", hardware="cpu", row=result(hardware="cpu", latency_ms=1.96, accuracy=0.9))
    runs = read_runs(tmp_path)
    assert sorted(runs[number].folder.name for number in on_front(runs)) == ["a", "c"]
    page = page_of(tmp_path)
    assert "Test accuracy over cost on cpu" in page.text
    assert page.text.count("Pareto front") == 3  # the column, the legend and what is said of it
    assert page.texts.index("Trials") < page.texts.index("Architecture")


def test_settings_are_what_differs_from_the_defaults():
    settings = {"rule": "reinforce", "seed": 0, "search": {"epochs": 7, "momentum": 0.9}, "retrain": None, "own": [1]}
    found = differing(settings)
    assert ("rule", "reinforce", "gradient") in found
    assert ("retrain", "none", "a section of its own") in found
    assert ("own", "[1]", "none") in found
    assert [name for name, *_ in found] == ["rule", "search.epochs", "retrain", "own"]


def test_next_commands_are_the_command_lines_own(tmp_path):
    """Each names options that the command has, and paths that a shell takes as one word."""
    folder = tmp_path / "it's mine"
    leave(folder, row=result())
    assert [words for words, _ in next_steps(*read_runs(folder))] == [
        "Another subnet of the same search, here within 1.71 ms",
        "The whole trade-off of this search",
    ]
    (folder / "model").mkdir()
    (folder / "model" / "hubconf.py").write_text("")
    steps = next_steps(*read_runs(folder))
    commands = [shlex.split(text) for _, text in steps if text.startswith("proxyless")]
    assert [command[1] for command in commands] == ["derive", "derive", "retrain", "benchmark"]
    assert commands[0][2] == str(folder)
    assert commands[2][2] == str(folder / "model")
    for command in commands:
        shown = subprocess.run(
            [sys.executable, "-m", "proxyless_strategy.cli", command[1], "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"COLUMNS": "200", "PATH": ""},
        )
        assert all(word in shown.stdout for word in command if word.startswith("--"))
    codes = [text for _, text in steps if "\nimport " in f"\n{text}"]
    assert len(codes) == 2
    for code in codes:
        compile(code, "code", "exec")
        assert repr(str(folder / "model"))[1:-1] in code


def test_links_lead_from_the_page_to_what_is_there(tmp_path):
    folder = tmp_path / "runs" / "a: b#c"
    leave(folder, row=result())
    (folder / "model.onnx").write_bytes(b"")
    write_page(folder, tmp_path / "pages" / "report.html")
    page = Page((tmp_path / "pages" / "report.html").read_text())
    links = [reference for reference in page.references if not reference.startswith("#")]
    assert all(":" not in link and "#" not in link for link in links)
    places = [(tmp_path / "pages" / unquote(link)).resolve() for link in links]
    assert places == [folder, folder / "model.onnx", folder / "config.json", folder / "search.json"]


def test_searches_of_different_spaces_share_a_picture(tmp_path):
    leave(tmp_path / "a")
    leave(tmp_path / "b", choices={"cell1": "identity", "cell2": "sep_3x3"})
    assert pictures.draw_searches(tmp_path, tmp_path / "r.svg").read_bytes().startswith(b"<?xml")


def test_what_a_search_says_is_text_and_never_markup(tmp_path):
    """In names of edges, candidates, hardware, units, data, folders; in warnings and settings."""
    folder = tmp_path / "a&b <b>"
    choices = {f"{EVIL} 1": EVIL, f"{EVIL} 2": "3x3_e3"}
    leave(folder, hardware=EVIL, unit=f"ms{EVIL}", choices=choices, row=result(hardware=EVIL))
    leave(tmp_path / "plain", hardware=EVIL, unit=f"ms{EVIL}", row=result(hardware=EVIL, latency_ms=1.0))
    record = with_film(folder)
    record["warnings"] = [EVIL]
    record["network"]["order"].append([EVIL, 1.0])
    (folder / "search.json").write_text(json.dumps(record))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {EVIL: EVIL, "space": {"name": f"own:{EVIL}"}, "data": {"name": EVIL, "root": EVIL}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model").mkdir()
    (folder / "model" / "hubconf.py").write_text("")
    page = page_of(tmp_path)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert not [name for name in page.attributes if name.startswith("on")]
    assert page.text.count(EVIL) > 10
    assert json.loads(page.scripts[0])["names"][0][-1] == EVIL
    assert EVIL not in write_page(tmp_path, tmp_path / "report.html").read_text()


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
        (["--out", "{}/o.svg"], ["o.svg"]),
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
    assert "end its name with .html, .png, .svg, .pdf, .gif" in capsys.readouterr().err


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
