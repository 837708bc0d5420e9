"""Near-valid documents: a real one's tree with something wrong in it, and its text with something wrong in that.

A tree is made of `Map` (pairs, so that a key may stand twice), `Tup`, `list` and leaves; `Raw` is a leaf that is
written as it is. All randomness comes from the `random.Random` that the caller gives.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

MARK = "PAYLOAD-RAN"
"""The file that a payload makes, in the current folder."""


class Map(list):
    """`[key, node]` pairs."""


class Tup(list):
    """A tuple, whose items can be changed."""


class Raw(str):
    """Text that is written as it is, without quotes."""

    __slots__ = ()


Node = Any
Place = tuple[Any, Any]
"""A container (a list, or a pair of a map) and the index in it."""


def tree_of(value: Any) -> Node:
    """Turn plain values into a tree; anything but containers is a leaf."""
    if isinstance(value, dict):
        return Map([key, tree_of(item)] for key, item in value.items())
    if isinstance(value, (list, tuple)):
        kind = Tup if type(value) is tuple else list
        return kind(tree_of(item) for item in value)
    return value


def values_of(node: Node) -> Any:
    """Turn a tree back into plain values; of keys that stand twice the last one wins, as in a `dict`."""
    if isinstance(node, Map):
        return {key if _hashable(key) else repr(key): values_of(item) for key, item in node}
    if isinstance(node, Tup):
        return tuple(map(values_of, node))
    if isinstance(node, list):
        return [values_of(item) for item in node]
    return str(node) if isinstance(node, Raw) else node


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def copied(node: Node) -> Node:
    if isinstance(node, Map):
        return Map([key, copied(item)] for key, item in node)
    if isinstance(node, list):
        return type(node)(copied(item) for item in node)
    return node


def places(node: Node) -> Iterator[Place]:
    """Yield every place of a tree in which a node stands, but for the root."""
    stack = [node]
    while stack:
        here = stack.pop()
        if isinstance(here, Map):
            for pair in here:
                yield pair, 1
                stack.append(pair[1])
        elif isinstance(here, list):
            for index, item in enumerate(here):
                yield here, index
                stack.append(item)


# ---- what is put in a value's place --------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, -0.0, 0.5, 1e-300, 1e-9, 1e300, -1e300, 5e-324, 1e9, 10**6, 10**12, 2**31, 2**63, -(2**63)),
    *(2**64, 10**30, 10**400, 10**5000, math.nan, math.inf, -math.inf),
)
_WORDS = """
yes no on 010 0x1F 0o17 1:30 1_000 .inf -.inf .nan NaN Infinity 1e999 -1e999 1e-999 1e3 1. +1 ~ null True 2020-01-01
2020-13-45 *a = ' " [ { % - ? | > @ `
"""
TOKENS = tuple(
    Raw(text)
    for text in (
        *_WORDS.split(),
        *("!!int x", "!!binary x", "!!float nan", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 9999-99-99", "! x"),
        *("&a [*a]", "&a {b: *a}", "{<<: 3}", "{<<: [{a: 1}, 2]}", "{? [1, 2] : 3}", "{? {a: 1} : 3}", "{[1]: 2}"),
        *(f"!!python/object/{how}:os.system ['touch {MARK}']" for how in ("apply", "new")),
        *("!!python/name:os.system", "!!python/tuple [1, 2]", "9" * 5000, "1" + "0" * 400),
    )
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "\0",
        "\n",
        "a\nb",
        "\ud800",
        "\u202e",
        "é",
        "😀",
        "None",
        "nan",
        "inf",
        "-1",
        "0",
        "1e999",
        "true",
    ),
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "/",
        ".",
        "..",
        "~",
        "~nobody/x",
        "/dev/zero",
        "C:\\x",
        "file:///etc/passwd",
    ),
    *("os:system", "subprocess:run", "nt:", ":x", "a:b:c", "hf-hub:timm/resnet18", "local-dir:/", "http://192.0.2.1/x"),
    *("torchvision:CIFAR10", "torchvision:object", "torchvision:", "digits", "imagefolder", "cuda:99", "x" * 5000),
    *("%s%n", "{0}", "{x.__class__}", "$HOME", "`id`", "; touch " + MARK, f"$(touch {MARK})", "__class__", "__init__"),
    *("self", "name", "kind", "<script>", "\x1b[31m", "a" * 300, "\uff41", "\ufeff"),
)


def strange(rng: random.Random) -> Node:
    """Return a value that some reader may not expect."""
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind < 7:
        return rng.choice(TOKENS)
    if kind < 8:
        return rng.choice((None, True, False))
    return _container(rng)


def _container(rng: random.Random) -> Node:
    kind = rng.randrange(7)
    if kind == 0:
        return []
    if kind == 1:
        return Map()
    if kind == 2:
        return [strange(rng) for _ in range(rng.randrange(1, 4))]
    if kind == 3:
        return Map([rng.choice(TEXTS), strange(rng)] for _ in range(rng.randrange(1, 3)))
    if kind == 4:
        return nested(rng.choice((3, 30, 300, 3000)), as_list=rng.random() < 0.5)
    if kind == 5:
        return [rng.choice(NUMBERS)] * rng.choice((10, 1000))
    return Map([f"k{i}", i] for i in range(rng.choice((3, 500))))


def strange_leaf(rng: random.Random) -> Any:
    return rng.choice(rng.choice((NUMBERS, TOKENS, TEXTS)))


def nested(depth: int, *, as_list: bool) -> Raw:
    """Write a container of that depth; as text, since Python could not walk it."""
    return Raw("[" * depth + "]" * depth if as_list else '{"a":' * depth + "1" + "}" * depth)


def _nudged(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and abs(value) < 10**15:
        near = (value + 1, value - 1, -value, value * 2, value * 1000)
        return rng.choice((*near, float(value), str(value), value + 0.5, 0))
    if isinstance(value, float):
        whole = int(value) if abs(value) < 1e15 else 0
        return rng.choice((-value, value * 1e6, value * 1e-9, 0.0, math.nan, whole, str(value)))
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        changed = value[:at] + rng.choice((*"0-:x/. \0", "", "999", "é", value)) + value[at + 1 :]
        return rng.choice((changed, value[:at], value * 2, value.upper(), value + " ", [value], Raw(value)))
    return strange(rng)


# ---- changes of a tree ---------------------------------------------------------------------------------------------


def _replace(root: Node, found: list[Place], rng: random.Random) -> None:
    holder, index = rng.choice(found)
    holder[index] = strange(rng)


def _nudge(root: Node, found: list[Place], rng: random.Random) -> None:
    holder, index = rng.choice(found)
    holder[index] = _nudged(holder[index], rng)


def _swap(root: Node, found: list[Place], rng: random.Random) -> None:
    (holder, index), (other, there) = rng.choice(found), rng.choice(found)
    # copies, lest a tree hold itself
    holder[index], other[there] = copied(other[there]), copied(holder[index])


def _wrap(root: Node, found: list[Place], rng: random.Random) -> None:
    holder, index = rng.choice(found)
    value = holder[index]
    holder[index] = rng.choice(([value], Map([["x", value]]), [value, copied(value)], Tup([value])))


def _unwrap(root: Node, found: list[Place], rng: random.Random) -> None:
    holder, index = rng.choice(found)
    value = holder[index]
    if isinstance(value, list) and value:
        item = rng.choice(value)
        holder[index] = item[1] if isinstance(value, Map) else item


def _lists(root: Node, found: list[Place], kind: type) -> list[Any]:
    return [value for value in (root, *(holder[index] for holder, index in found)) if type(value) is kind and value]


def _of_keys(change: Callable[[Map, int, random.Random], None]) -> Callable[[Node, list[Place], random.Random], None]:
    def changed(root: Node, found: list[Place], rng: random.Random) -> None:
        maps = _lists(root, found, Map)
        if maps:
            chosen = rng.choice(maps)
            change(chosen, rng.randrange(len(chosen)), rng)

    return changed


def _remove_key(where: Map, at: int, rng: random.Random) -> None:
    del where[at]


def _duplicate_key(where: Map, at: int, rng: random.Random) -> None:
    key, value = where[at]
    where.insert(rng.randrange(len(where) + 1), [key, copied(value) if rng.random() < 0.5 else _nudged(value, rng)])


def _rename_key(where: Map, at: int, rng: random.Random) -> None:
    key = where[at][0]
    other = rng.choice(where)[0]
    where[at][0] = rng.choice(
        (other, strange(rng), _nudged(key, rng), rng.choice(TEXTS), f"{key}s", rng.choice(NUMBERS))
    )


def _add_key(where: Map, at: int, rng: random.Random) -> None:
    where.insert(at, [rng.choice((*TEXTS, *NUMBERS)), strange(rng)])


def _change_list(root: Node, found: list[Place], rng: random.Random) -> None:
    lists = _lists(root, found, list)
    if not lists:
        return _replace(root, found, rng)
    chosen = rng.choice(lists)
    kind = rng.randrange(5)
    if kind == 0:
        del chosen[rng.randrange(len(chosen))]
    elif kind == 1:
        chosen.append(strange(rng))
    elif kind == 2:
        chosen[:] = [copied(item) for item in chosen for _ in range(rng.choice((2, 50)))]
    elif kind == 3:
        chosen.reverse()
    else:
        chosen.clear()


_CHANGES: tuple[Callable[[Node, list[Place], random.Random], None], ...] = (
    *(_replace, _replace, _nudge, _nudge, _swap, _wrap, _unwrap, _change_list),
    *map(_of_keys, (_remove_key, _remove_key, _duplicate_key, _rename_key, _add_key)),
)


def changed_tree(tree: Node, rng: random.Random, *, leaf: Callable[[Any, random.Random], Any] | None = None) -> Node:
    """Return a copy with one to three changes.

    Args:
        tree: The tree.
        rng: Decides.
        leaf: Changes a leaf that is no plain value, such as an array, where there is one.
    """
    tree = copied(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(tree))
        if not found or rng.random() < 0.01:
            return strange(rng)
        if leaf is not None and rng.random() < 0.4:
            leaves = [place for place in found if not isinstance(place[0][place[1]], _PLAIN)]
            if leaves:
                holder, index = rng.choice(leaves)
                holder[index] = leaf(holder[index], rng)
                continue
        rng.choice(_CHANGES)(tree, found, rng)
    return tree


_PLAIN = (list, str, int, float, bool, type(None))
