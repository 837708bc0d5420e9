"""The gated forms of NNI's LayerChoice, InputChoice, Repeat and Cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, Repeat
from nni.nas.nn.pytorch.base import recursive_freeze
from nni.nas.nn.pytorch.cell import create_cell_op_candidates, preprocess_cell_inputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.space import model_context
from torch import Tensor, nn

from .gate import PathSelector, RunPlan, gated


class GatedModule(BaseSuperNetModule):
    """What the gated forms of NNI's choices share."""

    def attach(self, edge: int, selector: PathSelector) -> None:
        self.edge = edge
        self.selector = selector

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return nothing: paths are given by `Supernet.running`, never drawn by a layer."""
        return {}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return nothing: the strategy exports from the architecture matrix."""
        return {}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Return nothing: see `ArchitectureParameters.probabilities`."""
        return {}


class BinaryGateLayer(LayerChoice, GatedModule):
    """A LayerChoice that runs the path it is told to, and measures others beside it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self.selector.current(self.label)

        def run(candidate: int) -> Any:
            module = cast(nn.Module, self._modules[str(self.names[candidate])])
            mode, captures = self.selector.mode, self.selector.captures
            if captures is not None and not kwargs:
                output = captures.run(self, candidate, module, args, mode)
                if output is not None:
                    return output
            # The flags of this candidate alone: a step then pays for what runs, however many candidates there are.
            if mode is None:
                return module(*args, **kwargs)
            with mode.quiet(module):
                return module(*args, **kwargs)

        return gated(plan, self.edge, run, inputs=(args, kwargs))


class BinaryGateInput(InputChoice, GatedModule):
    """An InputChoice of one input that passes on the input it is told to."""

    def forward(self, candidate_inputs: list[Tensor]) -> Tensor:
        plan = self.selector.current(self.label)
        return gated(plan, self.edge, lambda candidate: candidate_inputs[candidate], inputs=candidate_inputs)


class BinaryGateRepeat(Repeat, GatedModule):
    """A Repeat whose depth is one choice: block `d` runs exactly where the depth is greater than `d`.

    Args:
        blocks: As many as the greatest depth.
        depth: The depth, a function of one choice.
        choice: That choice.
        first: Transforms the first of the outputs where only one block runs (NNI's `NDSStage`).
    """

    def __init__(self, blocks: list[nn.Module], depth: Any, choice: Categorical, first: nn.Module | None = None):
        super().__init__(blocks, depth)
        self.first_cell_transformation = first
        self._choice_label = choice.label
        self.depths = [int(depth.freeze({choice.label: value})) for value in choice.values]

    def forward(self, x: Any) -> Any:
        plan = self.selector.current(self._choice_label)

        def run(candidate: int) -> Any:
            y, depth = x, self.depths[candidate]
            # The first `depth` blocks, as NNI's `freeze` keeps. (NNI's own supernet skips blocks anywhere.)
            for block in list(self.blocks)[:depth]:
                y = block(y)
            if depth == 1 and self.first_cell_transformation is not None:
                y = [self.first_cell_transformation(y[0]), *y[1:]]
            return y

        return gated(plan, self.edge, run, inputs=x)


class BinaryGateCell(GatedModule):
    """A Cell of operators made by factories: one operator for each combination of choice and input.

    A factory may make another operator for another input (a stride where it comes from outside a reduction cell), so
    that an operator cannot be chosen without its input.

    Args:
        cell: The cell of the space, with `merge_op` "all".
    """

    def __init__(self, cell: Cell):
        super().__init__()
        self._cell = [cell]  # in a list, so that nn.Module registers neither the cell nor its parameters
        self.preprocessor, self.postprocessor = cell.preprocessor, cell.postprocessor
        self.layers = nn.ModuleList()
        self.choices: list[tuple[LayerChoice, InputChoice]] = []
        for node, (operators, inputs) in enumerate(zip(cell.ops, cell.inputs, strict=True), cell.num_predecessors):
            for index, (operator, source) in enumerate(zip(operators, inputs, strict=True)):
                made = [create_cell_op_candidates(cell.op_candidates_factory, node, index, j)[0] for j in range(node)]
                self.layers.append(nn.ModuleList(nn.ModuleDict(candidates) for candidates in made))
                self.choices.append((operator, source))
                self.add_mutable(operator.choice)
                self.add_mutable(source.choice)
        self._edges: list[tuple[int, int]] = []

    def attach_all(self, edges: list[tuple[int, int]], selector: PathSelector) -> None:
        self._edges, self.selector = edges, selector

    def forward(self, *inputs: Any) -> Any:
        cell = self._cell[0]
        plan = self.selector.current(cell.label)
        predecessors = preprocess_cell_inputs(cell.num_predecessors, *inputs)
        states = list(self.preprocessor(predecessors))
        for start in range(0, len(self.layers), cell.num_ops_per_node):
            terms = [self._term(plan, start + k, states) for k in range(cell.num_ops_per_node)]
            states.append(torch.sum(torch.stack(terms), 0))
        merged = torch.cat([states[node] for node in cell.output_node_indices], cell.concat_dim)
        return self.postprocessor(merged, predecessors)

    def _term(self, plan: RunPlan, position: int, states: list[Tensor]) -> Tensor:
        operator_edge, input_edge = self._edges[position]
        names = self.choices[position][0].names
        by_input = cast("Sequence[dict[str, nn.Module]]", self.layers[position])

        def operate(operator: int) -> Any:
            return gated(
                plan, input_edge, lambda source: by_input[source][names[operator]](states[source]), inputs=states
            )

        return gated(plan, operator_edge, operate, inputs=states)

    def freeze(self, sample: dict[str, Any]) -> Cell:
        """Return NNI's fixed cell, with this cell's weights."""
        old = self._cell[0]
        with model_context(sample):
            cell = Cell(
                cast(Any, old.op_candidates_factory),
                old.num_nodes,
                old.num_ops_per_node,
                old.num_predecessors,
                old.merge_op,
                recursive_freeze(self.preprocessor, sample)[0],
                recursive_freeze(self.postprocessor, sample)[0],
                old.concat_dim,
                label=old.label,
            )
        for position, (operator, source) in enumerate(self.choices):
            chosen = self.layers[position][sample[source.label][0]][sample[operator.label]]  # type: ignore[index]
            node, index = divmod(position, old.num_ops_per_node)
            cell.ops[node][index] = recursive_freeze(chosen, sample)[0]
        return cell
