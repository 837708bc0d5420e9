"""Subnets of the MBConv spaces: as JSON, as arch strings, and which choices are refused."""

import pytest

from hardware.errors import SubnetError
from search_spaces import Subnet, get_space
from tests.search_spaces.test_mbconv import IMAGENET, MBCONV, smallest, uniform


@pytest.mark.parametrize("name", MBCONV)
def test_subnet_round_trips(name, tmp_path):
    space = get_space(name)
    for choices in space.costs(32).random_choices(10, seed=2):
        subnet = Subnet(space, choices)
        subnet.save(tmp_path / "subnet.json")
        assert Subnet.load(tmp_path / "subnet.json") == subnet
        again = Subnet.from_arch_def(space, subnet.arch_def())
        assert again.arch_def() == subnet.arch_def()
        assert len([c for c in again.choices.values() if c == "skip"]) == len(
            [c for c in choices.values() if c == "skip"]
        )


def test_arch_strings_of_another_space_are_refused():
    small = get_space("small_mbconv")
    with pytest.raises(SubnetError, match="no subnet of imagenet_mbconv"):
        Subnet.from_arch_def(IMAGENET, Subnet(small, smallest(small)).arch_def())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage9_block0": "3x3_e3"}, "unknown edge 'stage9_block0'"),
        ({"stage1_block0": "9x9_e3"}, "unknown candidate '9x9_e3' at edge stage1_block0"),
        ({"stage1_block0": "skip"}, "unknown candidate 'skip'"),
        ({"stage1_block0": None}, "no candidate given for stage1_block0"),
    ],
)
def test_wrong_choices_are_refused_by_name(change, words):
    choices = {**uniform(IMAGENET, "3x3_e3"), **change}
    choices = {label: name for label, name in choices.items() if name is not None}
    with pytest.raises(SubnetError, match=words):
        Subnet(IMAGENET, choices)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": "other/1"}', "[1]", '{"format": "proxyless-subnet/1", "choices": {}}']
)
def test_files_that_hold_no_subnet_are_refused(text, tmp_path):
    path = tmp_path / "subnet.json"
    path.write_text(text)
    with pytest.raises(SubnetError):
        Subnet.load(path)
    with pytest.raises(SubnetError, match=r"subnet\.json"):
        Subnet.load(tmp_path / "missing" / "subnet.json")
