"""Locks across processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading

import pytest

from hardware.errors import LockError, TableError
from hardware.measuring import locks
from hardware.measuring.table import build_table
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import FakeBackend

HOLDER = """
import sys, time
from hardware.measuring.locks import measuring_lock
with measuring_lock(folder=sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_waits_and_says_so(tmp_path, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        timer = threading.Timer(0.5, lambda: holder.stdin.close())
        timer.start()
        with locks.measuring_lock(folder=tmp_path):
            assert holder.wait(timeout=30) == 0
        timer.join()
    assert "another process is measuring" in capsys.readouterr().err


def test_a_lock_can_be_entered_again_by_its_holder(tmp_path, capsys):
    with locks.measuring_lock(folder=tmp_path), locks.measuring_lock(folder=tmp_path):
        pass
    with locks.measuring_lock(folder=tmp_path):
        pass
    assert capsys.readouterr().err == ""


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="oops"), locks.measuring_lock(folder=tmp_path):
        raise ValueError("oops")
    code = HOLDER.replace("sys.stdin.readline()", "pass")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=30, capture_output=True)


def test_load_or_build_builds_once(tiny_table, tmp_path):
    built = []

    def builder():
        built.append(threading.get_ident())
        return tiny_table

    path = tmp_path / "deep" / "table.yml"
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(locks.load_or_build(path, builder, LatencyTable.load)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert results == [tiny_table] * 4
    assert LatencyTable.load(path) == tiny_table


def test_a_build_of_a_table_that_another_process_builds_is_refused(tmp_path, tiny_ops):
    path = tmp_path / "table.yml"
    code = HOLDER.replace("measuring_lock(folder=sys.argv[1])", "table_lock(sys.argv[1])")
    code = code.replace("import measuring_lock", "import table_lock")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TableError, match=r"another process is building .*table\.yml; wait for it"):
            build_table(tiny_ops, backend=FakeBackend(), input_size=32, out=path, progress=False)
        holder.stdin.close()
    assert not path.exists()
    assert build_table(tiny_ops, backend=FakeBackend(), input_size=32, out=path, progress=False).entries


def test_load_or_build_does_not_replace_a_broken_table(tmp_path, tiny_table):
    path = tmp_path / "table.yml"
    path.write_text("hello")
    with pytest.raises(TableError):
        locks.load_or_build(path, lambda: tiny_table, LatencyTable.load)
    assert path.read_text() == "hello"


# --- safe places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "hard link"])
@pytest.mark.parametrize("which", ["measuring", "table"])
def test_a_planted_link_is_neither_followed_nor_emptied(tmp_path, which, kind):
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    victim.chmod(0o644)
    place = tmp_path / (locks.MEASURING_LOCK if which == "measuring" else ".table.yml.lock")
    place.symlink_to(victim) if kind == "link" else place.hardlink_to(victim)
    lock = locks.measuring_lock(folder=tmp_path) if which == "measuring" else locks.table_lock(tmp_path / "table.yml")
    if kind == "link":
        with pytest.raises(LockError, match=rf"the lock {place} is a link to {victim}; remove the link$"), lock:
            pass
    else:
        with lock:
            pass
    assert victim.read_text() == "years of work"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644


def test_a_link_to_nothing_makes_no_file(tmp_path):
    (tmp_path / locks.MEASURING_LOCK).symlink_to(tmp_path / "new")
    with pytest.raises(LockError, match="is a link to"), locks.measuring_lock(folder=tmp_path):
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_no_lock(tmp_path, kind):
    place = tmp_path / locks.MEASURING_LOCK
    place.mkdir() if kind == "folder" else os.mkfifo(place)
    with pytest.raises(LockError, match=f"the lock {place} .*; remove it"), locks.measuring_lock(folder=tmp_path):
        pass


def test_a_lock_keeps_what_its_file_holds_and_is_private(tmp_path):
    with locks.measuring_lock(folder=tmp_path):
        pass
    place = tmp_path / locks.MEASURING_LOCK
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    place.write_text("a note")
    with locks.measuring_lock(folder=tmp_path):
        assert place.read_text() == "a note"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Every place that `own_folder` knows, within `tmp_path`."""
    for name in ("runtime", "temporary", "cache"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def test_the_measuring_lock_lies_where_its_user_alone_can_write(places):
    assert locks.own_folder() == places / "runtime"
    (places / "runtime").chmod(0o777)
    made = places / "temporary" / f"proxyless-{os.geteuid()}"
    assert locks.own_folder() == made
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    with locks.measuring_lock():
        assert (made / locks.MEASURING_LOCK).exists()
    assert locks.own_folder() == made


def test_a_planted_folder_is_passed_over(places):
    (places / "runtime").rmdir()
    (places / "trap").mkdir()
    (places / "temporary" / f"proxyless-{os.geteuid()}").symlink_to(places / "trap")
    assert locks.own_folder() == places / "cache" / "proxyless_strategy" / "locks"
    (places / "cache" / "proxyless_strategy" / "locks").chmod(0o777)
    with pytest.raises(LockError, match=r"no place for the lock .*; set XDG_RUNTIME_DIR"), locks.measuring_lock():
        pass
    assert not list((places / "trap").iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_owns_is_no_place_for_a_lock(places):
    (places / "runtime").rmdir()
    foreign = places / "temporary" / f"proxyless-{os.geteuid()}"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 12345, 12345)
    assert locks.own_folder() == places / "cache" / "proxyless_strategy" / "locks"
    planted = places / locks.MEASURING_LOCK
    planted.touch()
    os.chown(planted, 12345, 12345)
    with pytest.raises(LockError, match="belongs to user 12345, not to you"), locks.measuring_lock(folder=places):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    place, lock = tmp_path / locks.MEASURING_LOCK, locks._lock
    removed = []

    def removing(descriptor, path, reason, *, wait):
        lock(descriptor, path, reason, wait=wait)
        if not removed:
            removed.append(path.unlink())

    monkeypatch.setattr(locks, "_lock", removing)
    with locks.measuring_lock(folder=tmp_path):
        assert place.exists()
