"""Profiles as trtexec exports them, of the graphs of a kit, and the table that they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardware.errors import TableError
from hardware.measuring.calibration import alone_ms as summed_alone
from hardware.measuring.kit import write_kit
from hardware.measuring.trtexec import import_trtexec
from hardware.op_spec import OpSpec
from tests.hardware.conftest import draw_nets, make_space, operator_ms

# Somebody published it, as `trtexec --exportProfile` had written it.
PUBLISHED = """[
  { "count" : 41400 }
, { "name" : "/conv1/Conv + /act1/Relu", "timeMs" : 1160.78, "averageMs" : 0.0280382, "medianMs" : 0.027872, "percentage" : 100 }
]
"""  # noqa: E501
SMALL = make_space(16, 8, 8, [(16, 2, 2)], 32, 10)
COUNT = 200


def layers_ms(keys: list[str]) -> list[float]:
    """Medians of an engine's layers: a third and two thirds of each operator, and a copy in front."""
    each = [operator_ms(OpSpec.from_key(key)) for key in keys]
    return [2e-3, *(share * ms for ms in each for share in (1 / 3, 2 / 3))]


def profile(keys: list[str], *, medians: bool = True) -> str:
    """What trtexec writes: averages a tenth above the medians, six digits."""
    lines = ["[", f'  {{ "count" : {COUNT} }}']
    for index, ms in enumerate(layers_ms(keys)):
        average = 1.1 * ms
        median = f', "medianMs" : {ms:.6g}' if medians else ""
        lines.append(
            f', {{ "name" : "layer {index}", "timeMs" : {average * COUNT:.6g}, "averageMs" : {average:.6g}{median}, '
            '"percentage" : 3.2 }'
        )
    return "\n".join([*lines, "]"])


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fixed, edges = SMALL
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    out = tmp_path_factory.mktemp("written") / "kit"
    nets, unseen = draw_nets(fixed, edges, 8, seed=1), draw_nets(fixed, edges, 3, seed=2)
    write_kit(ops, nets, out, input_size=16, space="tiny", held_out=unseen, full_weights=True)
    return out


def test_a_kit_that_is_quantised_for_another_runtime_is_refused(kit: Path, tmp_path: Path) -> None:
    changed = tmp_path / "kit"
    changed.mkdir()
    (changed / "kit.json").write_text((kit / "kit.json").read_text().replace('"float32"', '"int8"'))
    with pytest.raises(
        TableError, match=r"graphs of the kit .* are in 'int8', quantised for ONNX Runtime; give trtexec"
    ):
        import_trtexec(tmp_path, changed, device="a board", dtype="int8")


def graphs_of(kit: Path) -> dict[str, list[str]]:
    return json.loads((kit / "kit.json").read_text())["graphs"]


