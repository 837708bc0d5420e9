"""Measure the graphs of a latency kit on this device.

Needs Python 3.8 or newer with numpy and onnxruntime; or, with --runtime tflite, with numpy and ai-edge-litert (or
tflite-runtime) and a .tflite file beside each .onnx file. Copy the whole folder to the device and run

    python measure.py

Then bring results.json back: `proxyless latency import results.json` makes the table. With --provider, ONNX Runtime
measures on another of its devices (cuda, cuda:1, or an execution provider's own name): all of a graph, or none of it.
A kit in int8 has graphs that are quantised for ONNX Runtime's CPU.

The script has a timing loop of its own, as it must run where this project is not installed, on Python 3.8. It does the
same as `hardware/measuring/sampling.py`: rounds in shuffled order, CPU time of the one thread, a low quantile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]  # measure_android.py, beside this one, does without

QUANTILE = 0.05
FLOAT32, INT8 = "float32", "int8"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ON_CUDA = (CUDA, "TensorrtExecutionProvider")


def main():
    if np is None:
        sys.exit("this script needs numpy; install it with `pip install numpy`")
    parser = argparse.ArgumentParser(description="Measure the graphs of a latency kit on this device.")
    parser.add_argument("--kit", default=str(Path(__file__).resolve().parent), help="folder with kit.json")
    parser.add_argument("--out", default="results.json", help="the results file")
    parser.add_argument("--runtime", choices=["onnxruntime", "tflite"], default="onnxruntime")
    parser.add_argument(
        "--provider", default="cpu", help="ONNX Runtime's device: cpu, cuda, cuda:1, ... (default: cpu)"
    )
    parser.add_argument("--device", default="", help="the device in words (default: its processor's name)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of the measurement")
    parser.add_argument("--rounds", type=int, default=300, help="most samples of each graph")
    options = parser.parse_args()
    if min(options.threads, options.rounds) < 1:
        sys.exit(f"--threads {options.threads} and --rounds {options.rounds} must be at least 1")
    if not os.access(Path(options.out).resolve().parent, os.W_OK):
        sys.exit(f"cannot write {options.out}; give another file with --out")
    folder = Path(options.kit)
    manifest = read_manifest(folder)
    place, dtype = "cpu", dtype_of(manifest)
    if dtype == INT8 and options.provider not in ("cpu", CPU):
        sys.exit(f"--provider {options.provider}: the graphs of this kit are in int8 for the CPU; leave it out")
    if options.runtime == "onnxruntime":
        prepare, versions, place = onnxruntime_session(options.threads, options.provider)
    elif options.provider != "cpu":
        sys.exit(f"--provider {options.provider} is a device of ONNX Runtime; leave it out with --runtime tflite")
    else:
        prepare, versions = tflite_session(options.threads, dtype)
    # while another processor computes, this thread waits and takes no time of its own
    clock = time.thread_time if options.threads == 1 and place == "cpu" else time.perf_counter
    calls, repeats = {}, {}
    for name in manifest["graphs"]:
        calls[name] = prepare(folder / "graphs" / name)
        # a single run of some microseconds would measure the clock: a sample repeats it until it lasts about 0.5 ms
        single = min(timed(calls[name], clock, 1) for _ in range(4))
        repeats[name] = max(1, round(5e-4 / max(single, 5e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, rng, start, said = list(calls), random.Random(0), time.monotonic(), -1
    for done in range(options.rounds):
        elapsed = time.monotonic() - start
        # a least number of rounds, as a low quantile of a handful of samples says little
        if elapsed > options.seconds and done >= 15:
            break
        rng.shuffle(order)
        for name in order:
            samples[name].append(1e3 * timed(calls[name], clock, repeats[name]))
        said = show(done + 1, options.rounds, elapsed, options.seconds, said)
    results = {
        "format": "proxyless-latency-results",
        "version": 1,
        "unit": "ms",
        "kit": manifest,
        "device": options.device or (processor() if place == "cpu" else f"{place} beside {processor()}"),
        "backend": options.runtime,
        "place": place,
        "dtype": dtype,
        "threads": options.threads,
        "quantile": QUANTILE,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": dict(versions, python=platform.python_version()),
        "graphs": {
            name: {
                "ms": float(np.quantile(values, QUANTILE)),
                "median_ms": float(np.median(values)),
                "count": len(values),
            }
            for name, values in samples.items()
        },
    }
    write_whole(options.out, results)
    if sys.stdout.isatty():
        print()
    print(f"wrote {options.out} ({len(samples)} graphs)")


def write_whole(path, values):
    """Write a file of JSON; an interruption while writing must not cost what is there already."""
    beside = path + ".part"
    Path(beside).write_text(json.dumps(values, indent=1))
    os.replace(beside, path)


def read_manifest(folder, suffix=".onnx"):
    """Return what kit.json holds; all of it is passed on, so it is looked at before anything is measured."""
    path = folder / "kit.json"
    if not path.exists():
        sys.exit(f"there is no kit.json in {folder}; give the kit's folder with --kit")
    manifest = read_json(path, "a kit", "copy the kit again")
    graphs = manifest.get("graphs") if isinstance(manifest, dict) else None
    if not isinstance(graphs, dict) or not graphs or not all(isinstance(keys, list) for keys in graphs.values()):
        sys.exit(f"{path} names no graphs; copy the kit again")
    there = {entry.stem for entry in (folder / "graphs").glob("*" + suffix) if entry.is_file()}
    lost = [name for name in graphs if not name.endswith(".onnx") or name[: -len(".onnx")] not in there]
    if lost:
        first = ascii(lost[0])[1:-1][:80]
        if suffix != ".onnx":
            sys.exit(
                f"{folder / 'graphs'} has {len(lost)} graphs without a {suffix} file, first {first}; write the kit "
                "with the extra `litert`, or use --runtime onnxruntime"
            )
        sys.exit(
            f"{folder / 'graphs'} lacks {len(lost)} of the kit's graphs, first {first}; copy the kit again, as its "
            "kit.json names them"
        )
    dtype = dtype_of(manifest)
    for name in graphs:
        said = (folder / "graphs" / name).read_bytes() if suffix == ".onnx" else b""
        quantised = b"QuantizeLinear" in said or b"QLinear" in said
        # an operator may have no quantised tensor, but a whole net has
        if said and quantised != (dtype == INT8) and (quantised or not name.startswith(("op_", "overhead"))):
            sys.exit(
                f"the kit is in {dtype}, but its graph {ascii(name)[1:-1][:80]} is {'' if quantised else 'not '}"
                "quantised; copy the kit again"
            )
    return manifest


def dtype_of(manifest):
    """Return what a kit's graphs are in; one that does not say it is of a release that had float32 alone."""
    dtype = manifest.get("dtype", FLOAT32)
    if dtype not in (FLOAT32, INT8):
        sys.exit(f"kit.json has the number format {ascii(dtype)[:80]}, not {FLOAT32} or {INT8}; copy the kit again")
    return dtype


