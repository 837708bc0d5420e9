"""The drawing of a subnet: larger kernels are higher, larger expansions wider, and labels are escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from search_spaces import Subnet, get_space
from search_spaces.boxes import box, boxes_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_height_stands_for_the_kernel_and_width_for_the_expansion() -> None:
    heights = [box(f"{kernel}x{kernel}_e3").height for kernel in (1, 3, 5, 7)]
    widths = [box(f"3x3_e{expansion}").width for expansion in (1, 3, 6)]
    assert heights == sorted(set(heights))
    assert widths == sorted(set(widths))
    assert len({box(f"{kernel}x{kernel}_e3").colour for kernel in (3, 5, 7)}) == 3


def test_other_names_have_a_box_too() -> None:
    assert box("sep_conv_5x5").height == box("5x5_e3").height
    assert box("identity").colour == box("3x5_e3").colour == box("").colour
    assert box("skip").height < box("identity").height
    assert box("99x99_e99").height <= 64


def test_a_subnet_shows_a_box_for_each_edge_in_order() -> None:
    space = get_space("small_mbconv")
    choices = space.costs(32, num_classes=5).random_choices(1, seed=3)[0]
    subnet = Subnet(space, dict(choices))
    root = ElementTree.fromstring(subnet._repr_html_())
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == [f"{label}: {name}" for label, name in subnet.choices.items()]
    xs = [float(each.attrib["x"]) for each in root.iter(f"{SVG}rect")]
    ends = [float(each.attrib["x"]) + float(each.attrib["width"]) for each in root.iter(f"{SVG}rect")]
    assert all(end < x for end, x in zip(ends, xs[1:], strict=False))


def test_labels_and_names_are_escaped() -> None:
    shown = boxes_svg({"<b>": '"><script>'})
    assert "<script" not in shown
    assert "<b>" not in shown
    assert ElementTree.fromstring(shown).attrib["aria-label"] == '<b> "><script>'
