"""Artifacts: written completely or not at all, read only as the requested kind, never unpickled."""

import errno
import hashlib
import io
import json
import os
import pickle
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

import numpy as np
import pytest

from dp4tl_ffcv import StaleArtifactError, artifacts
from dp4tl_ffcv.artifacts import (
    atomic_folder,
    atomic_open,
    check_fingerprint,
    load_artifact,
    lock_folder,
    locked_part,
    part_path,
    publish,
    save_artifact,
    sha256_of_file,
    write_json,
)
from dp4tl_ffcv.beton.shared_file import locked
from tests.support.traps import Trap

NAMES = ("values", "ids")
NOT_ONE = r"a\.npz' is damaged or not a scores file of dp4tl"


def arrays() -> dict[str, Any]:
    return {"values": np.array([0.5, np.nan, -np.inf]), "ids": np.arange(6).reshape(2, 3)}


def save(path: Path, **header: Any) -> Path:
    save_artifact(path, "scores", arrays(), header)
    return path


def save_by_hand(path: Path, header: Any, **values: Any) -> Path:
    """Write the file as another program, or another version, might."""
    text = header if isinstance(header, np.ndarray) else np.array(json.dumps(header))
    np.savez(path, header=text, **{**arrays(), **values})
    return path


# Writing.


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


@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket", "link to a device", "link loop"])
@pytest.mark.parametrize("writer", [atomic_open, locked_part])
def test_only_files_are_replaced(writer: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    make: dict[str, Callable[[], Any]] = {
        "folder": path.mkdir,
        "FIFO": partial(os.mkfifo, path),
        "socket": partial(socket.socket(socket.AF_UNIX).bind, str(path)),
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
    with locked(tmp_path / "c", lambda _: False) as file:
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


def test_the_hash_is_of_all_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((1 << 20) + 1)
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of_file(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()


def test_only_files_are_hashed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match=r"FIFO.*/a'"):
        sha256_of_file(tmp_path / "a")


@pytest.mark.parametrize("name", ["a", "a.npz.old", ".npz"])
def test_an_artifact_must_be_called_npz(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`path` must end in \.npz; got"):
        save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# Reading.


def test_arrays_and_header_come_back(tmp_path: Path) -> None:
    given = {"method": "lm", "nested": {"keep": [0.4, None]}, "text": "ä\n'\""}
    path = save(tmp_path / "a.npz", **given, kind="x", format=9)
    for names in (NAMES, ("ids",)):
        found, header = load_artifact(path, "scores", names)
        assert list(found) == list(names)
        for name in names:
            assert found[name].dtype == arrays()[name].dtype
            np.testing.assert_array_equal(found[name], arrays()[name])
    assert header.pop("tool").startswith("dp4tl_ffcv ")
    assert header == {**given, "kind": "scores", "format": 1}


def test_a_missing_file_and_a_folder_have_their_own_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.npz"):
        load_artifact(tmp_path / "a.npz", "scores", NAMES)
    with pytest.raises(IsADirectoryError):
        load_artifact(tmp_path, "scores", NAMES)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"kind": "selection", "format": 1}, r"is a selection file; a scores file is needed"),
        ({"kind": "scores", "format": 2}, r"newer dp4tl_ffcv \(format 2\)\. Update yours"),
    ],
    ids=["kind", "format"],
)
def test_another_kind_and_a_newer_format_are_rejected(
    header: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"a\.npz' .*{match}"):
        load_artifact(save_by_hand(tmp_path / "a.npz", header), "scores", NAMES)


@pytest.mark.parametrize(
    "header",
    [
        {"format": 1},
        {"kind": "scores"},
        {"kind": "scores", "format": "new"},
        ["kind", "format"],
        None,
        np.array("{not json"),
        np.arange(3),
        np.array(b"\xff\xfe"),
    ],
    ids=str,
)
def test_a_header_of_another_form_is_rejected(header: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(save_by_hand(tmp_path / "a.npz", header), "scores", NAMES)


def test_an_artifact_without_an_array_or_a_header_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(save(tmp_path / "a.npz"), "scores", (*NAMES, "tie"))
    np.savez(tmp_path / "a.npz", **arrays())
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(tmp_path / "a.npz", "scores", NAMES)


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(4))
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", bytes(500), b"\x93NUMPY", npy()])
def test_a_file_of_another_format_is_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(path, "scores", NAMES)


@pytest.mark.parametrize("place", ["values", "header", "file"])
def test_nothing_is_ever_unpickled(place: str, tmp_path: Path) -> None:
    path, sprung = tmp_path / "a.npz", tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    if place == "values":
        save_by_hand(path, {"kind": "scores", "format": 1}, values=trap)
    elif place == "header":
        save_by_hand(path, trap)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=NOT_ONE):
        load_artifact(path, "scores", NAMES)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def test_a_damaged_artifact_is_rejected_or_read_correctly(tmp_path: Path) -> None:
    path, rejected = save(tmp_path / "a.npz"), 0
    whole, expected = path.read_bytes(), load_artifact(path, "scores", NAMES)
    for position in range(len(whole)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                found, header = load_artifact(path, "scores", NAMES)
            except ValueError as error:
                rejected += "not a scores file" in str(error)
                continue
            for name, array in arrays().items():
                assert found[name].tobytes() == array.tobytes()
            assert header == expected[1]
    assert rejected > len(whole)


def test_an_artifact_truncated_anywhere_is_rejected(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.npz").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "a.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=NOT_ONE):
            load_artifact(tmp_path / "a.npz", "scores", NAMES)


# Fingerprints.


def test_only_an_artifact_of_another_beton_is_stale() -> None:
    for expected in ("ab" * 32, None):  # None: made of bare arrays
        check_fingerprint("selection", expected, "ab" * 32, Path("a.beton"))
    message = r"^`scores` was made for another beton, not for 'a\.beton'"
    for expected in ("", "ab" * 32):
        with pytest.raises(StaleArtifactError, match=message):
            check_fingerprint("scores", expected, "cd" * 32, Path("a.beton"))


# Unfinished files.


@pytest.mark.parametrize("second", [atomic_open, locked_part])
@pytest.mark.parametrize("first", [atomic_open, locked_part])
def test_one_process_at_a_time_writes_a_file(
    first: Callable[..., Any],
    second: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifacts, "_PATIENCE", 0.1)
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
    os.close(lock_folder(tmp_path / "a", tmp_path / "a"))
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("exists", [True, False])
def test_a_writer_leaves_the_unfinished_folder_of_the_next_one(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    if exists:
        path.mkdir()
        monkeypatch.setattr(artifacts, "_exchange", lambda *_: False)
    with ExitStack() as held:

        def start_next(_: Path) -> None:  # after the first writer has renamed its folder
            monkeypatch.undo()
            (held.enter_context(atomic_folder(path)) / "second").touch()

        monkeypatch.setattr(artifacts, "flush_folder", start_next)
        with atomic_folder(path) as part:
            (part / "first").touch()
        assert [file.name for file in path.iterdir()] == ["first"]
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


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