@pytest.fixture
def profiles(kit: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name, keys in graphs_of(kit).items():
        if keys:
            (folder / name).with_suffix(".json").write_text(profile(keys))
    return folder


@pytest.mark.parametrize("medians", [True, False])
def test_a_graph_takes_the_sum_over_its_layers(kit: Path, profiles: Path, medians: bool) -> None:
    for name, keys in graphs_of(kit).items():
        if keys:
            (profiles / name).with_suffix(".json").write_text(profile(keys, medians=medians))
    table = import_trtexec(profiles, kit, device="a board", dtype="float16", version="10.3.0")
    header = table.header
    assert (header.device, header.backend, header.place, header.dtype) == ("a board", "tensorrt", "cuda:0", "float16")
    assert (header.quantile, header.overhead_ms, header.repeats) == (0.5 if medians else None, 0.0, COUNT)
    assert header.versions == {"tensorrt": "10.3.0"}
    assert header.checks["nets"] == 3
    factor = 1.0 if medians else 1.1
    for (key,) in (keys for name, keys in graphs_of(kit).items() if name.startswith("op_")):
        op = OpSpec.from_key(key)
        assert summed_alone(table, [op]) == pytest.approx(factor * sum(layers_ms([key])), rel=1e-5, abs=1e-6)
    fixed, edges = SMALL
    for net in draw_nets(fixed, edges, 5, seed=7):
        # the copy stands in front of each operator alone, and once in front of a net: calibration takes it out again
        expected = factor * sum(layers_ms([op.key for op in net]))
        assert table.calibrated_ms(net) == pytest.approx(expected, rel=1e-2)


def test_a_published_profile_is_read(kit: Path, profiles: Path) -> None:
    before = import_trtexec(profiles, kit, device="a board")
    (profiles / "op_003.json").write_text(PUBLISHED)
    after = import_trtexec(profiles, kit, device="a board")
    (key,) = graphs_of(kit)["op_003.onnx"]
    others = [op for op in before.entries if op != key]
    # both are corrected to how operators behave in a net by fits on the same nets, of which one entry differs
    assert after.entries[key].count == 41400
    assert all(after.entries[op].count == COUNT for op in others)


def test_the_profile_of_the_empty_graph_is_not_needed(kit: Path, profiles: Path) -> None:
    before = import_trtexec(profiles, kit, device="a board")
    (profiles / "overhead.json").write_text('[ { "count" : 200 } ]')
    assert import_trtexec(profiles, kit, device="a board") == before


def test_missing_graphs_are_named(kit: Path, profiles: Path) -> None:
    (profiles / "op_003.json").unlink()
    (profiles / "net_001.json").unlink()
    with pytest.raises(TableError, match=r"lacks the profiles of 2 of 27 graphs of .*kit\.json, first op_003\.json"):
        import_trtexec(profiles, kit, device="a board")
    with pytest.raises(TableError, match=r"cannot look for profiles in .*none: No such file or directory"):
        import_trtexec(profiles / "none", kit, device="a board")


def test_a_profile_of_no_graph_is_named(kit: Path, profiles: Path) -> None:
    (profiles / "op_999.json").write_text(PUBLISHED)
    with pytest.raises(TableError, match=r"op_999\.json in .* is of no graph of .*kit\.json"):
        import_trtexec(profiles, kit, device="a board")


def test_profiles_of_different_versions_are_refused(kit: Path, profiles: Path) -> None:
    (profiles / "op_003.json").write_text(profile(graphs_of(kit)["op_003.onnx"], medians=False))
    with pytest.raises(
        TableError, match=r"op_003\.json has no medians, unlike op_000\.json and 25 others: they are of different"
    ):
        import_trtexec(profiles, kit, device="a board")


def edited(change: Callable[[Any], Any]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        found = json.loads(text)
        change(found)
        return json.dumps(found)

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-40], "no valid JSON"),
        (lambda text: "", "no valid JSON"),
        (lambda text: "[]", "begins with None"),
        (lambda text: '[ { "count" : 0 } ]', "it is empty: 0 inferences of 0 layers"),
        (lambda text: '[ { "count" : 7 } ]', "it is empty: 7 inferences of 0 layers"),
        (lambda text: '{ "count" : 7 }', "content is {'count': 7}, not a list"),
        (edited(lambda v: v.pop(0)), "it begins with {"),
        (edited(lambda v: v[0].update(count=True)), "its count is True, not a whole number"),
        (edited(lambda v: v[0].update(count=2)), "ms in 2 inferences, but"),
        (edited(lambda v: v.append("layer")), "its layer is 'layer', not a mapping"),
        (edited(lambda v: v[1].pop("percentage")), "its layer 'layer 0' has name, timeMs"),
        (edited(lambda v: v[2].pop("medianMs")), "its layer 'layer 1' has name, timeMs"),
        (edited(lambda v: v[1].update(own=1)), "its layer 'layer 0' has name"),
        (edited(lambda v: v[1].update(medianMs="1")), "its medianMs of layer 0 is '1', not a number"),
        (edited(lambda v: v[1].update(medianMs=None)), "its medianMs of layer 0 is None, not a number"),
        (edited(lambda v: v[1].update(medianMs=-1.0)), "its layer 'layer 0' has a negative time"),
        (edited(lambda v: v[1].update(medianMs=float("nan"))), "no finite number"),
        (edited(lambda v: v[1].update(averageMs=5.0)), "but 5.0 in each"),
        (
            edited(lambda v: [layer.update(timeMs=0, averageMs=0, medianMs=0) for layer in v[1:]]),
            "its 3 layers take no time",
        ),
    ],
)
def test_what_is_no_profile_is_refused(kit: Path, profiles: Path, damage: Callable[[str], str], words: str) -> None:
    path = profiles / "op_003.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(TableError) as error:
        import_trtexec(profiles, kit, device="a board")
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_kit_that_trtexec_should_not_have_run_is_refused(kit: Path, profiles: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"there is no kit.json at .*; give the folder of the kit"):
        import_trtexec(profiles, tmp_path, device="a board")
    manifest = json.loads((kit / "kit.json").read_text())
    for change, words in (
        ({"weights": None}, "make their weights when they run, which TensorRT would time"),
        ({"version": 2}, "is of no kit of this release"),
        ({"graphs": []}, "its graphs is \\[\\], not a mapping"),
        ({"batch": "many"}, "kit.json"),
    ):
        (tmp_path / "kit.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(TableError, match=words):
            import_trtexec(profiles, tmp_path, device="a board")
    with pytest.raises(TableError, match="say it in words with --device"):
        import_trtexec(profiles, kit, device=" ")
    with pytest.raises(TableError, match="the number format 'fp16'; it must be one of float32"):
        import_trtexec(profiles, kit, device="a board", dtype="fp16")


def test_weights_stand_in_the_graphs_where_that_is_asked_for(kit: Path) -> None:
    import onnx

    for path in (kit / "graphs").iterdir():
        model = onnx.load(path)
        assert "ConstantOfShape" not in {node.op_type for node in model.graph.node}
        onnx.checker.check_model(model, full_check=True)
