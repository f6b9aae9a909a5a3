"""Memory that the processes of a machine share, and which the last process removes."""

import errno
import gc
import mmap
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import PrunedLoader
from dp4tl_ffcv.loading.reading import shared_memory
from dp4tl_ffcv.loading.reading.shared_memory import private_bytes, shared_bytes, shared_room
from tests.support.loading import Guarded, ids_of, loader_of, pretend_rank

SHARED = {"batch_size": 10, "cache": "ram", "distributed": True, "order": "random"}
LONGEST_WAIT = 60.0  # seconds for another process
SIZE = 3_000_000

# Another process reads commands, one per line, and answers each with a line. It loads the module
# without the package, to start fast.
OTHER = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("shared_memory", sys.argv[1])
shared_memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared_memory)
shared_memory.FOLDER = Path(sys.argv[2])

for line in sys.stdin:
    verb, *arguments = line.split()
    if verb == "take":
        memory = shared_memory.shared_bytes(int(arguments[1]), arguments[0])
    elif verb == "write":
        memory[:] = int(arguments[0])
    print(len(memory), memory[0], memory[-1], flush=True)
"""


class Other:
    """Another process."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", OTHER, shared_memory.__file__, str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> list[str]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], LONGEST_WAIT)
        assert ready, "the other process hangs"
        return self.process.stdout.readline().split()

    def ask(self, line: str) -> list[str]:
        self.tell(line)
        return self.answer()

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(LONGEST_WAIT) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LONGEST_WAIT)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the memory file system, for this test only."""
    with tempfile.TemporaryDirectory(dir=shared_memory.FOLDER, prefix="dp4tl-test-") as name:
        monkeypatch.setattr(shared_memory, "FOLDER", Path(name))
        yield Path(name)


@pytest.fixture
def other(folder: Path) -> Iterator[Callable[[], Other]]:
    """A function that starts a process, which ends with the test."""
    with ExitStack() as stack:

        def start() -> Other:
            process = Other(folder)
            stack.callback(process.kill)
            return process

        yield start


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("dp4tl_ffcv-*"))


# Several processes.


def test_all_processes_map_the_same_memory_which_begins_with_zeros(
    folder: Path, other: Callable[[], Other]
) -> None:
    processes = [other() for _ in range(3)]
    for process in processes:
        assert process.ask(f"take a {SIZE}") == [str(SIZE), "0", "0"]
    assert files(folder) == [f"dp4tl_ffcv-{os.getuid()}-a"]
    found = (folder / files(folder)[0]).stat()
    assert found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 >= SIZE  # its room is reserved
    processes[2].ask("write 99")
    assert [process.ask("look")[1:] for process in processes] == [["99", "99"]] * 3
    for process in processes[:2]:
        process.finish()
        assert files(folder)
    late = other()
    assert late.ask(f"take a {SIZE}") == [str(SIZE), "99", "99"]
    processes[2].finish()
    assert late.ask("look")[1:] == ["99", "99"]
    late.finish()
    assert files(folder) == []


def test_processes_that_start_at_once_map_one_file(
    folder: Path, other: Callable[[], Other]
) -> None:
    processes = [other() for _ in range(4)]
    for turn in range(5):
        for process in processes:
            process.tell(f"take turn{turn} {SIZE}")
        assert [process.answer() for process in processes] == [[str(SIZE), "0", "0"]] * 4
        assert len(files(folder)) == 1  # the file of the last turn was removed with its memory
        processes[turn % 4].ask("write 7")
        assert [process.ask("look")[1] for process in processes] == ["7"] * 4
    for process in processes:
        process.finish()
    assert files(folder) == []


def test_the_file_of_killed_processes_is_used_again_or_removed(
    folder: Path, other: Callable[[], Other]
) -> None:
    killed, stays = other(), other()
    for process in (killed, stays):
        process.ask(f"take a {SIZE}")
    killed.ask("write 5")
    killed.kill()
    shared_bytes(100, "b")
    assert shared_bytes(SIZE, "a")[0] == 5
    assert stays.ask("look")[1] == "5"
    stays.kill()
    assert shared_bytes(SIZE, "a")[-1] == 5
    last = other()
    last.ask(f"take a {SIZE}")
    last.kill()
    assert files(folder) == [f"dp4tl_ffcv-{os.getuid()}-a"]
    memory = shared_bytes(100, "b")
    assert files(folder) == [f"dp4tl_ffcv-{os.getuid()}-b"]
    assert memory[0] == 0


def test_files_of_other_users_and_programs_are_kept(folder: Path) -> None:
    for name in ("dp4tl_ffcv-999999-a", "other", "dp4tl_ffcv"):
        (folder / name).write_bytes(b"1")
    shared_bytes(10, "a")
    assert {"dp4tl_ffcv-999999-a", "other", "dp4tl_ffcv"} <= {
        path.name for path in folder.iterdir()
    }


# One process.


def test_one_process_can_map_the_memory_twice(folder: Path, guarded: Guarded) -> None:
    one = shared_bytes(1000, "a")
    two = guarded(lambda: shared_bytes(1000, "a"))
    one[3] = 9
    assert (len(two), two[3], two[-1]) == (1000, 9, 0)
    del one
    gc.collect()
    assert len(files(folder)) == 1
    assert two[3] == 9
    del two
    gc.collect()
    assert files(folder) == []


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_memory_begins_with_a_page(size: int, folder: Path) -> None:
    for memory in (private_bytes(size), shared_bytes(size, "a")):
        assert memory.tolist() == [0] * size
        assert memory.flags.writeable
        assert memory.ctypes.data % mmap.PAGESIZE == 0


def flags_of(address: int) -> set[str]:
    """Return the kernel's flags of the mapping that holds an address."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_inside = int(found[1], 16) <= address < int(found[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("the address is not mapped")


