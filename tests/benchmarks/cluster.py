"""Sweeps and searches on two hosts: `python -m tests.benchmarks.cluster [--only PART ...]`.

Needs root, for network namespaces as hosts: each has an sshd, and between them is a cable that is cut. Standard output
ends in one line of JSON. A part that fails says so in its figures, and the others run all the same.

trials      a sweep of two trials, over both hosts by SSH
ddp         one search by torchrun on both (gloo), beside the same search on one host with the joined batch
cut_link    the sweep of `trials`, whose second host is cut off in the middle, and back
ray         a sweep on a cluster of Ray's with two nodes; Ray is the extra `ray`, or a folder on PYTHONPATH
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from proxyless_strategy.layout import SEARCH_FILE, SUMMARY
from tests import namespaces, ssh_hosts
from tests.proxyless_strategy.runs import test_hosts
from tests.proxyless_strategy.runs.test_remote import SEARCH, Remote, notes, until

TRIALS = 2
EPOCHS = 40
"""Of the sweep that is cut: it still searches when the cable is."""
SECONDS = 900.0
"""That a part may wait for a program."""


def trials(folder: Path) -> dict[str, Any]:
    """Run the sweep with a folder of each host's own, so that the second host's trial has to come home."""
    with ssh_hosts.ssh_hosts(folder) as hosts:
        remote = Remote(hosts, hosts.own[0] / "sweep")
        remote.write()
        _end(remote.start())
        rows = remote.rows()
        built = [row for row in rows if (Path(row["folder"]) / "config.json").is_file()]
        return {
            "hosts": len({row["machine"] for row in rows}),
            "succeeded": len(built),
            "restarted": sum(row["restarts"] for row in rows),
        }


def cut_link(folder: Path) -> dict[str, Any]:
    """Cut the second host off while both have a checkpoint, in a folder that both share."""
    with ssh_hosts.ssh_hosts(folder) as hosts:
        remote = Remote(hosts, hosts.shared / "sweep")
        remote.write(epochs=EPOCHS)
        process = remote.start()
        until(lambda: len(list(remote.out.glob("*/search.ckpt"))) == TRIALS, process)
        cut = time.monotonic()
        namespaces.link("down")
        until(lambda: ": lost: " in notes(remote.out), process, seconds=120)
        noticed = time.monotonic() - cut
        namespaces.link("up")
        _end(process)
        losses = [loss for row in remote.rows() for loss in row.get("lost", [])]
        went_on = [f"went on on {loss['then']} from {loss['from']}" for loss in losses]
        finished = len(remote.rows())
        return {
            "seconds_to_notice": round(noticed, 1),
            "outcome": f"{'; '.join(went_on)}; {finished} of {TRIALS} trials have finished",
        }


def ddp(folder: Path) -> dict[str, Any]:
    """Search on both hosts, and on one with the joined batch; every batch norm is frozen, as its shares differ."""
    hosts = test_hosts.Hosts(separate=True)
    with namespaces.two_hosts():
        for nodes, name in ((2, "both"), (1, "alone")):
            (folder / name).mkdir()
            config = test_hosts.config_file(folder, f"{name}_run", search={"nodes": nodes})
            said = test_hosts.ends(
                hosts.start(test_hosts.PROGRAM, str(config), str(folder / name), nodes=nodes), SECONDS
            )
            if any(status != 0 for status, _, _ in said):
                raise RuntimeError(_last_line(next(error for status, _, error in said if status != 0)))
    first, second = (torch.load(folder / "both" / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    identical = torch.equal(first["alpha"], second["alpha"]) and all(
        torch.equal(value, second["weights"][name]) for name, value in first["weights"].items()
    )
    # of the same subnet on all architecture images, as the first process computes it alone after the search
    both, alone = (json.loads((folder / f"{name}_run" / SEARCH_FILE).read_text()) for name in ("both", "alone"))
    if both["subnet"]["choices"] != alone["subnet"]["choices"]:
        raise RuntimeError(f"two hosts have found {both['subnet']['choices']}, and one {alone['subnet']['choices']}")
    gap = abs(both["finalists"][0]["loss"] - alone["finalists"][0]["loss"])
    return {"identical": bool(identical and first["paths"] == second["paths"]), "loss_gap": gap}


def ray(folder: Path) -> dict[str, Any]:
    """Run the sweep on a cluster of Ray's: a GPU in its books on each node, so that each gets a trial."""
    if importlib.util.find_spec("ray") is None:
        raise RuntimeError("ray is not installed; install the extra `ray`, or put its folder on PYTHONPATH")
    home = folder / "home"
    home.mkdir()
    (folder / "search.yml").write_text(yaml.safe_dump(SEARCH))
    sweep = {
        "searchSpace": {"target": {"_type": "choice", "_value": [0.4, 0.6]}},
        "tuner": {"name": "GridSearch"},
        "maxTrialNumber": TRIALS,
        "trialConcurrency": TRIALS,
        "trialGpuNumber": 1,
        "trialCommand": f"{sys.executable} -m proxyless_strategy.trial search.yml",
        "trainingService": {"platform": "local"},
    }
    (folder / "sweep.yml").write_text(yaml.safe_dump(sweep))
    environment = {**os.environ, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    cluster = [sys.executable, str(Path(test_hosts.__file__).with_name("ray_cluster.py"))]
    with subprocess.Popen(
        cluster, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        try:
            there = next((json.loads(line) for line in nodes.stdout if line.startswith("{")), None)
            if there is None:
                raise RuntimeError("the cluster of Ray's did not start")
            command = [sys.executable, "-m", "proxyless_strategy.cli", "experiment", str(folder / "sweep.yml")]
            output = _end(
                subprocess.Popen(
                    [*command, "--engine", "ray", "--address", there["address"]],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        finally:
            nodes.stdin.close()  # it then shuts the nodes down
    rows = json.loads((folder / "runs" / SUMMARY).read_text())
    return {"nodes": 2 if " 2 nodes: " in output else 1, "succeeded": len(rows)}


PARTS: dict[str, tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = {
    "trials": (trials, ("hosts", "succeeded", "restarted")),
    "ddp": (ddp, ("identical", "loss_gap")),
    "cut_link": (cut_link, ("seconds_to_notice", "outcome")),
    "ray": (ray, ("nodes", "succeeded")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cluster")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    only = parser.parse_args(arguments).only
    if reason := ssh_hosts.why_not():
        print(reason, file=sys.stderr)
        return 2
    figures = {name: _figures(name) for name in PARTS if name in only}
    print(json.dumps(figures))
    return int(any("failed" in found for found in figures.values()))


def _figures(name: str) -> dict[str, Any]:
    part, keys = PARTS[name]
    with tempfile.TemporaryDirectory(prefix="proxyless-cluster-") as folder:
        try:
            found = part(Path(folder))
        except Exception as error:  # of one part, whose figures say so
            found = {**dict.fromkeys(keys), "failed": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
    print(f"{name}: {json.dumps(found)}", flush=True)
    return found


def _end(process: subprocess.Popen[str]) -> str:
    """Wait for an experiment's end and return what it has printed.

    Raises:
        RuntimeError: It has failed.
    """
    try:
        output, error = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate(timeout=120)
        raise
    if process.returncode:
        raise RuntimeError(_last_line(error or output))
    return output


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


if __name__ == "__main__":
    sys.exit(main())
