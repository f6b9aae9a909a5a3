"""Memory that the processes of a machine share, and which the last process removes."""

import errno
import gc
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ffcv import PrunedLoader
from dp4tl_ffcv.loading.reading import shared_memory
from dp4tl_ffcv.loading.reading.shared_memory import shared_bytes
from tests.support.loading import Guarded, ids_of, loader_of, pretend_rank

SHARED = {"batch_size": 10, "cache": "ram", "distributed": True, "order": "random"}
LONGEST_WAIT = 60.0  # seconds for another process
SIZE = 3_000_000

# Another process reads commands, one per line, and answers each with a line. It loads the module
# without the package, to start fast.
OTHER = """
import importlib.util, os, sys, time
from pathlib import Path
import numpy as np

spec = importlib.util.spec_from_file_location("shared_memory", sys.argv[1])
shared_memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared_memory)
shared_memory.FOLDER = Path(sys.argv[2])
fills = 0

def fill(memory):
    global fills
    fills += 1
    memory[:] = value

def fill_slowly(memory):
    print("filling", flush=True)
    while not os.path.exists(sys.argv[2] + "/go"):
        time.sleep(0.001)
    fill(memory)

for line in sys.stdin:
    verb, *arguments = line.split()
    if verb == "take":
        name, size, value, how = arguments[0], *map(int, arguments[1:3]), arguments[3]
        memory = shared_memory.shared_bytes(size, fill if how == "fast" else fill_slowly, name)
        print(fills, len(memory), memory[0], memory[-1], flush=True)
    elif verb == "write":
        memory[0] = int(arguments[0])
        print("written", flush=True)
    elif verb == "look":
        print(memory[0], flush=True)
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


def locks_wait(pid: int) -> None:
    """Wait until a process waits for another process's lock."""
    until = time.monotonic() + LONGEST_WAIT
    while not any(
        "->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines()
    ):
        assert time.monotonic() < until
        time.sleep(0.002)


def filler(value: int, calls: list[int] | None = None) -> Callable[[NDArray[np.uint8]], None]:
    def fill(memory: NDArray[np.uint8]) -> None:
        if calls is not None:
            calls.append(len(memory))
        memory[:] = value

    return fill


def not_called(memory: NDArray[np.uint8]) -> None:
    raise AssertionError("the memory is filled already")


# Several processes.


def test_the_first_process_fills_and_the_others_map_the_same_memory(
    folder: Path, other: Callable[[], Other]
) -> None:
    processes = [other() for _ in range(3)]
    answers = [process.ask(f"take a {SIZE} {at + 7} fast") for at, process in enumerate(processes)]
    assert answers == [["1", str(SIZE), "7", "7"], *[["0", str(SIZE), "7", "7"]] * 2]
    assert files(folder) == [f"dp4tl_ffcv-{os.getuid()}-a"]
    assert (folder / files(folder)[0]).stat().st_mode & 0o777 == 0o600
    processes[2].ask("write 99")
    assert [process.ask("look") for process in processes] == [["99"]] * 3
    for process in processes[:2]:
        process.finish()
        assert files(folder)
    late = other()
    assert late.ask(f"take a {SIZE} 1 fast")[0] == "0"
    processes[2].finish()
    assert late.ask("look") == ["99"]
    late.finish()
    assert files(folder) == []


def test_processes_that_start_at_once_fill_the_memory_once(
    folder: Path, other: Callable[[], Other]
) -> None:
    processes = [other() for _ in range(4)]
    for turn in range(5):
        for at, process in enumerate(processes):
            process.tell(f"take turn{turn} {SIZE} {at + 1} fast")
        answers = [process.answer() for process in processes]
        assert len({answer[2] for answer in answers}) == 1  # all see the same
        assert {answer[3] for answer in answers} == {answers[0][2]}
        assert sum(int(answer[0]) for answer in answers) == turn + 1
        assert len(files(folder)) == 1  # the file of the last turn was removed with its memory
    for process in processes:
        process.finish()
    assert files(folder) == []


