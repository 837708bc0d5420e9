"""The end of a search whose subnet is fine-tuned: a few finalists are trained for some epochs each, and one is taken.

What choices cost a network before it is trained says little of what they will have cost afterwards: the loss with the
supernet's weights ranks subnets that all can be mended alike. So `search.finalists_epochs` trains the search's best
finalists, beside what cheaper ways would have chosen, as the subnet will be trained: on the weight images, and compared
by the same loss on the architecture images.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.errors import ConfigError, TrainingError
from hardware.files import write_atomically
from hardware.model import CostModel, macs_model
from hardware.reading import Kind, is_there, read_json, reading
from search_spaces import Subnet

from ..checkpoints import short_digest
from ..config import TARGETS, RetrainSettings, SearchConfig
from ..data.digest import data_digest
from ..data.images import ImageData
from ..layout import FINALISTS_FILE
from ..progress import Told, epochs_in_words
from ..retraining.setup import retraining_threads
from ..retraining.teacher import distilled, teacher_digest
from ..retraining.trainer import train
from ..strategy.derivation import Derived, Deriver, cells
from ..strategy.edge import Edge
from ..strategy.finalists import Contest, Finalist
from ..strategy.verdict import SearchWarning, not_better
from .result import finalist_record
from .retrained import builder, retraining_teacher, starting_weights

if TYPE_CHECKING:
    from .prepare import Prepared
    from .sensitivity import SensitivityStart

FORMAT = "proxyless-finalists/1"
KIND = Kind("the finalists' losses", "delete it to have them trained again", ConfigError)
OWN = 2
"""Finalists of the search itself that take part."""
SEARCHED, SENSITIVITY, MOST_MACS = "search", "sensitivity", "most_macs"
NAMES = {SENSITIVITY: "the sensitivity knapsack", MOST_MACS: "the subnet of most MACs within the target"}
GAP = 1e-4
"""Relative error of the most multiply-accumulates; they go with latencies, which makes the exact knapsack hard."""
PHASE = "finalists"
BATCH = 256


@dataclass(frozen=True)
class Played:
    """A subnet that took part.

    Attributes:
        derived: The subnet.
        sources: What has found it.
        loss: The retraining's loss on the architecture images after its epochs; NaN where it is not finite.
    """

    derived: Derived
    sources: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class Playoff:
    """How a few subnets stand after some epochs of training.

    Attributes:
        epochs: That each was trained.
        networks: The subnets, the least loss first.
    """

    epochs: int
    networks: tuple[Played, ...]

    @property
    def best(self) -> Derived:
        """The subnet to take."""
        return self.networks[0].derived

    def contest(self, source: str) -> Contest | None:
        """Hold the search's own best against what a cheaper way has found; None where that did not take part."""

        def least(name: str) -> float | None:
            losses = [played.loss for played in self.networks if name in played.sources]
            return min((loss if math.isfinite(loss) else math.inf for loss in losses), default=None)

        own, other = least(SEARCHED), least(source)
        if own is None or other is None:
            return None
        return Contest(own, other, f"after {epochs_in_words(self.epochs)} of training each")

    def warnings(self) -> list[SearchWarning]:
        """Return what a cheaper way has found that is as good as the search's own."""
        contests = {source: self.contest(source) for source in NAMES}
        return [
            not_better(contest, NAMES[source], remedy="raise search.epochs, or do without a search")
            for source, contest in contests.items()
            if contest is not None and not contest.is_won
        ]

    def record(self, architecture: Any) -> dict[str, Any]:
        """Return what the search's record gets, in the place of the finalists under the supernet's weights.

        Args:
            architecture: The strategy's, of which the subnets are.
        """
        networks = [
            {
                **finalist_record(architecture, Finalist(played.derived, played.loss)),
                "found_by": list(played.sources),
            }
            for played in self.networks
        ]
        return {"finalists_epochs": self.epochs, "finalists": networks}


def check_playoff(config: SearchConfig) -> None:
    """Refuse a training of finalists that cannot be, before a search.

    Raises:
        ConfigError: The subnet itself is not trained, or the search is of a kind that has no such end.
    """
    settings = config.search
    # which has no search at the end of which there could be any, and says what it ignores
    if not settings.finalists_epochs or config.rule == "sensitivity":
        return
    named = f"search.finalists_epochs = {settings.finalists_epochs}"
    if config.retrain is None:
        raise ConfigError(f"{named}, but retrain is null, by whose settings finalists are trained; set it to 0")
    if settings.processes > 1:
        raise ConfigError(f"{named} works in one process; set search.devices and search.nodes to 1, or it to 0")
    if settings.finalists_dtype != "float32":
        raise ConfigError(
            f"{named} compares finalists in float32, but search.finalists_dtype is {settings.finalists_dtype}; set one "
            "of them to its default"
        )


