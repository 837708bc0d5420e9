"""Networks side by side: latency measured in one interleaved run, size, activation memory, and published accuracy."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from hardware.backends import get_backend
from hardware.backends.onnxruntime import OnnxRuntimeBackend
from hardware.child_process import measuring_environment
from hardware.errors import BackendError, ConfigError, ExportError
from hardware.files import check_writable, write_atomically
from hardware.measuring.locks import measuring_lock
from hardware.measuring.sampling import SAMPLES_BYTES, Key, Measurement, Plan, interleaved, timers_of
from hardware.reading import Kind, expect, is_there, read_json, reading

from ..export.folder import METRICS
from ..export.onnx import export_onnx
from ..export.summary import model_summary
from .activation_memory import peak_activation_bytes
from .models import DEFAULT_MODELS, build_model, settle, source_of
from .picture import draw
from .published import OWN_IMAGES, PUBLISHED, PUBLISHED_SIZE, Accuracy
from .result import DEFINITIONS, Benchmark, Row

BACKENDS = ("onnxruntime", "torch")
BATCHES = (1, 8)

OPPONENTS = (
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv2_140",
    "mnasnet_100",
    "semnasnet_100",
    "spnasnet_100",
    "fbnetc_100",
    "shufflenet_v2_x1_5",
    "resnet34",
    "densenet121",
    "nasnetalarge",
    "pnasnet5large",
)
"""What the paper and its field compare with and timm or torchvision has."""


def run_benchmark(
    models: Sequence[str] = DEFAULT_MODELS,
    *,
    backends: Sequence[str] = BACKENDS,
    batches: Sequence[int] = BATCHES,
    input_size: int | None = None,
    threads: int = 1,
    plan: Plan | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Measure models; those of one backend, in all batches, take turns within one run.

    Args:
        models: Names that timm (this project's networks are among them) or torchvision knows, or export folders.
        backends: Any of `BACKENDS`: the exported ONNX file, and the eager module in a process of its own.
        batches: Images per inference.
        input_size: Side of an image in pixels for all models; None takes each model's own.
        threads: Threads that one inference may use.
        plan: How long to measure on each backend.
        seed: Seed of weights, images and the rounds' orders.
        say: Told what is going on.

    Raises:
        ConfigError: A model is unknown, or a setting impossible.
        BackendError: A backend is not offered, or failed.
        ExportError: An export folder cannot be loaded.
    """
    models, backends, batches = _distinct(models), _distinct(backends), _distinct(batches)
    # no further rounds for noisy models: all of a backend are compared, and keep equally many samples
    plan = dataclasses.replace(plan or Plan(rounds=400, minimum_rounds=8, seconds=25.0), extra_rounds=0)
    _check(models, backends, batches, input_size=input_size, threads=threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="proxyless-benchmark-") as name:
        folder = Path(name)
        files: dict[tuple[int, int], Path] = {}
        for index, model_name in enumerate(models):
            model = build_model(model_name, seed=seed)
            row = _describe(model, model_name, input_size=input_size, batches=batches)
            rows.append(row)
            say(f"{model_name}: {row.params / 1e6:.3f} M parameters, {row.macs / 1e6:.1f} M MACs")
            if "onnxruntime" not in backends:
                continue
            settle(model, row.input_shape, seed=seed)
            for batch in batches:
                out = folder / f"{index}_{batch}.onnx"
                try:
                    export_onnx(model, out, input_shape=row.input_shape, batch=batch, seed=seed)
                except ExportError as error:
                    row.notes.append(f"onnxruntime, batch {batch}: {error}")
                    say(row.notes[-1])
                    continue
                files[index, batch] = out
        device = ""
        versions: dict[str, str] = {}
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        # Two measurements at a time would time each other.
        with measuring_lock():
            for backend in backends:
                say(f"measuring {len(models)} models on {backend}, about {plan.seconds:.0f} s or {plan.rounds} rounds")
                if backend == "onnxruntime":
                    samples, device, found = _time_files(files, threads=threads, plan=plan, seed=seed)
                else:
                    samples, device, found = _time_modules(
                        rows, folder=folder, batches=batches, threads=threads, plan=plan, seed=seed
                    )
                versions |= found
                for (index, batch), values in samples.items():
                    rows[index].latency[backend, batch] = Measurement.of(values, quantile=plan.quantile)
    header = {
        "device": device,
        "threads": threads,
        "backends": backends,
        "batches": batches,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "load_average": load,
        "quantile": plan.quantile,
        "definitions": DEFINITIONS,
    }
    return Benchmark(tuple(rows), header, tuple(backends), tuple(batches))


FILES = ("benchmark.json", "benchmark.csv", "benchmark.png")
"""What `save_benchmark` writes."""


def check_out(out: Path) -> None:
    """Make the folder and try whether it can be written to, before anything is measured.

    Raises:
        ExportError: It cannot.
    """
    check_writable(out, error=ExportError)


