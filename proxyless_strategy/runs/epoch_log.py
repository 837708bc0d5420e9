"""The history of a search: one row per epoch, kept in its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback

from .film import FilmRecorder


class EpochLog(Callback):
    """Keep one row per epoch and hand it on; the rows survive a restart from a checkpoint.

    Args:
        warmup_epochs: Epochs that count as warm-up.
        report: Called with each row, on one process only.
        unit: Unit of the expected cost.

    Attributes:
        history: The rows.
        film: The probabilities after each epoch.
    """

    def __init__(self, warmup_epochs: int, report: Callable[[dict[str, Any]], None], *, unit: str = "ms"):
        self.warmup_epochs = warmup_epochs
        self.report = report
        self.unit = unit
        self.history: list[dict[str, Any]] = []
        self.film = FilmRecorder()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "phase": "warmup" if trainer.current_epoch < self.warmup_epochs else "search",
            "epoch": trainer.current_epoch + 1,
            "default": metrics.get("val_accuracy"),
            "loss": metrics.get("train_loss"),
            "expected": metrics.get("search/expected"),
            "unit": self.unit,
            "entropy": metrics.get("search/entropy"),
        }
        # Every process keeps the rows: which one writes the checkpoint is Lightning's choice.
        self.history.append(row)
        architecture = pl_module.architecture
        p = architecture.probabilities().tolist()
        rows = [row[: len(edge.candidates)] for row, edge in zip(p, architecture.edges, strict=True)]
        self.film.keep(trainer.current_epoch + 1, rows)
        if trainer.is_global_zero:
            self.report(row)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "film": self.film.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        # Checkpoints of earlier versions have none: the film then begins where they are continued.
        if "film" in state_dict:
            self.film.load_state_dict(state_dict["film"])
