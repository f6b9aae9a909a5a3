"""Files and folders are written completely or not at all, by one process at a time."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import atomic
from dp4tl_ffcv.atomic import (
    atomic_folder,
    atomic_open,
    lock,
    lock_folder,
    locked_part,
    part_path,
    publish,
    unlock,
    write_json,
)
from dp4tl_ffcv.beton.jpeg_index_file import locked


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_appears_complete_when_the_block_ends(mask: int, tmp_path: Path) -> None:
    path, before = tmp_path / "new" / "folder" / "a.bin", os.umask(mask)
    try:
        with atomic_open(path) as stream:
            stream.write(b"one")
            stream.flush()
            assert not path.exists()
            stream.write(b"two")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert path.read_bytes() == b"onetwo"
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [[], [b"old content"]])
def test_a_failing_block_leaves_the_old_file_or_none(
    error: BaseException, old: list[bytes], tmp_path: Path
) -> None:
    for content in old:
        (tmp_path / "a.bin").write_bytes(content)

    def write() -> None:
        with atomic_open(tmp_path / "a.bin") as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == old


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket", "link to a device", "link loop"])
@pytest.mark.parametrize("writer", [atomic_open, locked_part])
def test_only_files_are_replaced(writer: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    make: dict[str, Callable[[], Any]] = {
        "folder": path.mkdir,
        "FIFO": partial(os.mkfifo, path),
        "socket": partial(_make_socket, path),
        "link to a device": partial(path.symlink_to, os.devnull),
        "link loop": partial(path.symlink_to, path),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(OSError, match=r"a\.bin") as caught, writer(path) as stream:
        stream.write(b"content")
    assert caught.value.filename == str(path)
    assert os.path.samestat(path.lstat(), before)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_replaced_and_what_it_points_to_stays(exists: bool, tmp_path: Path) -> None:
    link, other = tmp_path / "a.bin", tmp_path / "other" / "b.bin"
    other.parent.mkdir()
    if exists:
        other.write_bytes(b"old")
    link.symlink_to(other)
    with atomic_open(link) as stream:
        stream.write(b"new")
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
    assert [file.read_bytes() for file in other.parent.iterdir()] == [b"old"] * exists


@pytest.mark.parametrize("kind", ["link", "folder", "FIFO"])
def test_an_unfinished_file_is_never_written_through_a_link(kind: str, tmp_path: Path) -> None:
    path, part = tmp_path / "a.bin", tmp_path / ".a.bin.part"
    victim = tmp_path / "victim"
    victim.write_bytes(b"other program's")
    if kind == "link":
        part.symlink_to(victim)
    else:
        (part.mkdir if kind == "folder" else partial(os.mkfifo, part))()
    with pytest.raises(OSError, match=r"\.a\.bin\.part"), atomic_open(path) as stream:
        stream.write(b"content")
    assert victim.read_bytes() == b"other program's"
    assert not path.exists()


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    if not (child := os.fork()):
        with atomic_open(path) as stream:
            stream.write(bytes(1 << 16))
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_bytes() == b"old"
    assert part_path(path).exists()
    with atomic_open(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_full_disk_is_an_error_that_names_the_file(size: int, tmp_path: Path) -> None:
    path, limits = tmp_path / "a.bin", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # as if no more fitted
    try:
        with pytest.raises(OSError, match="a\\.bin") as caught, atomic_open(path) as stream:
            stream.write(bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_vanishes_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.bin"
    with pytest.raises(FileNotFoundError) as caught, atomic_open(path):
        shutil.rmtree(path.parent)
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("writer", [atomic_open, locked_part])
def test_a_file_system_without_locks_is_written(
    writer: Callable[..., Any], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", partial(fail, code))
    with writer(tmp_path / "a.bin") as stream:
        stream.write(b"content")
    (found,) = tmp_path.iterdir()
    assert found.read_bytes() == b"content"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EBADF])
def test_folders_and_shared_files_are_written_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", partial(fail, code))
    with atomic_folder(tmp_path / "a") as part:
        (part / "b").touch()
    assert (tmp_path / "a" / "b").exists()
    with locked(tmp_path / "c") as file:
        os.write(file, b"content")
    assert (tmp_path / "c").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["fcntl.flock", "os.fsync", "os.ftruncate"])
def test_a_broken_disk_is_an_error_that_names_the_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path) -> None:
        with atomic_open(path) as stream:
            os.ftruncate(stream.fileno(), 9)

    monkeypatch.setattr(call, partial(fail, errno.EIO))
    with pytest.raises(OSError, match=r"a\.bin") as caught:
        write(tmp_path / "a.bin")
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def fail(code: int, *_: Any) -> None:
    raise OSError(code, os.strerror(code))


def test_a_name_that_is_too_long_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 251)
    with pytest.raises(OSError, match="too long") as caught, atomic_open(path):
        pytest.fail("opened")
    assert caught.value.filename == str(path)


def test_file_and_name_are_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushed, fsync = tmp_path / "a.bin", [], os.fsync

    def record(file: int) -> None:
        flushed.append((str(Path(f"/proc/self/fd/{file}").readlink()), path.exists()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_open(path) as stream:
        stream.write(b"content")
    assert flushed == [(str(part_path(path)), False), (str(tmp_path), True)]


def test_json_comes_back_and_other_values_leave_the_old_file(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"b": [1, 2.5, None, "ä"], "a": {"c": True}}
    write_json(path, value)
    assert path.read_text().endswith("}\n")
    for wrong in (float("nan"), {"a": float("inf")}, {1, 2}):
        with pytest.raises((ValueError, TypeError), match="JSON"):
            write_json(path, wrong)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert list(tmp_path.iterdir()) == [path]


# Unfinished files.


@pytest.mark.parametrize("second", [atomic_open, locked_part])
@pytest.mark.parametrize("first", [atomic_open, locked_part])
def test_one_process_at_a_time_writes_a_file(
    first: Callable[..., Any],
    second: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(atomic, "_PATIENCE", 0.1)
    busy = pytest.raises(BlockingIOError, match=r"another process is writing.*a\.bin")
    with first(tmp_path / "a.bin"), busy, second(tmp_path / "a.bin"):
        pytest.fail("two writers")
    with second(tmp_path / "a.bin"):
        pass


def test_a_folder_is_locked_after_its_writer_has_replaced_or_deleted_it(tmp_path: Path) -> None:
    path, entered = tmp_path / "a", threading.Event()

    def hold() -> None:
        with atomic_folder(path) as part:
            (part / "first").touch()
            entered.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with atomic_folder(path) as part:
        assert [file.name for file in path.iterdir()] == ["first"]
        (part / "second").touch()
    thread.join()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_deleted_before_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def delete_first(path: Path, *arguments: Any) -> int:
        monkeypatch.undo()
        path.rmdir()
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", delete_first)
    unlock(lock_folder(tmp_path / "a", tmp_path / "a"))
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("exists", [True, False])
def test_a_writer_leaves_the_unfinished_folder_of_the_next_one(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    if exists:
        path.mkdir()
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    with ExitStack() as held:

        def start_next(_: Path) -> None:  # after the first writer has renamed its folder
            monkeypatch.undo()
            (held.enter_context(atomic_folder(path)) / "second").touch()

        monkeypatch.setattr(atomic, "flush_folder", start_next)
        with atomic_folder(path) as part:
            (part / "first").touch()
        assert [file.name for file in path.iterdir()] == ["first"]
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_replaced_before_it_is_locked_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "a", fcntl.flock

    def replace_first(file: int, operation: int) -> None:
        monkeypatch.undo()
        path.rename(tmp_path / "old")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    file = lock(path, os.O_RDWR | os.O_CREAT, path, patience=1)
    assert os.path.samestat(os.fstat(file), path.stat())
    unlock(file)


def test_a_lock_is_released_although_a_forked_process_has_a_copy(tmp_path: Path) -> None:
    path, flags = tmp_path / "a", os.O_RDWR | os.O_CREAT
    file = lock(path, flags, path, patience=0)
    copy = os.dup(file)
    busy = pytest.raises(BlockingIOError, match="another process is writing")
    with busy as caught:
        lock(path, flags, tmp_path / "named", patience=0)
    assert caught.value.filename == str(tmp_path / "named")
    unlock(file)
    unlock(lock(path, flags, path, patience=0))
    os.close(copy)


def test_a_writer_waits_a_moment_for_the_lock(tmp_path: Path) -> None:
    """The workers of a killed process hold its lock until they have ended."""
    path, entered = tmp_path / "a.bin", threading.Event()

    def hold() -> None:
        with locked_part(path) as stream:
            entered.set()
            time.sleep(0.2)
            publish(stream, part_path(path), path)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with locked_part(path):
        assert path.exists()
    thread.join()


def test_a_link_to_a_folder_remains_and_its_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as part:
        (part / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]
