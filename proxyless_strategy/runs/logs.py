"""What a search hands to Lightning's loggers: each epoch's figures, its probabilities, and a picture of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from hardware.errors import ConfigError
from hardware.files import writing
from search_spaces.boxes import box

from ..config import LoggerName, SearchConfig

NNI_FOLDER = "NNI_OUTPUT_DIR"
"""Environment variable of a trial: NNI's page opens TensorBoard on the folder `tensorboard` in there."""
_PACKAGES: dict[str, str] = {"tensorboard": "tensorboard", "wandb": "wandb"}
_LIKELY, _UNLIKELY = np.array((8, 48, 107)), np.array((247, 251, 255))
_BOX, _ROW, _GAP = 64, 10, 6


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse loggers whose package is missing, before anything is searched.

    Raises:
        ConfigError: One is; the sentence names the extra that brings it.
    """
    for name in names:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"loggers: {name} needs the package {package}, which is not installed; install it with `pip install "
                f"'proxyless-strategy[{name}]'`, or leave {name} out"
            )


class Logs(Callback):
    """Hands the figures of a run to the loggers that its config names; without any it does nothing.

    Lightning's own trainer gets none, so that a search is the same with and without them, and its retraining is logged
    in the same way.

    Args:
        config: The search.
        shown: Whether this process logs: of several only the first.
    """

    def __init__(self, config: SearchConfig, *, shown: bool = True):
        self.out = config.out
        self.loggers = [_MAKERS[name](config) for name in dict.fromkeys(config.loggers)] if shown else []
        self._settings = config.identity()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        with self._writing():
            for logger in self.loggers:
                logger.log_hyperparams(self._settings)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not self.loggers:
            return
        step = trainer.current_epoch + 1
        odds = pl_module.export_probs()
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for label, candidates in odds.items():
            figures |= {f"probability/{label}/{name}": value for name, value in candidates.items()}
        self._log(figures, step=step)
        picture = architecture_picture(odds)
        with self._writing():
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image("architecture", picture, step, dataformats="HWC")
                    logger.experiment.flush()
                elif isinstance(logger, WandbLogger):
                    logger.log_image("architecture", [picture], step=step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log an epoch that is none of the supernet's: see `run_search`."""
        if self.loggers and row["phase"] not in ("warmup", "search"):
            names = ("loss", "accuracy", "learning_rate")
            figures = {f"{row['phase']}/{name}": float(row[name]) for name in names if row.get(name) is not None}
            self._log(figures, step=int(row["epoch"]))

    def result(self, row: Mapping[str, Any]) -> None:
        """Log the figures of a run that has ended, and close the loggers."""
        figures = {
            f"result/{name}": float(value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._log(figures, step=0)
        with self._writing():
            for logger in self.loggers:
                logger.finalize("success")

    def _log(self, figures: Mapping[str, float], *, step: int) -> None:
        with self._writing():
            for logger in self.loggers:
                logger.log_metrics(dict(figures), step=step)
                # A run that is killed loses nothing that it has logged.
                logger.save()

    def _writing(self) -> Any:
        return writing(f"the logs of {self.out}", error=ConfigError, remedy="make room there, or leave loggers out")


def architecture_picture(odds: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Draw the architecture of an epoch, an edge a column: the likeliest candidate as a box, all as a map below.

    The colour and the height of a box stand for the kernel, its width for the expansion; skip is a thin line. The
    darker a cell of the map, the more probable its candidate.

    Args:
        odds: Probability by edge and candidate.

    Returns:
        `H x W x 3` bytes.
    """
    names = list(dict.fromkeys(str(name) for candidates in odds.values() for name in candidates))
    width = max(3, min(48, 1200 // max(1, len(odds))))
    picture = np.full((_BOX + _GAP + _ROW * len(names), width * len(odds), 3), 255, dtype=np.uint8)
    for column, candidates in enumerate(odds.values()):
        left, right = column * width, (column + 1) * width - 1
        drawn = box(str(max(candidates, key=lambda name: candidates[name])))
        top, wide = (_BOX - drawn.height) // 2, max(1, min(right - left, drawn.width * width // 48))
        picture[top : top + drawn.height, left : left + wide] = [int(drawn.colour[i : i + 2], 16) for i in (1, 3, 5)]
        for name, p in candidates.items():
            row = _BOX + _GAP + _ROW * names.index(str(name))
            picture[row : row + _ROW - 1, left:right] = _UNLIKELY + p * (_LIKELY - _UNLIKELY)
    return picture


# ---- one logger each -------------------------------------------------------------------------------------------


def _tensorboard(config: SearchConfig) -> Logger:
    folder = Path(os.environ.get(NNI_FOLDER) or config.out) / "tensorboard"
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False)


def _csv(config: SearchConfig) -> Logger:
    # A folder for each start: Lightning's logger empties one that exists.
    return CSVLogger(config.out, name="csv")


def _wandb(config: SearchConfig) -> Logger:
    # Weights & Biases sends all to its makers, unless it is told not to.
    offline = os.environ.get("WANDB_MODE", "offline") != "online"
    config.out.mkdir(parents=True, exist_ok=True)  # else it writes to a folder of the system's
    return WandbLogger(
        name=config.out.name, project="proxyless", save_dir=config.out, offline=offline, config=config.identity()
    )


_MAKERS: dict[LoggerName, Callable[[SearchConfig], Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "wandb": _wandb,
}
