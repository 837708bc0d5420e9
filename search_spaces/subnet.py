"""`Subnet`: a frozen choice, as JSON and as a timm network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hardware.errors import SubnetError

from .blocks import SKIP, parse_candidate
from .costs import check_choices
from .mbconv import MBConvDeclaration, kept_blocks

FORMAT = "proxyless-subnet/1"


@dataclass(frozen=True)
class Subnet:
    """One candidate for every edge of an MBConv space.

    Attributes:
        declaration: The space.
        choices: For each edge's label, the candidate's name.

    Raises:
        SubnetError: `choices` names an unknown edge or candidate, or leaves an edge out.
    """

    declaration: MBConvDeclaration
    choices: Mapping[str, str]

    def __post_init__(self) -> None:
        edges = self.declaration.candidates()
        check_choices(self.choices, edges, space=self.declaration.name)
        object.__setattr__(self, "choices", {label: self.choices[label] for label in edges})

    def arch_def(self) -> list[list[str]]:
        """timm's arch strings: one list a stage, one string a block; skipped blocks and empty stages are left out."""
        stages: list[list[str]] = [[f"ds_r1_k3_s1_c{self.declaration.first_width}_noskip"]]
        for stage, _, edge in kept_blocks(self.declaration, self.choices):
            kernel, expansion = parse_candidate(self.choices[edge.label])
            shape = edge.shape
            head = (
                f"ir_r1_k{kernel}_s{shape.stride}_e{expansion}" if expansion > 1 else f"ds_r1_k{kernel}_s{shape.stride}"
            )
            if stage == len(stages):
                stages.append([])
            stages[stage].append(f"{head}_c{shape.out_width}")
        return stages

    @classmethod
    def from_arch_def(cls, declaration: MBConvDeclaration, arch_def: Sequence[Sequence[str]]) -> Subnet:
        """The subnet of a space that has these arch strings; of equal ones, that with its skips last in each stage.

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

    def model_args(self, *, num_classes: int = 1000, in_chans: int = 3) -> dict[str, Any]:
        """Keyword arguments of `timm.create_model('proxylessnas', **args)`."""
        return {
            "arch_def": self.arch_def(),
            "stem_size": self.declaration.stem_width,
            "stem_stride": self.declaration.stem_stride,
            "num_features": self.declaration.head_width,
            "act_layer": self.declaration.activation,
            "bn_eps": self.declaration.bn_eps,
            "bn_momentum": self.declaration.bn_momentum,
            "num_classes": num_classes,
            "in_chans": in_chans,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
            raise SubnetError(f"not a subnet of format {FORMAT}, but {found!r}; export it again")
        return cls(MBConvDeclaration.from_dict(values["space"]), values["choices"])

    def save(self, path: Path | str) -> None:
        """Write JSON; the file appears whole or not at all."""
        path = Path(path)
        beside = path.with_name(path.name + ".tmp")
        beside.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        beside.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Subnet:
        """Read JSON.

        Raises:
            SubnetError: The file is missing, no JSON, or not a subnet.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SubnetError(
                f"cannot read the subnet {path}: {error}; give the subnet.json of an export folder"
            ) from error
        return cls.from_dict(values)


def _candidate(string: str) -> str:
    block, *tokens = string.split("_")
    values = {token[0]: token[1:] for token in tokens}
    expansion = values.get("e", "1") if block == "ir" else "1"
    return f"{values.get('k')}x{values.get('k')}_e{expansion}"
