"""`ProxylessStrategy`: ProxylessNAS as a one-shot strategy for NNI."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import nni.nas.strategy  # noqa: F401 - before nni.nas.oneshot, else NNI's public strategies become stubs
import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.space import RawFormatModelSpace

from hardware.errors import CheckpointError, ConfigError, TargetError, UnsupportedSpaceError
from hardware.model import CostModel
from hardware.reading import Kind, read_tensors

from ..sections import Norm
from .architecture import ArchitectureParameters
from .capturing import Capture
from .derivation import Derived, Deriver
from .finalists import Judge
from .gates import Estimator, WarmupPaths, WeightPaths
from .loaders import ArchitectureBatches, SeededLoader
from .module import SearchModule
from .objectives import make_objective
from .options import Rule, SearchOptions, renamed
from .processes import averaged, prepare
from .rules import LOGIT_SPAN, Baseline, GradientPaths, GradientUpdate, Problem, ReinforceUpdate
from .supernet.space import Supernet, check_mutables, refuse
from .verdict import TRAINER_NAMES, Code, Names, SearchWarning, target_warnings


class ProxylessStrategy(OneShotStrategy):
    """Hardware-aware ProxylessNAS: one path in memory, alpha moved by two-path gradients or REINFORCE.

    Use it wherever NNI takes a one-shot strategy, `NasExperiment(space, evaluator, strategy).run()`, or call `search`
    where there is no experiment. The evaluator is any of NNI's Lightning evaluators; its validation loader gives the
    architecture steps' batches.

    >>> from hardware.model import macs_model
    >>> from search_spaces import get_space
    >>> space = get_space("small_mbconv")
    >>> costs = space.costs(32, num_classes=10, in_chans=1)
    >>> strategy = ProxylessStrategy(cost=macs_model(costs.fixed, costs.edges), target_share=0.5, warmup_epochs=10)
    >>> network = strategy.mutate_model(space.build(num_classes=10, in_chans=1))
    >>> print(f"{strategy.target:.3f} {strategy.cost.unit}, {len(strategy.architecture.edges)} edges")
    2.911 M MACs, 6 edges

    Args:
        rule: `gradient` (Proxyless-G) or `reinforce` (Proxyless-R).
        cost: Costs of the space's choices, usually a `hardware.model.LatencyModel`; labels must be the space's.
        target: Greatest cost, in the cost's unit (calibrated ms of a `LatencyModel`); the export is within it,
            guaranteed.
        target_share: The target as a share of the way from the space's cheapest to its dearest subnet, in 0..1.
        objective: How the cost enters, see `objectives.make_objective`; `target` lands on the target untuned.
        objective_options: Its coefficients.
        slack: The export costs at least `(1 - slack) target`. Slack doubles until enough subnets qualify
            (`derivation.CHOICES`). None asks only that the export be within the target, however cheap it is.
        warmup_epochs: Epochs in which only weights are trained, on uniform paths.
        steps_per_update: Weight steps between two architecture steps.
        estimator: `paper` or `unbiased`, see `gates.pair_weight` (gradient rule).
        paths: `two`, or `all` (gradient rule).
        samples: Subnets per step (REINFORCE).
        baseline: What rewards are held against, `moving` or `leave_one_out` (REINFORCE).
        baseline_decay: Decay of the moving baseline (REINFORCE).
        warmup_paths: How the warm-up draws its paths: `uniform`, or `fair`, see `gates.fair_paths`.
        weight_paths: How later weight steps draw theirs: `sampled` from the probabilities (the paper's), or `uniform`,
            which trains improbable candidates as long as the others, so that losses of subnets stay comparable.
        finalists: The most probable subnets on the target, up to so many, are compared by their loss on the first 32
            validation batches after the search (shuffle them); 1 exports the most probable one, uncompared.
        learning_rate: Adam's rate for alpha; None derives it from the planned number of architecture steps.
        gradient_clip_val: Clips the weights' gradients (the Trainer's own option is not available to a search).
        gradient_clip_algorithm: `norm` or `value`.
        accumulate_grad_batches: Batches per weight step, all on one path.
        calibration_batches: Training batches that re-estimate BN statistics before each validation.
        inputs: From a batch to the network's input; None takes a batch's first item.
        seed: Seed of gates, alpha and data order.
        norm: What computes batch norms with their activations: `torch`, or on a GPU `triton` or `cudnn`, see
            `norms.FusedNorms`.
        start: Logits that alpha starts from, by label and candidate; None starts all candidates alike.
        contender: A subnet that some cheaper way has found, by label and candidate. It joins the finalists, and the
            result says whether the search has beaten it.
        judge: From NNI's sample of a finalist and its network, a copy in evaluation mode whose BN statistics are
            re-estimated, to a loss that takes the place of the one on validation batches; in one process alone.
        capture: Whether steps replay their candidates as CUDA graphs, for small images on a GPU, whose steps wait for
            launches; in one process alone. "auto" does so where there is a GPU. What cannot be captured runs eagerly,
            and is named. A candidate must not depend on what Python alone sees (a list that it fills, a clock). A
            `supernet.recorders.Recorder` records in another way.
        mutation_hooks: Further NNI mutation hooks, run before this strategy's.
        latency: Former name of `cost`.
        target_ms: Former name of `target`.

    Attributes:
        options: What was given, checked.
        target: The greatest cost; with `target_share`, None until the space is known.
        paths_of_space: The space's paths, empty until the space is known.
        architecture: Alpha; None until the space is known.
        names: What the settings are called in warnings; a caller with settings of its own sets it before the search.
        told: Kinds of warnings that such a caller has told already; a training's start does not repeat them.

    Raises:
        ConfigError: An option is impossible.
    """

    names: Names = TRAINER_NAMES
    told: Collection[Code] = ()

    def __init__(
        self,
        *,
        rule: Rule = SearchOptions.rule,
        cost: CostModel | None = None,
        target: float | None = None,
        target_share: float | None = None,
        objective: str = SearchOptions.objective,
        objective_options: Mapping[str, float] | None = None,
        slack: float | None = SearchOptions.slack,
        warmup_epochs: int = SearchOptions.warmup_epochs,
        steps_per_update: int = SearchOptions.steps_per_update,
        estimator: Estimator = SearchOptions.estimator,
        paths: GradientPaths = SearchOptions.paths,
        samples: int = SearchOptions.samples,
        baseline: Baseline = SearchOptions.baseline,
        baseline_decay: float = SearchOptions.baseline_decay,
        warmup_paths: WarmupPaths = SearchOptions.warmup_paths,
        weight_paths: WeightPaths = SearchOptions.weight_paths,
        finalists: int = SearchOptions.finalists,
        learning_rate: float | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        accumulate_grad_batches: int = SearchOptions.accumulate_grad_batches,
        calibration_batches: int = SearchOptions.calibration_batches,
        inputs: Callable[[Any], Any] | None = None,
        seed: int = SearchOptions.seed,
        norm: Norm = SearchOptions.norm,
        start: Mapping[str, Mapping[str, float]] | None = None,
        contender: Mapping[str, str] | None = None,
        judge: Judge | None = None,
        capture: Capture = SearchOptions.capture,
        mutation_hooks: list[Any] | None = None,
        latency: CostModel | None = None,
        target_ms: float | None = None,
    ):
        super().__init__(mutation_hooks=mutation_hooks)
        self.options = SearchOptions(
            rule=rule,
            cost=renamed("latency", latency, "cost", cost),
            target=renamed("target_ms", target_ms, "target", target),
            target_share=target_share,
            objective=objective,
            objective_options=dict(objective_options or {}),
            slack=slack,
            warmup_epochs=warmup_epochs,
            steps_per_update=steps_per_update,
            estimator=estimator,
            paths=paths,
            samples=samples,
            baseline=baseline,
            baseline_decay=baseline_decay,
            warmup_paths=warmup_paths,
            weight_paths=weight_paths,
            finalists=finalists,
            learning_rate=learning_rate,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            accumulate_grad_batches=accumulate_grad_batches,
            calibration_batches=calibration_batches,
            inputs=inputs,
            seed=seed,
            norm=norm,
            start=start,
            contender=contender,
            judge=judge,
            capture=capture,
        )
        self.target = self.options.target
        self.paths_of_space = Supernet()
        self.architecture: ArchitectureParameters | None = None
        self._minimum: float | None = None  # cost of the cheapest subnet, once the space is known
        self._target_found: list[SearchWarning] = []  # what is wrong with the target, likewise
        self._trainer: Any = None
        self._module: SearchModule | None = None

    @property
    def cost(self) -> CostModel | None:
        """Costs of the space's choices."""
        return self.options.cost

    @property
    def latency(self) -> CostModel | None:
        """Former name of `cost`."""
        return self.cost

    @property
    def target_ms(self) -> float | None:
        """Former name of `target`."""
        return self.target

    @property
    def searched(self) -> SearchModule:
        """The module of the search.

        Raises:
            RuntimeError: Nothing was searched yet.
        """
        if self._module is None:
            raise RuntimeError("nothing was searched yet; run the experiment first")
        return self._module

    # ---- the space ---------------------------------------------------------------------------------------------

    def default_mutation_hooks(self) -> list[Any]:
        """Return the hooks that gate LayerChoice, InputChoice, Repeat and Cell, and refuse other choices."""
        return [self.paths_of_space.hook, refuse]

    def mutate_model(self, model: Any) -> Any:
        """Turn a model space into its supernet, in place.

        Raises:
            UnsupportedSpaceError: The space has a mutable that cannot be searched, or nothing to choose.
        """
        if not isinstance(model, ModelSpace):
            raise UnsupportedSpaceError(f"the space must be an NNI ModelSpace, but is {type(model).__name__}")
        check_mutables(model)
        mutated = super().mutate_model(model)
        edges = self.paths_of_space.edges
        if not edges:
            raise UnsupportedSpaceError(f"{type(model).__name__} has nothing to choose; add a LayerChoice")
        self.architecture = ArchitectureParameters(edges, seed=self.options.seed, start=self.options.start)
        self._resolve_target(self.architecture)
        self._check_start(self.architecture)
        return mutated

    def _resolve_target(self, architecture: ArchitectureParameters) -> None:
        """Check the costs, and turn the target into an absolute one that some subnet meets."""
        costs, fixed = self.cost_matrix()
        if self.cost is None:
            self._target_found = target_warnings(target=None, dearest=None, unit="", objective=self.options.objective)
            return
        deriver = Deriver(architecture.edges, torch.zeros_like(costs).numpy(), costs.numpy(), fixed)
        cheapest, dearest = deriver.cheapest(), deriver.dearest()
        self._minimum = cheapest.cost
        share, unit = self.options.target_share, self.cost.unit
        if share is not None:
            self.target = cheapest.cost + share * (dearest.cost - cheapest.cost)
        hint = ""
        if share is None and self.target is not None and 0 <= self.target <= 1:
            # `target` meant a share before `target_share` did.
            hint = f"; a share of the range from the cheapest to the dearest is given as target_share={self.target:.6g}"
        self._target_found = target_warnings(
            target=self.target, dearest=dearest.cost, unit=unit, objective=self.options.objective, hint=hint
        )
        if self.target is None:
            return
        if self.target < cheapest.cost:
            raise TargetError(
                f"target {self.target:.6g} {unit} is below the cheapest subnet's {cheapest.cost:.6g} "
                f"({_described(architecture, cheapest)}); raise the target or change the space{hint}"
            )

    def _check_start(self, architecture: ArchitectureParameters) -> None:
        """Check what was found before the search: the logits that alpha starts from, and the contender."""
        if self.options.start is not None:
            for label, logits in self.options.start.items():
                span = max(logits.values()) - min(logits.values())
                if span > LOGIT_SPAN:
                    raise ConfigError(
                        f"start spans {span:.3g} logits at {label}; {LOGIT_SPAN:g} is the most, as an edge that is "
                        "nearly one-hot hardly moves"
                    )
        contender = self.options.contender
        if contender is None:
            return
        try:
            choice = architecture.indices(contender)
        except (KeyError, ValueError) as error:
            raise ConfigError(f"contender is no subnet of the space ({error}); name one candidate an edge") from error
        costs, fixed = self.cost_matrix()
        cost = Deriver(architecture.edges, torch.zeros_like(costs).numpy(), costs.numpy(), fixed).of(choice).cost
        if self.target is not None and cost > self.target:
            raise ConfigError(f"contender costs {cost:.6g}, more than the target {self.target:.6g}; give one within it")

    def cost_matrix(self) -> tuple[torch.Tensor, float]:
        """Return each candidate's own cost, `L x N` float64 in the matrix's order, and the fixed part.

        Raises:
            ConfigError: An edge or a candidate of the space has no cost.
        """
        architecture = self.architecture
        assert architecture is not None
        costs = torch.zeros(tuple(architecture.alpha.shape), dtype=torch.float64)
        if self.cost is None:
            return costs, 0.0
        known = {
            label: {name: float(self.cost.costs[row, column]) for column, name in enumerate(names)}
            for row, (label, names) in enumerate(zip(self.cost.labels, self.cost.candidates, strict=True))
        }
        for row, edge in enumerate(architecture.edges):
            options = known.get(edge.label)
            if options is None:
                raise ConfigError(f"the costs know nothing of the edge {edge.label!r}; they have {', '.join(known)}")
            for column, candidate in enumerate(edge.candidates):
                if str(candidate) not in options:
                    raise ConfigError(
                        f"the costs have no candidate {candidate!r} at {edge.label}; they have {', '.join(options)}"
                    )
                costs[row, column] = options[str(candidate)]
        return costs, float(self.cost.fixed)

    # ---- the evaluator -----------------------------------------------------------------------------------------

    def configure_oneshot_module(self, training_module: Any) -> SearchModule:
        """Wrap the evaluator's module."""
        if self.architecture is None:
            raise RuntimeError("mutate_model must run before configure_oneshot_module")
        options = replace(self.options, target=self.target, target_share=None)
        objective = make_objective(
            options.objective,
            rule=options.rule,
            target=options.target,
            minimum=self._minimum,
            **options.objective_options,
        )
        update = (
            GradientUpdate(estimator=options.estimator, paths=options.paths)
            if options.rule == "gradient"
            else ReinforceUpdate(
                samples=options.samples, baseline=options.baseline, baseline_decay=options.baseline_decay
            )
        )
        costs, fixed = self.cost_matrix()
        problem = Problem(
            supernet=self.paths_of_space,
            architecture=self.architecture,
            costs=costs,
            fixed=fixed,
            objective=objective,
            seed=options.seed,
            reduce=lambda value: averaged(value, self._trainer),
        )
        self._module = SearchModule(
            training_module,
            problem=problem,
            update=update,
            options=options,
            target_found=self._target_found,
            names=self.names,
            told=self.told,
        )
        return self._module

    def mutate_evaluator(self, evaluator: Any) -> Any:
        """Wrap the evaluator's module and loaders, and set up its processes (see `processes.prepare`)."""
        # NNI's base class calls `configure_oneshot_module` and the loaders' hooks from here, without the trainer.
        self._trainer = evaluator.trainer
        prepare(evaluator.trainer.strategy)
        return super().mutate_evaluator(evaluator)

    def _process(self) -> tuple[int, int]:
        return self._trainer.global_rank, self._trainer.world_size

    def train_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """Return the training loader, in an order that is a function of (seed, epoch); validation comes lazily."""
        module = cast(SearchModule, self._module)

        def seeded(factory: Callable[[], Any], stream: int) -> SeededLoader:
            return SeededLoader(factory(), seed=self.options.seed, stream=stream, process=self._process)

        module.train_batches = seeded(train_dataloader_fn, 0)
        module.architecture_batches = ArchitectureBatches(lambda: seeded(val_dataloader_fn, 1))
        return module.train_batches

    def val_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """Return the evaluator's validation loader, on which the derived subnet is validated."""
        return val_dataloader_fn()

    def search(self, space: Any, evaluator: Any, *, ckpt_path: Any = None) -> SearchModule:
        """Search directly, without an NNI experiment or engine; this is how a search runs inside an NNI trial.

        Args:
            space: The model space; becomes the supernet, in place.
            evaluator: An NNI Lightning evaluator.
            ckpt_path: A Lightning checkpoint of the same search to continue from.

        Returns:
            The searched module.
        """
        supernet = self.mutate_model(space)
        wrapped = self.mutate_evaluator(evaluator)
        if ckpt_path is not None:
            # NNI resumes by itself only what it saved at the start or the end of an experiment; Lightning anything.
            wrapped.fit_kwargs = {
                **wrapped.fit_kwargs,
                "ckpt_path": str(ckpt_path),
                **_weights_only(ckpt_path, wrapped),
            }
        wrapped.evaluate(supernet)
        module = self.searched
        module.choose()  # a checkpoint of the last epoch leaves nothing to train, so that no hook has done it
        return module

    # ---- results -----------------------------------------------------------------------------------------------

    def derive(self, target: float | None = None, *, budget_ms: float | None = None) -> Derived:
        """Return the most probable subnet within any target; without one, what is exported.

        Args:
            target: Greatest cost, in the cost's unit; None: see `SearchModule.derive`.
            budget_ms: Former name of `target`.

        Raises:
            TargetError: No subnet is within the target.
        """
        target = renamed("budget_ms", budget_ms, "target", target)
        return self.searched.derive() if target is None else self.searched.deriver().within(target)

    def derive_curve(self, points: int = 20) -> list[Derived]:
        """Return the trade-off between cost and probability that one search found, the cheapest subnet first."""
        return self.searched.deriver().curve(points)

    def export(self) -> dict[str, Any]:
        """Return NNI's sample of the derived subnet; two exports of one search are equal."""
        return self.searched.export()

    def list_models(self, sort: bool = True, limit: int | None = 1) -> Iterator[RawFormatModelSpace]:
        """Yield the derived subnet, frozen; with the supernet's weights where `freezing_keeps_weights`."""
        self.oneshot_module.set_model(self.supernet)
        yield cast(RawFormatModelSpace, self.model_space).freeze(self.export())


def _weights_only(ckpt_path: Any, trainer: Any) -> dict[str, bool]:
    """Have a checkpoint read without running what whoever wrote it may have put there."""
    if "weights_only" in inspect.signature(trainer.fit).parameters:
        return {"weights_only": True}
    # Lightning before 2.6 unpickles anything, so that a checkpoint must be known as harmless before it gets there.
    read_tensors(ckpt_path, Kind("the checkpoint", "give one of this strategy", CheckpointError), map_location="meta")
    return {}


def _described(architecture: ArchitectureParameters, derived: Derived) -> str:
    return ", ".join(f"{label}={value}" for label, value in architecture.export(derived.choice).items())
