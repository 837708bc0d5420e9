"""What inherited weights say of a space before any search: what each candidate alone does to the original's loss.

With `o` the original's choices, `o[l:=k]` the same with candidate `k` at edge `l`, and `E` some images that no weight
was trained on,

    D[l, k] = mean over (x, y) in E of  CE(f(x; o[l:=k]), y) - CE(f(x; o), y),

each network with batch norm statistics of its own, taken from the same training images: those of a block that was cut
fit no other. `D` (`L x N`) is to losses what a latency table is to ms. Taken as a sum over edges, as latency is,

    minimise  sum over l of D[l, c_l]   subject to   fixed + sum over l of F[l, c_l] <= T

is a multiple-choice knapsack, which `Deriver` solves exactly for `log p = log softmax(-D / t)` of any temperature `t`:
the softmax adds one constant to each edge, and so to every subnet alike.

Only what comes after an edge is another network than the original, so the features before it are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.errors import TrainingError
from hardware.reading import Unreadable, cut, expect

from .architecture import Edge
from .derivation import Derived, Deriver
from .recalibration import recalibrate
from .rules import LOGIT_SPAN
from .supernet.layers import BinaryGateLayer
from .supernet.space import Supernet

STREAM = 5
"""Number of the seed stream of these images; it must differ from every other stream of a search."""
START_SPAN = 3.0
"""Largest distance in logits between two candidates of an edge at the start of a search: a ratio of about 20. Below
`rules.LOGIT_SPAN`, as the search must be able to move an edge either way."""
MOST_CELLS = 1_000_000
"""Of a table in a file: far above every space."""
PROBE_DECAY = 1e-4
"""Weight of `|W|^2 / 2` where a classifier is fitted to features of unit length: bounds its logits, so that few images
make no classifier that is sure of everything."""
PROBE_STEPS = 200


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The table of loss differences.

    Attributes:
        edges: The decisions.
        original: Candidate index of the original network per edge.
        loss: The original's mean loss.
        differences: `D`, `L x N` float64: 0 at the original's candidates, infinite where a loss is not finite, NaN in
            cells that are no candidate.
        images: How many images the losses are means over.
    """

    edges: tuple[Edge, ...]
    original: tuple[int, ...]
    loss: float
    differences: np.ndarray
    images: int

    def additive_loss(self, choice: Sequence[int]) -> float:
        """Return what the table says of a subnet's loss: the original's and the sum of its candidates' differences."""
        return self.loss + float(sum(self.differences[row, column] for row, column in enumerate(choice)))

    def log_probabilities(self) -> np.ndarray:
        """Return `log softmax(-D / t)`, -inf in unused cells; `t` spreads the widest edge over `rules.LOGIT_SPAN`.

        No difference is cut, so that sums over edges are ordered as sums of `D` are.
        """
        return _log_softmax(-self.differences / _temperature(self._widths().max(initial=0.0), LOGIT_SPAN))

    def knapsack(self, costs: np.ndarray, fixed: float, target: float | None) -> Derived:
        """Return the subnet of the least sum of differences whose cost is at most the target.

        Args:
            costs: Each candidate's own cost, `L x N`.
            fixed: Cost of what every subnet has.
            target: Greatest cost; None: any.

        Raises:
            TargetError: No subnet is within the target.
        """
        deriver = Deriver(self.edges, self.log_probabilities(), costs, fixed)
        return deriver.most_probable() if target is None else deriver.within(target)

    def start_temperature(self) -> float:
        """Return the temperature at which half of the edges span `START_SPAN` logits or less."""
        return _temperature(float(np.median(self._widths())) if self.edges else 0.0, START_SPAN)

    def start(self, temperature: float | None = None) -> dict[str, dict[str, float]]:
        """Return logits for alpha to start from, by label and candidate: `-D / t`, the best of each edge at 0.

        Whatever would start more than `START_SPAN` under its edge's best starts there, at any temperature.

        Args:
            temperature: Difference in loss that counts one logit; None: see `start_temperature`.
        """
        temperature = self.start_temperature() if temperature is None else temperature
        found = {}
        for row, edge in enumerate(self.edges):
            values = self.differences[row, : len(edge.candidates)]
            logits = np.maximum((values.min() - values) / temperature, -START_SPAN)
            found[edge.label] = dict(zip(map(str, edge.candidates), logits.tolist(), strict=True))
        return found

    def choices(self, derived: Derived) -> dict[str, str]:
        """Return a subnet's candidate by edge."""
        return {e.label: str(e.candidates[i]) for e, i in zip(self.edges, derived.choice, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no infinity: None stands for a loss that is not finite."""
        differences = {
            edge.label: {
                str(name): value if math.isfinite(value) else None
                for name, value in zip(edge.candidates, self.differences[row].tolist(), strict=False)
            }
            for row, edge in enumerate(self.edges)
        }
        original = {e.label: str(e.candidates[i]) for e, i in zip(self.edges, self.original, strict=True)}
        return {"loss": self.loss, "images": self.images, "original": original, "differences": differences}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sensitivity:
        """Read what `to_dict` wrote; candidates are then texts.

        Raises:
            Unreadable, KeyError, ValueError: It is no such thing.
        """
        rows = expect(values["differences"], dict, "differences")
        table = {label: expect(row, dict, f"differences.{cut(label)}") for label, row in rows.items()}
        edges = tuple(Edge(label, tuple(row)) for label, row in table.items())
        width = max(len(row) for row in table.values())
        if len(edges) * width > MOST_CELLS:
            raise Unreadable(f"it has {len(edges)} edges of up to {width} candidates, more than any space")
        found = np.full((len(edges), width), math.nan)
        for number, (label, row) in enumerate(table.items()):
            numbers = [expect(value, float, f"differences.{cut(label)}", none=True) for value in row.values()]
            found[number, : len(row)] = [math.inf if value is None else value for value in numbers]
        original = tuple(edge.candidates.index(values["original"][edge.label]) for edge in edges)
        loss, images = expect(values["loss"], float, "loss"), expect(values["images"], int, "images")
        return cls(edges, original, loss, found, images)

    def _widths(self) -> np.ndarray:
        """Return the distance between the best and the worst finite difference of each edge, shape `L`."""
        finite = np.where(np.isfinite(self.differences), self.differences, math.nan)
        # The original's candidate is always finite, so that no row is empty.
        return np.nanmax(finite, 1) - np.nanmin(finite, 1)


def _temperature(width: float, span: float) -> float:
    # Where no candidate changes the loss at all, any temperature says so.
    return float(width) / span if width > 0 else 1.0


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.where(np.isnan(logits), -math.inf, logits)
    shifted = logits - logits.max(1, keepdims=True)
    return cast(np.ndarray, shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


# ---- measuring -------------------------------------------------------------------------------------------------


def measure(
    chain: Sequence[nn.Module],
    supernet: Supernet,
    original: Mapping[str, str],
    *,
    calibration: Sequence[Tensor],
    evaluation: Sequence[tuple[Tensor, Tensor]],
    seed: int,
    moved: Callable[[int, int], None] = lambda done, of: None,
) -> Sensitivity:
    """Measure what each candidate alone does to the original's loss: the module's docstring has the formula.

    Args:
        chain: The space's modules in the order in which they run, from the images to the logits; its choices are gated.
            Afterwards it is in evaluation mode, and its batch norms have some subnet's statistics.
        supernet: Its paths.
        original: The original's candidate by edge.
        calibration: Batches of training images, `B x C x H x W`, that every network's batch norms are estimated from.
        evaluation: Batches of images and their classes that losses are taken on.
        seed: Seed of what draws random numbers while a batch runs.
        moved: Called after each of the networks with how many are done, and of how many.

    Raises:
        TrainingError: The original's loss is not finite.
        ValueError: There are no images, or an edge stands in the chain more or less than once.
    """
    edges = tuple(supernet.edges)
    where = [module.edge for module in chain if isinstance(module, BinaryGateLayer)]
    if sorted(where) != list(range(len(edges))):
        raise ValueError(f"the edges {where} stand in the chain, which must be each of {len(edges)} once")
    if not calibration or not evaluation:
        raise ValueError("there are no images to measure on")
    own = [[str(name) for name in edge.candidates].index(original[edge.label]) for edge in edges]
    found = np.full((len(edges), max(len(edge.candidates) for edge in edges)), math.nan)
    labels = [y for _, y in evaluation]
    seen, judged = list(calibration), [x for x, _ in evaluation]
    count, done = 1 + sum(len(edge.candidates) - 1 for edge in edges), 0
    for position, module in enumerate(chain):
        if isinstance(module, BinaryGateLayer):
            rest = nn.Sequential(*chain[position:])
            for index in range(len(edges[module.edge].candidates)):
                if index == own[module.edge]:
                    continue
                with supernet.running([*own[: module.edge], index, *own[module.edge + 1 :]]):
                    _estimate(rest, seen, seed=seed)
                    found[module.edge, index] = _mean_loss([_run(rest, x) for x in judged], labels)
                done += 1
                moved(done, count)
        with supernet.running(own):
            seen = _estimate(module, seen, seed=seed)
            judged = [_run(module, x) for x in judged]
    loss = _mean_loss(judged, labels)
    moved(count, count)
    if not math.isfinite(loss):
        raise TrainingError(
            f"the original network has a loss of {loss:g} on the architecture part, so that no candidate can be held "
            "against it; look at its weights and images"
        )
    found -= loss
    for row, edge in enumerate(edges):
        values = found[row, : len(edge.candidates)]
        values[~np.isfinite(values)] = math.inf
        values[own[row]] = 0.0
    return Sensitivity(edges, tuple(own), loss, found, sum(len(y) for y in labels))


def fit_classifier(
    chain: Sequence[nn.Module],
    supernet: Supernet,
    original: Mapping[str, str],
    *,
    calibration: Sequence[Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    seed: int,
) -> float:
    """Fit the last module of a chain, a linear classifier, to the original's features; all else stays as it is.

    Losses of a classifier that knows no class would say nothing of what stands before it.

    Args:
        chain: See `measure`.
        supernet: See `measure`.
        original: See `measure`.
        calibration: See `measure`.
        batches: Training images and their classes.
        seed: See `measure`.

    Returns:
        The mean loss on these images.
    """
    body, classifier = nn.Sequential(*chain[:-1]), cast(nn.Linear, chain[-1])
    own = [[str(name) for name in edge.candidates].index(original[edge.label]) for edge in supernet.edges]
    with supernet.running(own):
        _estimate(body, calibration, seed=seed)
        features = torch.cat([_run(body, x) for x, _ in batches]).double()
    labels = torch.cat([y for _, y in batches])
    # Centred and of unit length on average: one decay then fits every network.
    middle = features.mean(0)
    scale = float((features - middle).square().sum(1).mean().sqrt()) or 1.0
    inputs = (features - middle) / scale
    weight = torch.zeros(classifier.weight.shape, dtype=torch.float64, device=inputs.device, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return functional.cross_entropy(functional.linear(inputs, weight, bias), labels)

    def closure() -> float:
        optimizer.zero_grad()
        total = loss() + PROBE_DECAY / 2 * weight.square().sum()
        total.backward()
        return float(total.detach())

    optimizer.step(closure)
    with torch.no_grad():
        classifier.weight.copy_(weight / scale)
        classifier.bias.copy_(bias - weight @ middle / scale)
        return float(loss())


def _estimate(module: nn.Module, batches: Sequence[Tensor], *, seed: int) -> list[Tensor]:
    """Estimate a module's batch norms from its inputs; return its outputs under the statistics of each batch."""
    found: list[Tensor] = []
    recalibrate(module, batches, lambda x: found.append(module(x)), count=len(batches), seed=seed)
    module.eval()
    return found


def _run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, module(x))


def _mean_loss(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    total = sum(
        float(functional.cross_entropy(output.double(), y, reduction="sum"))
        for output, y in zip(outputs, labels, strict=True)
    )
    return total / sum(len(y) for y in labels)