def image(shape, kind):
    """Draw numbers for a graph's input, in its type."""
    random_state = np.random.RandomState(0)
    if np.issubdtype(kind, np.integer):
        span = np.iinfo(kind)
        return random_state.randint(span.min, span.max + 1, size=tuple(shape)).astype(kind)
    return random_state.randn(*shape).astype(np.float32)


def read_json(path, what, remedy):
    # reading a pipe would wait, and a device may never end
    if not path.is_file() or path.stat().st_size > 2**25:
        sys.exit(f"{path} is no file of {what}; {remedy}")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=not_finite)
    except (OSError, ValueError, RecursionError):
        sys.exit(f"{path} is no valid JSON (perhaps truncated); {remedy}")


def not_finite(word):
    raise ValueError(f"{word} is no number of JSON")


def timed(call, clock, repeats):
    """Return seconds per run, after one run that does not count."""
    call()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def onnxruntime_session(threads, place="cpu"):
    """Return what prepares a graph, the versions, and the device by the name that tables have for it."""
    # it would send reports of its use, from a thread that runs while something is measured
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError:
        sys.exit("--runtime onnxruntime needs onnxruntime; install it with `pip install onnxruntime`")
    onnxruntime.disable_telemetry_events()
    kind, _, index = place.partition(":")
    provider = {"cpu": CPU, "cuda": CUDA}.get(kind, kind)
    available = onnxruntime.get_available_providers()
    if provider not in available or (index and not (kind == "cuda" and index.isdigit())) or place.endswith(":"):
        sys.exit(
            f"--provider {place}: ONNX Runtime has none of this name here; it has {', '.join(['cpu', *available])}"
        )
    choices = {"device_id": int(index or 0)} if provider == CUDA else {}
    place = f"cuda:{int(index or 0)}" if provider == CUDA else "cpu" if provider == CPU else provider
    memory = ("cuda", int(index or 0)) if provider in ON_CUDA else ("cpu", 0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # threads that wait by spinning would take the cores from the graph that is measured next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # or x86 CPUs without VNNI cut off sums of int8, and are timed while they do
    options.add_session_config_entry("session.x64quantprecision", "1")
    if provider != CPU:
        # or operators that the provider lacks are run by the CPU, and timed as the provider's
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")

    def prepare(path):
        try:
            # the Python interface has a fallback of its own, to a session on the CPU
            session = onnxruntime.InferenceSession(
                str(path), options, providers=[(provider, choices)], enable_fallback=0
            )
            if session.get_providers()[0] != provider:
                raise RuntimeError(f"it took {session.get_providers()[0]} instead")
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            sys.exit(f"ONNX Runtime cannot run {path.name} on {provider} alone ({reason}); use another --provider")
        entry = session.get_inputs()[0]
        array = image(entry.shape, np.uint8 if entry.type == "tensor(uint8)" else np.float32)
        binding = session.io_binding()
        # where the device has its memory, so that copying there is no part of the time
        binding.bind_ortvalue_input(entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, *memory))
        for output, result in zip(session.get_outputs(), session.run(None, {entry.name: array})):  # noqa: B905
            binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(result, *memory))
        return lambda: session.run_with_iobinding(binding)

    return prepare, {"onnxruntime": onnxruntime.__version__}, place


