"""Documents that are nearly right, by hypothesis: each reader of a text takes them or refuses them in one sentence.

The same readers and the same judge as in `tests.benchmarks.fuzz`, which tries far more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.benchmarks.fuzz_cases import Case, Judge, Target
from tests.benchmarks.fuzz_formats import json_text, key_text, yaml_text
from tests.benchmarks.fuzz_mutations import TEXTS, TOKENS, Map, Node, copied, places, tree_of
from tests.benchmarks.fuzz_targets import targets
from tests.benchmarks.fuzz_texts import block, flow

EXAMPLES = 25


def params(*formats: Any) -> list[Any]:
    """The targets of some formats; those of reports, which are drawn, are too slow."""
    return [
        pytest.param(target, id=target.name) for target in targets() if target.format in formats and target.share >= 0.1
    ]


numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([10**400, -1.0, math.nan, 1e308]),
)
leaves = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=8), st.sampled_from(TEXTS))
raw = st.sampled_from(TOKENS)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(st.tuples(st.text(max_size=5), inner).map(list), max_size=3).map(Map)
    ),
    max_leaves=6,
)


@st.composite
def documents(draw: Any, tree: Node, *, as_yaml: bool) -> bytes:
    """A good document with one to three edits, each at a place that hypothesis chooses."""
    root = copied(tree)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(root))
        if not found:
            break
        holder, index = found[draw(st.integers(0, len(found) - 1))]
        maps = [node for node in (root, *(a[b] for a, b in found)) if isinstance(node, Map) and node]
        edit = draw(st.sampled_from(["replace", "token", "remove", "twice", "rename", "add", "swap", "wrap", "root"]))
        if edit == "replace":
            holder[index] = draw(values)
        elif edit == "token":
            holder[index] = draw(raw)
        elif edit == "swap":
            other, there = found[draw(st.integers(0, len(found) - 1))]
            holder[index], other[there] = copied(other[there]), copied(holder[index])
        elif edit == "wrap":
            holder[index] = [holder[index]]
        elif edit == "root" and draw(st.integers(0, 9)) == 0:
            root = draw(values)
        elif maps:
            chosen = maps[draw(st.integers(0, len(maps) - 1))]
            at = draw(st.integers(0, len(chosen) - 1))
            if edit == "remove":
                del chosen[at]
            elif edit == "twice":
                chosen.append(copied(chosen[at]))
            elif edit == "rename":
                chosen[at][0] = draw(st.one_of(st.text(max_size=8), numbers if as_yaml else st.just("x")))
            else:
                chosen.append([draw(st.text(max_size=8)), draw(values)])
    text = block(root).lstrip("\n") if as_yaml and draw(st.booleans()) else flow(root, yaml=as_yaml)
    return text.encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], tuple[Judge, bytes]]:
    def made(target: Target) -> tuple[Judge, bytes]:
        place = tmp_path_factory.mktemp("strange")
        (place / "good").mkdir()
        target.prepare(place / "good")
        content = (place / "good" / target.file).read_bytes() if target.file else target.seeds(place / "good")[0]
        return Judge(target, place / "good", place / "case"), content

    return made


def check(judge: Judge, strategy: st.SearchStrategy[bytes]) -> None:
    # No data base and no clock: a test that fails fails again, here and elsewhere.
    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def judged(content: bytes) -> None:
        fault = judge(Case(content))
        assert fault is None, f"{fault.sentence}: {content[:2000]!r}"

    judged()


@pytest.mark.parametrize("target", params(json_text, yaml_text))
def test_a_document_that_is_nearly_right(target: Target, judges: Any) -> None:
    judge, content = judges(target)
    check(judge, documents(tree_of(yaml.safe_load(content)), as_yaml=target.format is yaml_text))


@pytest.mark.parametrize("target", params(key_text))
def test_a_key_that_is_nearly_right(target: Target, judges: Any) -> None:
    judge, content = judges(target)
    parts = st.one_of(st.sampled_from([*"-:x=\n"]), st.text(max_size=4), numbers.map(lambda n: repr(n)[:9]))
    lengths = st.integers(0, len(content.decode()))
    strategy = st.tuples(lengths, parts, lengths).map(
        lambda edit: content[: edit[0]] + edit[1].encode("utf-8", "surrogatepass") + content[max(edit[0], edit[2]) :]
    )
    check(judge, strategy)


def test_a_reader_that_trusts_its_file_is_found(tmp_path: Path) -> None:
    """Else the tests above could not fail."""

    def read(folder: Path) -> None:
        yaml.safe_load((folder / "file.yml").read_text())["sizes"][0] + 1

    def prepare(folder: Path) -> None:
        (folder / "file.yml").write_text("{name: a, sizes: [1, 2]}")

    (tmp_path / "good").mkdir()
    prepare(tmp_path / "good")
    judge = Judge(Target("trusting", prepare, "file.yml", read, yaml_text), tmp_path / "good", tmp_path / "case")
    with pytest.raises(AssertionError, match="Error at"):
        check(judge, documents(tree_of({"name": "a", "sizes": [1, 2]}), as_yaml=True))
