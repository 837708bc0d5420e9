"""The over-parameterised network: NNI's choices, each running the one path that it is told to run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import nni.nas.strategy  # noqa: F401 - before nni.nas.oneshot, else NNI's public strategies become stubs
import torch
from nni.mutable import Categorical, CategoricalMultiple
from nni.nas.hub.pytorch.nasnet import NDSStage
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, ModelSpace, Repeat
from nni.nas.nn.pytorch.base import MutableModule, recursive_freeze
from nni.nas.nn.pytorch.cell import create_cell_op_candidates, preprocess_cell_inputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.space import model_context
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardware.errors import UnsupportedSpaceError

from .strategy.architecture import Edge


class RunPlan:
    """What the network runs: one candidate per edge, and which other candidates are measured beside it.

    Attributes:
        active: Candidate index per edge.
        others: Candidates per edge whose outputs are compared with the active one's; empty where nothing is.
        differences: After the backward pass, for each edge and each of its others k, `<dL/dy, o_active - o_k>`
            (a scalar tensor on the device), summed over the layers that share the edge; absent where the loss does not
            depend on the edge's output.
        visited: Edges that were measured: those that the active paths reach.
        saved_bytes: Bytes of the differences that wait for the backward pass.
    """

    def __init__(self, active: Sequence[int], others: Sequence[Sequence[int]] | None = None):
        self.active = active
        self.others = others
        self.differences: dict[int, list[Tensor]] = {}
        self.measuring = others is not None
        self.visited: set[int] = set()
        self.saved_bytes = 0

    def record(self, edge: int, values: list[Tensor]) -> None:
        """Add the inner products of one layer."""
        found = self.differences.get(edge)
        self.differences[edge] = values if found is None else [a + b for a, b in zip(found, values, strict=True)]

    @contextmanager
    def not_measuring(self) -> Iterator[None]:
        """Run a path for its output alone: no graph, and nested choices are not measured."""
        before, self.measuring = self.measuring, False
        try:
            with torch.no_grad():
                yield
        finally:
            self.measuring = before


class PathSelector:
    """Holds the plan of the run that is under way; shared by all layers of one supernet.

    Attributes:
        plan: The plan; None outside `Supernet.running`.
        mode: The mode of an architecture step that is under way; None in a weight step.
    """

    def __init__(self) -> None:
        self.plan: RunPlan | None = None
        self.mode: ArchitectureStepMode | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PathSelector:
        return self

    def current(self, label: str) -> RunPlan:
        """The plan.

        Raises:
            RuntimeError: The network runs outside `Supernet.running`.
        """
        if self.plan is None:
            raise RuntimeError(
                f"the choice {label!r} was run with no path chosen; run the supernet inside "
                "`with supernet.running(paths):`, or freeze the space first"
            )
        return self.plan


def _tensors(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (tuple, list)) and all(isinstance(item, Tensor) for item in value):
        return tuple(value)
    raise UnsupportedSpaceError(
        f"a candidate returned {type(value).__name__}; candidates must return a tensor or a tuple of tensors"
    )


CHANGED_IN_PLACE = (
    "what follows a choice changes in place a tensor that the choice passes on or runs on, which leaves the choice "
    "without a gradient; compute it anew there (y = y + x instead of y += x, inplace=False)"
)


def _all_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _all_tensors(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _all_tensors(item)


def _inner(gradient: Tensor, difference: Tensor) -> Tensor:
    """`<dL/dy, d>` in float32 or better, in one pass over both."""
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient, difference = gradient.float(), difference.float()
    return torch.dot(gradient.reshape(-1), difference.reshape(-1))


class _Passed(torch.autograd.Function):
    """An input that a candidate passes on as its output, with a gradient of its own; in-place changes are refused."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Tap:
    """Turns the gradients of one layer's outputs into gate-gradient differences, as they come."""

    def __init__(self, plan: RunPlan, edge: int, count: int, compare: Callable[[], list[Sequence[Tensor]]]):
        self.plan = plan
        self.edge = edge
        self.missing = count
        self.compare = compare
        self.found: list[Sequence[Tensor]] = []

    def hook(self, position: int) -> Callable[[Tensor], None]:
        def collect(gradient: Tensor) -> None:
            self.missing -= 1
            with torch.no_grad():
                self.found = self.found or self.compare()
                self.plan.record(self.edge, [_inner(gradient, differences[position]) for differences in self.found])
            if self.missing == 0:
                self.found = []

        return collect


