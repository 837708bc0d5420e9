"""Networks side by side: latency measured in one interleaved run, size, activation memory, and published accuracy.

`python -m proxyless_strategy.benchmark JOB.json RESULT.json` is the measuring process of the torch backend.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import datetime
import difflib
import io
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hardware.backends import Backend, Runnable, get_backend
from hardware.backends.onnxruntime import OnnxRuntimeBackend
from hardware.backends.torch import MALLOC_TUNABLES
from hardware.errors import BackendError, ConfigError, ExportError
from hardware.files import write_atomically
from hardware.measuring.locks import measuring_lock
from hardware.measuring.sampling import Key, Measurement, Plan, interleaved

from .export import CONFIG, export_onnx, load_exported, model_summary
from .report.pictures import Badge, draw_badges

FORMAT = "proxyless-benchmark/1"
BACKENDS = ("onnxruntime", "torch")
BATCHES = (1, 8)
DEFAULT_MODELS = (
    "proxylessnas_mobile",
    "proxylessnas_cpu",
    "proxylessnas_gpu",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mnasnet_100",
)
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

TABLE_WIDTH = 110
"""Columns of a terminal in which the table of two backends and two batches fits."""

DEFINITIONS = {
    "params": "all parameters, those of norms and biases too",
    "macs": "multiply-accumulates of convolutions and linear layers for one image",
    "peak_activation_bytes": "most bytes of tensors alive at once in an eager forward pass under no_grad, the images "
    "among them; weights and an operator's own workspace are not counted",
    "ms": "a low quantile of the samples for one whole batch; all models of a backend take turns in shuffled rounds",
    "top1": "ImageNet top-1 in percent as published (accuracy_source says where) at the published input size; "
    "nothing is evaluated here",
}

_RELEASE = "log of the ProxylessNAS release"
_MOBILE_TABLE = "arXiv 1812.00332, ImageNet mobile table"
_GPU_TABLE = "arXiv 1812.00332, ImageNet GPU table"


@dataclass(frozen=True)
class Accuracy:
    """Published ImageNet accuracy in percent, and where."""

    top1: float
    top5: float | None
    source: str


PUBLISHED: Mapping[str, Accuracy] = {
    "proxylessnas_cpu": Accuracy(75.29, 92.39, _RELEASE),
    "proxylessnas_gpu": Accuracy(75.08, 92.54, _RELEASE),
    "proxylessnas_mobile": Accuracy(74.59, 92.20, _RELEASE),
    "proxylessnas_mobile_14": Accuracy(76.7, 93.3, _RELEASE),
    "mobilenetv1_100": Accuracy(70.6, 89.5, _MOBILE_TABLE),
    "mobilenetv2_100": Accuracy(72.0, 91.0, _MOBILE_TABLE),
    "mnasnet_100": Accuracy(74.0, 91.8, _MOBILE_TABLE),
    "shufflenet_v2_x1_5": Accuracy(72.6, None, _GPU_TABLE),
    "resnet34": Accuracy(73.3, 91.4, _GPU_TABLE),
}
"""By the model's name, at 224 px; whoever is not here has no figure in the tables that this project goes by."""
PUBLISHED_SIZE = 224


