"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from hardware.files import current_umask, new_folder, remove_unfinished, replacing, unpack, write_atomically


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


def _archive(*members: tuple[str, bytes]) -> tarfile.TarFile:
    """Return an archive, read as a stream, of files with a content or of members of a type."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content in (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                member.type, member.linkname = content, "/etc"
                archive.addfile(member)
            else:
                member.size, member.mode = len(content), 0o4777
                archive.addfile(member, io.BytesIO(content))
    packed.seek(0)
    return tarfile.open(fileobj=packed, mode="r|")


@pytest.fixture(params=[True, False], ids=["this Python", "Python 3.11.2"])
def unpacker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)


@pytest.mark.usefixtures("unpacker")
def test_an_archive_is_unpacked_without_what_its_modes_would_grant(tmp_path: Path) -> None:
    unpack(_archive(("a/b", b"x"), ("c", b"y")), tmp_path)
    assert (tmp_path / "a" / "b").read_bytes() == b"x"
    assert (tmp_path / "c").read_bytes() == b"y"
    assert not stat.S_IMODE((tmp_path / "c").stat().st_mode) & 0o7022


@pytest.mark.usefixtures("unpacker")
@pytest.mark.parametrize(
    "member",
    [("../out", b"x"), ("a/../../out", b"x"), ("link", tarfile.SYMTYPE), ("tty", tarfile.CHRTYPE)],
    ids=lambda member: str(member[0]),
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, member: tuple[str, bytes]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.TarError):
        unpack(_archive(member), tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.usefixtures("unpacker")
def test_an_archives_absolute_path_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with suppress(tarfile.TarError):  # Pythons that filter take the slash away
        unpack(_archive((f"{tmp_path}/out", b"x")), tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with suppress(ValueError), new_folder(tmp_path / "new" / "folder") as beside:
        (beside / "half").touch()
        raise ValueError
    assert list((tmp_path / "new").iterdir()) == []
    with new_folder(tmp_path / "new" / "folder") as beside:
        (beside / "file").touch()
        assert not (tmp_path / "new" / "folder").exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["folder"]
    assert (tmp_path / "new" / "folder" / "file").exists()
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o755


def test_a_folder_that_another_process_made_first_stays(tmp_path):
    def make(**options):
        with new_folder(tmp_path / "folder", **options) as beside:
            (beside / "mine").touch()
            (tmp_path / "folder").mkdir(exist_ok=True)
            (tmp_path / "folder" / "theirs").touch()

    make(first_stays=True)
    with pytest.raises(OSError, match="not empty"):
        make()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["theirs"]
