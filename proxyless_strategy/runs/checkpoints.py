"""A search's checkpoints: when they are written, what search they belong to, and which one it continues from."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, cast, get_args

import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from hardware.errors import CheckpointError
from hardware.reading import cut, shown

from .. import signals
from ..checkpoints import (
    checkpoint_names,
    latest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    short_digest,
    write_checkpoint,
)
from ..config import TARGETS, Change, SearchConfig
from ..data.digest import data_digest
from ..layout import SEARCH_CHECKPOINT
from ..strategy.together import Together
from ..world import current
from .prepare import Prepared

FORMAT = "proxyless-search/1"
WHAT = "a search"

_SEARCH_KEY = "proxyless_strategy"  # of `SearchModule`
_RUN_KEY = "proxyless_strategy_run"
_LIBRARIES = ("proxyless-strategy", "torch", "pytorch-lightning", "nni", "timm", "numpy")


# ---- what a checkpoint belongs to ------------------------------------------------------------------------------


def search_identity(prepared: Prepared) -> dict[str, Any]:
    """Return what tells one search from another, in plain values that are short enough for an error message."""
    config = prepared.config
    settings = config.model_dump(mode="json", include={"search", "objective", "objective_options", "input_size"})
    # On another number of processes a step has the same images.
    for name in ("checkpoint_every", "resume_anyway", "devices", "nodes"):
        settings["search"].pop(name)
    return {
        "rule": config.rule,
        "target": _target(config),
        "seed": config.seed,
        "space": _space(prepared),
        "table": _costs(prepared),
        "data": data_digest(prepared.data),
        "settings": settings,
    }


def _target(config: SearchConfig) -> str:
    # As the config says it: a fraction of the space's range is another number under another table.
    given = {name: getattr(config, name) for name in TARGETS if getattr(config, name) is not None}
    return " ".join(f"{k} {v if isinstance(v, str) else f'{v:.9g}'}" for k, v in given.items()) or "none"


def _space(prepared: Prepared) -> str:
    costs, data = prepared.costs, prepared.data
    ops = {label: {name: op.key for name, op in options.items()} for label, options in costs.edges.items()}
    digest = short_digest([prepared.space.to_dict(), [op.key for op in costs.fixed], ops])
    return f"{prepared.space.name}, {len(ops)} edges, {data.num_classes} classes, {data.channels} channels, {digest}"


def _costs(prepared: Prepared) -> str:
    cost = prepared.cost
    # Nine digits: the last ones of a sum depend on the machine.
    digest = short_digest([f"{value:.9g}" for value in (cost.fixed, *cost.costs.ravel().tolist())])
    return f"{cost.minimum()[0]:.6g} to {cost.maximum()[0]:.6g} {cost.unit}, {digest}"


def _differing(there: Mapping[str, Any], here: Mapping[str, Any], *parents: str) -> dict[str, tuple[Any, Any]]:
    """Both values of what differs, by dotted name; what an older version did not write down is no difference."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in here.items():
        if name not in there or there[name] == value:
            continue
        if isinstance(value, Mapping) and isinstance(there[name], Mapping):
            found |= _differing(there[name], value, *parents, name)
        else:
            found[".".join((*parents, name)).removeprefix("settings.")] = (_short(there[name]), value)
    return found


def _short(value: Any) -> Any:
    """Return a value as a message and a record can hold it, whatever a file has there."""
    return value if value is None or isinstance(value, (bool, int, float)) else cut(str(value))


def _where(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"epoch": state["epoch"], "step": state["global_step"]}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _why_not(state: Any) -> str | None:
    """Why a readable file is no checkpoint of a search that this version continues."""
    if not isinstance(state, dict) or not isinstance(state.get(_SEARCH_KEY), dict):
        return "it was written by another program"
    run = state.get(_RUN_KEY)
    if run is not None and (not isinstance(run, dict) or run.get("format") != FORMAT):
        found = run.get("format") if isinstance(run, dict) else type(run).__name__
        return f"it was written by another version of this project: format {shown(found)}, where this one has {FORMAT}"
    missing = [name for name in ("state_dict", "loops", "optimizer_states", "lr_schedulers") if name not in state]
    return f"it lacks {', '.join(missing)}" if missing else _wrong_part(state, {} if run is None else run)


