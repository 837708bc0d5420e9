"""Locks across processes."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from hardware.errors import TableError
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
    threads = [threading.Thread(target=lambda: results.append(locks.load_or_build(path, builder))) for _ in range(4)]
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
        locks.load_or_build(path, lambda: tiny_table)
    assert path.read_text() == "hello"
