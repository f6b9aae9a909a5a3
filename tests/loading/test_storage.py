"""Faults of the storage end an epoch with right samples, or with an error that says where."""

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonError, BetonIndex, PrunedLoader
from dp4tl_ffcv.loading.caches import CACHES
from dp4tl_ffcv.loading.reading import file_reader
from dp4tl_ffcv.loading.reading.plan import LARGEST_REQUEST
from dp4tl_ffcv.loading.reading.reading_threads import (
    OFFSET,
    RETURNED,
    STOPS,
    ReadingThreads,
)
from tests.support.loading import Guarded, ids_of, loader_of, run_script
from tests.support.storage import faulty_reads  # noqa: F401  # a fixture

BATCH, VICTIM = 10, 57


def place_of(path: Path, sample: int) -> int:
    """Return an offset in the middle of a sample."""
    extent = BetonIndex.open(path).extents([sample])[0]
    return int(extent["ptr"] + extent["size"] // 2)


# Faults of the operating system, met by a process whose reads go through a library.


EPOCHS = """
import os, sys
import numpy as np
from dp4tl_ffcv import PrunedLoader

path, cache = sys.argv[1:]
loader = PrunedLoader(path, 10, num_workers=2, cache=cache, order="sequential", timeout=1)
for kind in ("none", "EIO", "end", "short", "EINTR", "stall", "stall"):
    os.environ["FAULT"] = kind
    seen = []
    if kind == "stall" or cache == "ram":
        loader.set_selection(loader.indices)  # forgets what was read
    try:
        for pixels, *_ in loader:
            seen += (np.asarray(pixels)[:, 0, 0, 0] // 2).tolist()
        print(kind, seen == list(range(120)))
    except Exception as error:
        print(kind, seen == list(range(len(seen))), type(error).__name__, error)
iter(loader)  # is running as the interpreter exits
"""


@pytest.mark.parametrize("cache", CACHES)
def test_faults_of_the_disk(cache: str, paged: Any, faulty_reads: Path) -> None:  # noqa: F811
    """Short and interrupted reads go on. Others end the epoch; the interpreter exits after all."""
    place = place_of(paged.path, VICTIM)
    faults = {"FAULT_AT": str(place), "FAULT_FILE": paged.path.name}
    environment = {**os.environ, "LD_PRELOAD": str(faulty_reads), **faults}
    done = run_script(EPOCHS, paged.path, cache, env=environment)
    lines = dict(line.split(" ", 1) for line in done.splitlines())
    for kind in ("none", "short", "EINTR"):
        assert lines[kind] == "True"
    where = f"cannot read sample {VICTIM} of '{paged.path}' at byte "
    assert lines["EIO"].startswith(f"True BetonError {where}")
    assert "Input/output error" in lines["EIO"]
    assert lines["end"].startswith(f"True BetonError {where}")
    assert "bytes too short" in lines["end"]
    assert lines["stall"].startswith("True TimeoutError loading failed at batch ")
    # All that is known of a read that stalls is where it starts.
    named = re.search(r"cannot read sample (\d+) of '(.*)' at byte (\d+): ", lines["stall"])
    assert named
    assert named[2] == str(paged.path)
    start = int(named[3])
    assert place - LARGEST_REQUEST < start <= place
    extents = BetonIndex.open(paged.path).extents(range(120))
    assert int(named[1]) == extents["sample_id"][extents["ptr"] <= start].max()
    assert "no data arrived for 1 seconds" in lines["stall"]


# Files that change in mid-epoch.


def truncate(path: Path) -> None:
    os.truncate(path, place_of(path, 60))


def unlink(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("change", [unlink, replace])
def test_a_file_that_has_left_its_path_is_read_to_its_end(
    change: Callable[[Path], None], cache: str, paged: Any, tmp_path: Path, guarded: Guarded
) -> None:
    path = tmp_path / "copy.beton"
    path.write_bytes(paged.path.read_bytes())
    loader = loader_of(path, BATCH, cache=cache, read_ahead=1, batches_ahead=1)

    def load() -> list[int]:
        batches = iter(loader)
        first = ids_of([next(batches)], paged)
        change(path)
        return first + ids_of(batches, paged) + ids_of(loader, paged)

    assert guarded(load) == 2 * list(range(120))


@pytest.mark.parametrize("change", [unlink, replace, truncate])
def test_a_file_that_changed_after_its_index_was_opened_is_refused(
    change: Callable[[Path], None], paged: Any, tmp_path: Path
) -> None:
    path = tmp_path / "copy.beton"
    path.write_bytes(paged.path.read_bytes())
    index = BetonIndex.open(path)
    change(path)
    with pytest.raises((BetonError, FileNotFoundError), match=r"copy\.beton"):
        PrunedLoader(index, BATCH)


# Reads without progress.


def slow(ends: threading.Event, state: Any) -> None:
    state[OFFSET] = 4321
    assert ends.wait(60)
    state[OFFSET] = -1


def test_a_read_that_stalls_is_given_up_and_not_waited_for_again() -> None:
    threads, ends = ReadingThreads(0.4), threading.Event()
    stuck, done = threads.submit(slow, ends), threads.submit(lambda _: None)
    assert threads.wait(done)
    assert not threads.wait(stuck)
    assert threads.stalled_at == 4321
    assert not threads.stop()  # memory is still in use
    ends.set()
    assert threads.wait(stuck)


def test_slow_reads_are_waited_for_while_any_read_ends() -> None:
    threads, ends = ReadingThreads(0.4), threading.Event()

    def trickle(state: Any) -> None:
        for _ in range(30):  # three times the limit
            ends.wait(0.04)
            state[RETURNED] += 1
        ends.set()

    stuck = threads.submit(slow, ends)
    threads.submit(trickle)
    assert threads.wait(stuck)
    assert threads.stop()


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_loop_that_is_left_does_not_wait_for_its_bytes(timeout: float | None) -> None:
    threads, ends = ReadingThreads(timeout), threading.Event()
    stuck = threads.submit(slow, ends)
    outcome: list[bool] = []
    waiting = threading.Thread(target=lambda: outcome.append(threads.wait(stuck)))
    waiting.start()
    threads.stop_waiting()
    waiting.join(60)
    assert outcome == [False]
    ends.set()
    assert threads.stop()


def test_a_stopped_thread_reads_no_further(paged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, threads = file_reader.FileReader(str(paged.path)), ReadingThreads(None)
    begun, goes_on = threading.Event(), threading.Event()
    compiled = file_reader._read_requests

    def pause(*arguments: Any) -> Any:
        begun.set()
        assert goes_on.wait(60)
        return compiled(*arguments)

    monkeypatch.setattr(file_reader, "_read_requests", pause)
    requests = np.array([[0, 512, 0]] * 3)
    task: Future[None] = threads.submit(reader.read, requests, np.empty(512, np.uint8), None, True)
    assert begun.wait(60)
    stops = threading.Thread(target=threads.stop)
    stops.start()
    while not threads._state[0, STOPS]:
        time.sleep(0.001)
    goes_on.set()
    stops.join(60)
    assert task.done()
    assert reader.bytes_read == 0


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "10", True])
def test_a_timeout_is_a_positive_number_or_none(timeout: Any, paged: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="`timeout` must be"):
        loader_of(paged, BATCH, timeout=timeout)