def training_of(config: SearchConfig, data: ImageData) -> tuple[ImageData, RetrainSettings]:
    """Return the images and the recipe of each finalist: the retraining's, without what it is judged on.

    Args:
        config: The search.
        data: Its images.
    """
    settings = config.retraining
    assert settings is not None
    # no finalist sees an image that it is judged on, nor a test image
    return data.without_test(), settings.of_epochs(config.search.finalists_epochs)


def epochs_at_most(config: SearchConfig) -> int:
    """Return how many epochs the networks at the end of a search are trained at most, all together."""
    settings = config.search
    if config.rule == "sensitivity":
        return 0
    has_target = any(getattr(config, name) is not None for name in TARGETS)
    # of a target in MACs all subnets on it have as many
    by_macs = has_target and config.hardware.cost != "macs"
    networks = min(OWN, settings.finalists) + (settings.start == "sensitivity") + by_macs
    return networks * settings.finalists_epochs


def play_off(prepared: Prepared, module: Any, start: SensitivityStart | None, told: Told) -> Playoff:
    """Train the last subnets of a search for `search.finalists_epochs` each, and rank them.

    They train on the threads of the retraining. Each loss is kept in the run folder as it comes, and each training has
    a checkpoint: a run that is killed goes on from the last one, one that a signal ends with the update that it was in.

    Args:
        prepared: What the search stands on.
        module: The strategy's module after the search.
        start: What the inherited weights say, where the search started from that.
        told: Tells the user how far it is.

    Raises:
        TrainingError: No subnet has a finite loss.
    """
    config, epochs = prepared.config, prepared.config.search.finalists_epochs
    field = candidates(prepared, module, start)
    training = _Training.of(prepared)
    keeps = starting_weights(config, prepared.space) == "supernet"
    played = []
    told.stage(f"finalists: {len(field)} are trained for {epochs_in_words(epochs)} each")
    for number, (derived, sources) in enumerate(field):
        sample = module.architecture.export(derived.choice)
        subnet = Subnet(prepared.space, {label: str(choice) for label, choice in sample.items()})
        weights: Mapping[str, Tensor] = {}
        if keeps:
            weights = prepared.space.timm_names(module.derived_network(derived).state_dict(), subnet.choices)
        loss = _loss_of(prepared, subnet, weights, training, told, before=number * epochs)
        told.say(f"  {' and '.join(sources)}: {derived.cost:.4g} {prepared.cost.unit}, loss {loss:.4g}")
        played.append(Played(derived, sources, loss))
    if not any(math.isfinite(each.loss) for each in played):
        raise TrainingError(
            f"none of {len(played)} finalists has a finite loss after {epochs_in_words(epochs)}; lower "
            "retrain.learning_rate"
        )
    # those too of a start that was killed between a loss and this
    for left in config.out.glob("finalist-*.ckpt*"):
        left.unlink(missing_ok=True)
    played.sort(key=lambda each: each.loss if math.isfinite(each.loss) else math.inf)
    return Playoff(epochs, tuple(played))


def candidates(
    prepared: Prepared, module: Any, start: SensitivityStart | None
) -> list[tuple[Derived, tuple[str, ...]]]:
    """Return the distinct subnets that take part, the search's own first, and what has found each."""
    deriver: Deriver = module.deriver()
    found: list[tuple[Derived, str]] = [(finalist.derived, SEARCHED) for finalist in module.finalists[:OWN]]
    if start is not None:
        choices = start.table.choices(start.knapsack)
        found.append((deriver.of(module.architecture.indices(choices)), SENSITIVITY))
    if prepared.target is not None and prepared.config.hardware.cost != "macs":
        costs = prepared.costs
        macs = macs_model(costs.fixed, costs.edges)
        most = most_macs(module.architecture.edges, prepared.cost, macs, prepared.target)
        found.append((deriver.of(most.choice), MOST_MACS))
    distinct: dict[tuple[int, ...], tuple[Derived, tuple[str, ...]]] = {}
    for derived, source in found:
        _, sources = distinct.get(derived.choice, (derived, ()))
        distinct[derived.choice] = derived, tuple(dict.fromkeys((*sources, source)))
    return list(distinct.values())


