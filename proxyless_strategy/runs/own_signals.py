"""Keep a command's signal handlers over Lightning's."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback

from .. import signals


class OwnSignals(Callback):
    """Takes the signals back when training starts: Lightning takes them after `on_fit_start`.

    Lightning's handler of SIGTERM ends a training as if it had reached its end, with status 0, and broadcasts from
    within the handler, which waits for ever where another process waits in something else.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        signals.reclaim()
