"""What no file of the three packages may do: run what data say, listen, or ask for what nobody wanted."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hardware", "search_spaces", "proxyless_strategy")

ALLOWED = {
    # The user's own word: what stands in their config or on their command line.
    "import_function": {"search_spaces/registry.py", "proxyless_strategy/data/function_source.py"},
    "users_space": {
        "proxyless_strategy/runs/ended.py",
        "proxyless_strategy/runs/finished.py",
        "proxyless_strategy/runs/prepare.py",
        "proxyless_strategy/runs/space_table.py",
        "proxyless_strategy/shrinking/plan.py",
    },
    # Names of this project's own modules.
    "import_module": {
        "hardware/__init__.py",
        "hardware/backends/base.py",
        "hardware/backends/registry.py",
        "hardware/onnx_runtime.py",
        "proxyless_strategy/__init__.py",
        "search_spaces/__init__.py",
        "search_spaces/nni_import.py",
        "search_spaces/user_function.py",
    },
    "spec_from_file_location": {"proxyless_strategy/export/hubconf_tree.py"},
    # Networks by names of ours, or by names that were looked up among the registered ones before.
    "create_model": {
        "proxyless_strategy/benchmark/models.py",
        "proxyless_strategy/export/agreement.py",
        "proxyless_strategy/export/derived.py",
        "proxyless_strategy/export/folder.py",
        "proxyless_strategy/export/released.py",
        "proxyless_strategy/retraining/folder.py",
        "proxyless_strategy/runs/build_back.py",
        "proxyless_strategy/runs/derive.py",
        "proxyless_strategy/runs/early_checks.py",
        "proxyless_strategy/runs/forecast.py",
        "proxyless_strategy/runs/quantised_finalists.py",
        "proxyless_strategy/runs/retrained.py",
        "proxyless_strategy/runs/search.py",
        "proxyless_strategy/shrinking/originals.py",
        "search_spaces/from_timm/network.py",
        "search_spaces/from_timm/reader.py",
        "search_spaces/from_timm/weights.py",
    },
    "Unpickler": {"proxyless_strategy/data/plain_pickles.py"},
    # A datagram's socket that sends nothing: by which device the address of the launcher is reached.
    "connect": {"proxyless_strategy/strategy/addresses.py"},
    "urlopen": set[str](),
    "urlretrieve": set[str](),
    "hf_hub_download": set[str](),
    "load_state_dict_from_url": set[str](),
    "system": {"hardware/processor.py"},  # processor time of the system
    "popen": set[str](),
    "unsafe_load": set[str](),
    "full_load": set[str](),
    "__import__": set[str](),
}
"""Who may call what; whoever is not here and wants to must show that no file's content gets there."""