def gated(
    plan: RunPlan,
    edge: int,
    run: Callable[[int], Any],
    *,
    inputs: Any = (),
    eager_limit: int = 1,
) -> Any:
    """Run an edge's active candidate and, where the plan measures, prepare the comparison with its others.

    Args:
        plan: What to run.
        edge: The edge's index.
        run: Gives the output of a candidate index.
        inputs: What the candidates run on: tensors, in any nesting of lists and dicts.
        eager_limit: Up to so many others run in the forward pass, keeping `o_active - o_k`; more of them re-run in
            the backward pass, keeping only what `run` holds.

    Returns:
        The active candidate's output. What follows may change it in place, unless it is one of the inputs.
    """
    active = plan.active[edge]
    output = run(active)
    others = plan.others[edge] if plan.measuring and plan.others is not None else ()
    if not others:
        return output
    plan.visited.add(edge)
    outputs = _tensors(output)
    detached = [tensor.detach() for tensor in outputs]

    def difference(candidate: int) -> list[Tensor]:
        with plan.not_measuring():
            return [a - b for a, b in zip(detached, _tensors(run(candidate)), strict=True)]

    given = list(_all_tensors(inputs))
    if len(others) <= eager_limit:
        ready = [difference(candidate) for candidate in others]
        detached.clear()
        plan.saved_bytes += sum(d.numel() * d.element_size() for ds in ready for d in ds)
        tap = _Tap(plan, edge, len(outputs), lambda: ready)  # type: ignore[arg-type,return-value]
    else:
        versions = [[tensor._version for tensor in tensors] for tensors in (given, detached)]

        def rerun() -> list[Sequence[Tensor]]:
            nonlocal detached
            before, after = versions
            if [tensor._version for tensor in given] != before:
                raise UnsupportedSpaceError(CHANGED_IN_PLACE)
            if [tensor._version for tensor in detached] != after:
                with plan.not_measuring():
                    detached = list(_tensors(run(active)))
            return [difference(candidate) for candidate in others]

        tap = _Tap(plan, edge, len(outputs), rerun)
    gated_outputs = []
    for position, tensor in enumerate(outputs):
        if not tensor.requires_grad:
            tapped = tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device, requires_grad=True)
        elif tensor._is_view() or tensor.is_leaf or any(tensor is item for item in given):
            tapped = cast(Tensor, _Passed.apply(tensor))
        else:
            tapped = tensor
        tapped.register_hook(tap.hook(position))
        gated_outputs.append(tapped)
    return gated_outputs[0] if isinstance(output, Tensor) else type(output)(gated_outputs)


class _GatedModule(BaseSuperNetModule):
    """What the gated forms of NNI's choices share."""

    def _attach(self, edge: int, selector: PathSelector) -> None:
        self.edge = edge
        self._selector = selector

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: paths are given by `Supernet.running`, never drawn by a layer."""
        return {}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the strategy exports from the architecture matrix."""
        return {}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: see `ArchitectureParameters.probabilities`."""
        return {}


class BinaryGateLayer(LayerChoice, _GatedModule):
    """A LayerChoice that runs the path it is told to, and measures others beside it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self._selector.current(self.label)

        def run(candidate: int) -> Any:
            module = cast(nn.Module, self._modules[str(self.names[candidate])])
            mode = self._selector.mode
            if mode is None:
                return module(*args, **kwargs)
            with mode.quiet(module):
                return module(*args, **kwargs)

        return gated(plan, self.edge, run, inputs=(args, kwargs))


