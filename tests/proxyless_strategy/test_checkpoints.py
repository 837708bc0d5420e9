"""Checkpoint files: kills, full disks and every kind of bad file leave one to continue from, or one clear sentence."""

import errno
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from hardware.errors import CheckpointError, ConfigError
from proxyless_strategy import checkpoints
from proxyless_strategy.checkpoints import (
    checkpoint_names,
    latest_checkpoint,
    previous_checkpoint,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)

WHAT = "a search"


def state(step, size=50_000):
    return {"kind": "search", "step": step, "weights": torch.full((size,), float(step))}


def check(found):
    return None if isinstance(found, dict) and found.get("kind") == "search" else "it was written by another program"


def latest(path, **options):
    return latest_checkpoint(path, what=WHAT, check=check, **options)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "search.ckpt"


@pytest.fixture
def pair(path):
    """Two checkpoints, of steps 1 and 2."""
    for step in (1, 2):
        write_checkpoint(path, state(step))
    return path


# ---- writing ---------------------------------------------------------------------------------------------------


def test_two_are_kept(path):
    assert latest(path) is None
    for step in range(1, 5):
        write_checkpoint(path, state(step))
    assert names(path.parent) == ["search.ckpt", "search.previous.ckpt"]
    assert read_checkpoint(path, what=WHAT)["step"] == 4
    assert read_checkpoint(previous_checkpoint(path), what=WHAT)["step"] == 3
    assert latest(path).state["step"] == 4
    assert latest(path).warning is None
    assert checkpoint_names(path) == "search.ckpt and search.previous.ckpt"


def test_nothing_goes_through_the_folder_for_temporary_files(path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    write_checkpoint(path, state(1))
    assert latest(path).state["step"] == 1


def test_others_may_read_it_as_far_as_the_umask_says(path):
    before = os.umask(0o027)
    try:
        write_checkpoint(path, state(1))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_system_without_hard_links(path, monkeypatch):
    def refused(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2, 3):
        write_checkpoint(path, state(step))
    assert names(path.parent) == ["search.ckpt", "search.previous.ckpt"]
    assert read_checkpoint(previous_checkpoint(path), what=WHAT)["step"] == 2


def test_a_writer_that_was_killed_between_its_two_renames(pair):
    """Both names are then of one file, and POSIX renames a name to another one of the same file by doing nothing."""
    previous_checkpoint(pair).unlink()
    os.link(pair, previous_checkpoint(pair))
    write_checkpoint(pair, state(3))
    assert names(pair.parent) == ["search.ckpt", "search.previous.ckpt"]
    assert read_checkpoint(previous_checkpoint(pair), what=WHAT)["step"] == 2


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_write_that_fails_is_one_sentence_and_leaves_the_good_ones(pair, call, code, monkeypatch):
    def failing(*arguments, **options):
        raise OSError(code, os.strerror(code))

    before = pair.read_bytes(), previous_checkpoint(pair).read_bytes()
    monkeypatch.setattr(os, call, failing)
    if call == "link":
        monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*search\.ckpt \(0\.\d MB\): ") as error:
        write_checkpoint(pair, state(3))
    monkeypatch.undo()
    assert os.strerror(code) in str(error.value)
    assert ("make room there" in str(error.value)) == (code == errno.ENOSPC)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ConfigError)
    assert (pair.read_bytes(), previous_checkpoint(pair).read_bytes()) == before
    assert names(pair.parent) == ["search.ckpt", "search.previous.ckpt"]
    write_checkpoint(pair, state(3))
    assert latest(pair).state["step"] == 3