def tflite_session(threads, dtype):
    try:
        from ai_edge_litert import interpreter as tflite

        package = "ai-edge-litert"
    except ImportError:
        try:
            import tflite_runtime.interpreter as tflite
        except ImportError:
            sys.exit("--runtime tflite needs ai-edge-litert; install it with `pip install ai-edge-litert`")
        package = "tflite-runtime"

    def prepare(path):
        path = path.with_suffix(".tflite")
        if not path.exists():
            sys.exit(f"{path} is missing; write the kit with its .tflite files, or use --runtime onnxruntime")
        interpreter = tflite.Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]
        if (entry["dtype"] == np.int8) != (dtype == INT8):
            sys.exit(f"the kit is in {dtype}, but {path.name} takes {entry['dtype'].__name__}; copy the kit again")
        interpreter.set_tensor(entry["index"], image(entry["shape"], entry["dtype"]))
        return interpreter.invoke

    return prepare, {package: version(package)}


def processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def show(done, rounds, elapsed, seconds, said):
    """Say how far it is: in a terminal in one line that changes, else in a line for each tenth; return the last one."""
    share = min(1.0, max(done / rounds, elapsed / max(seconds, 1e-9)))
    left = elapsed * (1 - share) / share if share else 0.0
    text = f"measuring: {100 * share:3.0f} %, about {left:.0f} s left"
    if sys.stdout.isatty():
        sys.stdout.write(f"\r{text}   ")
    elif int(10 * share) > said:
        said = int(10 * share)
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return said


if __name__ == "__main__":
    main()
