"""YAML as this project reads and writes it: plain values, each key once, and numbers that anybody would call so.

It is the core schema of YAML 1.2 with less in it. A plain word is a number, true, false or null in one way of writing
each (`3`, `-0.5`, `1e-3`, `true`, `null`); what versions of YAML or their readers take for different values (`yes`,
`010`, `0x1F`, `1_000`, `1:30`, `.inf`) is refused, as whoever wrote it had one of them in mind. In quotes all is text,
and so are dates. Anchors give copies, as many as `MOST_COPIED` values together.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

from .reading import DEEPEST, Unreadable, shown

MOST_COPIED = 100_000
"""Values that anchors may add to a file; nine of nine letters each would make a billion."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?")
_UNCLEAR = re.compile(
    r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"
    r"|[-+]?0[0-9_]+|[-+]?0[xXoObB][0-9a-fA-F_]+|[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?"
    r"|[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_TRUTHS = "yes|no|on|off"
_TAG = "tag:yaml.org,2002:"


def parse_yaml(text: str) -> Any:
    """Return what a text of YAML holds.

    Raises:
        Unreadable: It is no YAML, or not such as the module's description says.
    """
    # slow to import, and needed to read and write files only
    import yaml

    # the C loader is several times as fast, and not in every build of PyYAML
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Plain(loader):
        # the loader's own take `yes` for true and 1:30 for 90: below, a value's text and quotes decide
        yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    try:
        _check_depth(yaml, text, Plain)
        # composed, and not constructed: a tag could name other types, and an alias would share one object
        root = yaml.compose(text, Loader=Plain)
        return None if root is None else _Builder(yaml).value(root, 0)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise Unreadable(f"it is no valid YAML{place} (perhaps truncated)") from None


def _check_depth(yaml: Any, text: str, loader: Any) -> None:
    """Refuse deep nesting while it is still a row of events: composing it recurses, and older PyYAMLs then crash."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST + 1:
                raise Unreadable(f"it is nested too deeply at line {event.start_mark.line + 1}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def dump_yaml(values: Any, **options: Any) -> str:
    """Return plain values as YAML that `parse_yaml` gives back equal."""
    import yaml

    class Plain(yaml.SafeDumper):
        pass

    # a library's version, an NNI label, ... may be a text of a class of its own
    Plain.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
    # texts that only this reader takes for numbers, or refuses, get their quotes here
    for number in (_FLOAT, _UNCLEAR):
        Plain.add_implicit_resolver("!unclear", re.compile(f"^(?:{number.pattern})$"), None)
    return str(yaml.dump(values, Dumper=Plain, **options))


class _Builder:
    """Turns the nodes of one text into values."""

    def __init__(self, yaml: Any) -> None:
        self._yaml = yaml
        self._known: set[int] = set()
        self._copied = 0

    def value(self, node: Any, depth: int, name: str = "") -> Any:
        """Return what a node stands for.

        Args:
            node: As PyYAML has composed it.
            depth: Lists and mappings around it.
            name: Its key, and those around it, for the error.
        """
        line = node.start_mark.line + 1
        if depth > DEEPEST:
            raise Unreadable(f"it is nested too deeply at line {line}")
        if id(node) in self._known:
            self._copied += 1
            if self._copied > MOST_COPIED:
                raise Unreadable(f"its anchors stand for more than {MOST_COPIED} values")
        self._known.add(id(node))
        if isinstance(node, self._yaml.ScalarNode):
            return self._scalar(node, line, name)
        if isinstance(node, self._yaml.SequenceNode):
            self._plain_tag(node, "seq", line)
            return [self.value(item, depth + 1, f"{name}[{index}]") for index, item in enumerate(node.value)]
        self._plain_tag(node, "map", line)
        return self._mapping(node, depth, name)

    def _mapping(self, node: Any, depth: int, name: str) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        merged: list[dict[Any, Any]] = []
        keys = []
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.value(key_node, depth + 1)
            if isinstance(key, (dict, list)):
                raise Unreadable(f"the key at line {line} is no plain value")
            if key in found:
                raise Unreadable(f"it has the key {shown(key)} twice, again at line {line}")
            keys.append(key)
            found[key] = None
        for key, (key_node, value_node) in zip(keys, node.value, strict=True):
            place = f"{name}.{key}" if name else str(key)
            value = found[key] = self.value(value_node, depth + 1, place[-80:])
            if key == "<<" and _is_plain(key_node):
                merged = value if isinstance(value, list) else [value]
                if not all(isinstance(part, dict) for part in merged):
                    raise Unreadable(f"`<<` at line {key_node.start_mark.line + 1} names no mapping")
                del found[key]
        # what stands in the mapping itself counts, and of several merged ones the first
        for part in merged:
            for key, value in part.items():
                found.setdefault(key, value)
        return found

    def _scalar(self, node: Any, line: int, name: str) -> Any:
        # without resolvers all that has no tag of its own is a text
        self._plain_tag(node, "str", line)
        return _plain_value(str(node.value), line, name) if _is_plain(node) else str(node.value)

    def _plain_tag(self, node: Any, name: str, line: int) -> None:
        if node.tag != _TAG + name:
            raise Unreadable(f"the tag {shown(node.tag)} at line {line} asks for more than plain values")


def _is_plain(node: Any) -> bool:
    """Whether a scalar is written without quotes; PyYAML's two loaders say so in two ways."""
    return node.style in (None, "")


def _plain_value(text: str, line: int, name: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text) if len(text) < 30 else math.inf
    if _FLOAT.fullmatch(text):
        return float(text)
    if _UNCLEAR.fullmatch(text):
        wanted = "true or false" if re.fullmatch(_TRUTHS, text.lower()) else "a finite decimal number"
        where = f"{name} = {text[:80]}" if name else text[:80]
        raise Unreadable(
            f"{where} at line {line} is not the same to every reader of YAML; write {wanted}, or quotes around a text"
        )
    return text
