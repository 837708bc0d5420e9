"""What makes a search worthless, in sentences that name the setting to change: before it starts, and at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .finalists import Contest

Code = Literal[
    "no_steps_planned",
    "few_steps_planned",
    "no_target",
    "unused_target",
    "idle_target",
    "no_steps_done",
    "half_steps_done",
    "steps_skipped",
    "off_target",
    "not_better",
    "ignored_settings",
]
FEW_STEPS = 50
"""Below so many architecture steps alpha has hardly moved by more than their noise (`tests/benchmarks/target.py`)."""
OFF_TARGET = 0.02
SKIPPED = 0.01


@dataclass(frozen=True)
class SearchWarning:
    """Why the result of a search may be worth little.

    Attributes:
        code: The kind, for programs.
        sentence: For people: what was found, and the setting to change.
    """

    code: Code
    sentence: str


@dataclass(frozen=True)
class Names:
    """What the settings are called where a user sets them.

    Attributes:
        epochs: Number of epochs.
        prefix: What stands before the names of the search's other settings.
        counts_warmup: Whether `epochs` counts the warm-up's epochs, as Lightning's `max_epochs` does.
        contender: The subnet that a search is held against.
    """

    epochs: str = "max_epochs"
    prefix: str = ""
    counts_warmup: bool = True
    contender: str = "the contender"


TRAINER_NAMES = Names()
CONFIG_NAMES = Names("search.epochs", "search.", counts_warmup=False, contender="the sensitivity knapsack")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The schedule of a search.

    >>> Plan(batches=15, epochs=21, warmup_epochs=5, steps_per_update=2).architecture_steps
    112
    >>> Plan(batches=3, epochs=4, warmup_epochs=1, steps_per_update=9).warnings()[0].code
    'no_steps_planned'

    Attributes:
        batches: Training batches of an epoch, in one process.
        epochs: All epochs, those of the warm-up included.
        warmup_epochs: Epochs that train weights alone.
        steps_per_update: Weight steps between two architecture steps.
        accumulate: Batches of a weight step.
    """

    batches: int
    epochs: int
    warmup_epochs: int
    steps_per_update: int
    accumulate: int = 1

    @property
    def first_epoch(self) -> int:
        """The epoch of the first architecture step: as in the paper's released code, one after the warm-up has none."""
        return self.warmup_epochs + 1 if self.warmup_epochs else 0

    @property
    def architecture_steps(self) -> int:
        """How many architecture steps there is room for."""
        return max(0, self.epochs - self.first_epoch) * self.batches // (self.steps_per_update * self.accumulate)

    def warnings(self, names: Names = TRAINER_NAMES) -> list[SearchWarning]:
        """Return what is wrong with the schedule: nothing, or one warning."""
        steps = self.architecture_steps
        if steps >= FEW_STEPS:
            return []
        if steps:
            wanted = self._epochs_for(FEW_STEPS, names)
            return [
                SearchWarning(
                    "few_steps_planned",
                    f"only {steps} architecture steps are planned, which hardly move alpha; for {FEW_STEPS} set "
                    f"{names.epochs} to {wanted}, or lower {names.prefix}steps_per_update ({self.steps_per_update})",
                )
            ]
        return [SearchWarning("no_steps_planned", f"no architecture step is planned: {self._who(names)}")]

    def _who(self, names: Names) -> str:
        if self.batches < 1:
            return "an epoch has no training batch; give more images, or a smaller batch_size"
        weights = max(0, self.epochs - self.first_epoch) * self.batches // self.accumulate
        if self.epochs <= self.first_epoch:
            given = self.epochs if names.counts_warmup else self.epochs - self.warmup_epochs
            least = self.first_epoch + 1 if names.counts_warmup else 1 + (self.first_epoch - self.warmup_epochs)
            return (
                f"{names.epochs} = {given} leaves none after {self.warmup_epochs} warm-up epochs and one more; train "
                f"for at least {least} epochs, or lower {names.prefix}warmup_epochs"
            )
        if weights < 1:
            return f"accumulate_grad_batches = {self.accumulate} is more than all batches after the warm-up; lower it"
        return (
            f"after the warm-up there are {weights} weight steps, but {names.prefix}steps_per_update = "
            f"{self.steps_per_update}; set it to {weights} at most"
        )

    def _epochs_for(self, steps: int, names: Names) -> int:
        needed = self.first_epoch + math.ceil(steps * self.steps_per_update * self.accumulate / self.batches)
        return needed if names.counts_warmup else needed - self.warmup_epochs


