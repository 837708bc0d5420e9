"""What starts an experiment's trials and follows them; what becomes of what they leave on disk is not its matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console

from hardware.errors import ConfigError
from hardware.reading import cut

from .sweep import Sweep
from .trials import Record, Trial

PROGRESS_SECONDS = 5.0
"""How often a trial says on the console how far it is."""


class Engine(Protocol):
    """A way to run trials: each in a process of its own, which works in its own folder and leaves its row there."""

    def check(self, sweep: Sweep) -> None:
        """Refuse what cannot be run, before anything is measured or written.

        Raises:
            ConfigError: The sweep, or an option, asks for what there is not.
        """

    def draw(self, sweep: Sweep, record: Record, console: Console, *, retries: int, earlier: Sequence[Trial]) -> None:
        """Run the trials that the sweep's tuner draws, and again those that ended badly.

        Args:
            sweep: What is drawn from.
            record: The experiment.
            console: Receives sentences of progress.
            retries: How often a trial is started again.
            earlier: Trials that were begun before.

        Raises:
            ExperimentError: The engine, or the sweep's tuner, failed.
        """

    def run(self, sweep: Sweep, record: Record, console: Console, *, trials: Sequence[Trial], retries: int) -> None:
        """Run trials whose parameters are known, and again those that end badly.

        Raises:
            ExperimentError: The engine failed.
        """


def choose_engine(name: str, *, port: int | None = None, address: str | None = None) -> Engine:
    """Return the engine of a name.

    Args:
        name: `nni` or `ray`.
        port: Of NNI's web page.
        address: Of a Ray cluster.

    Raises:
        ConfigError: There is no such engine, it has no such option, or its package is missing.
    """
    if name == "nni":
        if address is not None:
            raise ConfigError(f"--address {cut(address)} is a Ray cluster's; give --engine ray, or leave it out")
        from .nni_engine import NniEngine

        return NniEngine(port)
    if name == "ray":
        if port is not None:
            raise ConfigError(f"--port {port} is of NNI's web page, which --engine ray has not; leave it out")
        from .ray_engine import RayEngine

        return RayEngine(address)
    raise ConfigError(f"--engine {cut(name)} is no engine; give nni or ray")


def progress(metrics: Mapping[str, Any]) -> str:
    """Return an intermediate result as the console says it."""
    parts = [f"{metrics.get('phase', 'epoch')} {metrics.get('epoch', '')}".strip()]
    for name, label, spec in (
        ("default", "accuracy", ".3f"),
        ("loss", "loss", ".3f"),
        ("expected", f"expected {metrics.get('unit', 'cost')}", ".4g"),
    ):
        if metrics.get(name) is not None:
            parts.append(f"{label} {metrics[name]:{spec}}")
    return ", ".join(parts)