def _wrong_part(state: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """Say what is of another kind than a search has written, of all that is read before Lightning reads the rest."""
    for name in ("epoch", "global_step"):
        if not _is_count(state.get(name)):
            return f"its {name} is {shown(state.get(name))}, which must be a whole number from 0 on"
    optimizers = state["optimizer_states"]
    if not isinstance(optimizers, list) or not all(
        isinstance(each, dict) and isinstance(each.get("param_groups"), list) for each in optimizers
    ):
        return f"its optimizer_states are {shown(optimizers)}, which must be those of optimisers"
    if run and not (isinstance(run.get("identity"), dict) and isinstance(run.get("resumed_with"), list)):
        return "it does not say of which search it is"
    if run.get("processes") is not None and not _is_count(run["processes"]):
        return f"its processes are {shown(run['processes'])}, which must be a number"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def find_checkpoints(prepared: Prepared, *, first: bool = True) -> SearchCheckpoints:
    """Return a search's checkpoints, with the one that it continues from found and checked.

    Raises:
        CheckpointError: See `SearchCheckpoints.resume`.
    """
    settings, path = prepared.config.search, prepared.config.out / SEARCH_CHECKPOINT
    found = SearchCheckpoints(path, minutes=settings.checkpoint_every, identity=search_identity(prepared))
    found.resume(anyway=settings.resume_anyway, first=first)
    return found


# ---- when they are written -------------------------------------------------------------------------------------


class SearchCheckpoints(Checkpoint):
    """Writes a search's checkpoint at the end of each epoch, every so many minutes within one, and when it is stopped.

    Give it to the trainer as a callback and its `files` as a plugin. Lightning's `ModelCheckpoint` will not do: its
    file goes through TMPDIR, it has no clock under manual optimisation, and what it saves within an epoch continues
    with the metrics of the rest of that epoch only.

    As a `Checkpoint` it runs after all other callbacks and after the module's own hooks, so that it saves what they
    changed.

    Args:
        path: The newest checkpoint's file.
        minutes: Time between two checkpoints.
        identity: See `search_identity`.

    Attributes:
        files: Writes and reads for Lightning.
        latest: The checkpoint that `resume` found; None where there was none.
        place: Epoch and step of that checkpoint.
        groups: Groups of parameters with a rate of their own in that checkpoint; None where there was none.
        resumed_with: What was another thing when this search was continued, once for each time and thing.
    """

    def __init__(self, path: Path, *, minutes: float, identity: Mapping[str, Any]):
        self.path = path
        self.minutes = minutes
        self.identity = dict(identity)
        self.files: CheckpointIO = _Files()
        self.latest: Path | None = None
        self.place = (0, 0)
        self.groups: int | None = None
        self.resumed_with: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._sums: dict[str, dict[str, Any]] = {}
        self._metrics: dict[str, Any] = {}
        self._exact: dict[str, torch.Tensor] = {}
        self._within_epoch = False
        self._hold: ExitStack | None = None
        self._together: Together | None = None

    # ---- continuing --------------------------------------------------------------------------------------------

    def resume(self, *, anyway: Collection[Change] = (), first: bool = True) -> Path | None:
        """Find the checkpoint to continue from, None where there is none; say so where it is not as expected.

        Args:
            anyway: What may be another thing than the checkpoint's.
            first: Whether this is the process that prints, and tidies up.

        Raises:
            CheckpointError: The checkpoint is of another search, or none of those that are there can be used.
        """
        if first:
            remove_leftovers(self.path)
        latest = latest_checkpoint(self.path, what=WHAT, check=_why_not, set_aside=first)
        if latest is None:
            return None
        sentences = [] if latest.warning is None else [latest.warning]
        run = latest.state.get(_RUN_KEY)
        if run is None:
            sentences.append(
                f"{latest.path} does not say what table, data and target it is of, as older versions wrote it: it is "
                "continued unchecked"
            )
        else:
            self.resumed_with = list(run["resumed_with"])
            sentences += self._accept(latest.path, latest.state, anyway)
        self.place = (int(latest.state["epoch"]), int(latest.state["global_step"]))
        before, here = (run or {}).get("processes"), current().size
        if before not in (None, here):
            self.resumed_with.append({"changed": "processes", "from": before, "to": here, **_where(latest.state)})
            sentences.append(
                f"{latest.path} is of {before} process{'es' * (before > 1)} and goes on with {here}: each step has the "
                "same images, but they are augmented by other random numbers and batch norms see other shares of them, "
                "so that the result is not bit for bit that of a search that was never stopped"
            )
        if first and sentences:
            print("\n".join(sentences), flush=True)
        self.latest = latest.path
        self.groups = max((len(state["param_groups"]) for state in latest.state["optimizer_states"]), default=None)
        return self.latest

    def _accept(self, path: Path, state: Mapping[str, Any], anyway: Collection[Change]) -> list[str]:
        differing = _differing(state[_RUN_KEY]["identity"], self.identity)
        refused = [name for name in differing if name not in anyway]
        if refused:
            named = "; ".join(f"{name} = {differing[name][0]} there, {differing[name][1]} here" for name in refused)
            remedy = f"choose another out, or delete {checkpoint_names(self.path)} to start anew"
            if all(name in get_args(Change) for name in refused):
                remedy += f", or go on with search.resume_anyway=[{','.join([*anyway, *refused])}]"
            raise CheckpointError(f"{path} is of another search ({named}); {remedy}")
        self.resumed_with += [
            {"changed": name, "from": there, "to": here, **_where(state)} for name, (there, here) in differing.items()
        ]
        return [
            f"{path} is continued with another {name} ({there} there, {here} here), as search.resume_anyway says"
            for name, (there, here) in differing.items()
        ]

    def record(self) -> dict[str, Any]:
        """Return what the search's record gets: nothing, where it never went on with something else."""
        return {"resumed_with": self.resumed_with} if self.resumed_with else {}

    # ---- hooks -------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # Not when training starts: after the last epoch there is none, and finalists are compared all the same.
        if self._exact:
            own = pl_module.state_dict()
            for name, value in self._exact.items():
                own[name].copy_(value)
            self._exact = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._written = time.monotonic()
        self._together = Together(trainer.strategy.root_device) if trainer.world_size > 1 else None
        # The last values of metrics that are logged now and then (E[LAT], entropy) stand until the next ones come.
        trainer.callback_metrics.update(self._metrics)
        self._metrics = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # A step that a signal cuts in two cannot be gone on with.
        if self._hold is None:
            self._hold = ExitStack()
            self._hold.enter_context(signals.held())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._add_sums(trainer)
        # After the last batch comes the epoch's own checkpoint.
        if trainer.is_last_batch:
            return
        due = self._due()
        if self._together is not None:
            due = self._together.save(due)
        signals.leave_if_asked(lambda: self._save_within_epoch(trainer))
        if due:
            self._save_within_epoch(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._sums = {}
        self.save(trainer)
        if self._together is not None:
            self._together.save(False, now=True)
        signals.leave_if_asked()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        # Finalists are compared next, which takes long and has nothing to save.
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Told of it, the context does not stop once more while the exception is on its way.
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.__exit__(type(exception), exception, exception.__traceback__)

    def _save_within_epoch(self, trainer: Any) -> None:
        self._within_epoch = True
        try:
            self.save(trainer)
        finally:
            self._within_epoch = False

    def save(self, trainer: Any) -> None:
        """Write a checkpoint now; all processes must call it."""
        trainer.save_checkpoint(self.path)
        self._written = time.monotonic()

    def _due(self) -> bool:
        return time.monotonic() - self._written >= 60 * self.minutes

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RUN_KEY] = {
            "format": FORMAT,
            "identity": self.identity,
            "resumed_with": self.resumed_with,
            "processes": trainer.world_size,
            "versions": _versions(),
            "sums": self._epoch_sums(trainer) if self._within_epoch else {},
            "metrics": {name: torch.as_tensor(value).cpu() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        run = checkpoint.get(_RUN_KEY, {})
        self._sums, self._metrics = dict(run.get("sums", {})), dict(run.get("metrics", {}))
        # Lightning restores a module before it gives it the trainer's precision: into float32, which rounds float64.
        own, saved = pl_module.state_dict(), checkpoint["state_dict"]
        self._exact = {name: saved[name] for name in own if name in saved and saved[name].dtype != own[name].dtype}

    # ---- an epoch's metrics ------------------------------------------------------------------------------------
    # Lightning saves the progress of its loops, but not what `log(on_epoch=True)` has gathered in the epoch: its mean
    # would be that of the batches after the restart. Nothing public reaches these sums.

    def _epoch_sums(self, trainer: Any) -> dict[str, dict[str, Any]]:
        sums = dict(self._sums)  # of a checkpoint that we continue from, not logged again yet
        for name, metric in trainer.fit_loop.epoch_loop._results.items():
            if _is_epoch_sum(metric):
                count = metric.cumulated_batch_size if metric.meta.is_mean_reduction else None
                sums[name] = {"value": metric.value.cpu(), "count": None if count is None else int(count)}
        return sums

    def _add_sums(self, trainer: Any) -> None:
        """Add what the checkpoint's batches had gathered to what the first one after the restart did."""
        for name in list(self._sums):
            metric = trainer.fit_loop.epoch_loop._results.get(name)
            if metric is None or not _is_epoch_sum(metric):
                continue
            saved = self._sums.pop(name)
            value = saved["value"].to(metric.value)
            if metric.meta.is_mean_reduction or metric.meta.is_sum_reduction:
                metric.value = value + metric.value
            else:
                metric.value = metric.meta.reduce_fx(value, metric.value)
            if metric.meta.is_mean_reduction:
                metric.cumulated_batch_size = metric.cumulated_batch_size + saved["count"]
            metric._computed = None


def _is_epoch_sum(metric: Any) -> bool:
    return metric.is_tensor and metric.meta.on_epoch and not metric.has_reset


class _Files(CheckpointIO):
    """Lightning's reading and writing of checkpoint files, by `proxyless_strategy.checkpoints`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        found = cast("dict[str, Any]", read_checkpoint(Path(path), what=WHAT, check=_why_not))
        # Older versions wrote by ModelCheckpoint, and Lightning asks for every callback that has a state in the file.
        callbacks = found.get("callbacks", {})
        found["callbacks"] = {key: state for key, state in callbacks.items() if not key.startswith("ModelCheckpoint")}
        return found

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
