"""Measure the graphs of a latency kit on an Android phone, from this computer; nothing is installed on the phone.

Needs Python 3.8 or newer, `adb` (https://developer.android.com/tools/releases/platform-tools), a phone with USB
debugging allowed, and the measuring program of a runtime, built for the phone's processor:

    benchmark_model         LiteRT's, which runs the .tflite files: the one of the Interpreter API, ready for Android
                            (android_aarch64) at https://ai.google.dev/edge/litert/models/measurement
    onnxruntime_perf_test   ONNX Runtime's, which runs the .onnx files; built from its source with
                            `./build.sh --config Release --android --android_abi arm64-v8a --android_api 29 ...`, as
                            https://onnxruntime.ai/docs/build/android.html says; --use_nnapi or --use_qnn beside it

    python measure_android.py --program benchmark_model
    python measure_android.py --program onnxruntime_perf_test --library libonnxruntime.so --runtime onnxruntime

Bring results.json to `proxyless latency import results.json`. The phone lies still, its screen off, and unplugged from
fast chargers. Each sample is a run of the program of about --seconds, on the fastest cores (--cores), in rounds over
all graphs in shuffled order. Before each the phone must be cool (--cool); one during which it throttled is discarded.
What was measured stays in results.json.partial: after a lost cable, or when started again, it goes on from there.

On iOS the same .onnx files may be measured by ONNX Runtime with its Core ML provider, and those converted by
coremltools by Xcode's performance report. Nothing here drives an iPhone or reads its reports, and no table of one has
been made: write its times into a results.json of this form (`graphs`, in ms), and look at the table's held-out nets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

# both lie beside this script in the kit
from measure import FLOAT32, INT8, QUANTILE, dtype_of, read_json, read_manifest, show, write_whole
from phone import Lost, Phone, check_abi, last_lines

TFLITE, ONNX = "tflite", "onnxruntime"
FLOAT16 = "float16"
FORMATS = (FLOAT32, FLOAT16, INT8)
# Of each way to run a graph: what tells the program so, in each of these formats (None: it has no such one). float16 is
# how the runtime computes a float32 graph; int8 graphs are a kit of their own, and a GPU would compute them in floats.
# Where another processor computes, the program is told to refuse a graph of which it would leave a part to the CPU.
WHOLE = " --require_full_delegation=true"
ALONE = ' -C "session.disable_cpu_ep_fallback|1"'
DELEGATES: dict[str, dict[str, tuple[str | None, str | None, str | None]]] = {
    TFLITE: {
        "xnnpack": ("--use_xnnpack=true", "--use_xnnpack=true --xnnpack_force_fp16=true", "--use_xnnpack=true"),
        "builtin": ("--use_xnnpack=false", None, "--use_xnnpack=false"),
        "gpu": (
            "--use_gpu=true --gpu_precision_loss_allowed=false" + WHOLE,
            "--use_gpu=true --gpu_precision_loss_allowed=true" + WHOLE,
            None,
        ),
        "nnapi": (
            "--use_nnapi=true --disable_nnapi_cpu=true --nnapi_allow_fp16=false" + WHOLE,
            "--use_nnapi=true --disable_nnapi_cpu=true --nnapi_allow_fp16=true" + WHOLE,
            "--use_nnapi=true --disable_nnapi_cpu=true --nnapi_allow_fp16=false" + WHOLE,
        ),
    },
    ONNX: {
        "cpu": ("-e cpu", None, "-e cpu"),
        "nnapi": (
            '-e nnapi -i "NNAPI_FLAG_CPU_DISABLED"' + ALONE,
            '-e nnapi -i "NNAPI_FLAG_CPU_DISABLED NNAPI_FLAG_USE_FP16"' + ALONE,
            None,
        ),
        "qnn": (None, '-e qnn -i "backend_path|libQnnHtp.so enable_htp_fp16_precision|1"' + ALONE, None),
    },
}
ON_CPU = ("xnnpack", "builtin", "cpu")
NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
CPUS = "/sys/devices/system/cpu"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="benchmark_model or onnxruntime_perf_test, of the phone's ABI")
    parser.add_argument(
        "--library", action="append", default=[], help="a file to lie beside the program (libQnnHtp.so)"
    )
    parser.add_argument("--runtime", choices=[TFLITE, ONNX], default=TFLITE)
    parser.add_argument(
        "--delegate", default="", help="tflite: xnnpack, builtin, gpu, nnapi; onnxruntime: cpu, nnapi, qnn"
    )
    parser.add_argument(
        "--dtype", choices=FORMATS, default=None, help="what the runtime computes in (default: what the graphs are in)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="", help="cores to run on: 4-7 or 6,7 (default: the fastest, one a thread)")
    parser.add_argument("--serial", default="", help="which phone, as `adb devices` names it")
    parser.add_argument("--rounds", type=int, default=10, help="samples of each graph")
    parser.add_argument("--seconds", type=int, default=1, help="length of a sample")
    parser.add_argument("--cool", type=float, default=33.0, help="most that the battery may have, in degrees Celsius")
    parser.add_argument("--wait", type=float, default=1800.0, help="most seconds to wait until the phone is cool")
    parser.add_argument("--reconnect", type=float, default=600.0, help="most seconds to wait for a lost phone")
    parser.add_argument(
        "--poll", type=float, default=5.0, help="seconds between two looks at a phone that is waited for"
    )
    parser.add_argument("--tries", type=int, default=5, help="samples in a row that may be throttled or cut off")
    parser.add_argument("--kit", default=str(Path(__file__).resolve().parent), help="folder with kit.json")
    parser.add_argument("--out", default="results.json", help="the results file")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start has measured")
    parser.add_argument("--device", default="", help="the device in words (default: its model)")
    parser.add_argument("--remote", default="/data/local/tmp/proxyless-kit", help="folder on the phone")
    parser.add_argument("--adb", default="adb", help="the program adb")
    options = parser.parse_args()
    for name in ("threads", "rounds", "seconds", "tries"):
        if getattr(options, name) < 1:
            sys.exit(f"--{name} {getattr(options, name)} must be at least 1")
    for name in ("cool", "wait", "reconnect", "poll"):
        if not 0 <= getattr(options, name) < math.inf:
            sys.exit(f"--{name} {getattr(options, name)} must be a number of 0 or more")
    if not os.access(Path(options.out).resolve().parent, os.W_OK):
        sys.exit(f"cannot write {options.out}; give another file with --out")
    if not re.fullmatch(r"/[\w./-]+", options.remote):
        sys.exit(f"--remote {options.remote} must be a whole path of letters, digits, '_', '-', '.' and '/'")
    delegate = options.delegate or next(iter(DELEGATES[options.runtime]))
    manifest = read_manifest(Path(options.kit), ".tflite" if options.runtime == TFLITE else ".onnx")
    graphs = dtype_of(manifest)
    options.dtype = options.dtype or graphs
    if options.dtype != graphs and INT8 in (options.dtype, graphs):
        sys.exit(
            f"--dtype {options.dtype}, but the graphs of this kit are in {graphs}; leave it out, or write another kit "
            f"with `proxyless latency kit --dtype {INT8 if options.dtype == INT8 else FLOAT32}`"
        )
    flags = flags_of(options.runtime, delegate, options.dtype)
    for name in manifest["graphs"]:
        if not re.fullmatch(r"\w+\.onnx", name, re.ASCII):
            sys.exit(
                f"kit.json has a graph {ascii(name)[1:-1][:80]}, which is no name that a kit gives; copy the kit again"
            )
    for path in (options.program, *options.library):
        if not Path(path).is_file() or not re.fullmatch(r"[\w.+-]+", Path(path).name, re.ASCII):
            sys.exit(f"{path} is no file (of a plain name); see at the top of this script where to get the programs")
    phone = Phone(options)
    phone.find()
    model, release, abis = phone.identity()
    check_abi(options.program, abis)
    run = Run(phone, options, manifest, delegate, flags)
    run.choose_cores()
    run.load()
    run.push()
    run.settle()
    run.measure()
    program = Path(options.program).name
    results = {
        "format": "proxyless-latency-results",
        "version": 1,
        "unit": "ms",
        "kit": manifest,
        "device": options.device or model,
        "backend": options.runtime,
        "place": "cpu" if delegate in ON_CPU else delegate,
        "dtype": options.dtype,
        "threads": options.threads,
        "quantile": QUANTILE,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "load_average": None,
        "versions": {"android": release, program: f"sha256 {digest(options.program)[:16]}", "delegate": delegate},
        "phone": run.conditions(),
        "graphs": {
            name: {"ms": quantile(values, QUANTILE), "median_ms": quantile(values, 0.5), "count": len(values)}
            for name, values in run.samples.items()
        },
    }
    write_whole(options.out, results)
    Path(run.partial).unlink()
    print(f"\nwrote {options.out} ({len(run.samples)} graphs, {run.discarded} samples discarded as throttled)")


def flags_of(runtime, delegate, dtype):
    known = DELEGATES[runtime]
    if delegate not in known:
        sys.exit(f"--delegate {delegate} is none of {runtime}; it has {', '.join(known)}")
    flags = known[delegate][FORMATS.index(dtype)]
    if flags is None:
        others = [name for name, each in zip(FORMATS, known[delegate]) if each]  # noqa: B905
        remedy = "a kit in float32" if dtype == INT8 else f"--dtype {others[0]}"
        sys.exit(f"{runtime}'s delegate {delegate} does not compute in {dtype}; use {remedy} or another --delegate")
    return flags


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def quantile(values, share):
    """As numpy's: between two samples on the line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


