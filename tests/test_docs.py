"""What the documents say: every fenced block runs or is checked; commands, options, names, settings and files exist.

Python blocks run in a folder that `Workplace` prepares; YAML blocks go through the config's reader; every line of a
shell block is parsed by the program that it names, and the cheap ones run. A block of a language that has no entry in
`WAYS`, or a command that has none in `PROGRAMS`, fails.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from nni.nas.experiment import NasExperiment
from typer.core import TyperCommand

from proxyless_strategy import ConfigError, SearchConfig, get_space, load_config, users_space

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "examples/README.md", "tests/benchmarks/README.md")
ROOMS = ("proxyless_strategy", "search_spaces", "hardware")
README_LINES = 150

QUICK = {
    "data": {"draw": {"classes": 5, "train": 12, "val": 4, "size": 32}},
    "hardware": {"device": "other"},
    "search": {"warmup_epochs": 1, "epochs": 2, "batch_size": 16, "steps_per_update": 1},
    "retrain": None,
}
"""What the README's search is changed to, beside `data.root`, so that it ends in seconds."""

EXECUTED = (("derive", "runs/mine"), ("report", "runs/mine"), ("latency", "show", "pixel1"))
"""Commands of `proxyless` that run; all others are parsed."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        document: The document's path in the repository.
        line: Line of its opening fence.
        language: What stands behind the fence.
        text: What stands between the fences.
    """

    document: str
    line: int
    language: str
    text: str