@dataclass
class Row:
    """What is known of one model.

    Attributes:
        model: Its name or folder.
        source: `timm`, `torchvision` or `export`.
        input_shape: `(C, H, W)` of one image.
        params: See `DEFINITIONS`, as for all figures.
        macs: For one image.
        peak_activation_bytes: By batch.
        accuracy: Published accuracy; None where there is none.
        latency: By backend and batch.
        notes: Why something is missing.
    """

    model: str
    source: str
    input_shape: tuple[int, int, int]
    params: int
    macs: int
    peak_activation_bytes: dict[int, int]
    accuracy: Accuracy | None
    latency: dict[tuple[str, int], Measurement] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """All rows, and the circumstances under which they were measured."""

    rows: tuple[Row, ...]
    header: Mapping[str, Any]
    backends: tuple[str, ...]
    batches: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, **self.header, "models": [self._row(row) for row in self.rows]}

    def to_csv(self) -> str:
        """One line a model; empty where nothing is known."""
        lines = [
            {
                "model": row.model,
                "source": row.source,
                "input_size": row.input_shape[-1],
                "params": row.params,
                "macs": row.macs,
                **{f"peak_activation_bytes_batch{b}": row.peak_activation_bytes[b] for b in self.batches},
                "top1": row.accuracy.top1 if row.accuracy else None,
                "top5": row.accuracy.top5 if row.accuracy else None,
                "accuracy_source": row.accuracy.source if row.accuracy else None,
                **{
                    f"{backend}_batch{batch}_ms": round(row.latency[backend, batch].ms, 6)
                    if (backend, batch) in row.latency
                    else None
                    for backend in self.backends
                    for batch in self.batches
                },
                "notes": "; ".join(row.notes),
            }
            for row in self.rows
        ]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return buffer.getvalue()

    def table(self) -> Any:
        """A rich table."""
        from rich import box
        from rich.table import Table

        title = f"{self.header['device']}, {self.header['threads']} thread(s); latency of a whole batch in ms"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("\nmodel", overflow="fold", min_width=12)
        names = ["\npx", "params\nM", "MACs\nM", *(f"MiB\nbatch {batch}" for batch in self.batches), "top-1\n%"]
        for name in [*names, *(f"{backend}\nbatch {batch}" for backend in self.backends for batch in self.batches)]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.model,
                str(row.input_shape[-1]),
                f"{row.params / 1e6:.3f}",
                f"{row.macs / 1e6:.1f}",
                *(f"{row.peak_activation_bytes[batch] / 2**20:.1f}" for batch in self.batches),
                f"{row.accuracy.top1:.1f}" if row.accuracy else "-",
                *(
                    f"{row.latency[backend, batch].ms:.2f}" if (backend, batch) in row.latency else "-"
                    for backend in self.backends
                    for batch in self.batches
                ),
            )
        return table

    def _row(self, row: Row) -> dict[str, Any]:
        latency: dict[str, dict[str, Any]] = {}
        for (backend, batch), figure in row.latency.items():
            latency.setdefault(backend, {})[str(batch)] = {
                "ms": figure.ms,
                "median_ms": figure.median_ms,
                "p20_ms": figure.p20_ms,
                "spread": figure.spread,
                "rounds": len(figure.samples),
            }
        accuracy = row.accuracy
        return {
            "model": row.model,
            "source": row.source,
            "input_shape": list(row.input_shape),
            "params": row.params,
            "macs": row.macs,
            "peak_activation_bytes": {str(batch): size for batch, size in row.peak_activation_bytes.items()},
            "top1": accuracy.top1 if accuracy else None,
            "top5": accuracy.top5 if accuracy else None,
            "accuracy_source": accuracy.source if accuracy else None,
            "latency": latency,
            "notes": row.notes,
        }


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
    """Measures models; those of one backend, in all batches, take turns within one run.

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
    plan = plan or Plan(rounds=400, minimum_rounds=8, seconds=25.0)
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
                    _export(model, out, row.input_shape, batch=batch, seed=seed)
                except ExportError as error:
                    row.notes.append(f"onnxruntime, batch {batch}: {error}")
                    say(row.notes[-1])
                    continue
                files[index, batch] = out
        device = ""
        versions: dict[str, str] = {}
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
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


def check_out(out: Path) -> None:
    """Makes the folder and tries whether it can be written to, before anything is measured.

    Raises:
        ExportError: It cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ExportError(f"cannot write to {out}: {error.strerror}; choose another folder") from error


def save_benchmark(benchmark: Benchmark, out: Path) -> list[Path]:
    """Writes `benchmark.json`, `.csv` and `.png` into a folder; returns their paths.

    Raises:
        ExportError: The folder cannot be written to.
    """
    out = Path(out)
    contents: dict[str, str | bytes] = {
        "benchmark.json": json.dumps(benchmark.to_dict(), indent=2) + "\n",
        "benchmark.csv": benchmark.to_csv(),
        "benchmark.png": draw(benchmark),
    }
    try:
        for name, content in contents.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise ExportError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    return [out / name for name in contents]


def source_of(name: str) -> str:
    """Who builds a model: `timm`, `torchvision` or `export`.

    Raises:
        ConfigError: Nobody knows the name, and it is no folder either.
    """
    import timm
    import torchvision

    import search_spaces.timm_models  # noqa: F401  (registers the published networks)

    if timm.is_model(name):
        return "timm"
    others = torchvision.models.list_models(module=torchvision.models)
    if name in others:
        return "torchvision"
    if (Path(name) / CONFIG).is_file():
        return "export"
    if Path(name).is_dir():
        raise ConfigError(f"{name} has no {CONFIG}, so it is no export folder; give the folder of an export")
    close = difflib.get_close_matches(name, [*timm.list_models(), *others], n=3)
    raise ConfigError(
        f"unknown model {name!r}: no export folder, and not known to timm or torchvision; "
        f"{'did you mean ' + ', '.join(close) if close else 'try ' + DEFAULT_MODELS[0]}?"
    )


