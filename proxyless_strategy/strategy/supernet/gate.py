"""Run an edge's active candidate, and measure others beside it.

Where gates stand on whole candidates, `y = sum_k g_k o_k(x)` (Eq. 3), the gate gradient is `dL/dg_k = <dL/dy, o_k>`
(section 3.2 of arXiv 1812.00332): it needs the other candidates' outputs, but neither their graphs nor their part in
`y`. So only the active candidate builds a graph, others run without one, and `<dL/dy, o_active - o_k>` is taken when
the backward pass comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hardware.errors import UnsupportedSpaceError

from .inner import inner_product


class RunPlan:
    """What the network runs: one candidate per edge, and which other candidates are measured beside it.

    An argument of one run and not a state of the layers: a mode kept in them would leak into the next step if this one
    failed.

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
        """Add the inner products of one layer, a scalar for each of the edge's others."""
        # Layers that share a label share the gate, whose gradient is the sum of theirs.
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


class StepMode(Protocol):
    """A mode of a step, as far as a gated layer knows it; `ArchitectureStepMode` is one."""

    def quiet(self, candidate: nn.Module) -> AbstractContextManager[None]:
        """Run one candidate in the mode."""
        ...


class Recordings(Protocol):
    """Recorded candidates, as far as a gated layer knows them; `capture.Captures` are some."""

    def run(
        self, layer: nn.Module, index: int, module: nn.Module, args: tuple[Any, ...], mode: StepMode | None
    ) -> Tensor | None:
        """Return a candidate's output by its recording; None where it has to run eagerly."""
        ...


class PathSelector:
    """Holds the plan of the run that is under way; shared by all layers of one supernet.

    NNI's spaces call their layers with inputs alone, so that a plan cannot be handed down as an argument.

    Attributes:
        plan: The plan; None outside `Supernet.running`.
        mode: The mode of an architecture step that is under way; None in a weight step.
        captures: What replays candidates; None where they run eagerly.
    """

    def __init__(self) -> None:
        self.plan: RunPlan | None = None
        self.mode: StepMode | None = None
        self.captures: Recordings | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PathSelector:
        # A copy of the supernet (`OnePath`) runs under the same `Supernet.running`, which knows this object alone.
        return self

    def current(self, label: str) -> RunPlan:
        """Return the plan.

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


def _autocast_of(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return what enters the mixed precision of now again.

    A backward pass may run outside of it. On a GPU it runs in a thread of its own, which knows whether it is on, but
    not of which type: bfloat16 would become float16 there.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cached)


class Passed(torch.autograd.Function):
    """An input that a candidate passes on as its output, with a gradient of its own; in-place changes are refused.

    A hook on the input itself would see the gradients of all its users, and the layer's own output is but one of them.
    Autograd refuses in-place changes of a view that a custom function returned. That is wanted: in a plain view such a
    change would replace the gradient function that the hook stands at, and the gate gradient would be lost in silence.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Tap:
    """Turns the gradients of one layer's outputs into gate-gradient differences, as they come.

    The outputs of one layer get their gradients at different times of the backward pass. One that the loss does not
    depend on gets none, and adds nothing.

    Args:
        plan: Where the differences are recorded.
        edge: The edge's index.
        count: Outputs of the layer.
        compare: Gives `o_active - o_k` of each other k and each output.
    """

    def __init__(self, plan: RunPlan, edge: int, count: int, compare: Callable[[], list[Sequence[Tensor]]]):
        self.plan = plan
        self.edge = edge
        self.missing = count
        self.compare = compare
        self.found: list[Sequence[Tensor]] = []

    def hook(self, position: int) -> Callable[[Tensor], None]:
        def collect(gradient: Tensor) -> None:
            self.missing -= 1
            # Autograd runs hooks without gradients unless the caller creates a graph; a comparison never needs one.
            with torch.no_grad():
                self.found = self.found or self.compare()
                values = [inner_product(gradient, differences[position]) for differences in self.found]
                self.plan.record(self.edge, values)
            if self.missing == 0:
                self.found = []  # frees the maps of this edge before the backward pass reaches the one before

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
    detached = [tensor.detach() for tensor in outputs]  # differences need values alone

    def difference(candidate: int) -> list[Tensor]:
        with plan.not_measuring():
            return [a - b for a, b in zip(detached, _tensors(run(candidate)), strict=True)]

    given = list(_all_tensors(inputs))
    if len(others) <= eager_limit:
        # One other: its difference takes no more memory than the active output that a later comparison would need.
        ready = [difference(candidate) for candidate in others]
        plan.saved_bytes += sum(d.numel() * d.element_size() for ds in ready for d in ds)
        tap = _Tap(plan, edge, len(outputs), lambda: ready)  # type: ignore[arg-type,return-value]
    else:
        # Many others: N - 1 differences at every edge would take as much memory as all paths at once do.
        versions = [[tensor._version for tensor in tensors] for tensors in (given, detached)]
        as_now = _autocast_of(detached[0].device)

        def rerun() -> list[Sequence[Tensor]]:
            nonlocal detached
            # What follows may have written into these tensors since; torch counts the writes. A changed output can be
            # computed anew, a changed input cannot be had back.
            before, after = versions
            if [tensor._version for tensor in given] != before:
                raise UnsupportedSpaceError(CHANGED_IN_PLACE)
            with as_now():
                if [tensor._version for tensor in detached] != after:
                    with plan.not_measuring():
                        detached = list(_tensors(run(active)))
                return [difference(candidate) for candidate in others]

        tap = _Tap(plan, edge, len(outputs), rerun)
    gated_outputs = []
    for position, tensor in enumerate(outputs):
        if not tensor.requires_grad:
            # No weight and, at the first edge, no input requires a gradient. A zero that does makes dL/dy come by; the
            # sum is a new tensor, so that the candidate's own is not written to.
            tapped = tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device, requires_grad=True)
        # A skip returns its very input. A hook on that, on a leaf or on a view of either would see gradients of others.
        elif tensor._is_view() or tensor.is_leaf or any(tensor is item for item in given):
            tapped = cast(Tensor, Passed.apply(tensor))
        else:
            tapped = tensor
        # Registered now, the hook gets the gradient of the value as of now, even where what follows writes into it.
        tapped.register_hook(tap.hook(position))
        gated_outputs.append(tapped)
    return gated_outputs[0] if isinstance(output, Tensor) else type(output)(gated_outputs)