@cache
def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str) -> list[Block]:
    text = text_of(document)
    return [
        Block(document, text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    ]


def prose_of(document: str) -> str:
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", text_of(document), flags=re.MULTILINE)


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def the_block(document: str, words: str) -> Block:
    (found,) = (block for block in blocks_of(document) if words in block.text)
    return found


# ---- Python: a folder in which the blocks run ------------------------------------------------------------------------


class Workplace:
    """A folder with what the documents take for granted: `my_device.yml`, `my_search.yml`, and then its `runs/mine`.

    Args:
        folder: The folder to fill.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._namespaces: dict[Block, dict[str, Any]] = {}
        config = yaml.safe_load(the_block("README.md", "target_ms: 4.2").text)
        for section, settings in QUICK.items():
            config[section] = {**config.get(section, {}), **settings} if isinstance(settings, dict) else settings
        config["data"]["root"] = str(folder / "flowers")
        (folder / "my_search.yml").write_text(yaml.safe_dump(config))
        self._write_table(folder / "my_device.yml")

    @staticmethod
    def _write_table(path: Path) -> None:
        """Write a table that nobody measured: 2 to 5.4 ms, so that the documents' targets are within its range."""
        costs = get_space("small_mbconv", stem_stride=1).costs(32, num_classes=5)
        work = {op.key: (op.hidden or 16) * op.kernel * op.input_shape[-1] ** 2 for op in costs.distinct()}
        header = {"device": "none", "backend": "onnxruntime", "threads": 1, "batch": 1, "dtype": "float32"}
        header |= {"input_size": 32, "space": "small_mbconv stem_stride=1", "overhead_ms": 0.0}
        entries = {key: {"ms": 0.2 + 2e-6 * value, "spread": 0.0, "count": 1} for key, value in work.items()}
        table = {"format": "proxyless-latency-table", "version": 1, "unit": "ms", "header": header, "entries": entries}
        path.write_text(yaml.safe_dump(table))

    def search(self) -> None:
        """Have the finished search in `runs/mine`."""
        self.run(the_block("README.md", "run_search("))

    def run(self, block: Block) -> dict[str, Any]:
        """Return the names that a Python block leaves; run it once."""
        if block not in self._namespaces:
            self._namespaces[block] = self._executed(block)
        return self._namespaces[block]

    def _executed(self, block: Block) -> dict[str, Any]:
        namespace = {name: self._given(name) for name in sorted(unbound(block.text) & {"evaluator", "latency"})}
        namespace["__name__"] = "documented"
        code = compile(block.text, f"{block.document}, the block at line {block.line}", "exec")
        with self.entered():
            exec(code, namespace)
            for made in list(namespace.values()):
                if isinstance(made, NasExperiment):
                    made.stop()  # else NNI does so when Python ends
                elif isinstance(made, type) and made.__module__ == "documented" and made.__name__.startswith("Test"):
                    for method in [name for name in dir(made) if name.startswith("test_")]:
                        getattr(made(), method)()
        return namespace

    def _given(self, name: str) -> Any:
        """Make what a block uses and another one shows how to make."""
        if name == "evaluator":  # a new one each time: its Trainer runs once
            return self._executed(the_block("examples/README.md", "evaluator = "))[name]
        return self.run(the_block("README.md", "latency = LatencyModel("))[name]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        before, home = Path.cwd(), os.environ.get("HOME", "")
        os.chdir(self.folder)
        os.environ["HOME"] = str(self.folder)  # NNI keeps experiments there
        try:
            yield
        finally:
            os.chdir(before)
            os.environ["HOME"] = home


def unbound(code: str) -> set[str]:
    """Find the names that a block uses and does not make."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - stored - set(dir(builtins))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("documented"))


# ---- commands --------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """The command line was accepted."""


class CommandLine:
    """The command line `proxyless`, from the entry point that pyproject.toml names."""

    @cached_property
    def main(self) -> Callable[[Sequence[str]], None]:
        (entry,) = re.findall(r'^proxyless = "([\w.]+):(\w+)"$', text_of("pyproject.toml"), flags=re.MULTILINE)
        return getattr(importlib.import_module(entry[0]), entry[1])

    def run(self, arguments: Sequence[str]) -> str:
        """Run a command and return what it prints.

        Raises:
            AssertionError: Its status is not 0.
        """
        output, errors = io.StringIO(), io.StringIO()
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            self.main(arguments)
        assert not ended.value.code, f"proxyless {shlex.join(arguments)}: {errors.getvalue()}"
        return output.getvalue()

    def parse(self, arguments: Sequence[str]) -> None:
        """Do everything of a command but its work."""
        reached: list[str] = []
        base = next(kind for kind in TyperCommand.__mro__ if "invoke" in vars(kind))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "invoke", lambda command, ctx: reached.append(command.name))
            self.run(arguments)
        assert reached, f"proxyless {shlex.join(arguments)} did not reach a command"

    @cache  # noqa: B019 (one object for the whole module)
    def help(self, *command: str) -> str:
        return self.run([*command, "--help"])

    def options(self, *command: str) -> set[str]:
        return set(re.findall(r"--[a-z][\w-]*", self.help(*command)))

    def all_options(self) -> set[str]:
        commands = [(name,) for name in self._commands()] + [("latency", name) for name in self._commands("latency")]
        return set().union(*(self.options(*command) for command in commands))

    def _commands(self, *group: str) -> list[str]:
        listed = self.help(*group).partition("Commands:")[2]
        return re.findall(r"^  ([a-z][\w-]*)", listed, flags=re.MULTILINE)


PROXYLESS = CommandLine()


def run_proxyless(arguments: list[str], workplace: Workplace) -> None:
    PROXYLESS.parse(arguments)
    if any(tuple(arguments[: len(start)]) == start for start in EXECUTED):
        workplace.search()
        with workplace.entered():
            PROXYLESS.run(arguments)


def run_make(arguments: list[str], workplace: Workplace) -> None:
    subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)


def run_python(arguments: list[str], workplace: Workplace) -> None:
    if arguments[:2] == ["-m", "pytest"]:
        assert all((ROOT / argument).exists() for argument in arguments[2:])
    elif arguments[0] == "-m":
        accepts(importlib.import_module(arguments[1]), "main", arguments[2:])
    elif arguments[0].startswith("examples/"):  # `test_examples` runs what it does
        assert (ROOT / arguments[0]).is_file()
        compile((ROOT / arguments[0]).read_text(), arguments[0], "exec")
    else:  # a script of a kit, beside the others
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            sources = {"measure": "kit_script.py", "phone": "kit_phone.py", "measure_android": "kit_android.py"}
            for name, source in sources.items():
                shutil.copy(ROOT / "hardware/measuring" / source, Path(folder) / f"{name}.py")
            patch.syspath_prepend(folder)
            module = importlib.import_module(arguments[0].removesuffix(".py"))
            assert Path(str(module.__file__)).parent == Path(folder)
            for name in sources:
                sys.modules.pop(name, None)
            accepts(module, "main", arguments[1:])


def run_nnictl(arguments: list[str], workplace: Workplace) -> None:
    accepts(importlib.import_module("nni.tools.nnictl.nnictl"), "parse_args", arguments)
    config = yaml.safe_load(text_of(arguments[arguments.index("--config") + 1]))
    assert "proxyless_strategy.trial" in config["trialCommand"]


def run_ci(arguments: list[str], workplace: Workplace) -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


def run_torchrun(arguments: list[str], workplace: Workplace) -> None:
    launch = importlib.import_module("torch.distributed.run").parse_args(arguments)
    if launch.module:
        run_python(["-m", launch.training_script, *launch.training_script_args], workplace)
    else:
        assert launch.training_script == "proxyless"
        run_proxyless(launch.training_script_args, workplace)


def run_sbatch(arguments: list[str], workplace: Workplace) -> None:
    assert 'proxyless "$@"' in text_of(arguments[0])
    run_proxyless(arguments[1:], workplace)


def run_trtexec(arguments: list[str], workplace: Workplace) -> None:
    """TensorRT's, which is not here: a graph of a kit, and a profile of its name."""
    named = dict(argument.partition("=")[::2] for argument in arguments)
    assert set(named) == {"--onnx", "--noTF32", "--useSpinWait", "--exportProfile"}
    assert Path(named["--onnx"]).stem == Path(named["--exportProfile"]).stem


def run_docker(arguments: list[str], workplace: Workplace) -> None:
    action, *options, context = arguments
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert (action, given.keys(), context) == ("build", {"--file", "--tag"}, ".")
    assert text_of(given["--file"])
    assert f"image: {given['--tag']}\n" in text_of("examples/kubernetes/search_job.yml")


def run_kubectl(arguments: list[str], workplace: Workplace) -> None:
    action, *options = arguments
    job = text_of("examples/kubernetes/search_job.yml")
    if action == "logs":
        assert options[0] == "--follow"
        assert f"kind: Job\nmetadata:\n  name: {options[1].removeprefix('job/')}\n" in job
    else:
        assert action in ("apply", "replace")
        assert text_of(options[options.index("--filename") + 1]) == job


def run_ray(arguments: list[str], workplace: Workplace) -> None:
    if importlib.util.find_spec("ray") is not None:
        program = importlib.import_module("ray.scripts.scripts").cli
        program.commands[arguments[0]].make_context(arguments[0], arguments[1:])


PROGRAMS: dict[str, Callable[[list[str], Workplace], None]] = {
    "proxyless": run_proxyless,
    "make": run_make,
    "python": run_python,
    "nnictl": run_nnictl,
    "sbatch": run_sbatch,
    "torchrun": run_torchrun,
    "trtexec": run_trtexec,
    "docker": run_docker,
    "kubectl": run_kubectl,
    "ray": run_ray,
    ".ci/run": run_ci,
}


def accepts(module: ModuleType, entry: str, arguments: list[str]) -> None:
    """Let a program read its command line and stop it there; one that reads none runs.

    Raises:
        SystemExit: The command line is wrong.
    """
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        parse(parser, args, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(sys, "argv", [str(module.__file__), *arguments])
        try:
            getattr(module, entry)()
        except Parsed:
            return
        except SystemExit as ended:
            if ended.code or arguments:
                raise


def command_of(line: str) -> tuple[str, list[str]]:
    """Split a line into its program, without folder and without variables before it, and the arguments."""
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words[0].removeprefix(".venv/bin/"), words[1:]


# ---- blocks ----------------------------------------------------------------------------------------------------------


def check_python(block: Block, workplace: Workplace) -> None:
    workplace.run(block)


def check_yaml(block: Block, workplace: Workplace) -> None:
    path = workplace.folder / "block.yml"
    path.write_text(block.text)
    presets = yaml.safe_load(block.text).get("presets", {})
    for preset in (None, *presets):
        config = load_config(path, preset=preset)
        if ":" not in config.space.name:
            users_space(config.space.name, **config.space.options)


def check_shell(block: Block, workplace: Workplace) -> None:
    for line in filter(str.strip, block.text.splitlines()):
        program, arguments = command_of(line)
        assert program in PROGRAMS, f"no way is registered to check `{line}`"
        PROGRAMS[program](arguments, workplace)


def check_tree(block: Block, workplace: Workplace) -> None:
    """Look for folders, indented by two spaces in their parent, each with a word on it."""
    parents: list[str] = []
    for line in block.text.splitlines():
        indent, folder, words = re.fullmatch(r"( *)([\w/]+)/ +(\S.*)", line).groups()
        parents[len(indent) // 2 :] = [folder]
        assert (ROOT / "/".join(parents)).is_dir(), f"{'/'.join(parents)} is no folder"
        assert words


def check_order(block: Block, workplace: Workplace) -> None:
    """Look for rooms, each a folder or a file of the packages."""
    for name in re.findall(r"\w+", block.text):
        places = [ROOT / name, ROOT / "proxyless_strategy" / name, ROOT / "proxyless_strategy" / f"{name}.py"]
        assert any(place.exists() for place in places), f"there is no room {name}"


WAYS: dict[str, Callable[[Block, Workplace], None]] = {
    "python": check_python,
    "yaml": check_yaml,
    "sh": check_shell,
    "tree": check_tree,
    "order": check_order,
}


def check(block: Block, workplace: Workplace) -> None:
    assert block.language in WAYS, f"no way is registered to check a block of {block.language or 'no language'}"
    WAYS[block.language](block, workplace)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.document}:{block.line}")
def test_a_block_runs(block: Block, workplace: Workplace) -> None:
    check(block, workplace)


@pytest.mark.parametrize(
    ("language", "text", "error"),
    [
        ("", "make test", AssertionError),
        ("ruby", "puts 1", AssertionError),
        ("python", "from proxyless_strategy import no_such_name", ImportError),
        ("python", "no_such_name", NameError),
        ("python", "class TestNothing:\n    def test_it(self):\n        assert False", AssertionError),
        ("yaml", "serach: {epochs: 1}", ConfigError),
        ("yaml", "presets: {smoke: {search: {epoch: 1}}}", ConfigError),
        ("yaml", "space: {name: small_mbconv, options: {stem_stride: 3}}", Exception),
        ("sh", "cowsay hello", AssertionError),
        ("sh", "proxyless serach my_search.yml", AssertionError),
        ("sh", "proxyless search", AssertionError),
        ("sh", ".venv/bin/proxyless derive runs/mine --budget 3 --out a", AssertionError),
        ("sh", "proxyless derive runs/mine --target 0.001 --out a", AssertionError),
        ("sh", "make no_such_target", subprocess.CalledProcessError),
        ("sh", "python -m tests.benchmarks.no_such_benchmark", ImportError),
        ("sh", "python -m tests.benchmarks.target --sed 1", SystemExit),
        ("sh", "python measure.py --runtime tensorrt", SystemExit),
        ("sh", "nnictl create --config examples/no_such_file.yml", FileNotFoundError),
        ("tree", "hardware/  costs\n  no_such_folder/  nothing", AssertionError),
        ("order", "hardware\nno_such_room", AssertionError),
    ],
)
def test_a_broken_block_fails(language: str, text: str, error: type[BaseException], workplace: Workplace) -> None:
    with pytest.raises(error):
        check(Block("broken.md", 1, language, text + "\n"), workplace)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_fence_belongs_to_a_block(document: str) -> None:
    assert text_of(document).count("```") == 2 * len(blocks_of(document))
    assert "~~~" not in text_of(document)


# ---- prose -----------------------------------------------------------------------------------------------------------


def check_option(span: str, workplace: Workplace) -> None:
    assert span.split()[0].split("=")[0] in PROXYLESS.all_options() | script_options()


def check_command(span: str, workplace: Workplace) -> None:
    """Look for a command of `proxyless`, which may lack arguments here, and for its options."""
    words = span.removeprefix(".venv/bin/").removeprefix("proxyless ").split()
    command = tuple(words[: 2 if words[0] == "latency" else 1])
    assert set(re.findall(r"--[a-z][\w-]*", span)) <= PROXYLESS.options(*command)


def check_program(span: str, workplace: Workplace) -> None:
    program, arguments = command_of(span)
    PROGRAMS[program](arguments, workplace)


def check_module(span: str, workplace: Workplace) -> None:
    assert importlib.util.find_spec(span.split()[-1])


def check_key(span: str, workplace: Workplace) -> None:
    assert is_setting(span, workplace.folder)


def check_setting(span: str, workplace: Workplace) -> None:
    key, _, value = span.partition(": ")
    setting(key, yaml.safe_load(value), workplace.folder)


def check_name(span: str, workplace: Workplace) -> None:
    """Look for a module, a public name of a package, or a setting in the section `hardware`."""
    if not (span.startswith("hardware.") and is_setting(span, workplace.folder)):
        resolved(span)


def check_path(span: str, workplace: Workplace) -> None:
    assert (ROOT / span).exists(), f"there is no {span}"


SPAN_WAYS: tuple[tuple[str, Callable[[str, Workplace], None]], ...] = (
    (r"--[a-z].*", check_option),
    (r"(\.venv/bin/)?(proxyless|latency) .*", check_command),
    (r"(make|nnictl)( .*)?", check_program),
    (r"python -m [\w.]+", check_module),
    (r"(space|data|search|retrain)\.\w+", check_key),
    (rf"({'|'.join(SearchConfig.model_fields)})(\.\w+)*: .*", check_setting),
    (rf"(tests|{'|'.join(ROOMS)})(\.\w+)+", check_name),
    (rf"(\.ci|examples|tests|{'|'.join(ROOMS)})/.*", check_path),
)
"""How a text between backticks is checked: the first pattern that matches all of it. Others stand for themselves."""


def way_of(span: str) -> Callable[[str, Workplace], None] | None:
    return next((way for pattern, way in SPAN_WAYS if re.fullmatch(pattern, span)), None)


def resolved(name: str) -> Any:
    """Return what a dotted name stands for: a module, or a public name of a package."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(name)
    package, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(package), attribute)


def is_setting(key: str, folder: Path) -> bool:
    """Tell whether the config has this dotted key: then only the value's type is wrong."""
    with pytest.raises(ConfigError) as refused:
        setting(key, [[]], folder)
    return "unknown key" not in str(refused.value)


def setting(key: str, value: Any, folder: Path) -> SearchConfig:
    """Read a config in which one setting has this value."""
    path = folder / "empty.yml"
    path.write_text("{}")
    return load_config(path, {key: value})


@cache
def script_options() -> set[str]:
    """Return the options of the benchmarks, and of a kit's scripts."""
    paths = [*(ROOT / "tests/benchmarks").glob("*.py"), *(ROOT / "hardware/measuring").glob("kit_*.py")]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    return {option for source in sources for option in re.findall(r'add_argument\(\s*"(--[\w-]+)"', source)}


SPANS = sorted(
    (document, span)
    for document in DOCUMENTS
    for span in set(re.findall(r"`([^`\n]+)`", prose_of(document)))
    if way_of(span) is not None
)


@pytest.mark.parametrize(("document", "span"), SPANS)
def test_what_a_text_names_exists(document: str, span: str, workplace: Workplace) -> None:
    way = way_of(span)
    assert way is not None
    way(span, workplace)


@pytest.mark.parametrize(
    ("span", "error"),
    [
        ("proxyless serach", AssertionError),
        (".venv/bin/proxyless derive --curves", AssertionError),
        ("latency kit --onnx", AssertionError),
        ("--no-such-option", AssertionError),
        ("make no_such_target", subprocess.CalledProcessError),
        ("python -m proxyless_strategy.no_such_module", AssertionError),
        ("nnictl create --config examples/no_such_file.yml", FileNotFoundError),
        ("proxyless_strategy.no_such_name", AttributeError),
        ("hardware.no_such_name", AttributeError),
        ("tests.benchmarks.no_such_benchmark", AttributeError),
        ("examples/no_such_file.yml", AssertionError),
        ("hardware/no_such_folder/", AssertionError),
        ("search.epoch", AssertionError),
        ("search.epoch: 3", ConfigError),
        ("target_ms: -1", ConfigError),
    ],
)
def test_a_name_of_nothing_fails(span: str, error: type[BaseException], workplace: Workplace) -> None:
    way = way_of(span)
    assert way is not None
    with pytest.raises(error):
        way(span, workplace)


def headings_of(document: str) -> set[str]:
    """Make the anchors of a document's headings, as GitHub does."""
    titles = re.findall(r"^#+ (.*)$", prose_of(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document} links to {link}"
        if anchor:
            assert anchor in headings_of(os.path.relpath(target, ROOT)), f"{document} links to {link}"


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= README_LINES


@pytest.mark.parametrize(("name", "shown"), [("RESULT", "markdown"), ("ABLATION", "ablation_markdown")])
def test_tables_of_search_quality_are_those_of_the_committed_runs(name: str, shown: str) -> None:
    from tests.benchmarks import search_quality

    result = json.loads(getattr(search_quality, name).read_text())
    assert getattr(search_quality, shown)(result) in text_of("tests/benchmarks/README.md")