def build_model(name: str, *, seed: int = 0) -> nn.Module:
    """A model in evaluation mode: an export with its weights, any other with random ones.

    Raises:
        ConfigError: The model is unknown.
        ExportError: The export folder cannot be loaded.
    """
    import timm
    import torchvision

    source = source_of(name)
    if source == "export":
        return load_exported(Path(name), exportable=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "timm":
            return timm.create_model(name, exportable=True).eval()
        return torchvision.models.get_model(name, weights=None).eval()


def settle(model: nn.Module, input_shape: Sequence[int], *, seed: int = 0) -> None:
    """Gives batch norms that never saw an image the statistics of two random ones.

    Activations of a random network would otherwise vanish or grow from layer to layer, and arithmetic on denormal
    numbers is slower than on others. A trained network stays as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    fresh = [n for n in norms if n.track_running_stats and not n.num_batches_tracked]
    if not fresh:
        return
    momenta = [norm.momentum for norm in fresh]
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(seed))
    for norm in fresh:
        norm.train()
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            model(images)
    finally:
        for norm, momentum in zip(fresh, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def peak_activation_bytes(model: nn.Module, input_shape: Sequence[int], *, batch: int = 1) -> int:
    """Most bytes of tensors alive at once in an eager forward pass without gradients; nothing is computed.

    The images count, weights and buffers do not; what an operator works with inside itself is not seen.

    Args:
        model: The network, in the form in which it runs.
        input_shape: `C x H x W` of an image.
        batch: Images in the batch.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), LiveBytes([*shadow.parameters(), *shadow.buffers()]) as live:
        shadow(torch.empty(batch, *input_shape, device="meta"))
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators return, until Python lets go of them."""

    def __init__(self, uncounted: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._uncounted = [tensor.untyped_storage() for tensor in uncounted]
        self._seen: dict[int, weakref.ref | None] = {storage._cdata: None for storage in self._uncounted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves(result)
        # In evaluation a batch norm's saved statistics are empty, but not on the meta device.
        for leaf in leaves[:1] if "batch_norm" in str(func) else leaves:
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def released(_: object) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, released)
        self.now += size
        self.peak = max(self.peak, self.now)


OURS, OTHERS = "#d1495b", "#30638e"


def _is_ours(row: Row) -> bool:
    return row.source == "export" or row.model.startswith("proxylessnas")


def draw(benchmark: Benchmark) -> bytes:
    """A PNG: published accuracy over measured latency, one panel for each backend and batch; networks by number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    rows, columns = len(benchmark.backends), len(benchmark.batches)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(6.4 * columns, 4.4 * rows + 0.5),
        squeeze=False,
        layout="constrained",
        sharey=True,
        dpi=110,
    )
    known = [row.accuracy.top1 for row in benchmark.rows if row.accuracy]
    floor = (min(known) - 1.0) if known else 0.0
    drawn: list[tuple[Any, list[Badge]]] = []
    ranked = sorted(benchmark.rows, key=lambda row: -(row.accuracy.top1 if row.accuracy else 0.0))
    for (i, backend), (j, batch) in (
        (a, b) for a in enumerate(benchmark.backends) for b in enumerate(benchmark.batches)
    ):
        panel = axes[i][j]
        shown = [
            (number, row, row.latency[backend, batch].ms)
            for number, row in enumerate(ranked, start=1)
            if (backend, batch) in row.latency
        ]
        times = [ms for _, _, ms in shown] or [1.0]
        if max(times) > 8 * min(times):
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            panel.xaxis.set_minor_locator(NullLocator())
        marks = []
        for number, row, ms in shown:
            y = row.accuracy.top1 if row.accuracy else floor
            marks.append((str(number), ms, y, OURS if _is_ours(row) else OTHERS, "o" if row.accuracy else "s"))
            panel.plot(ms, y, marker=marks[-1][4], markersize=5, color=marks[-1][3], linestyle="none")
        drawn.append((panel, marks))
        panel.margins(x=0.12, y=0.14)
        panel.grid(True, alpha=0.25)
        panel.set_title(f"{backend}, batch {batch}", fontsize=10)
        panel.set_xlabel("ms for a whole batch", fontsize=9)
        if j == 0:
            panel.set_ylabel("published ImageNet top-1, %", fontsize=9)
    handles = [
        Line2D([], [], marker="o" if row.accuracy else "s", linestyle="none", color=OURS if _is_ours(row) else OTHERS)
        for row in ranked
    ]
    names = [row.model if row.source != "export" else "/".join(Path(row.model).parts[-2:]) for row in ranked]
    labels = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    title = "red: ProxylessNAS and exports\nsquare: no published accuracy\nbadges that would overlap stand apart"
    legend = figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False, title=title)
    legend.get_title().set_fontsize(8)
    figure.suptitle(f"{benchmark.header['device']}, {benchmark.header['threads']} thread(s)", fontsize=10)
    figure.canvas.draw()  # only now is known where anything lies in pixels
    figure.set_layout_engine("none")
    for panel, marks in drawn:
        draw_badges(panel, marks)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


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
    row = Row(name, source_of(name), shape, summary.params, summary.macs, peaks, PUBLISHED.get(name))
    if row.accuracy and shape[1:] != (PUBLISHED_SIZE, PUBLISHED_SIZE):
        row.notes.append(f"top-1 {row.accuracy.top1} is published for {PUBLISHED_SIZE} px, not for {shape[-1]}")
        row.accuracy = None
    return row