def target_warnings(
    *, target: float | None, dearest: float | None, unit: str, objective: str, hint: str = ""
) -> list[SearchWarning]:
    """Return what is wrong with a target: nothing, or one warning.

    Args:
        target: Greatest cost; None: none was set.
        dearest: Cost of the dearest subnet; None where there are no costs.
        unit: What both are in.
        objective: The objective's name; `none` asks for a search without a cost.
        hint: Ends the sentence about an idle target.
    """
    if target is None:
        if objective == "none":
            return []
        return [
            SearchWarning(
                "no_target",
                "there is no target, so that cost takes no part in the search; set one, or objective none to say that "
                "this is meant",
            )
        ]
    if objective == "none":
        return [
            SearchWarning(
                "unused_target",
                f"target {target:.6g} {unit} takes no part in the search, as its objective is none: only the export is "
                "within it; set objective target",
            )
        ]
    if dearest is not None and target >= dearest:
        return [
            SearchWarning(
                "idle_target",
                f"target {target:.6g} {unit} is idle: the dearest subnet costs {dearest:.6g}, so that every subnet is "
                f"within it; lower the target{hint}",
            )
        ]
    return []


def done_warnings(
    *,
    planned: int | None,
    done: int,
    skipped: int,
    expected: float,
    target: float | None,
    unit: str,
    objective: str,
    idle: bool = False,
    lost_to: Contest | None = None,
    names: Names = TRAINER_NAMES,
) -> list[SearchWarning]:
    """Return what a search that has ended did not do.

    Args:
        planned: Planned architecture steps; None where that is not known.
        done: Architecture steps taken, with those skipped.
        skipped: Of these, the steps whose gradient was not finite.
        expected: E[LAT] at the end.
        target: The target; None: none.
        unit: What both are in.
        objective: The objective's name.
        idle: Whether the target binds nothing.
        lost_to: The losses, where a subnet that was found without this search is no worse than its own.
        names: What the settings are called.
    """
    found: list[SearchWarning] = []
    moved, longer = done - skipped, f"{names.epochs} or an early end of the training"
    of_planned = "" if planned is None else f" of {planned} planned"
    if moved < 1:
        who = f"all {done} were skipped, as their gradients were not finite" if done else f"look at {longer}"
        found.append(
            SearchWarning(
                "no_steps_done",
                f"no architecture step was done{of_planned}, so that the subnet is as good as drawn at random: {who}",
            )
        )
    elif planned is not None and moved < planned / 2:
        found.append(
            SearchWarning(
                "half_steps_done",
                f"only {moved}{of_planned} architecture steps were done, fewer than half; look at {longer}",
            )
        )
    if done and skipped > SKIPPED * done:
        found.append(
            SearchWarning(
                "steps_skipped",
                f"{skipped} of {done} architecture steps were skipped, as their gradients were not finite; lower "
                f"{names.prefix}learning_rate, or set {names.prefix}precision to 32-true or bf16-mixed",
            )
        )
    if target is not None and not idle and abs(expected - target) > OFF_TARGET * target:
        found.append(
            SearchWarning(
                "off_target",
                f"the expected cost ended at {expected:.4g} {unit}, {100 * (expected / target - 1):+.1f} % off the "
                f"target {target:.4g}: the export keeps to the target, but was chosen at another cost; "
                f"{_nearer(objective, names)}",
            )
        )
    if lost_to is not None:
        remedy = f"raise {names.epochs}, or do without a search"
        found.append(not_better(lost_to, names.contender, remedy=remedy))
    return found


def not_better(lost_to: Contest, contender: str, *, remedy: str) -> SearchWarning:
    """Return the warning that a subnet found without a search is no worse than the search's own.

    Args:
        lost_to: The losses.
        contender: What the other subnet is called.
        remedy: What to do about it.
    """
    return SearchWarning(
        "not_better",
        f"the search did not beat {contender}: its own subnet has an architecture loss of {lost_to.own:.4g}, that one "
        f"{lost_to.contender:.4g}, both {lost_to.how}; {remedy}",
    )


def _nearer(objective: str, names: Names) -> str:
    if objective == "target":
        return f"raise {names.epochs} or lower {names.prefix}steps_per_update"
    return f"objective {objective} does not land on a target; set objective target, or change objective_options"


def sentences(warnings: Sequence[SearchWarning]) -> list[str]:
    """Return the warnings as plain text, for files and reports."""
    return [warning.sentence for warning in warnings]
