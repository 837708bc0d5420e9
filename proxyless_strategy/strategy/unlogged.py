"""Run the evaluator's steps without a trace in its logs and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torchmetrics
from torch import Tensor


@contextmanager
def unlogged(module: Any) -> Iterator[None]:
    """Silence a Lightning module's `log` and put its torchmetrics back on exit.

    Architecture steps and finalists run the evaluator's own code on validation batches: without this, what it logs as
    training metrics would mix both kinds of batches.

    Args:
        module: The evaluator's Lightning module.
    """
    log, module.log = module.log, lambda *args, **kwargs: None
    metrics = [m for m in module.modules() if isinstance(m, torchmetrics.Metric)]
    # torchmetrics has no public way to copy a state that is neither synchronised nor persistent.
    saved = [({k: _copied(getattr(m, k)) for k in m._defaults}, m._update_count, m._computed) for m in metrics]
    try:
        yield
    finally:
        module.log = log
        for metric, (state, count, computed) in zip(metrics, saved, strict=True):
            for key, value in state.items():
                setattr(metric, key, value)
            metric._update_count, metric._computed = count, computed


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else list(value)
