"""`examples/slurm.sbatch` under a `srun` that behaves as the real one does: two tasks, SIGUSR1, the queue again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from proxyless_strategy.data.drawn import draw_image_folder
from proxyless_strategy.layout import CHECKPOINT, MODEL, ROW_FILE, SEARCH_CHECKPOINT
from proxyless_strategy.sections import DrawnImages
from proxyless_strategy.world import unused_port
from tests.proxyless_strategy.environments import ALLOCATION, without
from tests.proxyless_strategy.runs.test_hosts import config_file

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).parent / "fake_slurm"
EXPORT = ROOT / "tests" / "data" / "run_bc6f2f8" / "gradient" / "model"
SAVED_SECONDS = 30
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
]


class Batch:
    """Runs the batch script as Slurm does, once it has been put into the queue."""

    def __init__(self, folder: Path, *arguments: str):
        self.arguments = arguments
        self.requeued = folder / "scontrol.txt"
        port = str(unused_port())
        self.environment = without(os.environ) | ALLOCATION | {"SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "1"}
        self.environment |= {"FAKE_SCONTROL": str(self.requeued), "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        path = [str(FAKE), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment |= {"PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(ROOT / "examples" / "slurm.sbatch"), *self.arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stopped(self, number: int, *, when: Callable[[], bool]) -> tuple[int, str, float]:
        """Send the step a signal when it has come so far; return the status, what was said, and the seconds it took."""
        process = self.start()
        while not when():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        (srun,) = psutil.Process(process.pid).children()
        begun = time.monotonic()
        srun.send_signal(number)
        out, error = process.communicate(timeout=200)
        return process.returncode, out + error, time.monotonic() - begun


def pictures(folder: Path) -> Path:
    draw_image_folder(folder / "pictures", DrawnImages(classes=3, train=40, val=4, size=32))
    return folder / "pictures"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_search_is_saved_put_into_the_queue_again_and_goes_on(number: int, tmp_path: Path) -> None:
    """Data workers, which get the signal too, must not end it before it is saved."""
    data = {"name": "imagefolder", "root": str(pictures(tmp_path)), "workers": 1, "augment": "none"}
    settings = {"epochs": 3, "batch_size": 8, "checkpoint_every": 1000}
    path = config_file(tmp_path, "run", data=data, input_size=32, search=settings)
    batch = Batch(tmp_path, "search", str(path))
    checkpoint = tmp_path / "run" / SEARCH_CHECKPOINT
    status, said, seconds = batch.stopped(number, when=checkpoint.exists)
    assert status == 128 + number, said
    assert seconds < SAVED_SECONDS
    assert said.count("stopped; repeat the command to continue") == 1
    assert "Traceback" not in said
    assert batch.requeued.exists() == (number == signal.SIGUSR1)
    if number == signal.SIGUSR1:
        assert batch.requeued.read_text() == "requeue 4711\n"
    batches = torch.load(checkpoint, weights_only=False)["proxyless_strategy"]["train_batches"]
    assert batches["position"] > 0, "within an epoch, at the step that it had come to"
    out, error = (process := batch.start()).communicate(timeout=400)
    assert process.returncode == 0, error
    assert (tmp_path / "run" / ROW_FILE).exists()
    assert "of srun" in out
    assert error.count("continuing ") == 1


def test_a_retraining_is_saved_put_into_the_queue_again_and_goes_on(tmp_path: Path) -> None:
    recipe = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.01,
        "workers": 1,
        "checkpoint_every": 1000,
        "channels": 3,
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    arguments = ["retrain", str(EXPORT), "--data", str(pictures(tmp_path)), "--recipe", str(tmp_path / "recipe.yml")]
    batch = Batch(tmp_path, *arguments, "--out", str(tmp_path / "out"))
    checkpoint = tmp_path / "out" / CHECKPOINT
    status, said, seconds = batch.stopped(signal.SIGUSR1, when=checkpoint.exists)  # written before the first update
    assert status == 128 + signal.SIGUSR1, said
    assert seconds < SAVED_SECONDS
    assert "Traceback" not in said
    assert batch.requeued.read_text() == "requeue 4711\n"
    assert len(torch.load(checkpoint, weights_only=False)["random_of_each"]) == 2
    out, error = (process := batch.start()).communicate(timeout=400)
    assert process.returncode == 0, error
    assert out.count("top-1") == 1
    assert (tmp_path / "out" / MODEL).exists()