def most_macs(edges: Sequence[Edge], cost: CostModel, macs: CostModel, target: float) -> Derived:
    """Return the subnet of most multiply-accumulates, to `GAP`, that costs at most a target.

    Args:
        edges: The decisions, parents before their children.
        cost: What each candidate costs.
        macs: Its multiply-accumulates.
        target: Greatest cost.

    Raises:
        TargetError: No subnet is within the target.
    """
    gains = cells(edges, macs)
    # in units that no solver finds large; none is below zero, as edges that are not reached have nothing
    gains /= max(1e-9, float(gains.max()))
    return Deriver(edges, gains, cells(edges, cost), cost.fixed, gap=GAP).within(target)


@dataclass(frozen=True, eq=False)
class _Training:
    """What the trainings of all finalists have in common.

    Attributes:
        data: Their images.
        settings: Their recipe.
        teacher: What teaches them; None: nothing.
        identity: What tells these trainings from others, of any network.
    """

    data: ImageData
    settings: RetrainSettings
    teacher: nn.Module | None
    identity: tuple[Any, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> _Training:
        config = prepared.config
        data, settings = training_of(config, prepared.data)
        # what is to be said of it the retraining says
        teacher = retraining_teacher(config, prepared.space, prepared.data, says=False)
        recipe = settings.model_dump(mode="json", exclude={"checkpoint_every", "threads"})
        taught_by = None if teacher is None else teacher_digest(teacher)
        return cls(data, settings, teacher, (recipe, config.seed, taught_by, data_digest(data)))


def _loss_of(
    prepared: Prepared,
    subnet: Subnet,
    weights: Mapping[str, Tensor],
    training: _Training,
    told: Told,
    before: int,
) -> float:
    config, data, settings, teacher = prepared.config, training.data, training.settings, training.teacher
    build, identity = builder(prepared, subnet, weights, settings)
    key = short_digest([identity, *training.identity])
    path = config.out / FINALISTS_FILE
    kept = kept_losses(path)
    if key not in kept:
        checkpoint = config.out / f"finalist-{key}.ckpt"
        threads = retraining_threads(settings, config.out, build, data, begun=checkpoint.exists(), says=False)
        try:
            with threads.used():
                trained = train(
                    build,
                    data,
                    settings,
                    seed=config.seed,
                    checkpoint=checkpoint,
                    on_place=lambda place: told.at(PHASE, before + place),
                    identity=identity,
                    teacher=teacher,
                ).model
                found = retraining_loss(trained, data, settings, teacher)
            # one may be finite in training alone, by the moments of its batches
            kept[key] = found if math.isfinite(found) else None
        except TrainingError as error:
            print(f"a finalist ranks last: {error}", file=sys.stderr, flush=True)
            kept[key] = None
        values = {"format": FORMAT, "losses": kept}
        write_atomically(path, json.dumps(values, indent=2) + "\n", error=ConfigError)
    loss = kept[key]
    return math.nan if loss is None else loss


def kept_losses(path: Any) -> dict[str, float | None]:
    """Return the losses that an earlier start has left, by what was trained."""
    if not is_there(path):
        return {}
    values = read_json(path, KIND)
    with reading(path, KIND):
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']}, not {FORMAT}")
        return {str(key): None if loss is None else float(loss) for key, loss in values["losses"].items()}


def retraining_loss(model: nn.Module, data: ImageData, settings: RetrainSettings, teacher: nn.Module | None) -> float:
    """Return what a retraining minimises, of the test part of some images as they are: cross-entropy and teacher.

    Args:
        model: A network in evaluation mode.
        data: The images.
        settings: The recipe; its label smoothing and Mixup are the training's alone.
        teacher: The network that taught it; None: there was none.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    taught_by = None if teacher is None else teacher.to(device).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for images, labels in data.loader("test", batch_size=BATCH):
            images, labels = images.to(device), labels.to(device)
            logits = model(images).float()
            loss = functional.cross_entropy(logits, labels)
            if taught_by is not None:
                taught, temperature = taught_by(images), settings.teacher_temperature
                loss = distilled(loss, logits, taught, temperature=temperature, weight=settings.teacher_weight)
            total, count = total + float(loss) * len(labels), count + len(labels)
    return total / count