@pytest.mark.parametrize("is_killed", [False, True])
def test_other_processes_wait_while_one_fills(
    is_killed: bool, folder: Path, other: Callable[[], Other]
) -> None:
    slow, *waiting = (other() for _ in range(3))
    assert slow.ask(f"take a {SIZE} 5 slowly") == ["filling"]
    for process in waiting:
        process.tell(f"take a {SIZE} 6 fast")
        locks_wait(process.process.pid)
    if is_killed:
        slow.kill()
    else:
        (folder / "go").touch()
        assert slow.answer() == ["1", str(SIZE), "5", "5"]
    answers = [process.answer() for process in waiting]
    assert sorted(fills for fills, *_ in answers) == ["0", "1" if is_killed else "0"]
    assert {answer[2] for answer in answers} == {"6" if is_killed else "5"}


def test_the_file_of_a_killed_process_lasts_while_others_use_it(
    folder: Path, other: Callable[[], Other]
) -> None:
    killed, stays = other(), other()
    for process in (killed, stays):
        process.ask(f"take a {SIZE} 5 fast")
    killed.kill()
    shared_bytes(100, filler(6), "b")
    assert shared_bytes(SIZE, not_called, "a")[0] == 5
    assert stays.ask("look") == ["5"]
    stays.kill()
    assert files(folder) == [f"dp4tl_ffcv-{os.getuid()}-a"]
    memory = shared_bytes(100, filler(6), "b")
    assert files(folder) == [f"dp4tl_ffcv-{os.getuid()}-b"]
    assert memory[0] == 6


def test_a_partly_filled_memory_is_filled_again(folder: Path, other: Callable[[], Other]) -> None:
    killed = other()
    assert killed.ask(f"take a {SIZE} 5 slowly") == ["filling"]
    killed.kill()
    assert files(folder)
    calls: list[int] = []
    memory = shared_bytes(SIZE, filler(6, calls), "a")
    assert calls == [SIZE]
    assert (memory == 6).all()


def test_files_of_other_users_and_programs_are_kept(folder: Path) -> None:
    for name in ("dp4tl_ffcv-999999-a", "other", "dp4tl_ffcv"):
        (folder / name).write_bytes(b"1")
    shared_bytes(10, filler(1), "a")
    assert {"dp4tl_ffcv-999999-a", "other", "dp4tl_ffcv"} <= {
        path.name for path in folder.iterdir()
    }


# One process.


def test_one_process_can_map_the_memory_twice(folder: Path, guarded: Guarded) -> None:
    one = shared_bytes(1000, filler(5), "a")
    two = guarded(lambda: shared_bytes(1000, not_called, "a"))
    one[3] = 9
    assert (len(two), two[3], two[-1]) == (1000, 9, 5)
    del one
    gc.collect()
    assert len(files(folder)) == 1
    assert two[3] == 9
    del two
    gc.collect()
    assert files(folder) == []


@pytest.mark.parametrize(("num_bytes", "name"), [(100, None), (0, "a"), (0, None)])
def test_memory_without_a_name_is_not_shared(
    num_bytes: int, name: str | None, folder: Path
) -> None:
    calls: list[int] = []
    one, two = (shared_bytes(num_bytes, filler(value, calls), name) for value in (1, 2))
    assert (one.tolist(), two.tolist()) == ([1] * num_bytes, [2] * num_bytes)
    assert calls == [num_bytes] * 2
    assert files(folder) == []


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("fails", ["fill", "allocation"])
def test_an_error_is_raised_and_leaves_no_file(
    fails: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "the disk")

    before, fill, match = descriptors(), fail, "the disk"
    if fails == "allocation":
        fill, match = not_called, rf"no room for cache=\"ram\": it needs {SIZE} bytes in {folder}"
    with monkeypatch.context() as patch:
        if fails == "allocation":
            patch.setattr(os, "posix_fallocate", fail)
        for _ in range(2):
            with pytest.raises(OSError, match=match) as raised:
                shared_bytes(SIZE, fill, "a")
            assert raised.value.errno == errno.ENOSPC
            assert files(folder) == []
        del raised
    gc.collect()
    assert descriptors() == before
    assert shared_bytes(SIZE, filler(4), "a")[-1] == 4


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