def _export(model: nn.Module, out: Path, shape: Sequence[int], *, batch: int, seed: int) -> None:
    """Exports with a tolerance relative to the largest output, as random weights give outputs of any size."""
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        largest = float(model(images).abs().max())
    export_onnx(model, out, input_shape=shape, batch=batch, tolerance=1e-4 * max(1.0, largest), seed=seed)


def _time_files(
    files: Mapping[tuple[int, int], Path], *, threads: int, plan: Plan, seed: int
) -> tuple[dict[tuple[int, int], list[float]], str, dict[str, str]]:
    device = OnnxRuntimeBackend()
    with device:
        runnables = {key: device.prepare_model_file(path, batch=key[1], threads=threads) for key, path in files.items()}
        samples = interleaved(_timers(device, runnables), plan=plan, seed=seed)
        return samples, device.device(), device.versions()


def _time_modules(
    rows: Sequence[Row], *, folder: Path, batches: Sequence[int], threads: int, plan: Plan, seed: int
) -> tuple[dict[tuple[int, int], list[float]], str, dict[str, str]]:
    """Eager modules, in a child process whose malloc keeps large activations (DESIGN.md section 4)."""
    job = {
        "models": [{"name": row.model, "shape": row.input_shape} for row in rows],
        "batches": list(batches),
        "threads": threads,
        "plan": dataclasses.asdict(plan),
        "seed": seed,
    }
    asked, answered = folder / "job.json", folder / "result.json"
    asked.write_text(json.dumps(job), encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    tunables = ":".join(t for t in (os.environ.get("GLIBC_TUNABLES", ""), MALLOC_TUNABLES) if t)
    done = subprocess.run(
        [sys.executable, "-m", "proxyless_strategy.benchmark", str(asked), str(answered)],
        env={**os.environ, "PYTHONPATH": path, "GLIBC_TUNABLES": tunables},
        check=False,
    )
    if done.returncode or not answered.is_file():
        raise BackendError(f"the torch measuring process died with code {done.returncode}; its message is above.")
    result = json.loads(answered.read_text(encoding="utf-8"))
    samples = {(index, batch): values for index, batch, values in result["samples"]}
    return samples, result["device"], result["versions"]


class _Modules(Backend):
    """Eager modules in this process."""

    name = "torch"

    def prepare(self, *_: Any, **__: Any) -> Runnable:
        raise BackendError("this process times whole modules only; use the torch backend for operators.")

    def module(self, model: nn.Module, images: torch.Tensor, *, threads: int) -> Runnable:
        return Runnable(lambda: model(images), threads=threads)

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "torch": torch.__version__}


def _timers(device: Backend, runnables: Mapping[Key, Runnable]) -> dict[Key, Callable[[int], float]]:
    def timer(runnable: Runnable) -> Callable[[int], float]:
        return lambda repeats: device.time(runnable, repeats=repeats)

    return {key: timer(runnable) for key, runnable in runnables.items()}


def _measure_job(job: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_grad_enabled(False)
    torch.set_num_threads(job["threads"])
    device, runnables = _Modules(), {}
    for index, model in enumerate(job["models"]):
        module = build_model(model["name"], seed=job["seed"])
        settle(module, model["shape"], seed=job["seed"])
        for batch in job["batches"]:
            images = torch.randn(batch, *model["shape"], generator=torch.Generator().manual_seed(job["seed"]))
            runnables[index, batch] = device.module(module, images, threads=job["threads"])
    samples = interleaved(_timers(device, runnables), plan=Plan(**job["plan"]), seed=job["seed"])
    return {
        "samples": [[*key, values] for key, values in samples.items()],
        "device": device.device(),
        "versions": device.versions(),
    }


def _main(asked: str, answered: str) -> None:
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    write_atomically(Path(answered), json.dumps(_measure_job(job)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
