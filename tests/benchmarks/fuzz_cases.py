"""One case of a fuzzing: put an input where its reader looks, let it read, and judge what it did."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.fuzz_formats import Format

if TYPE_CHECKING:
    from hardware.errors import ProxylessError

LONGEST = 700
"""Characters of an error's message: one that says what is known instead lists a recipe's 40 keys, or a table's nearest
operators."""
ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests" / "data" / "run_bc6f2f8"


@dataclass(frozen=True)
class Target:
    """A reader, and what it reads.

    Attributes:
        name: What it is called.
        prepare: Fills a folder with what the reader needs, all of it good.
        file: The input's place in that folder; empty where the reader takes the text itself.
        read: Reads from the folder, or for a text the text. It may return what a command does next with what was read:
            errors of that need not name the file.
        format: Changes the content of the file.
        seeds: Further good contents, made from the folder.
        names: Texts of which a message must have one; None: the file's name.
        share: Cases beside those of a reader of share 1; less for slow ones.
        large: Whether such a file may be as large as it likes.
        writes: Whether the reader, once it has taken the file, goes on to write another one in its place.
    """

    name: str
    prepare: Callable[[Path], Any]
    file: str
    read: Callable[[Any], Any]
    format: Format
    seeds: Callable[[Path], list[bytes]] = lambda folder: []
    names: tuple[str, ...] | None = None
    share: float = 1.0
    large: bool = False
    writes: bool = False

    @property
    def expected(self) -> tuple[str, ...]:
        return (Path(self.file).name,) if self.names is None else self.names


def copying(source: Path, name: str) -> Callable[[Path], Any]:
    """Prepare a folder that holds one file, or the files of one folder."""

    def prepare(folder: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / name)

    return prepare


def contents(*paths: Path) -> Callable[[Path], list[bytes]]:
    return lambda folder: [path.read_bytes() for path in paths]


def nothing(folder: Path) -> None:
    """Prepare nothing: the reader takes texts."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with how an input was read.

    Attributes:
        kind: `crash` or `hang`.
        signature: Faults with the same one are one.
        sentence: What happened.
    """

    kind: str
    signature: str
    sentence: str


# ---- inputs that are no content ---------------------------------------------------------------------------------

SPECIAL = ("missing", "a folder", "a pipe", "a link to itself", "a link to an endless file", "2 GB of nothing")
"""What stands in the place of a file in the first cases of each target."""


def special(path: Path, kind: str) -> None:
    """Put something that is no ordinary file in the place of a file."""
    remove(path)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a link to an endless file":
        path.symlink_to("/dev/zero")
    elif kind == "2 GB of nothing":
        with path.open("wb") as stream:
            stream.truncate(2**31)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Case:
    """An input: a content, or the name of something special."""

    content: bytes = b""
    special: str = ""


def specials(target: Target) -> tuple[Case, ...]:
    """Return a target's inputs that are no content, and the empty one."""
    if not target.file:
        return (Case(b""),)
    # A set of weights may well have 2 GB; texts have not.
    kinds = [kind for kind in SPECIAL if kind != SPECIAL[-1] or not target.large]
    return (Case(b""), *(Case(special=kind) for kind in kinds))


def case_of(target: Target, seeds: list[bytes], number: int, *, seed: int) -> Case:
    """Return a target's case by its number; the first ones are its good contents, then what is no content."""
    fixed = (*map(Case, seeds), *specials(target))
    if number < len(fixed):
        return fixed[number]
    rng = random.Random(f"{seed} {target.name} {number}")
    return Case(target.format(rng.choice(seeds), rng))


# ---- judging ----------------------------------------------------------------------------------------------------


