"""Trials under Ray Tune: `proxyless experiment --engine ray`, on this machine or on a cluster of Ray's."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from hardware.errors import ConfigError, ExperimentError, ProxylessError
from hardware.reading import cut, shown

from .nni_server import deaf, stop_marked
from .ray_events import Events, reason_of
from .ray_session import check_ray, ray_session
from .ray_worker import run_here
from .shares import Node, share_of
from .sweep import Sweep
from .trials import Record, Trial
from .tuners import Drawn, Listed, Source, check_tuner

FOLDER = "ray"
"""In the experiment's folder: what Ray Tune keeps, with TensorBoard's events of each trial."""
_UNDERSTOOD = {
    "experimentName", "maxTrialNumber", "searchSpace", "searchSpaceFile", "trainingService", "trialCodeDirectory",
    "trialCommand", "trialConcurrency", "trialGpuNumber", "tuner",
}  # fmt: skip
_OF_NNI = {"debug", "experimentType", "experimentWorkingDirectory", "logLevel", "nniManagerIp", "useAnnotation"}
"""What says where NNI keeps its own files and how much it logs; without NNI there is nothing that it could decide."""
_SERVICE = {"platform", "trialGpuNumber", "maxTrialNumberPerGpu"}


@dataclass(frozen=True)
class RayEngine:
    """Ray Tune starts trials where a node has room, and again where they end badly or their node is lost.

    Args:
        address: A Ray cluster to join, `HOST:PORT` or `auto`; None: one of this machine alone, on loopback.
    """

    address: str | None = None

    def check(self, sweep: Sweep) -> None:
        check_ray()
        if self.address is not None and self.address.startswith("ray://"):
            raise ConfigError(
                f"--address {cut(self.address)} is of Ray's client, which does not follow trials; run the command on a "
                "node of the cluster, with --address auto"
            )
        _check_settings(sweep)
        check_tuner(sweep)
        _gpus(sweep)

    def draw(self, sweep: Sweep, record: Record, console: Console, *, retries: int, earlier: Sequence[Trial]) -> None:
        source = Drawn(sweep, record.id, earlier)
        started = self._follow(sweep, record, console, source, sweep.limit, retries=retries)
        if not started and not earlier:
            raise ExperimentError("the experiment ended without a single trial; look at its tuner and search space")

    def run(self, sweep: Sweep, record: Record, console: Console, *, trials: Sequence[Trial], retries: int) -> None:
        self._follow(sweep, record, console, Listed(trials), len(trials), retries=retries)

    def _follow(
        self, sweep: Sweep, record: Record, console: Console, source: Source, limit: int | None, *, retries: int
    ) -> int:
        """Run trials of a source until it has no more; return how many were started."""
        with ray_session(self.address) as ray:
            from .ray_tune import Follower, Suggestions, tuner_of  # they inherit from Ray's classes

            nodes = _nodes(ray)
            gpus = _gpus(sweep)
            cpus = share_of(nodes, _side_by_side(sweep), gpus)
            if cpus is None:
                there = ", ".join(f"{node.gpus:g}" for node in nodes) or "none"
                raise ConfigError(
                    f"{sweep.path}: a trial takes {gpus:g} GPUs, but the nodes of the Ray cluster have {there}; lower "
                    "trialGpuNumber, or give the --address of another cluster"
                )
            console.print(
                f"Ray {ray.__version__}, {len(nodes)} node{'s' if len(nodes) > 1 else ''}: each trial gets {cpus:g} of "
                f"{sum(node.cpus for node in nodes):g} processors and {gpus:g} of "
                f"{sum(node.gpus for node in nodes):g} GPUs; at most {_side_by_side(sweep)} at a time"
            )
            threads = os.environ.get("OMP_NUM_THREADS")

            def proxyless(settings: dict[str, Any]) -> None:
                run_here(settings, sweep=sweep, mark=record.id, threads=threads)

            suggestions = Suggestions(source, sweep)
            events = Events(sweep, record, console, lambda: _nodes(ray), Node(cpus, gpus))
            tuner = tuner_of(
                proxyless,
                suggestions,
                Follower(events),
                resources={"cpu": cpus, "gpu": gpus},
                limit=limit,
                side_by_side=_side_by_side(sweep),
                retries=retries,
                name=str(sweep.config.get("experimentName") or sweep.path.stem),
                storage=sweep.out / FOLDER,
            )
            try:
                tuner.fit()
            except Exception as error:
                self._stop(record)
                if suggestions.failure is not None or isinstance(error, ProxylessError):
                    raise suggestions.failure or error from error
                raise ExperimentError(
                    f"Ray failed: {reason_of(error)}; see {sweep.out / FOLDER} and /tmp/ray, and repeat the command "
                    "with --resume"
                ) from error
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    print("interrupted: stopping Ray and its trials", file=sys.stderr, flush=True)
                self._stop(record)
                raise
            if suggestions.failure is not None:
                raise suggestions.failure
            return suggestions.started

    def _stop(self, record: Record) -> None:
        """End the trials of this machine, which then keep a checkpoint; others end with their worker, see `leash`."""
        with deaf():
            stop_marked(record.id)


def _check_settings(sweep: Sweep) -> None:
    """Refuse what NNI would do and Ray cannot: none of it is left out without a word."""
    service = sweep.config.get("trainingService")
    named = [key for key in sweep.config if key not in _UNDERSTOOD | _OF_NNI]
    named += [f"trainingService.{key}" for key in (service if isinstance(service, dict) else {}) if key not in _SERVICE]
    if named:
        raise ConfigError(
            f"{sweep.path}: {', '.join(named)} cannot be had on Ray; leave {'it' if len(named) == 1 else 'them'} out, "
            "or run the sweep under NNI (--engine nni)"
        )


def _gpus(sweep: Sweep) -> float:
    """Return how many GPUs a trial takes: a part of one where trials may share it.

    Raises:
        ConfigError: The numbers are none, or no such part.
    """
    service = sweep.config.get("trainingService")
    service = service if isinstance(service, dict) else {}
    gpus = sweep.config.get("trialGpuNumber", service.get("trialGpuNumber")) or 0
    sharing = service.get("maxTrialNumberPerGpu", 1)
    for name, value, least in (
        ("trialConcurrency", sweep.config.get("trialConcurrency", 1), 1),
        ("trialGpuNumber", gpus, 0),
        ("trainingService.maxTrialNumberPerGpu", sharing, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{sweep.path}: {name} is {shown(value)}; give a whole number from {least} on")
    if sharing > 1 and gpus > 1:
        raise ConfigError(
            f"{sweep.path}: on Ray {sharing} trials can share a GPU (maxTrialNumberPerGpu) where each takes one, but "
            f"trialGpuNumber is {gpus}; lower one of them to 1"
        )
    return gpus / sharing


def _side_by_side(sweep: Sweep) -> int:
    return int(sweep.config.get("trialConcurrency", 1))


def _nodes(ray: Any) -> list[Node]:
    """Return the nodes that are there and that run trials."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [Node(float(found.get("CPU", 0)), float(found.get("GPU", 0))) for found in alive]
    return [node for node in nodes if node.cpus > 0]
