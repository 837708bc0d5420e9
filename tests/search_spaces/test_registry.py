"""Spaces by name: the options that they refuse, spaces of a user's own, and their registration."""

import functools

import pytest

from hardware.errors import SpaceError
from search_spaces import Stage, get_space, registry, users_space
from search_spaces.mbconv import MBConvDeclaration


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mobile", {}, "unknown search space 'mobile'"),
        ("small_mbconv", {"depth": 3}, "unknown option"),
        ("small_mbconv", {"stem_stride": 3}, "stem_stride = 3"),
        ("small_mbconv", {"kernels": [4]}, "kernel 4"),
        ("small_mbconv", {"activation": "nothing"}, "'nothing'"),
        ("small_mbconv", {"first_width": 10}, "multiple of 8"),
        ("small_mbconv", {"stages": [{"width": 8}]}, "width, depth and stride"),
        ("small_mbconv", {"width_mult": 0}, "width_mult = 0"),
        ("no.such:thing", {}, "no.such:thing"),
    ],
)
def test_impossible_spaces_are_refused(name, options, words):
    with pytest.raises(SpaceError, match=words):
        get_space(name, **options)


def own_space(width=24):
    return MBConvDeclaration("own", 16, 2, 16, (Stage(width, 2, 2),), head_width=64)


def test_a_users_own_space():
    space = users_space(f"{__name__}:own_space", width=32)
    assert space.stages[0].width == 32


def nothing():
    return {"name": "own"}


def faulty(width=24):
    return int("wide")


def needy(width, *, depth=2):
    return own_space(width)


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        ("own_space", {"depth": 3}, r"unknown option depth = 3 for the space .*:own_space; .* are width_mult, width$"),
        ("own_space", {"width": "wide"}, r"Stage\(width='wide', .*\) of the space own: width must be"),
        ("own_space", {"width": 24, "width_mult": "twice"}, "width_mult = 'twice' of the space own; it must be a pos"),
        ("needy", {"depth": 3}, "needy needs the option width"),
        ("faulty", {}, "faulty with no options raised ValueError: invalid literal"),
        ("nothing", {}, "nothing returned dict, not a SpaceDeclaration"),
        ("absent", {}, "cannot load the search space .* has no 'absent'"),
    ],
)
def test_a_users_space_is_refused_in_one_sentence(function, options, words):
    with pytest.raises(SpaceError, match=words):
        users_space(f"{__name__}:{function}", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, "unknown option depth = 3 .* small_mbconv; its options are width_mult, name, stem_width"),
        ({"stem_width": "wide"}, "stem_width = 'wide' of the space small_mbconv; it must be an integer of 1 or more"),
        ({"kernels": 3}, "the space small_mbconv cannot have kernels = 3"),
        ({"width_mult": float("inf")}, "width_mult = inf"),
    ],
)
def test_wrong_options_of_a_shipped_space_are_named(options, words):
    with pytest.raises(SpaceError, match=words):
        get_space("small_mbconv", **options)


def test_an_option_may_be_called_name():
    assert get_space("small_mbconv", name="mine").name == "mine"


# --- registration -------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch):
    """The registered spaces, as they were afterwards."""
    monkeypatch.setattr(registry, "_registered", {})
    return registry.register


def test_a_registered_space_is_got_by_its_name(registered):
    registered("own", own_space)
    assert get_space("own", width=32, width_mult=2).stages[0].width == 64
    assert "own" in registry.known_spaces()
    with pytest.raises(SpaceError, match=r"unknown search space 'owl'; known are .*_tree, own, timm:MODEL, or give"):
        get_space("owl")
    with pytest.raises(SpaceError, match="depth = 3 for the space own; its options are width_mult, width"):
        get_space("own", depth=3)


@pytest.mark.parametrize("name", ["", "9lives", "own:space", "own space", "-own", "own/space", "öwn\n", None, 3])
def test_a_name_that_nothing_could_write_is_refused(registered, name):
    with pytest.raises(SpaceError, match="cannot name a space; use letters, digits"):
        registered(name, own_space)


def test_a_taken_name_is_replaced_only_on_purpose(registered):
    with pytest.raises(SpaceError, match=r"small_mbconv is taken by a space that ships; .* replace=True"):
        registered("small_mbconv", own_space)
    assert get_space("small_mbconv").head_width == 256
    registered("small_mbconv", own_space, replace=True)
    assert get_space("small_mbconv").head_width == 64
    registered("own", own_space)
    with pytest.raises(SpaceError, match="own is taken by another space"):
        registered("own", needy)
    registered("own", needy, replace=True)
    assert get_space("own", width=8).stages[0].width == 8


def test_a_module_that_is_loaded_again_registers_again(registered):
    registered("own", own_space)
    again = functools.wraps(own_space)(lambda width=16: own_space(width))
    registered("own", again)
    assert get_space("own").stages[0].width == 16


def test_what_cannot_be_called_is_not_registered(registered):
    with pytest.raises(SpaceError, match="own was registered with MBConvDeclaration, which cannot be called"):
        registered("own", own_space())