class Judge:
    """Lets one target read cases in a folder of its own, and says what is wrong with how it does.

    Args:
        target: The reader.
        good: The folder that `target.prepare` filled.
        place: Becomes a copy of it.
    """

    def __init__(self, target: Target, good: Path, place: Path) -> None:
        self.target, self.good, self.place = target, good, place
        self._renew()

    def __call__(self, case: Case, *, good: bool = False) -> Fault | None:
        """Judge a case.

        Args:
            case: The input.
            good: Whether the reader must take it.
        """
        self._put(case)
        before = snapshot(self.place)
        taken, fault = self._read(case, good=good)
        if fault is not None:
            fault = of_special(fault, case)
        after = snapshot(self.place)
        if after != before:
            changes = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            self._renew()
            if taken and self.target.writes:
                changes = [name for name in changes if name != self.target.file]
            if fault is None and changes:
                fault = Fault("crash", f"partial effect: {changes[0]}", f"it left or changed {', '.join(changes)}")
        return fault

    def _renew(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.good, self.place)

    def _put(self, case: Case) -> None:
        if not self.target.file:
            return
        path = self.place / self.target.file
        if case.special:
            special(path, case.special)
            return
        if path.is_symlink() or not path.is_file():
            remove(path)
        path.write_bytes(case.content)

    def _read(self, case: Case, *, good: bool) -> tuple[bool, Fault | None]:
        # Not at the top: the coverage of what is imported before atheris is ready would not be seen.
        from hardware.errors import ProxylessError

        given: Any = self.place if self.target.file else case.content.decode("utf-8", "surrogateescape")
        expected = self.target.expected
        try:
            with quiet(), inside(self.place):
                further = self.target.read(given)
                if callable(further):
                    expected = ()
                    further()
        except ProxylessError as error:
            # Where the folder lies is no fault of the message.
            words = str(error).replace(str(self.place), ".")
            return False, _of_message(error, words, expected, good=good)
        except BaseException as error:
            return False, _of_exception(error)
        return True, None


def _of_message(error: ProxylessError, words: str, expected: Sequence[str], *, good: bool) -> Fault | None:
    where = _where(error)
    if short_of_memory(error):
        return Fault("hang", f"memory: {where}", f"it asked for more than 1 GB before it said {_cut(words)!r}")
    if good:
        return Fault("crash", f"refused: {where}", f"it refuses a good file: {_cut(words)}")
    if len(words) > LONGEST:
        return Fault("crash", f"long: {where}", f"its message has {len(words)} characters: {_cut(words)}")
    if "\n" in words or "\r" in words:
        return Fault("crash", f"lines: {where}", f"its message has more than one line: {_cut(repr(words))}")
    if expected and not any(name in words for name in expected):
        return Fault("crash", f"nameless: {where}", f"its message does not name {expected[0]!r}: {_cut(words)}")
    return None


def of_special(fault: Fault, case: Case) -> Fault:
    """Tell faults of what is no content from others, beside whose inputs they would be the shortest."""
    if not case.special:
        return fault
    return replace(
        fault, signature=f"{fault.signature} ({case.special})", sentence=f"{fault.sentence} ({case.special})"
    )


def _of_exception(error: BaseException) -> Fault:
    where = _where(error)
    if short_of_memory(error):
        return Fault("hang", f"memory: {where}", f"it asked for more than 1 GB ({type(error).__name__} at {where})")
    name = type(error).__name__
    return Fault("crash", f"{name}: {where}", f"{name} at {where}: {_cut(' '.join(str(error).split()))}")


def short_of_memory(error: BaseException | None) -> bool:
    """Whether memory was asked for that a process of the fuzzer does not get."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error: BaseException) -> str:
    """Return the last line of this project that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and "/.venv/" not in frame.filename]
    ours = [frame for frame in own if "fuzz" not in frame.filename] or own or frames
    if not ours:
        return "nowhere"
    name = ours[-1].filename
    return f"{Path(name).relative_to(ROOT) if Path(name).is_relative_to(ROOT) else name}:{ours[-1].lineno}"


def _cut(text: str, length: int = 160) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what tells whether a folder was changed: names, kinds, sizes and times."""

    def entries(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        with os.scandir(path) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                kind = stat.S_IFMT(status.st_mode)
                if kind == stat.S_IFDIR:
                    yield entry.path, (kind,)
                    yield from entries(entry.path)
                else:
                    yield entry.path, (kind, status.st_size, status.st_mtime_ns, status.st_ino)

    return {path.removeprefix(f"{folder}/"): values for path, values in entries(str(folder))}


@contextmanager
def quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