def test_a_write_that_the_system_cuts_short(pair):
    before = pair.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large; make room there"):
            write_checkpoint(pair, state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert pair.read_bytes() == before
    assert names(pair.parent) == ["search.ckpt", "search.previous.ckpt"]


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    path = disk / "search.ckpt"
    try:
        for step in (1, 2):
            write_checkpoint(path, state(step))  # 200 kB each
        with pytest.raises(CheckpointError, match="No space left on device; make room there and repeat the command"):
            write_checkpoint(path, state(3, size=100_000))
        assert names(disk) == ["search.ckpt", "search.previous.ckpt"]
        assert latest(path).state["step"] == 2
        write_checkpoint(path, state(3, size=10_000))
        assert latest(path).state["step"] == 3
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_went_away_is_made_again(pair):
    for entry in pair.parent.iterdir():
        entry.unlink()
    pair.parent.rmdir()
    write_checkpoint(pair, state(3))
    assert latest(pair).state["step"] == 3


# ---- killed writers --------------------------------------------------------------------------------------------


def killed_writer(path, step, seconds):
    """Write checkpoints from `step` on in another process and kill it; return the last one that it said was written."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            while True:
                write_checkpoint(path, state(step))
                os.write(writing, step.to_bytes(4, "big"))
                step += 1
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as stream:
        first = stream.read(4)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = first + stream.read()
    return int.from_bytes(said[-4:], "big")


def test_a_writer_killed_at_any_moment_leaves_what_it_said_was_written(path):
    moments = random.Random(0)
    step, left = 1, 0
    for _ in range(20):
        said = killed_writer(path, step, moments.uniform(0, 0.02))
        left += len(remove_leftovers(path))
        newest = latest(path)
        assert newest.warning is None
        assert newest.state["step"] in (said, said + 1), "the last one may be there without having been announced"
        older = read_checkpoint(previous_checkpoint(path), what=WHAT, check=check) if said > 1 else newest.state
        assert older["step"] <= newest.state["step"]
        for found in (newest.state, older):
            assert torch.equal(found["weights"], state(found["step"])["weights"])
        assert set(names(path.parent)) <= {"search.ckpt", "search.previous.ckpt"}
        step = newest.state["step"] + 1
    assert step > 20
    assert left > 0, "no writer was killed while it wrote"


def test_leftovers_of_the_living_and_of_other_machines_stay(pair, monkeypatch):
    def leave(host, pid, kind="tmp"):
        leftover = pair.with_name(f".search.ckpt.{host}.{pid}.{kind}")
        leftover.write_bytes(b"half")
        return leftover

    gone = subprocess.Popen(["true"])
    gone.wait()
    here = checkpoints._host()
    dead = [leave(here, gone.pid), leave(here, gone.pid, "link"), leave(here, os.getpid())]
    living, elsewhere = leave(here, os.getppid()), leave("elsewhere.org", 7)
    others = [pair.with_name(".search.ckpt.swp"), pair.with_name(".retrain.ckpt.here.1.tmp"), pair.with_name("my.tmp")]
    for other in others:
        other.write_text("not ours")
    assert set(remove_leftovers(pair)) == set(dead)
    assert all(file.exists() for file in (living, elsewhere, *others))
    long_ago = time.time() - checkpoints.FOREIGN_LEFTOVER_SECONDS - 10
    os.utime(elsewhere, (long_ago, long_ago))
    assert remove_leftovers(pair) == [elsewhere]
    assert remove_leftovers(Path("/nowhere/search.ckpt")) == []


# ---- bad files -------------------------------------------------------------------------------------------------


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flipped(path):
    """One bit within the tensors: torch itself reads it without complaint."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert check(torch.load(path, weights_only=True)) is None


def folder(path):
    path.unlink()
    path.mkdir()
    (path / "a file").write_text("of somebody")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


BAD = {
    "empty": (cut(0), "it is empty"),
    "cut at a byte": (lambda path: path.write_bytes(path.read_bytes()[:1]), "it is damaged"),
    "cut early": (cut(0.01), "it is damaged"),
    "cut in the middle": (cut(0.5), "it is damaged"),
    "cut late": (cut(0.999), "it is damaged"),
    "one bit": (flipped, "it is damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "it is damaged: its 5000 bytes are no whole checkpoint"),
    "garbage": (lambda path: path.write_bytes(random.Random(1).randbytes(5000)), "it is damaged"),
    "text": (lambda path: path.write_text("PK\x03\x04, as in Project Kickoff"), "it is damaged"),
    "folder": (folder, "it is a folder"),
    "pipe": (pipe, "it is no regular file"),
    "dangling link": (dangling, "it cannot be read: No such file or directory"),
    "code": (lambda path: torch.save({"kind": "search", "x": Evil()}, path), "it was written by another program"),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "it was written by another program"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "it was written by another program"),
    "other keys": (lambda path: torch.save({"state_dict": {}}, path), "it was written by another program"),
    "old torch": (
        lambda path: torch.save({"kind": "search"}, path, _use_new_zipfile_serialization=False),
        "it is damaged",
    ),
}
each_bad_file = pytest.mark.parametrize(("spoil", "reason"), BAD.values(), ids=BAD)


@each_bad_file
def test_a_bad_newest_one_is_named_and_set_aside_and_the_one_before_is_used(pair, spoil, reason, monkeypatch):
    monkeypatch.chdir(pair.parent)
    spoil(pair)
    # A process that joined the search leaves the file to the first one.
    assert latest(pair, set_aside=False).state["step"] == 1
    found = latest(pair)
    assert found.path == previous_checkpoint(pair)
    assert found.state["step"] == 1
    assert found.warning.startswith(f"cannot continue from {pair}, {reason}")
    assert found.warning.endswith(
        "; search.previous.ckpt is used, and what came after it is done again (set aside as search.damaged.ckpt)"
    )
    assert names(pair.parent) == ["search.damaged.ckpt", "search.previous.ckpt"]
    again = latest(pair)
    assert (again.state["step"], "it is missing" in again.warning) == (1, True)
    write_checkpoint(pair, state(2))
    assert latest(pair).state["step"] == 2
    assert read_checkpoint(previous_checkpoint(pair), what=WHAT)["step"] == 1


@each_bad_file
def test_a_bad_one_alone_is_refused_with_what_to_delete(path, spoil, reason, monkeypatch):
    write_checkpoint(path, state(1))
    monkeypatch.chdir(path.parent)
    spoil(path)
    with pytest.raises(
        CheckpointError, match=rf"search\.ckpt is no checkpoint of a search; delete it to start anew \({reason}"
    ):
        latest(path)
    assert names(path.parent) == ["search.ckpt"]


def test_two_bad_ones_are_refused_with_what_to_delete(pair):
    cut(0)(pair)
    cut(0.5)(previous_checkpoint(pair))
    damaged = r"it is damaged: its \d+ bytes are no whole checkpoint"
    with pytest.raises(
        CheckpointError,
        match=r"search\.ckpt is no checkpoint of a search \(it is empty\), nor is search\.previous\.ckpt "
        rf"\({damaged}\); delete search\.ckpt and search\.previous\.ckpt to start anew$",
    ):
        latest(pair)
    pair.unlink()
    with pytest.raises(CheckpointError, match=r"\(it is missing\), nor is .*; delete search\.previous\.ckpt to start"):
        latest(pair)


def test_further_bad_ones_are_set_aside_under_further_names(pair):
    for name in ("search.damaged.ckpt", "search.damaged-2.ckpt"):
        write_checkpoint(pair, state(2))
        cut(0)(pair)
        assert latest(pair).warning.endswith(f"(set aside as {name})")


def test_the_one_before_may_be_bad_as_long_as_the_newest_is_good(pair):
    folder(previous_checkpoint(pair))
    assert latest(pair).state["step"] == 2
    with pytest.raises(CheckpointError, match="Is a directory; give a path that can be written"):
        write_checkpoint(pair, state(3))
    assert latest(pair).state["step"] == 2
