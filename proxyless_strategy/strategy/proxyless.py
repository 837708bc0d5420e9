"""`ProxylessStrategy`: ProxylessNAS as a one-shot strategy for NNI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import nni.nas.strategy  # noqa: F401 - before nni.nas.oneshot, else NNI's public strategies become stubs
import torch
from nni.mutable import frozen_context
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.space import RawFormatModelSpace

from hardware.errors import ConfigError, TargetError, UnsupportedSpaceError
from hardware.model import CostModel

from . import gates
from .architecture import ArchitectureParameters
from .derivation import SLACK, Derived, Deriver
from .gates import Estimator
from .loaders import ArchitectureBatches, SeededLoader
from .module import SearchModule
from .objectives import make_objective
from .processes import prepare
from .rules import Baseline, GradientUpdate, Problem, ReinforceUpdate
from .supernet.space import Supernet, check_mutables, refuse


class ProxylessStrategy(OneShotStrategy):
    """Hardware-aware ProxylessNAS: one path in memory, alpha moved by two-path gradients or REINFORCE.

    Use it wherever NNI takes a one-shot strategy:

        NasExperiment(space, evaluator, ProxylessStrategy(latency=model, target_ms=4.2)).run()

    The evaluator is any of NNI's Lightning evaluators; its validation loader gives the architecture steps' batches.

    Args:
        rule: `gradient` (Proxyless-G) or `reinforce` (Proxyless-R).
        latency: Costs of the space's choices, usually a `hardware.model.LatencyModel`; labels must be the space's.
        target_ms: Latency target in the model's unit (calibrated ms); the export is within it, guaranteed.
        target: The target as a fraction of the way from the space's fastest to its slowest subnet.
        objective: How latency enters, see `objectives.make_objective`; `target` lands on the target untuned.
        objective_options: Its coefficients.
        slack: Share of the target that the export may leave unused, doubled until it leaves a choice
            (`derivation.CHOICES`); None asks only that the export be within the target, however fast it is.
        warmup_epochs: Epochs in which only weights are trained, on uniform paths.
        steps_per_update: Weight steps between two architecture steps.
        estimator: `paper` or `unbiased`, see `gates.pair_weight` (gradient rule).
        paths: `two`, or `all` (gradient rule).
        samples: Subnets per step (REINFORCE).
        baseline: What rewards are held against, `moving` or `leave_one_out` (REINFORCE).
        baseline_decay: Decay of the moving baseline (REINFORCE).
        warmup_paths: How the warm-up draws its paths: `uniform`, or `fair`, see `gates.fair_paths`.
        weight_paths: How later weight steps draw theirs: `sampled` from the probabilities (the paper's), or `uniform`,
            which trains what is improbable as long as the rest, so that losses of subnets stay comparable.
        finalists: The most probable subnets on the target, up to so many, are compared by their loss on the first 32
            validation batches after the search (shuffle them); 1 exports the most probable one, uncompared.
        learning_rate: Adam's rate for alpha; None derives it from the planned number of architecture steps.
        gradient_clip_val: Clips the weights' gradients (the Trainer's own option is not available to a search).
        gradient_clip_algorithm: `norm` or `value`.
        accumulate_grad_batches: Batches per weight step, all on one path.
        calibration_batches: Training batches that re-estimate BN statistics before each validation.
        inputs: From a batch to the network's input; None takes a batch's first item.
        seed: Seed of gates, alpha and data order.
        mutation_hooks: Further NNI mutation hooks, run before this strategy's.

    Raises:
        ConfigError: An option is impossible.
    """

    def __init__(
        self,
        *,
        rule: Literal["gradient", "reinforce"] = "gradient",
        latency: CostModel | None = None,
        target_ms: float | None = None,
        target: float | None = None,
        objective: str = "target",
        objective_options: dict[str, float] | None = None,
        slack: float | None = SLACK,
        warmup_epochs: int = 0,
        steps_per_update: int = 5,
        estimator: Estimator = "paper",
        paths: Literal["two", "all"] = "two",
        samples: int = 10,
        baseline: Baseline = "leave_one_out",
        baseline_decay: float = 0.9,
        warmup_paths: gates.WarmupPaths = "uniform",
        weight_paths: gates.WeightPaths = "uniform",
        finalists: int = 8,
        learning_rate: float | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        accumulate_grad_batches: int = 1,
        calibration_batches: int = 10,
        inputs: Callable[[Any], Any] | None = None,
        seed: int = 0,
        mutation_hooks: list[Any] | None = None,
    ):
        super().__init__(mutation_hooks=mutation_hooks)
        for name, value, allowed in (
            ("rule", rule, ("gradient", "reinforce")),
            ("estimator", estimator, ("paper", "unbiased")),
            ("paths", paths, ("two", "all")),
            ("baseline", baseline, get_args(Baseline)),
            ("warmup_paths", warmup_paths, get_args(gates.WarmupPaths)),
            ("weight_paths", weight_paths, get_args(gates.WeightPaths)),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} = {value!r}; it must be one of {', '.join(allowed)}")
        for name, number, least in (
            ("warmup_epochs", warmup_epochs, 0),
            ("steps_per_update", steps_per_update, 1),
            ("samples", samples, 2),
            ("finalists", finalists, 1),
            ("accumulate_grad_batches", accumulate_grad_batches, 1),
            ("seed", seed, 0),
        ):
            if number < least:
                raise ConfigError(f"{name} = {number!r}; it must be at least {least}")
        if target is not None and target_ms is not None:
            raise ConfigError(f"target ({target}) and target_ms ({target_ms}) are both given; keep one of them")
        if slack is not None and not 0 <= slack < 1:
            raise ConfigError(f"slack = {slack!r}; it must be in [0, 1), or None")
        if latency is None and (target is not None or target_ms is not None):
            raise ConfigError("a latency target needs costs; give latency=LatencyModel(table, fixed=..., edges=...)")
        self.rule = rule
        self.latency = latency
        self.objective = objective
        self.objective_options = objective_options or {}
        self.slack = slack
        self.warmup_epochs = warmup_epochs
        self.steps_per_update = steps_per_update
        self.estimator: Estimator = estimator
        self.paths: Literal["two", "all"] = paths
        self.samples = samples
        self.baseline: Baseline = baseline
        self.baseline_decay = baseline_decay
        self.warmup_paths: gates.WarmupPaths = warmup_paths
        self.weight_paths: gates.WeightPaths = weight_paths
        self.finalists = finalists
        self.learning_rate = learning_rate
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self.calibration_batches = calibration_batches
        self.inputs = inputs
        self.seed = seed
        self._target, self._target_ms = target, target_ms
        self.paths_of_space = Supernet()
        self.architecture: ArchitectureParameters | None = None
        self._trainer: Any = None
        self._module: SearchModule | None = None

    # ---- the space ---------------------------------------------------------------------------------------------

    def default_mutation_hooks(self) -> list[Any]:
        """Gated forms of LayerChoice, InputChoice, Repeat and Cell; anything else that can be chosen is refused."""
        return [self.paths_of_space.hook, refuse]

    def mutate_model(self, model: Any) -> Any:
        """Turn a model space into its supernet, in place.

        Raises:
            UnsupportedSpaceError: The space has a mutable that cannot be searched, or nothing to choose.
        """
        if not isinstance(model, ModelSpace):
            raise UnsupportedSpaceError(f"the space must be an NNI ModelSpace, but is {type(model).__name__}")
        check_mutables(model)
        with frozen_context():
            mutated = super().mutate_model(model)
        edges = self.paths_of_space.edges
        if not edges:
            raise UnsupportedSpaceError(f"{type(model).__name__} has nothing to choose; add a LayerChoice")
        self.architecture = ArchitectureParameters(edges, seed=self.seed)
        self._check_costs(self.architecture)
        return mutated

    def _check_costs(self, architecture: ArchitectureParameters) -> None:
        costs, fixed = self.cost_matrix()
        deriver = Deriver(architecture.edges, torch.zeros_like(costs).numpy(), costs.numpy(), fixed)
        if self.latency is None:
            self.target_ms: float | None = None
            return
        fastest, slowest = deriver.fastest(), deriver.slowest()
        if self._target is not None:
            self.target_ms = fastest.cost + self._target * (slowest.cost - fastest.cost)
        else:
            self.target_ms = self._target_ms
        if self.target_ms is not None and self.target_ms < fastest.cost:
            raise TargetError(
                f"target {self.target_ms:.6g} {self.latency.unit} is below the fastest subnet's {fastest.cost:.6g} "
                f"({_described(architecture, fastest)}); raise the target or change the space"
            )
        self.minimum_ms = fastest.cost

    def cost_matrix(self) -> tuple[torch.Tensor, float]:
        """Own cost of each candidate, `L x N` float64 in the matrix's order, and the fixed part.

        Raises:
            ConfigError: An edge or a candidate of the space has no cost.
        """
        architecture = self.architecture
        assert architecture is not None
        costs = torch.zeros(tuple(architecture.alpha.shape), dtype=torch.float64)
        if self.latency is None:
            return costs, 0.0
        known = {
            label: {name: float(self.latency.costs[row, column]) for column, name in enumerate(names)}
            for row, (label, names) in enumerate(zip(self.latency.labels, self.latency.candidates, strict=True))
        }
        for row, edge in enumerate(architecture.edges):
            options = known.get(edge.label)
            if options is None:
                raise ConfigError(
                    f"the latency model knows nothing of the edge {edge.label!r}; it has {', '.join(known)}"
                )
            for column, candidate in enumerate(edge.candidates):
                if str(candidate) not in options:
                    raise ConfigError(
                        f"the latency model has no candidate {candidate!r} at {edge.label}; it has {', '.join(options)}"
                    )
                costs[row, column] = options[str(candidate)]
        return costs, float(self.latency.fixed)

    # ---- the evaluator -----------------------------------------------------------------------------------------

    def configure_oneshot_module(self, training_module: Any) -> SearchModule:
        """Wrap the evaluator's module."""
        if self.architecture is None:
            raise RuntimeError("mutate_model must run before configure_oneshot_module")
        costs, fixed = self.cost_matrix()
        minimum = getattr(self, "minimum_ms", None)
        objective = make_objective(
            self.objective, rule=self.rule, target=self.target_ms, minimum=minimum, **self.objective_options
        )
        update = (
            GradientUpdate(estimator=self.estimator, paths=self.paths)
            if self.rule == "gradient"
            else ReinforceUpdate(samples=self.samples, baseline=self.baseline, baseline_decay=self.baseline_decay)
        )
        problem = Problem(self.paths_of_space, self.architecture, costs, fixed, objective, self.seed)
        self._module = SearchModule(
            training_module,
            supernet=self.paths_of_space,
            architecture=self.architecture,
            problem=problem,
            update=update,
            warmup_epochs=self.warmup_epochs,
            warmup_paths=self.warmup_paths,
            weight_paths=self.weight_paths,
            steps_per_update=self.steps_per_update,
            learning_rate=self.learning_rate,
            gradient_clip_val=self.gradient_clip_val,
            gradient_clip_algorithm=self.gradient_clip_algorithm,
            accumulate_grad_batches=self.accumulate_grad_batches,
            budget=self.target_ms,
            slack=self.slack,
            finalists=self.finalists,
            calibration_batches=self.calibration_batches,
            inputs=self.inputs,
        )
        self._module.problem = replace(problem, reduce=self._reduce)
        return self._module

    def _reduce(self, value: torch.Tensor) -> torch.Tensor:
        module = cast(SearchModule, self._module)
        world = module.trainer.world_size
        if world == 1:
            return value
        shared = value.to(module.trainer.strategy.root_device)  # after a fit the module itself is on the host
        torch.distributed.all_reduce(shared)
        return (shared / world).to(value.device)

    def mutate_evaluator(self, evaluator: Any) -> Any:
        """Wrap the evaluator's module and loaders, and set up its processes (see `processes.prepare`)."""
        self._trainer = evaluator.trainer
        prepare(evaluator.trainer.strategy)
        return super().mutate_evaluator(evaluator)

    def _process(self) -> tuple[int, int]:
        return self._trainer.global_rank, self._trainer.world_size

    def train_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """The training loader, in an order that is a function of (seed, epoch); validation batches come lazily."""
        module = cast(SearchModule, self._module)

        def seeded(factory: Callable[[], Any], stream: int) -> SeededLoader:
            return SeededLoader(factory(), seed=self.seed, stream=stream, process=self._process)

        module.train_batches = seeded(train_dataloader_fn, 0)
        module.architecture_batches = ArchitectureBatches(lambda: seeded(val_dataloader_fn, 1))
        return module.train_batches

    def val_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """The evaluator's validation loader: the derived subnet is validated on it."""
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
            wrapped.fit_kwargs = {**wrapped.fit_kwargs, "ckpt_path": str(ckpt_path)}
        wrapped.evaluate(supernet)
        module = self._searched()
        module.choose()  # a checkpoint of the last epoch leaves nothing to train
        return module

    # ---- results -----------------------------------------------------------------------------------------------

    def derive(self, budget_ms: float | None = None) -> Derived:
        """The most probable subnet within any budget; without one, what is exported (see `SearchModule.choose`)."""
        module = self._searched()
        return module.derive() if budget_ms is None else module.deriver().within(budget_ms)

    def derive_curve(self, points: int = 20) -> list[Derived]:
        """The whole trade-off between cost and probability that one search found, fastest first."""
        return self._searched().deriver().curve(points)

    def export(self) -> dict[str, Any]:
        """NNI's sample of the derived subnet; two exports of one search are equal."""
        return self._searched().export()

    def _searched(self) -> SearchModule:
        if self._module is None:
            raise RuntimeError("nothing was searched yet; run the experiment first")
        return self._module

    def list_models(self, sort: bool = True, limit: int | None = 1) -> Iterator[RawFormatModelSpace]:
        """The derived subnet, frozen; with the supernet's weights where `freezing_keeps_weights`."""
        self.oneshot_module.set_model(self.supernet)
        yield cast(RawFormatModelSpace, self.model_space).freeze(self.export())


def _described(architecture: ArchitectureParameters, derived: Derived) -> str:
    return ", ".join(f"{label}={value}" for label, value in architecture.export(derived.choice).items())
