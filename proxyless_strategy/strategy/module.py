"""The Lightning module of a search: its weight steps, its architecture steps, and the subnet that they lead to."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, cast

import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from hardware.errors import ConfigError, TrainingError

from ..norms import FusedNorms
from ..seeds import isolated_seed, mix_seed, seed_everything
from . import finalists, gates, nonfinite, recalibration
from .capturing import Capturing
from .derivation import Derived, Deriver
from .finalists import Contest, Finalist
from .loaders import ArchitectureBatches, SeededLoader, of_one_image
from .objectives import AccuracyOnly, TargetController
from .options import SearchOptions
from .probe import refuse_empty, try_batches
from .rules import GradientUpdate, Problem, ReinforceUpdate, alpha_optimizer, apply_outcome, derived_learning_rate
from .schedulers import Schedulers
from .supernet.frozen import one_path_copy
from .supernet.step_mode import ArchitectureStepMode
from .unlogged import unlogged
from .verdict import TRAINER_NAMES, Code, Names, Plan, SearchWarning, done_warnings
from .wrapper import EvaluatorWrapper

_logger = logging.getLogger(__name__)
_CHECKPOINT_KEY = "proxyless_strategy"
_LOOK_EVERY = 100
"""Weight steps between two looks at whether losses are finite, each of which waits for the device."""


class SearchModule(EvaluatorWrapper):
    """Searches a supernet with the evaluator's own training step, optimiser, metrics and callbacks.

    A weight step runs one sampled path on a training batch. Every `steps_per_update` weight steps, after the warm-up
    and one epoch more, an architecture step runs on a validation batch and moves alpha alone.

    The evaluator's module may define two methods; without them the defaults in brackets are used:

    - `architecture_loss(batch, batch_idx) -> Tensor`: the plain task loss [its `training_step`, without logging].
    - `architecture_accuracy(batch, batch_idx) -> Tensor`: the reward's accuracy in 0..1 [the share of right argmax of
      `module(x)` against `y`, for batches `(x, y)`].

    Args:
        training_module: The evaluator's Lightning module.
        problem: What the update works on.
        update: The rule.
        options: The search's options, with the absolute target.
        target_found: What is wrong with the target, see `verdict.target_warnings`.
        names: What the settings are called in these sentences.
        told: Kinds of them that the user has read already.

    Attributes:
        counters: Steps taken: of weights, of these in the warm-up, of the architecture, and of these skipped.
        finalists: The subnets that were compared, the best first; empty before the end of a search.
        contest: How they stand against the contender; None where there is none, and before the end.
        train_batches: The training loader, once the strategy has made it.
        architecture_batches: The validation batches of architecture steps, likewise.
    """

    def __init__(
        self,
        training_module: Any,
        *,
        problem: Problem,
        update: GradientUpdate | ReinforceUpdate,
        options: SearchOptions,
        target_found: Sequence[SearchWarning] = (),
        names: Names = TRAINER_NAMES,
        told: Collection[Code] = (),
    ):
        super().__init__(training_module)
        # The names of these attributes are part of every checkpoint's keys (`architecture.alpha`).
        self.architecture = problem.architecture
        self.supernet = problem.supernet
        self.problem = problem
        self.update = update
        self.options = options
        self.target_found = tuple(target_found)
        self.names = names
        self.told = told
        self.finalists: list[Finalist] = []
        self.contest: Contest | None = None
        self.counters = {"warmup": 0, "weights": 0, "architecture": 0, "skipped": 0}
        self.train_batches: SeededLoader | None = None
        self.architecture_batches: ArchitectureBatches | None = None
        self._schedulers = Schedulers()
        self._mode: ArchitectureStepMode | None = None  # the network is known when a fit starts, not before
        self._norms: AbstractContextManager[None] = nullcontext()  # likewise
        self._micro = 0  # batches of the weight step under way that have been added up
        self._paths: list[int] = []  # what it runs
        self._rate_is_set = options.learning_rate is not None
        self._bad_loss = nonfinite.FirstBadLoss()
        self._capturing = Capturing(options.capture)
        self._plan: Plan | None = None  # once training has started
        self._bad_batch = ""  # what is wrong with a batch that finalists were compared on
        # DDP reads this name. Alpha's gradient comes from no backward pass, and each rank computes the whole of it.
        self._ddp_params_and_buffers_to_ignore = [f"architecture.{name}" for name in self.architecture.state_dict()]

    # ---- optimisers and schedule -------------------------------------------------------------------------------

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam on alpha alone; its rate is set when training starts and the number of steps is known."""
        return alpha_optimizer(self.architecture, self.options.learning_rate or 1e-3)

    def postprocess_weight_optimizers(self, optimizers: Any) -> Any:
        """Take over the evaluator's schedulers."""
        return self._schedulers.adopt(optimizers)

    def plan(self) -> Plan:
        """Return the schedule that the trainer's epochs give.

        Raises:
            ConfigError: The training loader has no length, or there is no last epoch.
        """
        batches, epochs = self.trainer.num_training_batches, self.trainer.max_epochs
        if math.isinf(batches):
            raise ConfigError(
                "the training loader has no length, so that architecture steps cannot be planned; give it one, or set "
                "limit_train_batches of the Trainer to the number of batches that make an epoch"
            )
        if epochs is None or epochs < 0:
            raise ConfigError(
                f"max_epochs = {epochs} has no end, so that architecture steps cannot be planned; set max_epochs"
            )
        options = self.options
        return Plan(
            batches=int(batches),
            epochs=epochs,
            warmup_epochs=options.warmup_epochs,
            steps_per_update=options.steps_per_update,
            accumulate=options.accumulate_grad_batches,
        )

    def planned_architecture_steps(self) -> int:
        """Return how many architecture steps the trainer's epochs leave room for."""
        return self.plan().architecture_steps

    @property
    def first_architecture_epoch(self) -> int:
        """The epoch of the first architecture step: as in the paper's released code, one after the warm-up has none."""
        return self.options.warmup_epochs + 1 if self.options.warmup_epochs else 0

    def on_train_start(self) -> None:
        plan, options = self.plan(), self.options
        steps, found = plan.architecture_steps, plan.warnings(self.names)
        if steps < 1:
            raise ConfigError(found[0].sentence)
        for warning in (*self.target_found, *found):
            if warning.code not in self.told:
                _logger.warning("%s", warning.sentence)
        self._plan = plan
        self.problem.objective.plan(steps)
        if not self._rate_is_set:
            dense, candidates = options.moves_every_candidate, self.architecture.alpha.shape[1]
            rate = derived_learning_rate(options.rule, steps, candidates, dense=dense)
            for group in self._architecture_optimizer().param_groups:
                group["lr"] = rate
            _logger.info("architecture learning rate %.4g, derived from %d planned architecture steps", rate, steps)
        with self._measuring():
            try_batches(self)
        super().on_train_start()

    def planned_warnings(self) -> list[SearchWarning]:
        """Return what can be said before the first step: of the target and, once training has started, the schedule."""
        return [*self.target_found, *([] if self._plan is None else self._plan.warnings(self.names))]

    def warnings(self) -> list[SearchWarning]:
        """Return why the result may be worth little: `planned_warnings`, and what the search did not do."""
        target, objective = self.options.target, self.problem.objective
        expected = self.problem.fixed + self.architecture.expected_cost(
            self.architecture.probabilities(), self.problem.costs
        )
        return self.planned_warnings() + done_warnings(
            planned=None if self._plan is None else self._plan.architecture_steps,
            done=self.counters["architecture"],
            skipped=self.counters["skipped"],
            expected=expected,
            target=target,
            unit="" if self.options.cost is None else self.options.cost.unit,
            objective="none" if isinstance(objective, AccuracyOnly) else self.options.objective,
            idle=any(warning.code == "idle_target" for warning in self.target_found),
            lost_to=None if self.contest is None or self.contest.is_won else self.contest,
            names=self.names,
        )

    def _architecture_optimizer(self) -> torch.optim.Optimizer:
        # Lightning's wrapper would count alpha's steps as `global_step`, on which users' checkpoints and logs depend.
        found = self.architecture_optimizers()
        return cast(torch.optim.Optimizer, getattr(found, "optimizer", found))

    def _weight_optimizers(self) -> list[Any]:
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        return [optimizer for optimizer in optimizers if not getattr(optimizer, "is_arch_optimizer", False)]

    # ---- both steps --------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.finalists, self.contest = [], None
        # Lightning has set up its strategy by now, so that the mode finds synchronised batch norms, not the originals.
        self._mode = ArchitectureStepMode(self.training_module)
        self._norms = FusedNorms(self.training_module, self.options.norm, setting=f"{self.names.prefix}norm")
        self._capturing.start(self.training_module, self.trainer.strategy.root_device, self.trainer.world_size)
        refuse_empty(self)
        if self.options.judge is not None and self.trainer.world_size > 1:
            raise ConfigError(f"judge works in one process, not in {self.trainer.world_size}; leave it out")
        super().on_fit_start()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Take one weight step (or one part of it), and an architecture step where one is due."""
        # Seeding anew for each step makes dropout a function of the step's number: a search that resumes in the middle
        # of an epoch need not know what was drawn before.
        seed, step = self.problem.seed, self.counters["weights"]
        seed_everything(mix_seed(seed, 1, step, self._micro, self.global_rank))
        loss = self._weight_step(batch, batch_idx)
        if self._micro == 0 and self._architecture_due():
            seed_everything(mix_seed(seed, 2, self.counters["architecture"], self.global_rank))
            self._architecture_step(batch_idx)
        self._advance_schedulers("step", batch_idx + 1)
        if self.train_batches is not None:
            # Lightning fetches a batch ahead, so that only this step knows what has been trained on.
            self.train_batches.position = batch_idx + 1
        return loss

    def on_train_epoch_end(self) -> None:
        self._bad_loss.refuse_together(self.trainer, self.problem.reduce)
        super().on_train_epoch_end()
        self._advance_schedulers("epoch", self.current_epoch + 1)
        if self.train_batches is not None:
            self.train_batches.finish_epoch()

    def _advance_schedulers(self, interval: Any, done: int) -> None:
        self._schedulers.advance(self.trainer, interval, done, self.training_module.lr_scheduler_step)

    def in_warmup(self) -> bool:
        """Return whether this epoch trains weights alone, on uniform paths."""
        return self.current_epoch < self.options.warmup_epochs

    def _architecture_due(self) -> bool:
        return (
            self.current_epoch >= self.first_architecture_epoch
            and self.counters["weights"] % self.options.steps_per_update == 0
        )

    def draw_paths(self) -> list[int]:
        """Return the next weight step's path, one candidate index per edge."""
        shape, seed = tuple(self.architecture.alpha.shape), self.problem.seed
        mask, even = self.architecture.host_mask, torch.zeros(shape, dtype=torch.float64)
        if self.in_warmup():
            counter = self.counters["warmup"]
            if self.options.warmup_paths == "fair":
                return gates.fair_paths(seed, gates.Phase.WARMUP, counter, mask).tolist()
            return gates.sample_paths(even, mask, gates.uniforms(seed, gates.Phase.WARMUP, counter, shape)).tolist()
        counter = self.counters["weights"] - self.counters["warmup"]
        u = gates.uniforms(seed, gates.Phase.WEIGHTS, counter, shape)
        alpha = even if self.options.weight_paths == "uniform" else self.architecture.host_alpha()
        return gates.sample_paths(alpha, mask, u).tolist()

    def _weight_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        optimizers, options = self._weight_optimizers(), self.options
        if self._micro == 0:
            self._paths = self.draw_paths()
            for optimizer in optimizers:
                # Optimisers skip a gradient that is None, but move a weight whose gradient is 0 by momentum and decay:
                # candidates off the path must stay as they are.
                optimizer.zero_grad(set_to_none=True)
        capturing = self._capturing.of(self.supernet.selector, self.train_batches, batch)
        one_image = of_one_image(f"training batch {batch_idx + 1} has one image")
        with self._norms, capturing, self.supernet.running(self._paths), one_image:
            output = self.training_module.training_step(batch, batch_idx)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if loss is not None:
                self.manual_backward(loss / options.accumulate_grad_batches)
        if loss is not None:
            self._look_at(loss, batch, batch_idx, optimizers)
        self._micro += 1
        last = bool(self.trainer.is_last_batch)
        if self._micro >= options.accumulate_grad_batches or last:
            self._micro = 0
            for optimizer in optimizers:
                self.training_module.configure_gradient_clipping(
                    optimizer, options.gradient_clip_val, options.gradient_clip_algorithm
                )
                # Lightning calls this hook on its own module alone, which is this one.
                self.training_module.on_before_optimizer_step(optimizer)
                self.training_module.optimizer_step(self.current_epoch, batch_idx, optimizer)
            self.counters["weights"] += 1
            if self.in_warmup():
                self.counters["warmup"] += 1
        return None if loss is None else loss.detach()

    def _look_at(self, loss: Tensor, batch: Any, batch_idx: int, optimizers: list[Any]) -> None:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        weights = (weight for group in groups for weight in group["params"] if weight.grad is not None)
        self._bad_loss.note(self.current_epoch, batch_idx, loss=loss, batch=batch, weights=weights)
        # On several processes they look together, at the epoch's end: one that stopped alone would leave the others
        # waiting for it.
        due = nonfinite.asks_for_free(loss.device) or self.counters["weights"] % _LOOK_EVERY == 0
        if due and self.trainer.world_size == 1:
            self._bad_loss.refuse(self.trainer)

    def _architecture_step(self, batch_idx: int) -> None:
        assert self.architecture_batches is not None
        batch = self.ready(self.architecture_batches.next())
        # Processes may have more and fewer images of a last batch: the step is the mean over images, not processes.
        weight = self.architecture_batches.weight(batch, self.problem.reduce)
        step = self.counters["architecture"]
        loss_based = self.options.rule == "gradient"

        def task() -> Tensor:
            found = self.task_loss(batch, batch_idx) if loss_based else self.task_accuracy(batch, batch_idx)
            return found * weight

        # Without gradients from the start, weights keep requiring one: only then does autocast keep a weight's cast for
        # all samples.
        gradients = torch.set_grad_enabled(loss_based)
        capturing = self._capturing.of(self.supernet.selector, self.architecture_batches.loader(), batch)
        with capturing, gradients, self._measuring(), of_one_image("a validation batch has one image"):
            outcome = self.update.compute(self.problem, task, step, scale=self.loss_scale())
        # The step has waited for the device, so that asking costs nothing now.
        if self.trainer.world_size == 1:
            self._bad_loss.refuse(self.trainer)
        if not math.isfinite(outcome.task):
            what = "loss" if loss_based else "accuracy"
            raise nonfinite.stopped(
                f"the {what} of architecture step {step + 1} became {outcome.task:g}: "
                f"{self._bad_loss.blame_now(batch, self.training_module)}",
                self.trainer,
            )
        self.counters["architecture"] += 1
        if outcome.gradient is None:
            # In float16 a scaled gradient may overflow now and then, as in a weight step.
            self.counters["skipped"] += 1
            _logger.warning("architecture step %d skipped: its gradient is not finite", step)
            return
        apply_outcome(self.architecture, self._architecture_optimizer(), outcome)
        objective = self.problem.objective
        objective.update(outcome.expected)
        self.log(f"search/architecture_{'loss' if loss_based else 'accuracy'}", outcome.task)
        self.log("search/entropy", outcome.entropy, prog_bar=True)
        self.log("search/expected", outcome.expected, prog_bar=True)
        if isinstance(objective, TargetController):
            self.log("search/multiplier", objective.multiplier)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Run validation batches so that neither weights, buffers, logs nor metrics change."""
        assert self._mode is not None
        with self._norms, self._mode.active(), unlogged(self.training_module):
            yield

    # ---- the derived subnet ------------------------------------------------------------------------------------

    def deriver(self) -> Deriver:
        """Return a deriver on the present probabilities."""
        log_p = gates.log_probabilities(self.architecture.host_alpha(), self.architecture.host_mask)
        return Deriver(self.architecture.edges, log_p.numpy(), self.problem.costs.numpy(), self.problem.fixed)

    def derive(self) -> Derived:
        """Return what is exported: after a search its best finalist (see `choose`), before the most probable subnet.

        With a target, the subnet costs at most the target and, if possible, at least (1 - slack) of it; argmax alone
        guarantees neither.
        """
        if self.finalists:
            return self.finalists[0].derived
        deriver, target = self.deriver(), self.options.target
        return deriver.most_probable() if target is None else deriver.within(target, slack=self.options.slack)

    def on_train_end(self) -> None:
        self._capturing.end()  # finalists, export and retraining have the memory
        self.choose()
        super().on_train_end()

    def choose(self) -> None:
        """Rank the most probable subnets on the target by their loss with the supernet's weights.

        Probabilities say which subnets are likely to be good, not which of two neighbours is better: their logarithms
        are sums over edges of noisy steps.
        """
        if self.finalists:
            return
        options = self.options
        if self.counters["weights"] < 1:
            raise TrainingError(
                "not one weight step was taken, so that there is nothing to choose by; give the training loader images "
                "and the Trainer epochs"
            )
        if options.finalists == 1:
            found = [self.derive()]
        else:
            found = self.deriver().finalists(options.finalists, options.target, slack=options.slack)
        own, contender = len(found), None
        if options.contender is not None:
            contender = self.deriver().of(self.architecture.indices(options.contender))
            found += [contender] if contender.choice not in [derived.choice for derived in found] else []
        compared = len(found) > 1 or contender is not None
        losses = self._losses_of(found) if compared else [math.nan]
        if compared and not any(map(math.isfinite, losses)):
            raise nonfinite.stopped(
                f"none of {len(found)} finalists has a finite loss on validation batches{self._bad_batch}, so that "
                "there is nothing to choose by",
                self.trainer,
            )
        self.contest = None if contender is None else finalists.contest(found, losses, own, contender)
        self.finalists = finalists.ranked(found, losses)
        for warning in self.warnings():
            if warning not in self.planned_warnings():
                _logger.warning("%s", warning.sentence)

    def _losses_of(self, found: list[Derived]) -> list[float]:
        """Return each subnet's mean loss over validation batches, in the mode of an architecture step.

        REINFORCE, whose evaluator need not have a loss of validation batches, compares error rates where there is no
        `architecture_loss`. A `judge` takes the place of either.
        """
        if (judge := self.options.judge) is not None:
            return [float(judge(self.architecture.export(one.choice), self.derived_network(one))) for one in found]
        assert self.architecture_batches is not None
        has_loss = self.options.rule == "gradient" or hasattr(self.training_module, "architecture_loss")

        def loss(derived: Derived, batch: Any, index: int) -> float:
            with self.supernet.running(list(derived.choice)):
                value = self.task_loss(batch, index) if has_loss else 1 - self.task_accuracy(batch, index)
            found = float(value) * batches.weight(batch, index, self.problem.reduce)
            if not math.isfinite(found) and not self._bad_batch and not nonfinite.is_finite(batch):
                self._bad_batch = f" (batch {index + 1} holds values that are not finite; mend these images)"
            return found

        seed = mix_seed(self.problem.seed, finalists.STREAM, self.global_rank)
        precision = self.trainer.precision_plugin.forward_context()  # on_train_end is outside of Lightning's own
        batches = self.architecture_batches.twin(stream=finalists.STREAM)
        with self._measuring(), isolated_seed(seed), torch.no_grad(), precision:
            means = finalists.mean_losses(found, map(self.ready, batches), loss)
        return self.problem.reduce(means).tolist()

    def export(self) -> dict[str, Any]:
        """Return NNI's sample of the derived subnet."""
        return self.architecture.export(self.derive().choice)

    def export_probs(self) -> dict[str, Any]:
        """Return the probability of each candidate by label."""
        p = self.architecture.probabilities()
        return {
            edge.label: dict(zip(edge.candidates, p[row].tolist(), strict=False))
            for row, edge in enumerate(self.architecture.edges)
        }

    def derived_network(self, derived: Derived | None = None) -> nn.Module:
        """Return a copy of a subnet with the supernet's weights and re-estimated BN statistics.

        Args:
            derived: The subnet; None: what is exported.
        """
        choice = (derived or self.derive()).choice
        space = cast(ModelSpace, self.model)
        network = one_path_copy(space, self.supernet, choice, self.architecture.export(choice))
        count, batches = self.options.calibration_batches, self.train_batches
        if count > 0 and batches is not None and recalibration.tracked_norms(network):
            inputs = self.options.inputs or recalibration.first_of_batch
            recalibration.recalibrate(
                network,
                batches.twin(stream=recalibration.STREAM),
                lambda batch: network(inputs(self.ready(batch))),
                count=count,
                seed=mix_seed(self.problem.seed, recalibration.STREAM),
            )
            if self.trainer.world_size > 1:
                recalibration.average_statistics(network, self.problem.reduce)
        return network.eval()

    # ---- state -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A state after such a step is lost: what is on disk must stay the last good one.
        self._bad_loss.refuse(self.trainer)
        super().on_save_checkpoint(checkpoint)
        train, architecture = self.train_batches, self.architecture_batches
        checkpoint[_CHECKPOINT_KEY] = {
            "counters": dict(self.counters),
            "update": self.update.state_dict(),
            "objective": self.problem.objective.state_dict(),
            "train_batches": None if train is None else train.state_dict(),
            "architecture_batches": None if architecture is None else architecture.state_dict(),
            "labels": list(self.architecture.labels),
            "seed": self.problem.seed,
            "plan": None if self._plan is None else asdict(self._plan),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(_CHECKPOINT_KEY)
        if state is None:
            raise ConfigError("the checkpoint was not written by ProxylessStrategy; start the search without it")
        if state["labels"] != list(self.architecture.labels) or state["seed"] != self.problem.seed:
            raise ConfigError(
                f"the checkpoint belongs to another search (seed {state['seed']}, {len(state['labels'])} edges; this "
                f"one has seed {self.problem.seed}, {len(self.architecture.labels)} edges); give its own settings"
            )
        self.finalists = []
        self.counters.update(state["counters"])
        self._plan = Plan(**state["plan"]) if state.get("plan") else None
        self.update.load_state_dict(state["update"])
        self.problem.objective.load_state_dict(state["objective"])
        if self.train_batches is not None and state["train_batches"] is not None:
            self.train_batches.load_state_dict(state["train_batches"])
        if self.architecture_batches is not None and state["architecture_batches"] is not None:
            self.architecture_batches.load_state_dict(state["architecture_batches"])
        self._rate_is_set = True  # the checkpoint's optimiser state has it
