"""Threads that share the work of kernels: errors, limits, forks, and calls at the same time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dp4tl_ffcv.kernels import threads as kernel_threads
from dp4tl_ffcv.kernels.threads import call_in_threads, num_threads, one_blas_thread, split
from tests.support.loading import run_script
from tests.support.threads import use_threads

KERNELS = """
import os, signal, sys, threading
import numba, numpy as np

signal.alarm(120)  # ends this process if it hangs
from dp4tl_ffcv import kernels
from dp4tl_ffcv.ffcv_import import import_ffcv
from dp4tl_ffcv.kernels.threads import call_in_threads, one_blas_thread

import_ffcv()  # starts numba's threading layer
numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # ffcv sets 1
labels = np.arange(1 << 19) % 7
features = (np.arange(5000 * 64) % 11).reshape(5000, 64).astype(np.float32)
calls = {
    "class_histogram": (labels, 7),
    "class_members": (labels, np.arange(7) % 2 == 0),
    "class_sums": (features, labels[:5000], 7),
    "nearest_mean": (features, features[:7] + 0.25),
    "resize_area": ((np.arange(48) * 5).astype(np.uint8).reshape(4, 4, 3), (2, 2)),
}
assert set(calls) == set(kernels.__all__)

def results():
    found = [getattr(kernels, name)(*given) for name, given in calls.items()]
    several = (each if isinstance(each, tuple) else (each,) for each in found)
    return [array.tobytes() for arrays in several for array in arrays]

expected = results()

def call_all():
    assert results() == expected

def call_in_two_threads():
    failures = []
    def call():
        try:
            for _ in range(5):
                call_all()
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=call) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures

call_all()
call_in_two_threads()
entered, done = threading.Event(), threading.Event()
def hold():
    with one_blas_thread():
        entered.set()
        done.wait()
holder = threading.Thread(target=hold)
holder.start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(120)
    call_all()
    call_in_two_threads()
    meet = threading.Barrier(2, timeout=60)
    call_in_threads(lambda _: meet.wait(), 2)  # the child has threads of its own
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
done.set()
holder.join()
call_in_two_threads()
print("layer", numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_threads_and_forks_call_kernels_in_any_threading_layer(layer: str) -> None:
    if layer == "tbb":
        pytest.importorskip("numba.np.ufunc.tbbpool", exc_type=ImportError)
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    assert run_script(KERNELS, env=environment).splitlines()[-1] == f"layer {layer}"


def test_each_number_is_taken_once_by_threads_that_run_together() -> None:
    meet, taken, names = threading.Barrier(2, timeout=60), [], set()

    def take(number: int) -> None:
        if number < 2:
            meet.wait()
        taken.append(number)
        names.add(threading.get_ident())

    call_in_threads(take, 50, threads=2)
    assert sorted(taken) == list(range(50))
    assert len(names) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_call_needs_no_other_thread(count: int) -> None:
    names = []
    call_in_threads(lambda _: names.append(threading.get_ident()), count)
    assert names == [threading.get_ident()] * count


@pytest.mark.parametrize("failing", ["this thread", "another thread"])
def test_an_error_waits_for_running_calls_and_starts_no_more(failing: str) -> None:
    here, meet, begun = threading.get_ident(), threading.Barrier(2, timeout=60), []
    ended = []

    def take(number: int) -> None:
        begun.append(number)
        meet.wait()
        if (threading.get_ident() == here) == (failing == "this thread"):
            raise MemoryError(number)
        failed.wait(0.2)  # long enough for the error to be raised too early
        ended.append(number)

    failed = threading.Event()
    try:
        with pytest.raises(MemoryError):
            call_in_threads(take, 40, threads=2)
        assert len(ended) == 1
    finally:
        failed.set()
    assert sorted(begun) == [0, 1]


def test_the_calling_thread_does_all_if_no_thread_can_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    taken: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(kernel_threads, "_others", pool)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        call_in_threads(taken.append, 5, threads=3)
        monkeypatch.undo()
    assert taken == list(range(5))


def test_tasks_that_wait_behind_long_ones_delay_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, taken = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(kernel_threads, "_others", pool)
        pool.submit(busy.wait, 60)
        call_in_threads(taken.append, 5, threads=2)
        assert not busy.is_set()
        busy.set()
    assert taken == list(range(5))


@pytest.mark.parametrize("size", [0, 1, 9, 10, 19, 20, 21, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_slices_cover_a_range_and_are_not_smaller_than_asked(
    size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch, count)
    slices = split(size, 10)
    assert [number for part in slices for number in range(size)[part]] == list(range(size))
    assert 1 <= len(slices) <= count
    assert len(slices) == 1 or min(part.stop - part.start for part in slices) >= 10
    assert len(slices) == min(count, max(1, size // 10))


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, 9)
    assert num_threads() == 9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_threads() == 2
    assert num_threads(5) == 5
    assert num_threads(50) == 9


def test_the_limit_of_blas_ends_with_the_last_of_several_blocks() -> None:
    def limits() -> list[int]:
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    first, entered = threading.Event(), threading.Event()

    def limit() -> None:
        with one_blas_thread():
            entered.set()
            first.wait(60)

    with threadpool_limits(2, user_api="blas"):
        before = limits()
        thread = threading.Thread(target=limit)
        with one_blas_thread():
            assert set(limits()) == {1}
            thread.start()
            assert not entered.wait(0.2)
        first.set()
        thread.join()
        assert limits() == before
