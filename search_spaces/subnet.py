"""`Subnet`: a frozen choice, as JSON and as a timm network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hardware.errors import SpaceError, SubnetError
from hardware.files import write_atomically
from hardware.reading import Kind, read_json, reading, shown

from .blocks import SKIP
from .boxes import boxes_svg
from .costs import check_choices
from .declaration import SpaceDeclaration
from .from_timm.declaration import TimmDeclaration
from .mbconv import MBConvDeclaration
from .tree_cell import TreeCellDeclaration

FORMAT = "proxyless-subnet/1"
FILE = Kind("the subnet", "give the subnet.json of an export folder", SubnetError)
KINDS: dict[str, Any] = {kind.kind: kind for kind in (MBConvDeclaration, TimmDeclaration, TreeCellDeclaration)}
"""The declarations that a file may hold, by their `kind`; files of MBConv spaces name none."""


@dataclass(frozen=True)
class Subnet:
    """One candidate for every edge of a space.

    Attributes:
        declaration: The space.
        choices: For each edge's label, the candidate's name.

    Raises:
        SubnetError: `choices` names an unknown edge or candidate, or leaves an edge out.

    >>> from search_spaces import get_space
    >>> space = get_space("small_mbconv")
    >>> choices = dict.fromkeys(space.candidates(), "5x5_e3") | {"stage1_block1": "skip"}
    >>> Subnet(space, choices).arch_def()[1]
    ['ir_r1_k5_s2_e3_c24']
    """

    declaration: SpaceDeclaration
    choices: Mapping[str, str]

    def __post_init__(self) -> None:
        edges = self.declaration.candidates()
        check_choices(self.choices, edges, space=self.declaration.name)
        object.__setattr__(self, "choices", {label: self.choices[label] for label in edges})

    def arch_def(self) -> list[list[str]]:
        """Return timm's arch strings of a subnet of MBConv blocks, see `MBConvDeclaration.arch_def`.

        Raises:
            SubnetError: It is of another kind of space.
        """
        if not isinstance(self.declaration, MBConvDeclaration | TimmDeclaration):
            raise SubnetError(f"{self.declaration.name} is no MBConv space, so it has no arch strings; see model_args")
        return self.declaration.arch_def(self.choices)

    @classmethod
    def from_arch_def(cls, declaration: MBConvDeclaration, arch_def: Sequence[Sequence[str]]) -> Subnet:
        """Find the subnet of a space that has these arch strings.

        The strings do not tell which blocks of a stage are left out; in the subnet found these are its last ones.

        Raises:
            SubnetError: The strings do not belong to this space.
        """
        wanted = [list(stage) for stage in arch_def]
        remaining = wanted[1:]
        choices: dict[str, str] = {}
        for number, stage in enumerate(declaration.stages, start=1):
            edges = [edge for edge in declaration.edges() if edge.stage == number]
            matches = bool(remaining) and remaining[0][0].endswith(f"_c{stage.width}")
            strings = remaining.pop(0) if matches else []
            for edge, string in zip_longest(edges, strings[: len(edges)]):
                choices[edge.label] = SKIP if string is None else _candidate(string)
        try:
            subnet = cls(declaration, choices)
        except SubnetError as error:
            raise SubnetError(f"these arch strings are no subnet of {declaration.name}: {error}") from error
        if subnet.arch_def() != wanted:
            raise SubnetError(
                f"these arch strings are no subnet of {declaration.name}: {wanted}; "
                f"the closest one is {subnet.arch_def()}"
            )
        return subnet

    def _repr_html_(self) -> str:
        title = f"{len(self.choices)} edges of {self.declaration.name}"
        return f"<figure>{boxes_svg(self.choices)}<figcaption>{escape(title)}</figcaption></figure>"

    @property
    def timm_name(self) -> str:
        """Name of the timm entry point that builds it."""
        return self.declaration.timm_name

    def model_args(self, **sizes: int) -> dict[str, Any]:
        """Return the keyword arguments of `timm.create_model(subnet.timm_name, **args)`.

        Args:
            **sizes: `num_classes` and `in_chans`, where they are others than the space's own.
        """
        return self.declaration.model_args(self.choices, **sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": FORMAT, "space": self.declaration.to_dict(), "choices": dict(self.choices)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Subnet:
        """Read what `to_dict` wrote.

        Raises:
            SubnetError: Another format, or choices that do not fit the space.
            SpaceError: The declaration of the space is not readable.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
            raise SubnetError(f"not a subnet of format {FORMAT}, but {shown(found)}; export it again")
        for key in ("space", "choices"):
            if not isinstance(values.get(key), Mapping):
                raise SubnetError(
                    f"a subnet with {key} = {shown(values.get(key))}, which is no mapping; export it again"
                )
        kind = values["space"].get("kind", MBConvDeclaration.kind)
        if not isinstance(kind, str) or kind not in KINDS:
            raise SpaceError(f"the subnet's space is of kind {shown(kind)}; known here are {', '.join(KINDS)}")
        return cls(KINDS[kind].from_dict(values["space"]), values["choices"])

    def save(self, path: Path | str) -> None:
        """Write JSON; the file appears whole or not at all."""
        write_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n", error=SubnetError)

    @classmethod
    def load(cls, path: Path | str) -> Subnet:
        """Read JSON.

        Raises:
            SubnetError: The file is missing, no JSON, or not a subnet.
        """
        values = read_json(path, FILE)
        with reading(path, FILE):
            return cls.from_dict(values)


def _candidate(string: str) -> str:
    """Name the candidate of an arch string; in one of another kind a part stays unknown, and the space refuses it."""
    block, *tokens = string.split("_")
    values = {token[0]: token[1:] for token in tokens}
    expansion = values.get("e", "1") if block == "ir" else "1"
    return f"{values.get('k')}x{values.get('k')}_e{expansion}"