class Run:
    """The measurement of one kit on one phone."""

    def __init__(self, phone, options, manifest, delegate, flags):
        self.phone, self.options, self.delegate, self.flags = phone, options, delegate, flags
        self.program = Path(options.program).name
        self.graphs = list(manifest["graphs"])
        self.partial = options.out + ".partial"
        self.samples: dict[str, list[float]] = {name: [] for name in self.graphs}
        self.discarded, self.warmest, self.mask = 0, -math.inf, ""
        self.cores: list[int] = []
        self.first: dict = {}
        self.state: dict = {}
        self.settings: dict = {
            "kit": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest(),
            "phone": phone.serial,
            "program": digest(options.program),
            "delegate": delegate,
            "dtype": options.dtype,
            "threads": options.threads,
            "seconds": options.seconds,
        }

    def file_of(self, name):
        return str(Path(name).with_suffix(".tflite")) if self.options.runtime == TFLITE else name

    def push(self):
        """Copy graphs and programs, and see that they are there whole."""
        remote, kit = self.options.remote, Path(self.options.kit)
        self.phone.sure(f"mkdir -p {remote}/graphs")
        graphs = [kit / "graphs" / self.file_of(name) for name in self.graphs]
        beside = [Path(path) for path in (self.options.program, *self.options.library)]
        self.phone.push(graphs, f"{remote}/graphs/")
        self.phone.push(beside, f"{remote}/")
        _, text = self.phone.sure(f"cd {remote} && chmod 755 {self.program} && stat -c '%s %n' * graphs/*")
        sizes = {
            name: int(size) for size, _, name in (line.partition(" ") for line in text.splitlines()) if size.isdigit()
        }
        for path in (*graphs, *beside):
            name = f"graphs/{path.name}" if path in graphs else path.name
            if sizes.get(name) != path.stat().st_size:
                sys.exit(f"{name} did not arrive whole in {remote} ({sizes.get(name)} bytes); make room on the phone")

    def look(self):
        """Return the phone's state: degrees, thermal status, and of each core its kHz now, at most, and by hardware."""
        cores = " ".join(f"{core}" for core in self.cores)
        files = " ".join(f"$(cat $d/{f} 2>/dev/null || echo -)" for f in ("scaling_cur_freq", "scaling_max_freq"))
        hardware = "$(cat $d/cpuinfo_max_freq 2>/dev/null || echo -)"
        listed = f"for c in {cores}; do d={CPUS}/cpu$c/cpufreq; echo core $c {files} {hardware}; done"
        # dumpsys thermalservice is of Android 10 and newer
        _, text = self.phone.sure(f"dumpsys battery; dumpsys thermalservice 2>&1; {listed if cores else 'true'}")
        battery = re.search(r"^\s*temperature: (-?\d+)\s*$", text, re.MULTILINE)
        if not battery:
            sys.exit(f"the phone does not say how warm it is (dumpsys battery); it said: {last_lines(text)}")
        thermal = re.search(r"^\s*Thermal Status: (\d+)\s*$", text, re.MULTILINE)
        found = re.findall(r"^core (\d+) (\d+|-) (\d+|-) (\d+|-)$", text, re.MULTILINE)
        speeds = {core: [None if f == "-" else int(f) for f in each] for core, *each in found}
        self.state = {
            "celsius": int(battery[1]) / 10,
            "thermal": int(thermal[1]) if thermal else None,
            "khz": speeds,
        }
        self.warmest = max(self.warmest, self.state["celsius"])
        return self.state

    def choose_cores(self):
        """Pin to the cores asked for, or to the fastest ones."""
        _, text = self.phone.sure(f"ls -d {CPUS}/cpu[0-9]*")
        there = sorted(int(n) for n in re.findall(r"/cpu(\d+)$", text, re.MULTILINE))
        wanted = self.options.cores
        if wanted and not re.fullmatch(r"\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?)*", wanted):
            sys.exit(f"--cores {wanted} is no list of cores; write 4-7 or 6,7")
        if wanted:
            ends = [[int(end) for end in part.split("-")] for part in wanted.split(",")]
            self.cores = sorted({core for each in ends for core in range(each[0], each[-1] + 1)})
        else:
            self.cores = there
            speeds = {int(core): khz[2] for core, khz in self.look()["khz"].items()}
            if not speeds or None in speeds.values():
                sys.exit("the phone does not say how fast its cores are; choose some with --cores (4-7)")
            self.cores = sorted(sorted(there, key=lambda core: (-speeds[core], -core))[: self.options.threads])
        if not set(self.cores) <= set(there) or len(self.cores) < self.options.threads:
            sys.exit(
                f"{self.options.threads} threads cannot run on the cores {wanted or self.cores}: the phone has "
                f"{', '.join(map(str, there))}; give --cores or --threads"
            )
        self.mask = f"{sum(1 << core for core in self.cores):x}"
        self.settings["cores"] = self.cores

    def settle(self):
        """Wait for a cool phone, whose state all later ones are compared with."""
        self.look()
        self.cool()
        self.first = self.state

    def throttled(self):
        """Return whether the phone says so, or has lowered what its cores may reach since the start."""
        before = self.first.get("khz", {})
        lower = [
            core
            for core, (_, most, _) in self.state["khz"].items()
            if most is not None and core in before and before[core][1] is not None and most < before[core][1]
        ]
        return bool(self.state["thermal"]) or bool(lower)

    def cool(self):
        """Wait until the phone, by its last state, is cool and not throttled."""
        start, told = time.monotonic(), False
        while self.state["celsius"] > self.options.cool or self.throttled():
            if time.monotonic() - start >= self.options.wait:
                sys.exit(
                    f"the phone has {self.state['celsius']:g} degrees Celsius and thermal status "
                    f"{self.state['thermal']} after {self.options.wait:g} s of rest; cool it and start again, which "
                    "goes on from what is measured, or give --cool"
                )
            if not told:
                print(f"\ncooling: {self.state['celsius']:g} degrees, {self.options.cool:g} wanted", flush=True)
                told = True
            time.sleep(self.options.poll)
            self.look()

    def command(self, name):
        options, path = self.options, f"graphs/{self.file_of(name)}"
        if options.runtime == TFLITE:
            lasts = f"--num_runs=10 --min_secs={options.seconds} --max_secs={60 + 10 * options.seconds}"
            warm = "--warmup_runs=3 --warmup_min_secs=0.2"
            what = f"--graph={path} --num_threads={options.threads} {lasts} {warm} {self.flags}"
        else:
            # inputs are drawn (-S), as denormal numbers would be slow; threads do not spin, as in measure.py
            what = f"{self.flags} -m duration -t {options.seconds} -x {options.threads} -y 1 -D -I -S 0 {path}"
        libraries = f"LD_LIBRARY_PATH={options.remote} ADSP_LIBRARY_PATH={options.remote}"
        # a run that outlives its cable would take time from the next one
        return (
            f"(cd {options.remote} || exit 1\nold=$(cat running 2>/dev/null) && kill $old 2>/dev/null && sleep 1\n"
            f"{libraries} taskset {self.mask} {options.remote}/{self.program} {what} 2>&1 &\n"
            "echo $! >running; wait $!; status=$?; rm -f running; exit $status)"
        )

    def sample(self, name):
        """Return the time of one run in ms, or None where it does not count."""
        try:
            status, text = self.phone.shell(self.command(name))
        except Lost as lost:
            self.phone.wait_for(str(lost))
            return None
        graph = self.file_of(name)
        if status:
            sys.exit(
                f"{self.program} ended with status {status} on {graph} ({self.delegate}); is it built for this phone, "
                f"with its libraries beside it (--library)? Its last lines: {last_lines(text)}"
            )
        parse = parse_benchmark_model if self.options.runtime == TFLITE else parse_perf_test
        try:
            ms = parse(text, self.delegate)
        except ValueError as error:
            sys.exit(
                f"the output of {self.program} for {graph} is unknown: {error}; its last lines: {last_lines(text)}"
            )
        self.look()
        if self.throttled():
            self.discarded += 1
            return None
        return ms

    def measure(self):
        order, rng, start, said = list(self.graphs), random.Random(0), time.monotonic(), -1
        total, before = self.options.rounds * len(order), sum(map(len, self.samples.values()))
        done = before
        for turn in range(self.options.rounds):
            rng.shuffle(order)
            for name in order:
                if len(self.samples[name]) > turn:
                    continue
                for _ in range(self.options.tries):
                    self.cool()
                    ms = self.sample(name)
                    if ms is not None:
                        break
                else:
                    sys.exit(
                        f"{self.options.tries} runs of {self.file_of(name)} in a row were throttled or cut off "
                        f"({self.discarded} throttled so far); rest the phone, lower --cool, and start again, which "
                        "goes on from what is measured"
                    )
                self.samples[name].append(ms)
                done += 1
                write_whole(self.partial, {"settings": self.settings, "samples": self.samples})
                # the time left is that of what this start has to do
                said = show(done - before, total - before, time.monotonic() - start, math.inf, said)

    def load(self):
        """Take over what an earlier start with the same settings has measured."""
        path = Path(self.partial)
        if self.options.fresh or not path.exists():
            return
        found = read_json(path, "this script", "remove it, or start again with --fresh")
        settings, samples = (found.get(key) if isinstance(found, dict) else None for key in ("settings", "samples"))
        if not isinstance(settings, dict) or not isinstance(samples, dict) or set(samples) != set(self.graphs):
            sys.exit(f"{path} holds no samples of this kit; remove it, or start again with --fresh")
        for key, value in self.settings.items():
            if settings.get(key) != value:
                then, now = str(settings.get(key))[:20], str(value)[:20]
                sys.exit(f"{path} was begun with another {key} ({then}, now {now}); take that one, or give --fresh")
        for name, values in samples.items():
            if not isinstance(values, list) or not all(type(v) is float and 0 < v < math.inf for v in values):
                sys.exit(f"{path} has impossible samples of {name}; remove it, or start again with --fresh")
            self.samples[name] = values[: self.options.rounds]
        print(f"going on from {path}: {sum(map(len, self.samples.values()))} samples are there")

    def conditions(self):
        return {
            "cores": self.cores,
            "khz_at_the_start": self.first["khz"],
            "thermal_status_at_the_start": self.first["thermal"],
            "celsius_at_the_start": self.first["celsius"],
            "celsius_at_most": self.warmest,
            "discarded_as_throttled": self.discarded,
        }


