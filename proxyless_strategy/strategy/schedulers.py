"""Learning-rate schedulers of the evaluator's module, advanced by hand.

An architecture step and a weight step step different optimisers, so a search runs under Lightning's manual
optimisation, in which Lightning advances no scheduler and takes no gradient-dependent decision for the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from hardware.errors import ConfigError


class Schedulers:
    """Advances schedulers of every step, of every epoch, and on a plateau."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[str, bool]] = {}

    def adopt(self, configuration: Any) -> Any:
        """Note what plateau schedulers watch, and return the configuration in a form that Lightning accepts.

        Args:
            configuration: What the module's `configure_optimizers` returned, in any of Lightning's forms.

        Raises:
            ConfigError: A ReduceLROnPlateau has nothing to watch.
        """
        return _each_scheduler(configuration, self._noting_monitor)

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
        # Under manual optimisation Lightning ignores these three keys with a warning that nobody could act on.
        return {k: v for k, v in settings.items() if k not in ("monitor", "strict", "reduce_on_plateau")}

    def advance(
        self, trainer: Any, interval: Literal["step", "epoch"], done: int, step: Callable[[Any, Any], None]
    ) -> None:
        """Advance the schedulers of an interval whose frequency has come round.

        Args:
            trainer: Has the schedulers and the logged metrics.
            interval: What has just ended.
            done: How many have ended: batches of this epoch, or epochs.
            step: Steps one scheduler, given the metric that it watches or None: the module's `lr_scheduler_step`.

        Raises:
            ConfigError: A plateau scheduler watches what was not logged.
        """
        for config in trainer.lr_scheduler_configs:
            if config.interval != interval or done % config.frequency:
                continue
            metric = None
            if id(config.scheduler) in self._watched:
                monitor, strict = self._watched[id(config.scheduler)]
                metric = trainer.callback_metrics.get(monitor)
                if metric is None and strict:
                    raise ConfigError(
                        f"ReduceLROnPlateau watches {monitor!r}, which was not logged; known metrics are "
                        f"{', '.join(trainer.callback_metrics)}"
                    )
                if metric is None:
                    continue
            step(config.scheduler, metric)


def _each_scheduler(conf: Any, change: Callable[[Any, str | None], Any]) -> Any:
    """Return Lightning's optimiser configuration, in whichever of its forms, with each scheduler changed."""
    if isinstance(conf, dict) and "lr_scheduler" in conf:
        kept = {key: value for key, value in conf.items() if key != "monitor"}
        return {**kept, "lr_scheduler": change(conf["lr_scheduler"], conf.get("monitor"))}
    if isinstance(conf, (list, tuple)) and len(conf) == 2 and isinstance(conf[0], (list, tuple)):
        schedulers = conf[1] if isinstance(conf[1], (list, tuple)) else [conf[1]]
        return list(conf[0]), [change(scheduler, None) for scheduler in schedulers]
    if isinstance(conf, (list, tuple)):
        return [_each_scheduler(item, change) for item in conf]
    return conf