@cache
def trees() -> dict[str, ast.Module]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, called name with its module where one is written, and the call."""
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("name", ALLOWED)
def test_only_those_call_it_who_may(name: str) -> None:
    # as a parameter it may be passed on, and called under another name
    found = {
        file
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)
    }
    assert found <= ALLOWED[name], f"{name}: see ALLOWED"


def test_nothing_is_unpickled_but_weights() -> None:
    wrong = [
        f"{file}:{call.lineno}"
        for file, name, call in calls()
        if (name == "torch.load" and keywords(call).get("weights_only") != "True")
        or name in ("pickle.load", "pickle.loads", "joblib.load", "cloudpickle.loads", "dill.loads")
        or (name in ("np.load", "numpy.load") and "allow_pickle" in keywords(call))
        or name.endswith("load_from_checkpoint")
    ]
    assert wrong == []


def test_yaml_is_composed_by_a_safe_loader_in_one_place() -> None:
    """It is not constructed at all: what a node stands for, `hardware.yaml_text` says."""
    found = [
        (file, name)
        for file, name, _ in calls()
        if name.startswith("yaml.") and name.split(".")[1].removeprefix("safe_") in ("load", "load_all", "compose")
    ]
    assert found == [("hardware/yaml_text.py", "yaml.compose")]
    assert "SafeLoader" in (ROOT / "hardware/yaml_text.py").read_text()


READS = {
    "json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.compose", "torch.load", "pickle.load",
    "pickle.loads", "np.load", "np.fromfile", "load_file", "safe_open", "gzip.open", "gzip.decompress", "open",
    "os.open", "io.open",
}  # fmt: skip
WRITES = {"json.dump", "yaml.dump", "yaml.safe_dump", "torch.save", "save_file", "pickle.dump"}
METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "open", "savefig"}
FILES = {
    # The one reader and the one writer.
    "hardware/reading.py": {"json.loads", "torch.load", "safe_open", "os.open"},
    "hardware/yaml_text.py": {"yaml.compose", "yaml.dump"},
    "hardware/files.py": {"os.open", "beside.write_bytes", "figure.savefig"},
    # Run where this package is not: a kit's script on its device, the programs of an export folder.
    "hardware/measuring/kit_script.py": {"json.loads", "read_text", "read_bytes", "write_text"},
    "hardware/measuring/kit_android.py": {"read_bytes"},
    "hardware/measuring/kit_phone.py": {"open"},
    "proxyless_strategy/export/hubconf.py": {"json.loads", "read_text", "load_file"},
    "proxyless_strategy/export/hubconf_tree.py": {"json.loads", "read_text", "load_file"},
    # What the kernel says, which nobody passes on.
    "hardware/processor.py": {"read_text"},
    "hardware/measuring/energy_meters.py": {"read_text"},
    "hardware/backends/base.py": {"read_text"},
    # Locks: what may be opened there, and how, is a matter of its own.
    "hardware/measuring/locks.py": {"os.open"},
    # Checkpoints are written whole or not at all, as in `files.py`, but the one before is kept; torch writes to memory.
    "proxyless_strategy/checkpoints.py": {"open", "torch.save"},
    "proxyless_strategy/runs/result.py": {"torch.save"},
    "proxyless_strategy/data/jpeg_header.py": {"Image.open"},  # of bytes that the one reader has read
    "proxyless_strategy/data/reading.py": {"Image.open"},  # of a file that the one reader has opened
    # Of a file that the one reader has opened.
    "proxyless_strategy/data/shard_index.py": {"np.load", "tarfile.open"},
    # Text of a process of ours, through a pipe, a connection or the environment; no file.
    "hardware/backends/torch.py": {"json.loads"},
    "proxyless_strategy/data/carried.py": {"json.loads"},
    "proxyless_strategy/strategy/meeting.py": {"json.loads"},
    "proxyless_strategy/strategy/together.py": {"torch.save", "torch.load"},
    "hardware/backends/torch_worker.py": {"json.loads"},
    "proxyless_strategy/runs/nni_engine.py": {"json.loads"},
    "proxyless_strategy/runs/nni_server.py": {"json.loads", "open"},  # a log, and a request
    "proxyless_strategy/runs/reporting.py": {"json.loads"},
    "proxyless_strategy/trial.py": {"json.loads"},
    "proxyless_strategy/runs/restarts.py": {"open"},  # a log
    # A log, and folders that go to and come from a machine of the user's through a connection: unpacked as data.
    "proxyless_strategy/runs/away.py": {"open", "tarfile.open"},
    "proxyless_strategy/runs/fleet.py": {"tarfile.open"},
    "proxyless_strategy/runs/there.py": {"tarfile.open"},
    # Values that were written as JSON in the same expression.
    "hardware/measuring/sampling.py": {"json.loads"},
    "proxyless_strategy/config.py": {"json.loads"},
    "proxyless_strategy/runs/sweep.py": {"json.loads"},
    "proxyless_strategy/runs/tuners.py": {"json.loads"},
    "proxyless_strategy/export/agreement.py": {"json.loads"},
    "proxyless_strategy/export/folder.py": {"json.loads"},
}
"""Which file may read or write by itself, and by what; every other goes through `hardware.reading` and `.files`."""


def test_files_are_read_and_written_in_one_place() -> None:
    wrong = []
    for file, name, call in calls():
        # a figure is drawn into memory, and then written
        by = name if name in READS | WRITES else name.rpartition(".")[2]
        drawn = by == "savefig" and ast.unparse(call.args[0]) in ("content", "buffer")
        if (
            (by in READS | WRITES or (by in METHODS and "." in name))
            and not drawn
            and not {by, name} & FILES.get(file, set())
        ):
            wrong.append(f"{file}:{call.lineno}: {name}")
    assert wrong == []


@pytest.mark.parametrize("file", FILES)
def test_no_exception_is_left_that_nobody_needs(file: str) -> None:
    used = {part for where, name, _ in calls() if where == file for part in (name, name.rpartition(".")[2])}
    assert FILES[file] <= used


def test_no_text_becomes_code_and_no_shell_is_asked() -> None:
    wrong = [
        f"{file}:{call.lineno}"
        for file, name, call in calls()
        if name in ("eval", "exec", "compile", "os.system", "os.popen")
        # The trialCommand of the user's own sweep, which NNI gives to a shell too.
        or (keywords(call).get("shell", "False") != "False" and file != "proxyless_strategy/runs/restarts.py")
        or (name == "torch.hub.load")
    ]
    assert wrong == []


def test_networks_are_named_pretrained_in_export_folders_alone() -> None:
    """Elsewhere `pretrained=True` would fetch weights that nobody has asked for.

    A space of a timm model asks for them by its `weights`, and a retraining by its `teacher`, which no file of a subnet
    can hold.
    """
    for file, name, call in calls():
        if file == "search_spaces/from_timm/weights.py":
            continue
        if name.endswith("create_model") and keywords(call).get("pretrained", "False") != "False":
            assert ast.unparse(call.args[0]).startswith(("f'local-dir:", "'local-dir:' + ")), f"{file}:{call.lineno}"


# ---- ONNX Runtime's telemetry --------------------------------------------------------------------------------------

THREADS = """
import os
{program}
names = [open(f"/proc/self/task/{{t}}/comm").read() for t in os.listdir("/proc/self/task")]
opened = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
print(len(names), any("onnxruntime" in name for name in opened), os.environ.get("ORT_DISABLE_TELEMETRY"))
"""
PROGRAMS = {
    "the backend": "from hardware.backends import get_backend; get_backend('onnxruntime')",
    "the one import": "from hardware.onnx_runtime import import_onnxruntime; import_onnxruntime()",
    "a kit's script": "from hardware.measuring.kit_script import onnxruntime_session; onnxruntime_session(1)",
}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are looked up in /proc")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_onnx_runtime_reports_to_nobody(program: str, tmp_path: Path) -> None:
    """Its telemetry is a thread, and a data base in the user's cache."""
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(program=program)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "False", "1"], done.stderr
    assert list(tmp_path.rglob("*onnxruntime*")) == []


def test_onnx_runtime_is_imported_in_one_place() -> None:
    found = {
        file
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "onnxruntime" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "onnxruntime")
        or (
            isinstance(node, ast.Call)
            and [ast.unparse(a) for a in node.args] == ["'onnxruntime'"]
            and ast.unparse(node.func).endswith("import_module")
        )
    }
    late = "hardware/operators/quantised.py"
    assert found == {"hardware/onnx_runtime.py", "hardware/measuring/kit_script.py", late}, "the kit goes elsewhere"
    for node in ast.walk(trees()[late]):
        if isinstance(node, ast.FunctionDef):
            lines = [ast.unparse(line) for line in node.body]
            parts = [number for number, line in enumerate(lines) if line.startswith("from onnxruntime.")]
            # what is set at the one place is set before a part of it is imported
            assert not parts or lines.index("import_onnxruntime()") < parts[0], node.name
