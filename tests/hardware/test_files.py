"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hardware.files import current_umask, remove_unfinished, replacing, write_atomically


@pytest.mark.parametrize(("content", "bytes_"), [("a µ\n", "a µ\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_are_written_with_their_folder(tmp_path, content, bytes_):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, content)
    assert path.read_bytes() == bytes_
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    write_atomically(tmp_path / "file", "")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~current_umask()


def test_the_file_written_to_lies_beside_hidden_with_the_same_ending(tmp_path):
    with replacing(tmp_path / "picture.png") as beside:
        assert (beside.parent, beside.suffix, beside.name[0]) == (tmp_path, ".png", ".")
        beside.write_text("new")
        assert not (tmp_path / "picture.png").exists()
    assert (tmp_path / "picture.png").read_text() == "new"


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with replacing(path) as beside:
            beside.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_content_reaches_the_disk_before_the_name_and_the_folder_after(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda fd: (done.append(Path(f"/proc/self/fd/{fd}").resolve()), sync(fd)))
    monkeypatch.setattr("os.replace", lambda old, new: (done.append("moved"), replace(old, new)))
    write_atomically(tmp_path / "file", "new")
    assert done[1:] == ["moved", tmp_path]
    assert done[0].name.startswith(".file.")


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    kept = {"a.json", ".hidden.json", ".unfinished", "b.unfinished.json", ".run.lock"}
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.unfinished").mkdir()
    for name in ("row.json", "model.onnx", "bare"):
        child = (
            "import os, sys; from hardware.files import replacing\n"
            "with replacing(sys.argv[1]) as beside:\n    beside.write_text('half'); os._exit(1)"
        )
        subprocess.run([sys.executable, "-c", child, str(tmp_path / name)], check=False)
    assert len(list(tmp_path.iterdir())) == len(kept) + 1 + 3
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept | {".folder.unfinished"}
