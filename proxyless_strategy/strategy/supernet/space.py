"""The over-parameterised network: NNI's choices, each running the one path that it is told to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import nni.nas.strategy  # noqa: F401 - before nni.nas.oneshot, else NNI's public strategies become stubs
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.hub.pytorch.nasnet import NDSStage
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, ModelSpace, Repeat
from nni.nas.nn.pytorch.base import MutableModule
from torch import nn

from hardware.errors import UnsupportedSpaceError

from ..edge import Edge
from .gate import PathSelector, RunPlan
from .layers import BinaryGateCell, BinaryGateInput, BinaryGateLayer, BinaryGateRepeat, GatedModule


class Supernet:
    """A model space whose choices run under an explicit plan.

    NNI's traversal of a space fills it, by `Supernet.hook` (see `ProxylessStrategy.mutate_model`).
    """

    def __init__(self) -> None:
        self.selector = PathSelector()
        self.edges: list[Edge] = []
        self._index: dict[str, int] = {}
        self._paths: dict[str, tuple[int, frozenset[int]]] = {}

    def add_edge(self, label: str, candidates: Sequence[Any], name: str, *, as_list: bool = False) -> int:
        """Register a layer's decision, or find the one that it shares.

        Args:
            label: The decision's label.
            candidates: What it chooses from.
            name: Dotted name of the layer in the space; finds the choice that the layer is nested in.
            as_list: Whether NNI's sample holds a list.

        Raises:
            UnsupportedSpaceError: The label exists with other candidates.
        """
        parent = self._parent_of(name)
        label = str.__str__(label)  # NNI's labels are a subclass, which a checkpoint could not hold
        if label in self._index:
            index = self._index[label]
            known = self.edges[index]
            if known.candidates != tuple(candidates):
                raise UnsupportedSpaceError(
                    f"the label {label!r} is shared by choices with different candidates: {list(known.candidates)} "
                    f"and {list(candidates)} (at {name}); give one of them another label"
                )
            # Shared by layers in different places, it matters wherever one of them is reached: taken as always.
            if known.parent != parent:
                self.edges[index] = Edge(label, known.candidates, None, as_list)
            return index
        index = self._index[label] = len(self.edges)
        self.edges.append(Edge(label, tuple(candidates), parent, as_list))
        return index

    def _parent_of(self, name: str) -> tuple[int, frozenset[int]] | None:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            found = self._paths.get(".".join(parts[:end]))
            if found is not None:
                return found
        return None

    def add_path(self, name: str, edge: int, candidates: Sequence[int]) -> None:
        """Note that the module `name` runs only where `edge` chooses one of `candidates`."""
        self._paths[name] = (edge, frozenset(candidates))

    def hook(self, module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        """Replace a choice by its gated form; an NNI mutation hook."""
        # Each kind is asked for by `type() is`: a subclass may have a forward of its own, which the gated form would
        # drop. What no hook replaces, `refuse` names.
        if isinstance(module, GatedModule):
            return True
        if type(module) is LayerChoice:
            return self._layer(module, name)
        if type(module) is InputChoice:
            return self._input(module, name)
        if type(module) in (Repeat, NDSStage) and not isinstance(module.depth_choice, int):
            return self._repeat(module, name)
        if type(module) is Cell and module.merge_op == "all" and module.op_candidates_factory is not None:
            return self._cell(module, name)
        return None

    def _layer(self, module: LayerChoice, name: str) -> BinaryGateLayer:
        gated_layer = BinaryGateLayer(module.candidates, label=module.label)
        edge = self.add_edge(module.label, module.names, name)
        gated_layer.attach(edge, self.selector)
        for index, candidate in enumerate(module.names):
            self.add_path(f"{name}.{candidate}", edge, [index])
        return gated_layer

    def _input(self, module: InputChoice, name: str) -> BinaryGateInput:
        if module.n_chosen not in (1, None):
            raise UnsupportedSpaceError(
                f"the InputChoice {module.label!r} (at {name}) chooses {module.n_chosen} inputs; "
                "one path is active at a time, so declare n_chosen=1"
            )
        if module.reduction not in ("sum", "mean"):
            raise UnsupportedSpaceError(
                f"the InputChoice {module.label!r} (at {name}) reduces by {module.reduction!r}; use 'sum' or 'mean'"
            )
        gated_input = BinaryGateInput(module.n_candidates, module.n_chosen, module.reduction, label=module.label)
        edge = self.add_edge(module.label, range(module.n_candidates), name, as_list=True)
        gated_input.attach(edge, self.selector)
        return gated_input

    def _repeat(self, module: Repeat, name: str) -> BinaryGateRepeat:
        depth = cast(Any, module.depth_choice)
        leaves = list(depth.simplify().values())
        if len(leaves) != 1 or not isinstance(leaves[0], Categorical):
            raise UnsupportedSpaceError(
                f"the depth of the Repeat at {name} is {depth!r}; declare it as a function of one choice of integers"
            )
        (choice,) = leaves
        first = module.first_cell_transformation_factory() if isinstance(module, NDSStage) else None
        gated_repeat = BinaryGateRepeat(list(module.blocks), depth, choice, first)
        edge = self.add_edge(choice.label, choice.values, name)
        gated_repeat.attach(edge, self.selector)
        for block in range(module.min_depth, module.max_depth):
            longer = [index for index, value in enumerate(gated_repeat.depths) if value > block]
            self.add_path(f"{name}.blocks.{block}", edge, longer)
        return gated_repeat

    def _cell(self, module: Cell, name: str) -> BinaryGateCell:
        gated_cell = BinaryGateCell(module)
        edges = []
        for position, (operator, source) in enumerate(gated_cell.choices):
            operator_edge = self.add_edge(operator.label, operator.names, name)
            edges.append((operator_edge, self.add_edge(source.label, range(source.n_candidates), name, as_list=True)))
            for index, candidate in enumerate(operator.names):
                for j in range(source.n_candidates):
                    self.add_path(f"{name}.layers.{position}.{j}.{candidate}", operator_edge, [index])
        gated_cell.attach_all(edges, self.selector)
        return gated_cell

    @contextmanager
    def running(self, active: Sequence[int], others: Sequence[Sequence[int]] | None = None) -> Iterator[RunPlan]:
        """Run the network along one path per edge.

        Args:
            active: Candidate index per edge.
            others: Candidates per edge to measure beside the active one.

        Yields:
            The plan, which holds the measured differences after the backward pass.
        """
        if len(active) != len(self.edges):
            raise ValueError(f"{len(active)} paths for {len(self.edges)} edges")
        before, plan = self.selector.plan, RunPlan(active, others)
        self.selector.plan = plan
        try:
            yield plan
        finally:
            self.selector.plan = before


def check_mutables(space: ModelSpace) -> None:
    """Refuse what cannot be searched, before the space is changed.

    Raises:
        UnsupportedSpaceError: A mutable is neither a choice of one nor of several values (see also `refuse`).
    """
    for label, mutable in space.simplify().items():
        if not isinstance(mutable, (Categorical, CategoricalMultiple)):
            raise UnsupportedSpaceError(
                f"the space has {label!r}, a {type(mutable).__name__}; ProxylessStrategy searches LayerChoice, "
                "InputChoice of one input, Repeat and Cell"
            )


def refuse(module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]) -> bool:
    """Refuse what no other hook has replaced and still has something to choose; NNI's last mutation hook.

    Raises:
        UnsupportedSpaceError: A Cell merges its loose ends, or a layer has a choice in its own arguments.
    """
    if isinstance(module, Cell) and module.merge_op != "all":
        raise UnsupportedSpaceError(
            f"the Cell {module.label!r} (at {name}) has merge_op {module.merge_op!r}, so that its width changes with "
            "its inputs; declare merge_op='all'"
        )
    if isinstance(module, MutableModule) and module.mutables:
        labels = sorted({label for mutable in module.mutables for label in mutable.simplify()})
        raise UnsupportedSpaceError(
            f"{name} ({type(module).__name__}) has the choice {', '.join(map(repr, labels))} in its own arguments; "
            "ProxylessStrategy searches LayerChoice, InputChoice of one input, Repeat and Cell: make it a LayerChoice"
        )
    return True