def only(pattern, text, what):
    found = re.findall(pattern, text, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"it has {len(found) or 'no'} line{'s' * (len(found) > 1)} '{what}'")
    return found[0]


def near(a, b):
    return abs(a - b) <= 0.01 * max(a, b)


def positive(ms, count):
    if count < 1 or not 0 < ms < math.inf:
        raise ValueError(f"it says {ms:g} ms in {count} runs, which is no time; give more --seconds")
    return ms


def parse_benchmark_model(text, delegate):
    """Return ms an inference by LiteRT's benchmark_model, whose figures are in microseconds.

    Raises:
        ValueError: The output is not what it prints, or of another delegate.
    """
    if "Unconsumed cmdline flags" in text:
        raise ValueError("it does not know all of its options")
    if delegate in ("gpu", "nnapi"):
        whole = rf"(?i)\b(applied {delegate} delegate, and the model graph will be completely executed)"
        only(whole, text, f"applied {delegate} delegate")
    parts = rf"Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER}, Inference \(avg\): {NUMBER}\s*$"
    *_, average = only(rf"Inference timings in us: {parts}", text, "Inference timings in us: ..., Inference (avg): ...")
    # the last of its two lines of statistics is of the runs that count; where all took as long it is a shorter one
    counts = re.findall(rf"\bcount=(\d+) (?:first=\d+ .*\bavg={NUMBER} |curr=(\d+))", text)
    if len(counts) != 2:
        raise ValueError(f"it has {len(counts)} lines 'count=... avg=...', not 2")
    count, mean, same = counts[-1]
    if not near(float(mean or same), float(average)):
        raise ValueError(f"its average is {mean or same} us in one line and {average} us in another")
    return positive(1e-3 * float(average), int(count))


def parse_perf_test(text, delegate):
    """Return ms an inference by ONNX Runtime's onnxruntime_perf_test.

    Raises:
        ValueError: The output is not what it prints.
    """
    average = only(rf"^Average inference time cost(?: total)?: {NUMBER} ms\s*$", text, "Average inference time cost")
    count = only(r"^Total inference requests: (\d+)\s*$", text, "Total inference requests")
    total = only(rf"^Total inference time cost: {NUMBER} s\s*$", text, "Total inference time cost")
    if not near(1e3 * float(total), float(average) * int(count)):
        raise ValueError(f"{count} times {average} ms are not {total} s")
    return positive(float(average), int(count))


if __name__ == "__main__":
    main()
