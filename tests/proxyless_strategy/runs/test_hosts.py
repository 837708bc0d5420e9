"""One search on several hosts, each with an agent of torchrun: on the loopback, and in two namespaces of the network.

`python -m tests.proxyless_strategy.runs.test_hosts FILE.yml FOLDER` is a trial that notes in FOLDER what it saw.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from torch import nn

from hardware.files import write_atomically
from proxyless_strategy import trial
from proxyless_strategy.layout import SEARCH_CHECKPOINT
from proxyless_strategy.runs import search as search_module
from proxyless_strategy.runs.classifier import ImageClassifier
from proxyless_strategy.strategy.module import SearchModule
from proxyless_strategy.world import current, unused_port
from tests import namespaces
from tests.proxyless_strategy.environments import without
from tests.proxyless_strategy.runs.test_search import SPACE

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(900)
NOTICED_SECONDS = 60


# ---- what a process does -----------------------------------------------------------------------------------------


def noted(folder: Path) -> None:
    """Freeze batch norms, whose shares differ, and save paths, alpha and weights when the search ends."""
    paths: list[Any] = []
    draw, step, end = SearchModule.draw_paths, ImageClassifier.training_step, search_module.end_processes
    seen: dict[str, Any] = {}

    def drawn(self: Any) -> Any:
        seen["module"] = self
        paths.append(draw(self))
        if len(paths) == 1:
            write_atomically(folder / f"rank{current().rank}.pid", str(os.getpid()))
        return paths[-1]

    def frozen(self: Any, batch: Any, batch_idx: int) -> Any:
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return step(self, batch, batch_idx)

    def ended(strategy: Any) -> None:
        module = seen["module"]
        found = {
            "paths": paths,
            "alpha": module.architecture.alpha.detach().clone(),
            "weights": {name: value.clone() for name, value in module.model.named_parameters()},
            "counters": dict(module.counters),
        }
        torch.save(found, folder / f"rank{current().rank}.pt")
        end(strategy)

    SearchModule.draw_paths = drawn  # type: ignore[method-assign]
    ImageClassifier.training_step = frozen  # type: ignore[method-assign]
    search_module.end_processes = ended


# ---- hosts ---------------------------------------------------------------------------------------------------------


class Hosts:
    """Two hosts, and what is started on them."""

    def __init__(self, *, separate: bool):
        self.separate = separate
        self.address = namespaces.ADDRESSES[0] if separate else "127.0.0.1"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *program: str, nodes: int = 2) -> list[subprocess.Popen[str]]:
        """Start a program by torchrun on each host."""
        port = unused_port()
        run = ["-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        run += [f"--rdzv-endpoint={self.address}:{port}", "--rdzv-id=search"]
        found = []
        for host in range(nodes):
            own = namespaces.ADDRESSES[host] if self.separate else "127.0.0.1"
            # Without names for the addresses an agent does not know whether it is the one that the others connect to.
            where = [f"--local-addr={own}", f"--rdzv-conf=is_host={host == 0}"]
            command = [sys.executable, "-W", "ignore", *run, *where, "-m", *program]
            found.append(
                subprocess.Popen(
                    namespaces.inside(host, *command) if self.separate else command,
                    cwd=ROOT,
                    env={**without(os.environ), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
        self.started += found
        return found


@pytest.fixture(
    params=[
        pytest.param(False, id="loopback", marks=pytest.mark.slow),
        pytest.param(True, id="namespaces", marks=pytest.mark.cluster),
    ]
)
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    found = Hosts(separate=request.param)
    reason = namespaces.why_not() if found.separate else None
    if reason is not None:
        pytest.skip(reason)
    if found.separate:
        namespaces.up()
    try:
        yield found
    finally:
        for process in found.started:
            if process.poll() is None:
                process.terminate()  # torchrun then ends what it has started
        for process in found.started:
            process.communicate(timeout=60)
        if found.separate:
            namespaces.down()


def config_file(folder: Path, name: str, **changes: Any) -> Path:
    values = {
        "space": SPACE,
        # 90 images of the architecture part: of the last 26, the first process gets 16 and the second one 10
        "data": {"name": "digits", "augment": "none", "architecture_per_class": 9},
        "input_size": 16,
        "hardware": {"cost": "macs", "device": "other"},
        "target": 0.5,
        "search": {
            "warmup_epochs": 1,
            "epochs": 2,
            "steps_per_update": 3,
            "batch_size": 32,
            "precision": "64-true",
            "accelerator": "cpu",
            **changes.pop("search", {}),
        },
        "retrain": None,
        "out": str(folder / name),
        **changes,
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(values))
    return path


def ends(processes: list[subprocess.Popen[str]], seconds: float = 800) -> list[tuple[int, str, str]]:
    deadline = time.monotonic() + seconds
    said = []
    for process in processes:
        out, error = process.communicate(timeout=max(1, deadline - time.monotonic()))
        said.append((process.returncode, out, error))
    return said


PROGRAM = "tests.proxyless_strategy.runs.test_hosts"


def test_two_hosts_search_as_one_with_the_joined_batch(hosts: Hosts, tmp_path: Path) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    for folder in (both, alone):
        folder.mkdir()
    said = ends(hosts.start(PROGRAM, str(config_file(tmp_path, "two", search={"nodes": 2})), str(both)))
    assert [status for status, _, _ in said] == [0, 0], said
    assert sum(out.count("process 0 of 2 on 2 hosts, of torchrun") for _, out, _ in said) == 1
    assert sum(out.count("derived ") for _, out, _ in said) == 1
    again = ends(hosts.start(PROGRAM, str(tmp_path / "two.yml"), str(both)))
    assert [(status, out.count("which has ended: nothing is done")) for status, out, _ in again] == [(0, 1), (0, 0)]
    apart = ends(hosts.start(PROGRAM, str(tmp_path / "two.yml"), str(both), "other folder"))
    for status, _, error in apart:
        assert status != 0
        assert "process 1 has another folder than the first one (ended = True on " in error
    single = hosts.start(PROGRAM, str(config_file(tmp_path, "one")), str(alone), nodes=1)
    assert [status for status, _, _ in ends(single)] == [0]
    first, second = (torch.load(both / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    joined = torch.load(alone / "rank0.pt", weights_only=False)
    assert first["counters"] == second["counters"] == joined["counters"]
    assert first["counters"]["weights"] >= 50
    assert first["counters"]["architecture"] >= 10
    assert first["paths"] == second["paths"] == joined["paths"]
    assert torch.equal(first["alpha"], second["alpha"])
    assert first["alpha"].abs().max() > 0.01
    torch.testing.assert_close(first["alpha"], joined["alpha"], rtol=0, atol=1e-6)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        torch.testing.assert_close(value, joined["weights"][name], rtol=0, atol=1e-6)


def when(ready: Any, processes: list[subprocess.Popen[str]], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sentences(error: str) -> list[str]:
    """What the program said, without torchrun's own report of what has failed."""
    return [line for line in error.splitlines() if "process" in line and "repeat the command to continue" in line]