class BinaryGateInput(InputChoice, _GatedModule):
    """An InputChoice of one input that passes on the input it is told to."""

    def forward(self, candidate_inputs: list[Tensor]) -> Tensor:
        plan = self._selector.current(self.label)
        return gated(plan, self.edge, lambda candidate: candidate_inputs[candidate], inputs=candidate_inputs)


class BinaryGateRepeat(Repeat, _GatedModule):
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
        self._depths = [int(depth.freeze({choice.label: value})) for value in choice.values]

    def forward(self, x: Any) -> Any:
        plan = self._selector.current(self._choice_label)

        def run(candidate: int) -> Any:
            y, depth = x, self._depths[candidate]
            for block in list(self.blocks)[:depth]:
                y = block(y)
            if depth == 1 and self.first_cell_transformation is not None:
                y = [self.first_cell_transformation(y[0]), *y[1:]]
            return y

        return gated(plan, self.edge, run, inputs=x)


class BinaryGateCell(_GatedModule):
    """A Cell of operators made by factories: one operator for each combination of choice and input.

    A factory may make another operator for another input (a stride where it comes from outside a reduction cell), so
    that an operator cannot be chosen without its input.

    Args:
        cell: The cell of the space, with `merge_op` "all".
    """

    def __init__(self, cell: Cell):
        super().__init__()
        self._cell = [cell]
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

    def _attach_all(self, edges: list[tuple[int, int]], selector: PathSelector) -> None:
        self._edges, self._selector = edges, selector

    def forward(self, *inputs: Any) -> Any:
        cell = self._cell[0]
        plan = self._selector.current(cell.label)
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
        """NNI's fixed cell, with this cell's weights."""
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


class Supernet:
    """A model space whose choices run under an explicit plan.

    Build it with `Supernet.mutate_hooks` through NNI's traversal (see `ProxylessStrategy.mutate_model`).
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
        """NNI mutation hook: replaces a choice by its gated form."""
        if isinstance(module, _GatedModule):
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
        gated_layer._attach(edge, self.selector)
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
        gated_input._attach(edge, self.selector)
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
        gated_repeat._attach(edge, self.selector)
        for block in range(module.min_depth, module.max_depth):
            longer = [index for index, value in enumerate(gated_repeat._depths) if value > block]
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
        gated_cell._attach_all(edges, self.selector)
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


class OnePath(nn.Module):
    """A supernet that always runs one path.

    Args:
        network: The mutated space.
        supernet: Its paths.
        active: Candidate index per edge.
    """

    def __init__(self, network: nn.Module, supernet: Supernet, active: Sequence[int]):
        super().__init__()
        self.network = network
        self._supernet = supernet
        self._active = list(active)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._supernet.running(self._active):
            return self.network(*args, **kwargs)


def freezing_keeps_weights(network: nn.Module) -> bool:
    """Whether NNI's `freeze` leaves the weights as they are, in every module of a mutated space."""
    keeping = [kind.freeze for kind in (MutableModule, LayerChoice, InputChoice, Repeat, BinaryGateCell)]
    return all(type(module).freeze in keeping for module in network.modules() if isinstance(module, MutableModule))