def test_private_memory_is_not_copied_by_a_fork() -> None:
    memory = private_bytes(100)
    assert {"wf", "hg"} <= flags_of(memory.ctypes.data)  # wiped on fork, in huge pages


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_error_is_raised_and_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "the disk")

    gc.collect()
    before = descriptors()
    match = rf"cache=\"ram\" cannot use {SIZE / 2**30:.3g} GiB of {folder}, .* are free: the disk\."
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        for _ in range(2):
            with pytest.raises(OSError, match=match) as raised:
                shared_bytes(SIZE, "a")
            assert raised.value.errno == errno.ENOSPC
            assert files(folder) == []
        del raised
    gc.collect()
    assert descriptors() == before
    assert shared_bytes(SIZE, "a")[-1] == 0


def test_the_free_room_is_what_a_user_may_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {folder: SimpleNamespace(f_bavail=3, f_bfree=5, f_frsize=4096, f_bsize=7, f_flag=0)}
    monkeypatch.setattr(os, "statvfs", found.__getitem__)
    assert shared_room() == 3 * 4096


def missing(folder: Path) -> Path:
    return folder / "none"


def occupied(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


@pytest.mark.parametrize("make", [missing, occupied])
def test_without_the_file_system_there_is_no_room(
    make: Callable[[Path], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", make(folder))
    if make is missing:
        assert shared_room() == 0
    with pytest.raises(
        OSError, match=r"cache=\"ram\" cannot use .*use cache=\"extents\""
    ) as raised:
        shared_bytes(SIZE, "a")
    assert raised.value.errno in (errno.ENOENT, errno.ENOTDIR)


def test_a_read_only_file_system_has_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(f_bavail=3, f_frsize=4096, f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert shared_room() == 0


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("another user's", "is not a file of this user"),
        ("pipe", "is not a file of this user"),
        ("link", "symbolic links"),
    ],
)
def test_a_file_that_is_not_ours_is_neither_used_nor_removed(
    kind: str, why: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / f"dp4tl_ffcv-{os.getuid()}-a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (folder / "secret").write_bytes(b"secret")
        path.symlink_to(folder / "secret")
    else:
        path.write_bytes(b"pixels")
        monkeypatch.setattr(os, "geteuid", lambda: 999_999)
    with pytest.raises(OSError, match=why):
        shared_bytes(SIZE, "a")
    assert os.path.lexists(path)


def test_a_forked_process_leaves_the_file_to_its_parent(folder: Path) -> None:
    memory = shared_bytes(SIZE, "a")
    memory[:] = 7
    child = os.fork()
    if child == 0:
        is_same = memory[-1] == 7
        del memory
        gc.collect()
        os._exit(0 if is_same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(files(folder)) == 1
    assert shared_bytes(SIZE, "a")[0] == 7
    del memory
    gc.collect()
    assert files(folder) == []


# Through loaders.


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_rank(monkeypatch, 0, 1)


def corners(loader: PrunedLoader) -> list[list[int]]:
    """Return a pixel of every image of an epoch."""
    return [pixel for pixels, *_ in loader for pixel in pixels[:, 0, 0].tolist()]


def test_loaders_share_equal_bytes_of_the_same_file(
    colours: Any, tmp_path: Path, folder: Path, one_rank: None, guarded: Guarded
) -> None:
    copy = tmp_path / "copy.beton"
    copy.write_bytes(colours.path.read_bytes())
    loaders = [
        loader_of(colours, indices=range(0, 60), **SHARED),
        loader_of(colours, indices=np.arange(60)[::-1], seed=3, **SHARED),
        loader_of(colours, indices=range(1, 60), **SHARED),
        loader_of(colours, indices=range(60), pipelines={"image": None}, **SHARED),
        loader_of(copy, indices=range(60), **SHARED),
    ]
    list(PrunedLoader(colours.path, 10, cache="ram"))  # shares nothing without `distributed`
    assert files(folder) == []  # nothing is read before the first epoch
    counts = []
    for at, loader in enumerate(loaders):
        if at == 3:
            guarded(lambda loader=loader: list(loader))
        else:
            found = guarded(lambda loader=loader: ids_of(loader, colours))
            assert sorted(found) == sorted(loader.indices.tolist())
        counts.append(len(files(folder)))
    assert counts == [1, 1, 2, 2, 3]
    assert [loader.bytes_read > 0 for loader in loaders] == [True, False, True, False, True]
    loaders.clear()
    del loader
    gc.collect()
    assert files(folder) == []


@pytest.mark.parametrize("in_place", [True, False], ids=["rewritten", "another file"])
def test_files_with_equal_tables_are_not_confused(
    in_place: bool, colours: Any, tmp_path: Path, folder: Path, one_rank: None, guarded: Guarded
) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(colours.path.read_bytes())
    first = loader_of(path, **SHARED)
    images = guarded(lambda: corners(first))
    other = path if in_place else tmp_path / "b.beton"
    extent = colours.index.extents([5])[0]
    data = bytearray(path.read_bytes())
    data[int(extent["ptr"]) : int(extent["ptr"] + extent["size"])] = bytes(int(extent["size"]))
    other.write_bytes(data)
    os.utime(other, ns=(1, 1))  # the file system's clock may be too coarse for two versions
    second = loader_of(other, **SHARED)
    assert first._index.fingerprint == second._index.fingerprint
    assert [0, 0, 0] not in images
    assert guarded(lambda: corners(second)).count([0, 0, 0]) == 1