def save_benchmark(benchmark: Benchmark, out: Path) -> list[Path]:
    """Write `benchmark.json`, `.csv` and `.png` into a folder; return their paths.

    Raises:
        ExportError: The folder cannot be written to.
    """
    out = Path(out)
    contents: dict[str, str | bytes] = {
        "benchmark.json": json.dumps(benchmark.to_dict(), indent=2) + "\n",
        "benchmark.csv": benchmark.to_csv(),
        "benchmark.png": draw(benchmark),
    }
    for name, content in contents.items():
        write_atomically(out / name, content, error=ExportError)
    return [out / name for name in contents]


def _distinct(values: Sequence[Key]) -> list[Key]:
    return list(dict.fromkeys(values))


def _check(
    models: Sequence[str], backends: Sequence[str], batches: Sequence[int], *, input_size: int | None, threads: int
) -> None:
    for what, values in (("model", models), ("backend", backends), ("batch", batches)):
        if not values:
            raise ConfigError(f"no {what} to benchmark; give at least one")
    for backend in backends:
        if backend not in BACKENDS:
            raise BackendError(f"backend {backend!r} is not offered for whole networks; choose {' or '.join(BACKENDS)}")
        get_backend(backend).close()
    for name, value in (("batch", min(batches)), ("input_size", input_size), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}; it must be 1 or more")
    for model in models:
        source_of(model)


def _describe(model: nn.Module, name: str, *, input_size: int | None, batches: Sequence[int]) -> Row:
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (3, 224, 224))
    shape = (channels, input_size or height, input_size or width)
    try:
        summary = model_summary(model, shape)
        peaks = {batch: peak_activation_bytes(model, shape, batch=batch) for batch in batches}
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} does not run on images of shape {shape}: {reason}; try another input size"
        ) from error
    row = Row(name, source_of(name), shape, summary.params, summary.macs, peaks, None)
    if row.source == "export":
        row.accuracy, sizes, how = _own_accuracy(Path(name)), (height, width), "of the export"
    else:
        row.accuracy, sizes, how = PUBLISHED.get(name), (PUBLISHED_SIZE, PUBLISHED_SIZE), "published"
    if row.accuracy and shape[1:] != sizes:
        row.notes.append(f"top-1 {row.accuracy.top1} is {how} for {sizes[-1]} px, not for {shape[-1]}")
        row.accuracy = None
    return row


def _own_accuracy(folder: Path) -> Accuracy | None:
    """Return what an export says of its own accuracy; None where it was never trained, or does not say.

    Raises:
        ExportError: Its metrics cannot be read.
    """
    path, kind = folder / METRICS, Kind("the metrics", "put them back, or remove them", ExportError)
    if not is_there(path):
        return None
    found = read_json(path, kind)
    with reading(path, kind):
        shares = [expect(found.get(name), float, name, none=True) for name in ("accuracy", "top5")]
        for share in shares:
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{share} is no share of images")
    top1, top5 = (None if share is None else round(100 * share, 2) for share in shares)
    return None if top1 is None else Accuracy(top1, top5, OWN_IMAGES)


def _time_files(
    files: Mapping[tuple[int, int], Path], *, threads: int, plan: Plan, seed: int
) -> tuple[dict[tuple[int, int], list[float]], str, dict[str, str]]:
    device = OnnxRuntimeBackend()
    with device:
        runnables = {key: device.prepare_model_file(path, batch=key[1], threads=threads) for key, path in files.items()}
        samples = interleaved(timers_of(device, runnables), plan=plan, seed=seed)
        return samples, device.device(), device.versions()


def _time_modules(
    rows: Sequence[Row], *, folder: Path, batches: Sequence[int], threads: int, plan: Plan, seed: int
) -> tuple[dict[tuple[int, int], list[float]], str, dict[str, str]]:
    """Time eager modules in a child process whose malloc keeps large activations: page faults swing times."""
    job = {
        "models": [{"name": row.model, "shape": row.input_shape} for row in rows],
        "batches": list(batches),
        "threads": threads,
        "plan": dataclasses.asdict(plan),
        "seed": seed,
    }
    asked, answered = folder / "job.json", folder / "result.json"
    write_atomically(asked, json.dumps(job), error=BackendError)
    done = subprocess.run(
        [sys.executable, "-m", "proxyless_strategy.benchmark.worker", str(asked), str(answered)],
        env=measuring_environment(),
        check=False,
    )
    if done.returncode or not answered.is_file():
        raise BackendError(f"the torch measuring process died with code {done.returncode}; its message is above")
    kind = Kind("the answer of the torch measuring process", "repeat the command", BackendError, limit=SAMPLES_BYTES)
    result = read_json(answered, kind)
    with reading(answered, kind):
        samples = {(index, batch): values for index, batch, values in result["samples"]}
        return samples, result["device"], result["versions"]