def frozen_copy(network: nn.Module, sample: dict[str, Any]) -> nn.Module:
    """A copy of the frozen network, with the weights of the chosen candidates alone where `freezing_keeps_weights`.

    NNI's `freeze` copies every module that holds a choice once for each level above it, all candidates included. Where
    layers are all that is chosen, this copies what stays, once.

    Args:
        network: A mutated space.
        sample: NNI's sample.
    """
    mutables = [module for module in network.modules() if isinstance(module, MutableModule)]
    layers = [module for module in mutables if isinstance(module, BinaryGateLayer)]
    others = [module for module in mutables if not isinstance(module, BinaryGateLayer)]
    if any(module.mutables or type(module).freeze is not MutableModule.freeze for module in others):
        return copy.deepcopy(cast(ModelSpace, network).freeze(sample))
    copies: dict[int, Any] = {}
    for layer in reversed(layers):  # those nested in others first
        copies[id(layer)] = copy.deepcopy(layer[sample[layer.label]], copies)
    return copy.deepcopy(network, copies)


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
    """NNI mutation hook, the last one: refuses what no other hook has replaced and still has something to choose.

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


_INDIFFERENT = (nn.Conv2d, nn.Linear, nn.Sequential, nn.Identity, nn.ReLU, nn.ReLU6, nn.AvgPool2d, nn.MaxPool2d)
"""Modules, not counting their children, that do the same in training and in evaluation mode."""


class _Quiet:
    """Modules and parameters that can be made to touch nothing, and restored.

    Args:
        modules: The modules, each with its own parameters.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self.norms: list[_BatchNorm] = []
        self.others: list[nn.Module] = []
        self.parameters: list[nn.Parameter] = []
        for module in modules:
            if isinstance(module, _BatchNorm):
                self.norms.append(module)
            elif type(module) not in _INDIFFERENT:
                self.others.append(module)
            self.parameters += [parameter for parameter in module._parameters.values() if parameter is not None]

    def on(self) -> _Quieted:
        """Change the flags; every one of them is restored on any exit."""
        return _Quieted(self)


class _Quieted:
    """The context of `_Quiet.on`: a class, as a step over hundreds of edges enters one for each candidate that runs."""

    __slots__ = ("norms", "of", "trainable", "training")

    def __init__(self, of: _Quiet):
        self.of = of

    def __enter__(self) -> None:
        of = self.of
        # without gradients no graph is built, so that it does not matter which parameters require one
        self.trainable = [p for p in of.parameters if p.requires_grad] if torch.is_grad_enabled() else []
        self.training = [module for module in of.others if module.training]
        self.norms = [(norm, norm.track_running_stats) for norm in of.norms if norm.training]
        for parameter in self.trainable:
            parameter.requires_grad_(False)
        for module in self.training:
            module.__dict__["training"] = False
        for norm, _ in self.norms:
            norm.__dict__["track_running_stats"] = False

    def __exit__(self, *exception: object) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        for module in self.training:
            module.__dict__["training"] = True
        for norm, tracked in self.norms:
            norm.__dict__["track_running_stats"] = tracked


def _outside_candidates(module: nn.Module, seen: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """A module and those in it, without the candidates of gated layers."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    yield module
    if not isinstance(module, BinaryGateLayer):
        for child in module.children():
            yield from _outside_candidates(child, seen)


class ArchitectureStepMode:
    """Context in which a forward and backward pass touches nothing but the gates.

    Batch norm uses batch statistics and writes no buffer (one that was frozen in evaluation mode stays so);
    everything else is in evaluation mode (no dropout, no drop-path); weights do not require grad, so that their
    gradients are never computed. The flags of a gated layer's candidate change while that candidate runs: what runs
    is then all that a step pays for, however many candidates there are.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module):
        self._always = _Quiet(_outside_candidates(module))
        layers = [child for child in module.modules() if isinstance(child, BinaryGateLayer)]
        self._selectors = {layer._selector for layer in layers}
        candidates = {candidate for layer in layers for candidate in layer.children()}
        self._candidates = {candidate: _Quiet(_outside_candidates(candidate)) for candidate in candidates}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Enter the mode; every flag is restored on any exit."""
        before = [(selector, selector.mode) for selector in self._selectors]
        with self._always.on():
            try:
                for selector in self._selectors:
                    selector.mode = self
                yield
            finally:
                for selector, mode in before:
                    selector.mode = mode

    def quiet(self, candidate: nn.Module) -> _Quieted:
        """The mode within one candidate of a gated layer, while it runs."""
        return self._candidates[candidate].on()
