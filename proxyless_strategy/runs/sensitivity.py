"""What the inherited weights say of a search's space: measured on its images, as a start of it or in its place."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardware.errors import ConfigError
from hardware.files import write_atomically
from hardware.progress import progress_bar
from hardware.reading import Kind, is_there, read_json, reading
from search_spaces import SpaceCosts, Subnet

from ..data.images import ImageData, Part
from ..layout import SENSITIVITY_FILE
from ..seeds import isolated_seed, mix_seed
from ..strategy.derivation import Derived, Deriver, cells
from ..strategy.finalists import Contest
from ..strategy.proxyless import ProxylessStrategy
from ..strategy.recalibration import recalibrate
from ..strategy.sensitivity import STREAM, Sensitivity, fit_classifier, measure
from ..strategy.supernet.frozen import one_path_copy
from ..strategy.verdict import sentences, target_warnings
from ..world import is_first
from .checkpoints import search_identity
from .forecast import trains_on_gpu
from .network import network_record
from .prepare import Prepared
from .result import write_search

FORMAT = "proxyless-sensitivity/1"
FILE = Kind("the table of losses", "delete it to have it measured again", ConfigError)
CALIBRATION_IMAGES = 256
"""Of the weights part; every network's batch norms are estimated from them."""
EVALUATION_IMAGES = 512
"""Of the architecture part; every network's loss is taken on them."""
PROBE_IMAGES = 4096
"""Of the weights part; a classifier of another number of classes is fitted to them."""


