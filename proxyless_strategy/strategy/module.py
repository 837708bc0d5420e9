"""The Lightning module of a search: warm-up, weight steps, architecture steps, validation of the derived subnet."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import nni.nas.strategy  # noqa: F401 - before nni.nas.oneshot, else NNI's public strategies become stubs
import torch
import torchmetrics
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardware.errors import ConfigError, DataError

from ..seeds import isolated_seed, mix_seed, seed_everything
from . import gates
from .architecture import ArchitectureParameters
from .derivation import Derived, Deriver
from .loaders import ArchitectureBatches, SeededLoader
from .rules import GradientUpdate, Problem, ReinforceUpdate, alpha_optimizer, apply_outcome, derived_learning_rate
from .supernet.frozen import OnePath, freezing_keeps_weights, frozen_copy
from .supernet.space import Supernet
from .supernet.step_mode import ArchitectureStepMode

_logger = logging.getLogger(__name__)
_CHECKPOINT_KEY = "proxyless_strategy"
_CALIBRATION_STREAM = 2
_FINALISTS_STREAM = 3
_FINALIST_BATCHES = 32


@dataclass(frozen=True)
class Finalist:
    """One of the most probable subnets of a search.

    Attributes:
        derived: The subnet.
        loss: Its mean loss on validation batches with the supernet's weights (see `SearchModule.choose`); NaN where it
            was not compared.
    """

    derived: Derived
    loss: float


class SearchModule(BaseOneShotLightningModule):
    """Searches a supernet with the evaluator's own training step, optimiser, metrics and callbacks.

    A weight step runs one sampled path on a training batch. Every `steps_per_update` weight steps, after the warm-up
    and one epoch more, an architecture step runs on a validation batch and moves alpha alone.

    The evaluator's module may define two methods; without them the defaults in brackets are used:

    - `architecture_loss(batch, batch_idx) -> Tensor`: the plain task loss [its `training_step`, without logging].
    - `architecture_accuracy(batch, batch_idx) -> Tensor`: the reward's accuracy in 0..1 [the share of right argmax of
      `module(x)` against `y`, for batches `(x, y)`].

    Args:
        training_module: The evaluator's Lightning module.
        supernet: The mutated space's paths.
        architecture: Holds alpha.
        problem: What the update works on; its `reduce` is set here.
        update: The rule.
        warmup_epochs: Epochs of uniform paths with alpha untouched.
        warmup_paths: How these are drawn: independently, or each candidate equally often.
        weight_paths: How later weight steps draw theirs: from the probabilities, or uniformly.
        steps_per_update: Weight steps between two architecture steps.
        learning_rate: Adam's rate for alpha; None derives it from the planned number of steps.
        gradient_clip_val: Clips the weights' gradients.
        gradient_clip_algorithm: `norm` or `value`.
        accumulate_grad_batches: Batches per weight step, all on the same path.
        budget: Cost within which the subnet is derived; None: any.
        slack: Share of the budget that the derived subnet may leave unused.
        finalists: Most probable subnets that are compared by their loss after the search.
        calibration_batches: Training batches that re-estimate the derived subnet's BN statistics for validation.
        inputs: From a batch to the network's input.
    """

    def __init__(
        self,
        training_module: Any,
        *,
        supernet: Supernet,
        architecture: ArchitectureParameters,
        problem: Problem,
        update: GradientUpdate | ReinforceUpdate,
        warmup_epochs: int,
        warmup_paths: gates.WarmupPaths,
        weight_paths: gates.WeightPaths,
        steps_per_update: int,
        learning_rate: float | None,
        gradient_clip_val: float | None,
        gradient_clip_algorithm: str | None,
        accumulate_grad_batches: int,
        budget: float | None,
        slack: float | None,
        finalists: int,
        calibration_batches: int,
        inputs: Callable[[Any], Any] | None,
    ):
        super().__init__(training_module)
        self.architecture = architecture
        self.supernet = supernet
        self.problem = problem
        self.update = update
        self.warmup_epochs = warmup_epochs
        self.warmup_paths = warmup_paths
        self.weight_paths = weight_paths
        self.steps_per_update = steps_per_update
        self.learning_rate = learning_rate
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self.budget = budget
        self.slack = slack
        self.count = finalists
        self.finalists: list[Finalist] = []
        self.calibration_batches = calibration_batches
        self.inputs = inputs or first_of_batch
        self.counters = {"warmup": 0, "weights": 0, "architecture": 0, "skipped": 0}
        self.train_batches: SeededLoader | None = None
        self.architecture_batches: ArchitectureBatches | None = None
        self._mode: ArchitectureStepMode | None = None
        self._micro = 0
        self._paths: list[int] = []
        self._restored = False
        self._watched: dict[int, tuple[str, bool]] = {}
        self._ddp_params_and_buffers_to_ignore = [f"architecture.{name}" for name in architecture.state_dict()]

    # ---- optimisers and schedule -------------------------------------------------------------------------------

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Adam on alpha alone; its rate is set when training starts and the number of steps is known."""
        return alpha_optimizer(self.architecture, self.learning_rate or 1e-3)

    def planned_architecture_steps(self) -> int:
        """Architecture steps that the trainer's epochs leave room for."""
        batches = self.trainer.num_training_batches
        epochs = (self.trainer.max_epochs or 0) - self._first_architecture_epoch
        return int(max(0, epochs) * batches // (self.steps_per_update * self.accumulate_grad_batches))

    @property
    def _first_architecture_epoch(self) -> int:
        return self.warmup_epochs + 1 if self.warmup_epochs else 0

    def on_train_start(self) -> None:
        steps = self.planned_architecture_steps()
        if steps < 1:
            raise ConfigError(
                f"max_epochs = {self.trainer.max_epochs} leaves no architecture step after {self.warmup_epochs} "
                f"warm-up epochs and one more; train for at least {self._first_architecture_epoch + 1} epochs"
            )
        self.problem.objective.plan(steps)
        if self.learning_rate is None and not self._restored:
            dense = isinstance(self.update, GradientUpdate) and (
                self.update.paths == "all" or self.update.estimator == "unbiased"
            )
            rule = "reinforce" if isinstance(self.update, ReinforceUpdate) else "gradient"
            rate = derived_learning_rate(rule, steps, self.architecture.alpha.shape[1], dense=dense)
            for group in self._architecture_optimizer().param_groups:
                group["lr"] = rate
            _logger.info("architecture learning rate %.4g, derived from %d planned architecture steps", rate, steps)
        super().on_train_start()

    def _architecture_optimizer(self) -> torch.optim.Optimizer:
        found = self.architecture_optimizers()
        return cast(torch.optim.Optimizer, getattr(found, "optimizer", found))

    def _weight_optimizers(self) -> list[Any]:
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        return [optimizer for optimizer in optimizers if not getattr(optimizer, "is_arch_optimizer", False)]

    # ---- training ----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.finalists = []
        self._mode = ArchitectureStepMode(self.training_module)
        super().on_fit_start()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One weight step (or one part of it), and an architecture step where one is due."""
        step = self.counters["weights"]
        seed_everything(mix_seed(self.problem.seed, 1, step, self._micro, self.global_rank))
        loss = self._weight_step(batch, batch_idx)
        if self._micro == 0 and self._architecture_due():
            seed_everything(mix_seed(self.problem.seed, 2, self.counters["architecture"], self.global_rank))
            self._architecture_step(batch_idx)
        self._advance_schedulers(batch_idx, "step")
        if self.train_batches is not None:
            self.train_batches.position = batch_idx + 1
        return loss

    def _in_warmup(self) -> bool:
        return self.current_epoch < self.warmup_epochs

    def _architecture_due(self) -> bool:
        return (
            self.current_epoch >= self._first_architecture_epoch
            and self.counters["weights"] % self.steps_per_update == 0
        )

    def _draw_paths(self) -> list[int]:
        shape = tuple(self.architecture.alpha.shape)
        mask, even = self.architecture.host_mask, torch.zeros(shape, dtype=torch.float64)
        if self._in_warmup():
            if self.warmup_paths == "fair":
                return gates.fair_paths(self.problem.seed, gates.Phase.WARMUP, self.counters["warmup"], mask).tolist()
            u = gates.uniforms(self.problem.seed, gates.Phase.WARMUP, self.counters["warmup"], shape)
            return gates.sample_paths(even, mask, u).tolist()
        counter = self.counters["weights"] - self.counters["warmup"]
        u = gates.uniforms(self.problem.seed, gates.Phase.WEIGHTS, counter, shape)
        alpha = even if self.weight_paths == "uniform" else self.architecture.host_alpha()
        return gates.sample_paths(alpha, mask, u).tolist()

    def _weight_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        optimizers = self._weight_optimizers()
        if self._micro == 0:
            self._paths = self._draw_paths()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
        with self.supernet.running(self._paths):
            output = self.training_module.training_step(batch, batch_idx)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if loss is not None:
                self.manual_backward(loss / self.accumulate_grad_batches)
        self._micro += 1
        last = bool(self.trainer.is_last_batch)
        if self._micro >= self.accumulate_grad_batches or last:
            self._micro = 0
            for optimizer in optimizers:
                self.training_module.configure_gradient_clipping(
                    optimizer, self.gradient_clip_val, self.gradient_clip_algorithm
                )
                self.training_module.on_before_optimizer_step(optimizer)
                self.training_module.optimizer_step(self.current_epoch, batch_idx, optimizer)
            self.counters["weights"] += 1
            if self._in_warmup():
                self.counters["warmup"] += 1
        return None if loss is None else loss.detach()

    def _ready(self, batch: Any) -> Any:
        """A batch in the trainer's precision, on the network's device, which after a fit is no longer the trainer's."""
        return self.trainer.strategy.batch_to_device(self.trainer.precision_plugin.convert_input(batch), self.device)

    def _architecture_step(self, batch_idx: int) -> None:
        assert self.architecture_batches is not None
        assert self._mode is not None
        batch = self._ready(self.architecture_batches.next())
        step = self.counters["architecture"]
        loss_based = isinstance(self.update, GradientUpdate)

        def task() -> Tensor:
            return self._task_loss(batch, batch_idx) if loss_based else self._accuracy(batch, batch_idx)

        with ExitStack() as stack:
            stack.enter_context(self._mode.active())
            stack.enter_context(self._unlogged())
            outcome = self.update.compute(self.problem, task, step, scale=self._loss_scale())
        self.counters["architecture"] += 1
        if outcome.gradient is None:
            self.counters["skipped"] += 1
            _logger.warning("architecture step %d skipped: its gradient is not finite", step)
            return
        apply_outcome(self.architecture, self._architecture_optimizer(), outcome)
        self.problem.objective.update(outcome.expected)
        name = "architecture_loss" if loss_based else "architecture_accuracy"
        self.log(f"search/{name}", outcome.task)
        self.log("search/entropy", outcome.entropy, prog_bar=True)
        self.log("search/expected", outcome.expected, prog_bar=True)
        multiplier = getattr(self.problem.objective, "multiplier", None)
        if multiplier is not None:
            self.log("search/multiplier", multiplier)

    def _loss_scale(self) -> Tensor | None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            return None
        return scaler.scale(torch.ones((), device=self.device))

    def _task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        own = getattr(self.training_module, "architecture_loss", None)
        output = own(batch, batch_idx) if own is not None else self.training_module.training_step(batch, batch_idx)
        return output["loss"] if isinstance(output, Mapping) else output

    def _accuracy(self, batch: Any, batch_idx: int) -> Tensor:
        own = getattr(self.training_module, "architecture_accuracy", None)
        if own is not None:
            return own(batch, batch_idx)
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
            raise ConfigError(
                f"REINFORCE needs an accuracy, but batches are {type(batch).__name__}, not (x, y); define "
                "architecture_accuracy(batch, batch_idx) in the evaluator's module"
            )
        return (self.training_module(batch[0]).argmax(-1) == batch[1]).float().mean()

    @contextmanager
    def _unlogged(self) -> Iterator[None]:
        """Architecture steps leave the evaluator's logs and metric states alone."""
        module = self.training_module
        log, module.log = module.log, lambda *args, **kwargs: None
        metrics = [m for m in module.modules() if isinstance(m, torchmetrics.Metric)]
        saved = [({k: _copied(getattr(m, k)) for k in m._defaults}, m._update_count, m._computed) for m in metrics]
        try:
            yield
        finally:
            module.log = log
            for metric, (state, count, computed) in zip(metrics, saved, strict=True):
                for key, value in state.items():
                    setattr(metric, key, value)
                metric._update_count, metric._computed = count, computed

    def postprocess_weight_optimizers(self, optimizers: Any) -> Any:
        """Note what plateau schedulers watch: Lightning drops it under manual optimisation."""
        return _each_scheduler(optimizers, self._noting_monitor)

    def _noting_monitor(self, scheduler: Any, monitor: str | None) -> Any:
        settings = scheduler if isinstance(scheduler, dict) else {"scheduler": scheduler}
        inner = settings["scheduler"]
        if isinstance(inner, torch.optim.lr_scheduler.ReduceLROnPlateau):
            watched = settings.get("monitor", monitor)
            if watched is None:
                raise ConfigError(
                    "ReduceLROnPlateau needs a metric to watch; return {'optimizer': ..., 'lr_scheduler': "
                    "{'scheduler': ..., 'monitor': 'val_loss'}} from configure_optimizers"
                )
            self._watched[id(inner)] = (watched, settings.get("strict", True))
        return {k: v for k, v in settings.items() if k not in ("monitor", "strict", "reduce_on_plateau")}

    def _advance_schedulers(self, batch_idx: int, interval: str) -> None:
        done = (batch_idx if interval == "step" else self.current_epoch) + 1
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval or done % config.frequency:
                continue
            metric = None
            if id(config.scheduler) in self._watched:
                monitor, strict = self._watched[id(config.scheduler)]
                metric = self.trainer.callback_metrics.get(monitor)
                if metric is None and strict:
                    raise ConfigError(
                        f"ReduceLROnPlateau watches {monitor!r}, which was not logged; known metrics are "
                        f"{', '.join(self.trainer.callback_metrics)}"
                    )
                if metric is None:
                    continue
            self.training_module.lr_scheduler_step(config.scheduler, metric)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self._advance_schedulers(0, "epoch")
        if self.train_batches is not None:
            self.train_batches.finish_epoch()

    # ---- deriving and validating -------------------------------------------------------------------------------

    def deriver(self) -> Deriver:
        """A deriver on the present probabilities."""
        log_p = gates.log_probabilities(self.architecture.host_alpha(), self.architecture.host_mask)
        return Deriver(self.architecture.edges, log_p.numpy(), self.problem.costs.numpy(), self.problem.fixed)

    def derive(self) -> Derived:
        """What is exported: the best finalist after a search (see `choose`), before that the most probable subnet.

        Either is on the target where there is one: within it and, where such subnets exist, using all but `slack` of
        it, as E[LAT] on T does not put the argmax on T. Every validation of a search is before its end, hence of the
        most probable subnet.
        """
        if self.finalists:
            return self.finalists[0].derived
        deriver = self.deriver()
        return deriver.most_probable() if self.budget is None else deriver.within(self.budget, slack=self.slack)

    def on_train_end(self) -> None:
        self.choose()
        super().on_train_end()

    def choose(self) -> None:
        """Rank the most probable subnets on the target by their loss with the supernet's weights.

        Probabilities say which subnets are likely to be good, not which of two neighbours is better: their logarithms
        are sums over edges of noisy steps. All finalists see the same validation batches, in the mode of an
        architecture step. REINFORCE, whose evaluator need not have a loss of validation batches, compares error rates
        where there is no `architecture_loss`. A loss that is not finite ranks last; on a tie the more probable subnet
        is first.
        """
        if self.finalists:
            return
        one = self.count == 1
        found = [self.derive()] if one else self.deriver().finalists(self.count, self.budget, slack=self.slack)
        losses = self._losses_of(found) if len(found) > 1 else [math.nan]
        ranked = [Finalist(derived, loss) for derived, loss in zip(found, losses, strict=True)]
        self.finalists = sorted(ranked, key=lambda f: f.loss if math.isfinite(f.loss) else math.inf)
        best = self.finalists[0]
        if math.isfinite(best.loss):
            rank = 1 + found.index(best.derived)
            _logger.info(
                "of %d finalists number %d by probability has the least loss, %.4g", len(found), rank, best.loss
            )

    def _losses_of(self, found: list[Derived]) -> list[float]:
        """Mean loss of each subnet over validation batches, see `choose`."""
        assert self.architecture_batches is not None
        assert self._mode is not None
        sums = torch.zeros(len(found), dtype=torch.float64)
        has_loss = isinstance(self.update, GradientUpdate) or hasattr(self.training_module, "architecture_loss")
        seed = mix_seed(self.problem.seed, _FINALISTS_STREAM, self.global_rank)
        with ExitStack() as stack:
            for context in (self._mode.active(), self._unlogged(), isolated_seed(seed), torch.no_grad()):
                stack.enter_context(context)
            stack.enter_context(self.trainer.precision_plugin.forward_context())
            batches = self.architecture_batches.twin(stream=_FINALISTS_STREAM)
            for count, batch in enumerate(but_last(itertools.islice(batches, _FINALIST_BATCHES + 1)), start=1):
                ready = self._ready(batch)
                for index, derived in enumerate(found):
                    with self.supernet.running(list(derived.choice)):
                        task = self._task_loss if has_loss else self._accuracy
                        value = float(task(ready, count - 1))
                    sums[index] += value if has_loss else 1 - value
        return self.problem.reduce(sums / count).tolist()

    def export(self) -> dict[str, Any]:
        """NNI's sample of the derived subnet."""
        return self.architecture.export(self.derive().choice)

    def export_probs(self) -> dict[str, Any]:
        """Probability of each candidate by label."""
        p = self.architecture.probabilities()
        return {
            edge.label: dict(zip(edge.candidates, p[row].tolist(), strict=False))
            for row, edge in enumerate(self.architecture.edges)
        }

    def derived_network(self) -> nn.Module:
        """A copy of the derived subnet with the supernet's weights and re-estimated BN statistics.

        Where NNI freezes a space or its layers by making them anew (its NDS family, its `MutableConv2d`), it is a copy
        of the supernet on the subnet's path.
        """
        supernet = cast(ModelSpace, self.model)
        choice = self.derive().choice
        network = (
            frozen_copy(supernet, self.architecture.export(choice))
            if freezing_keeps_weights(supernet)
            else OnePath(copy.deepcopy(supernet), self.supernet, choice)
        )
        self._recalibrate(network)
        return network.eval()

    def _recalibrate(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms or self.calibration_batches < 1 or self.train_batches is None:
            return
        network.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        loader = self.train_batches.twin(stream=_CALIBRATION_STREAM)
        with torch.no_grad(), isolated_seed(mix_seed(self.problem.seed, _CALIBRATION_STREAM)):
            for count, batch in enumerate(loader, start=1):
                network(self.inputs(self._ready(batch)))
                if count >= self.calibration_batches:
                    break
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if self.trainer.world_size > 1:
                for statistic in cast("list[Tensor]", [norm.running_mean, norm.running_var]):
                    statistic.copy_(self.problem.reduce(statistic))

    @contextmanager
    def derived_in_place(self) -> Iterator[None]:
        """The evaluator's module sees the derived subnet as its model; the registered supernet stays as it is."""
        self.training_module.__dict__["_model"] = self.derived_network()
        try:
            yield
        finally:
            self.training_module.__dict__.pop("_model", None)

    def on_validation_start(self) -> None:
        self._validation = ExitStack()
        self._validation.enter_context(self.derived_in_place())
        super().on_validation_start()

    def on_validation_epoch_start(self) -> None:
        self.training_module.on_validation_epoch_start()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The evaluator's validation step on the derived subnet."""
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_epoch_end(self) -> None:
        self._validation.close()
        self.training_module.on_validation_epoch_end()

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The evaluator's test step on the derived subnet."""
        with self.derived_in_place():
            return self.training_module.test_step(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        self.training_module.__dict__.pop("_model", None)

    # ---- state -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_save_checkpoint(checkpoint)
        checkpoint[_CHECKPOINT_KEY] = {
            "counters": dict(self.counters),
            "update": self.update.state_dict(),
            "objective": self.problem.objective.state_dict(),
            "train_batches": None if self.train_batches is None else self.train_batches.state_dict(),
            "architecture_batches": None
            if self.architecture_batches is None
            else self.architecture_batches.state_dict(),
            "labels": list(self.architecture.labels),
            "seed": self.problem.seed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_module.on_load_checkpoint(checkpoint)
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
        self.update.load_state_dict(state["update"])
        self.problem.objective.load_state_dict(state["objective"])
        if self.train_batches is not None and state["train_batches"] is not None:
            self.train_batches.load_state_dict(state["train_batches"])
        if self.architecture_batches is not None and state["architecture_batches"] is not None:
            self.architecture_batches.load_state_dict(state["architecture_batches"])
        self._restored = True

    # ---- hooks of the evaluator's module that the base class does not pass on -------------------------------------

    def configure_callbacks(self) -> Any:
        return self.training_module.configure_callbacks()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.training_module.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.training_module.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.training_module.on_after_batch_transfer(batch, dataloader_idx)


def but_last(batches: Iterable[Any]) -> Iterator[Any]:
    """All batches but the last, which may be too small for batch statistics; a single one is kept.

    Raises:
        DataError: There is none.
    """
    iterator = iter(batches)
    previous, lone = next(iterator, None), True
    if previous is None:
        raise DataError("the validation loader of the evaluator gave no batch to compare finalists on")
    for batch in iterator:
        yield previous
        previous, lone = batch, False
    if lone:
        yield previous


def first_of_batch(batch: Any) -> Any:
    """The network's input: the batch itself, or its first item.

    Raises:
        ConfigError: The batch is a mapping or something else; then `inputs` must be given to the strategy.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0]
    raise ConfigError(
        f"batches are {type(batch).__name__}; tell ProxylessStrategy how to get the network's input from one by "
        "inputs=lambda batch: ..."
    )


def _each_scheduler(conf: Any, change: Callable[[Any, str | None], Any]) -> Any:
    """Lightning's optimiser configuration in any of its forms, with each scheduler changed."""
    if isinstance(conf, dict) and "lr_scheduler" in conf:
        kept = {key: value for key, value in conf.items() if key != "monitor"}
        return {**kept, "lr_scheduler": change(conf["lr_scheduler"], conf.get("monitor"))}
    if isinstance(conf, (list, tuple)) and len(conf) == 2 and isinstance(conf[0], (list, tuple)):
        schedulers = conf[1] if isinstance(conf[1], (list, tuple)) else [conf[1]]
        return list(conf[0]), [change(scheduler, None) for scheduler in schedulers]
    if isinstance(conf, (list, tuple)):
        return [_each_scheduler(item, change) for item in conf]
    return conf


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else list(value)