def test_a_process_that_dies_ends_all_and_the_search_goes_on_elsewhere(hosts: Hosts, tmp_path: Path) -> None:
    """Also on another number of hosts, which says what changes."""
    path = config_file(tmp_path, "run", search={"nodes": 2, "epochs": 1000})
    processes = hosts.start(PROGRAM, str(path), str(tmp_path))
    checkpoint, pid = tmp_path / "run" / SEARCH_CHECKPOINT, tmp_path / "rank1.pid"
    when(lambda: checkpoint.exists() and pid.exists(), processes)
    killed = time.monotonic()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    said = ends(processes, NOTICED_SECONDS)
    assert time.monotonic() - killed < NOTICED_SECONDS
    assert all(status != 0 for status, _, _ in said)
    lines = [line for _, _, error in said for line in sentences(error)]
    assert len(lines) == 1, [error for _, _, error in said]
    continued = hosts.start(
        PROGRAM, str(config_file(tmp_path, "run", search={"nodes": 1, "epochs": 1000})), str(tmp_path), nodes=1
    )
    before = checkpoint.stat().st_mtime_ns
    when(lambda: checkpoint.exists() and checkpoint.stat().st_mtime_ns != before, continued)
    continued[0].send_signal(signal.SIGTERM)
    ((_, out, _),) = ends(continued, NOTICED_SECONDS)
    assert f"{checkpoint} is of 2 processes and goes on with 1: each step has the same images, but" in out


def test_hosts_that_would_search_something_else_are_refused(hosts: Hosts, tmp_path: Path) -> None:
    """As where a file of the same name is another one on each of them."""
    path = config_file(tmp_path, "run", search={"nodes": 2})
    said = ends(hosts.start(PROGRAM, str(path), str(tmp_path), "other data"))
    assert all(status != 0 for status, _, _ in said)
    lines = [line for _, _, error in said for line in error.splitlines() if "has another search than the first" in line]
    assert len(lines) == 2
    assert "(data = first on " in lines[0]
    assert "let all hosts read the same files" in lines[0]
    assert not (tmp_path / "run" / SEARCH_CHECKPOINT).exists()


def lives(pid: int) -> bool:
    """Whether a process runs: torchrun's agent, cut off too, does not collect one that has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.cluster
@pytest.mark.parametrize("hosts", [pytest.param(True, id="namespaces")], indirect=True)
def test_a_host_that_is_cut_off_is_missed_by_all(hosts: Hosts, tmp_path: Path) -> None:
    path = config_file(tmp_path, "run", search={"nodes": 2, "epochs": 1000})
    processes = hosts.start(PROGRAM, str(path), str(tmp_path))
    checkpoint = tmp_path / "run" / SEARCH_CHECKPOINT
    when(checkpoint.exists, processes)
    pids = [int((tmp_path / f"rank{rank}.pid").read_text()) for rank in range(2)]
    cut = time.monotonic()
    namespaces.link("down")
    while any(map(lives, pids)):
        assert time.monotonic() - cut < NOTICED_SECONDS
        time.sleep(0.2)
    namespaces.link("up")
    said = ends(processes, NOTICED_SECONDS * 2)
    lines = [sentences(error) for _, _, error in said]
    assert [len(found) for found in lines] == [1, 1], [error for _, _, error in said]


if __name__ == "__main__":
    torch.set_num_threads(1)
    noted(Path(sys.argv[2]))
    if "other data" in sys.argv:
        check, data = search_module.check_alike, "first" if os.environ["RANK"] == "0" else "second"
        search_module.check_alike = lambda what, mine: check(
            what, {**mine, **({"data": data} if what == "search" else {})}
        )
    if "other folder" in sys.argv and os.environ["RANK"] == "1":
        search_module.finished_result = lambda config: None  # as where the hosts share no disk
    sys.exit(trial.main([sys.argv[1]]))