class Inherited:
    """A built space with its inherited weights, and the images that it is measured on.

    Args:
        prepared: What the search stands on.
    """

    def __init__(self, prepared: Prepared):
        self.prepared = prepared
        config, data = prepared.config, prepared.data
        with isolated_seed(config.seed):
            network = prepared.space.build(num_classes=data.num_classes, in_chans=data.channels)
        self.weights = _digest(network.state_dict())
        self.fits_classes = network.loaded == "everything"
        strategy = ProxylessStrategy(cost=prepared.cost, target=prepared.target, seed=config.seed)
        self.device = torch.device("cuda" if trains_on_gpu(config.search) else "cpu")
        # Whatever a search trains in: depthwise convolutions run nearly twice as fast so on a CPU.
        self.network: Any = strategy.mutate_model(network).to(self.device, memory_format=torch.channels_last)
        self.supernet, self.architecture = strategy.paths_of_space, strategy.architecture

    def table(self) -> Sensitivity:
        """Measure what each candidate does to the original's loss, after a classifier was fitted where it needs one.

        It does where the weights are of another number of classes, and where the original is no better than chance on
        the data's: as many classes need not be the same ones.
        """
        if not self.fits_classes:
            self._fit("the weights are of another number of classes than the data's")
            return self._measured()
        found, chance = self._measured(), math.log(self.prepared.data.num_classes)
        if found.loss < chance:
            return found
        self._fit(f"the weights' loss of {found.loss:.3g} is no better than chance ({chance:.3g}) on the data's")
        return self._measured()

    def _fit(self, why: str) -> None:
        prepared = self.prepared
        batches = self._batches("weights", PROBE_IMAGES)
        loss = fit_classifier(
            self.network.chain(),
            self.supernet,
            prepared.space.original(),  # type: ignore[attr-defined]
            calibration=self.calibration(),
            batches=batches,
            seed=prepared.config.seed,
        )
        print(
            f"{why} {prepared.data.num_classes} classes: a new classifier was fitted to the original's features of "
            f"{sum(len(y) for _, y in batches)} images of the weights part (loss {loss:.3g}), before any candidate's "
            "loss was taken",
            flush=True,
        )

    def _measured(self) -> Sensitivity:
        calibration = self.calibration()
        evaluation = self._batches("architecture", EVALUATION_IMAGES)
        counts = sum(map(len, calibration)), sum(len(y) for _, y in evaluation)
        with _progress(*counts) as moved:
            return measure(
                self.network.chain(),
                self.supernet,
                self.prepared.space.original(),  # type: ignore[attr-defined]
                calibration=calibration,
                evaluation=evaluation,
                seed=self.prepared.config.seed,
                moved=moved,
            )

    def calibration(self) -> list[Tensor]:
        """Return the batches that batch norms are estimated from."""
        return [x for x, _ in self._batches("weights", CALIBRATION_IMAGES)]

    def subnet_weights(self, choices: Mapping[str, str]) -> dict[str, Any]:
        """Return a subnet's inherited weights under timm's names, with batch norm statistics of its own."""
        choice = self.architecture.indices(choices)  # type: ignore[union-attr]
        alone = one_path_copy(self.network, self.supernet, choice, dict(choices))
        batches = self.calibration()
        recalibrate(alone, batches, alone, count=len(batches), seed=self.prepared.config.seed)
        return self.prepared.space.timm_names(alone.cpu().state_dict(), choices)

    def _batches(self, part: Part, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return up to about so many images of a part, the same ones for one seed."""
        config, data = self.prepared.config, self.prepared.data
        size, seed = min(config.search.batch_size, count, len(getattr(data, part))), mix_seed(config.seed, STREAM)
        # A last batch of one image has no statistics.
        loader = data.loader(part, batch_size=size, shuffle=True, drop_last=part == "weights", seed=seed)
        with isolated_seed(seed):
            batches = list(itertools.islice(loader, -(-count // size)))
        return [
            (x.to(self.device).contiguous(memory_format=torch.channels_last), y.to(self.device)) for x, y in batches
        ]


@contextmanager
def _progress(calibration: int, evaluation: int) -> Iterator[Any]:
    """Say on stderr how long the networks will take, once a few have run, and show where there is a terminal."""
    began, told = time.monotonic(), False
    with progress_bar(sys.stderr.isatty(), "what inherited weights say") as bar:

        def moved(done: int, of: int) -> None:
            nonlocal told
            bar(done / of)
            if not told:
                told = True
                minutes = (time.monotonic() - began) * of / done / 60
                print(
                    f"what the inherited weights say: {of} networks, each on {calibration} images for its batch norms "
                    f"and {evaluation} of the architecture part; at most about {minutes:.1f} minutes",
                    file=sys.stderr,
                    flush=True,
                )

        yield moved


def _digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def measuring_seconds(costs: SpaceCosts, data: ImageData, forward_seconds: float) -> float:
    """Return about what the table of losses takes: of each candidate's network, on average half is run anew.

    Args:
        costs: The space's operators.
        data: The images.
        forward_seconds: Of a forward pass, per image.
    """
    networks = 1 + sum(len(candidates) - 1 for candidates in costs.edges.values())
    parts = (len(data.weights), CALIBRATION_IMAGES), (len(data.architecture), EVALUATION_IMAGES)  # type: ignore[arg-type]
    return networks * sum(map(min, parts)) * forward_seconds / 2


# ---- in the place of a search ----------------------------------------------------------------------------------


def search_by_sensitivity(prepared: Prepared) -> tuple[Subnet, dict[str, Any]]:
    """Measure every candidate's loss and take the exact knapsack on losses and costs.

    Returns:
        The subnet and its inherited weights under timm's names.
    """
    config, data, cost = prepared.config, prepared.data, prepared.cost
    inherited = Inherited(prepared)
    table = inherited.table()
    costs = cells(table.edges, cost)
    deriver = Deriver(table.edges, table.log_probabilities(), costs, cost.fixed)
    derived = table.knapsack(costs, cost.fixed, prepared.target)
    choices = table.choices(derived)
    subnet = Subnet(prepared.space, choices)
    warnings = target_warnings(
        target=prepared.target, dearest=deriver.dearest().cost, unit=cost.unit, objective="target"
    )
    p = np.exp(deriver.log_p)
    record = {
        "probabilities": {
            edge.label: dict(zip(edge.candidates, p[row].tolist(), strict=False))
            for row, edge in enumerate(table.edges)
        },
        "unit": cost.unit,
        "expected": float(cost.fixed + (p * costs).sum()),
        "target": prepared.target,
        "argmax": table.choices(deriver.argmax()),
        "finalists": [],
        "warnings": sentences(warnings),
        "counters": {"warmup": 0, "weights": 0, "architecture": 0, "skipped": 0},
        "history": [],
        "network": network_record(prepared.costs, cost),
        "sensitivity": {**table.to_dict(), **_knapsack_record(table, derived)},
        **data.record(),
    }
    # Kept in any case, as they cost nothing here: what comes next decides whether it starts from them.
    weights = inherited.subnet_weights(choices)
    print(
        f"the original's loss is {table.loss:.4g}; by the sum of its candidates' differences the knapsack's is "
        f"{table.additive_loss(derived.choice):.4g}",
        flush=True,
    )
    write_search(config.out, subnet, record, weights)
    return subnet, weights


def _knapsack_record(table: Sensitivity, derived: Derived) -> dict[str, Any]:
    return {"knapsack": table.choices(derived), "additive_loss": table.additive_loss(derived.choice)}


# ---- as the start of a search ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SensitivityStart:
    """What a search gets from the inherited weights: logits to start from, and a subnet to beat.

    Attributes:
        table: The losses.
        temperature: Difference in loss that counts one logit.
        knapsack: The exact knapsack on losses and costs.
    """

    table: Sensitivity
    temperature: float
    knapsack: Derived

    def options(self, *, contends: bool) -> dict[str, Any]:
        """Return the strategy's options.

        Args:
            contends: Whether the knapsack joins the finalists under the supernet's weights.
        """
        start = {"start": self.table.start(self.temperature)}
        return start | ({"contender": self.table.choices(self.knapsack)} if contends else {})

    def record(self, contest: Contest) -> dict[str, Any]:
        """Return what the search's record gets.

        Args:
            contest: How the search's own subnet stands against the knapsack.
        """
        known = {**self.table.to_dict(), **_knapsack_record(self.table, self.knapsack)}
        losses = {"search_loss": contest.own, "knapsack_loss": contest.contender}
        # JSON has no infinity, which stands for a subnet whose loss is not finite.
        finite = {name: loss if np.isfinite(loss) else None for name, loss in losses.items()}
        return {"sensitivity": {**known, "temperature": self.temperature, **finite}}


def sensitivity_start(prepared: Prepared, *, begun: bool) -> SensitivityStart | None:
    """Return what a search starts from by `search.start`: kept in its folder, else measured; None for another start.

    Args:
        prepared: What the search stands on.
        begun: Whether the search has a checkpoint. What it began with is then what counts.

    Raises:
        ConfigError: The folder's table is damaged.
    """
    config = prepared.config
    if config.search.start != "sensitivity":
        return None
    path = config.out / SENSITIVITY_FILE
    table = None
    if is_there(path) and (begun or not is_first()):
        table = read_sensitivity(path)[0]
        if {edge.label: edge.candidates for edge in table.edges} != prepared.space.candidates():
            raise ConfigError(f"{path} is of another space than {prepared.space.name}; {FILE.remedy}")
    if table is None:
        inherited = Inherited(prepared)
        identity = search_identity(prepared)
        kept = {
            **{name: identity[name] for name in ("space", "data", "seed")},
            "weights": inherited.weights,
            "input_size": config.input_size,
            "batch_size": config.search.batch_size,
        }
        if is_there(path):
            table, there = read_sensitivity(path)
            table = table if there == kept else None
        if table is None:
            table = inherited.table()
            values = {"format": FORMAT, "identity": kept, **table.to_dict()}
            write_atomically(path, json.dumps(values, indent=2) + "\n", error=ConfigError)
    temperature = config.search.start_temperature or table.start_temperature()
    knapsack = table.knapsack(cells(table.edges, prepared.cost), prepared.cost.fixed, prepared.target)
    return SensitivityStart(table, temperature, knapsack)


def read_sensitivity(path: Any) -> tuple[Sensitivity, Any]:
    """Read a table of losses, and what it was measured on.

    Raises:
        ConfigError: The file is damaged.
    """
    values = read_json(path, FILE)
    with reading(path, FILE):
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, not {FORMAT}")
        return Sensitivity.from_dict(values), values["identity"]
