"""`map_ordered`: ordered results, few tasks ahead of the consumer, and no worker that remains."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from dp4tl_ffcv.parallel import map_ordered

KINDS = {"caller": (0, False), "processes": (2, False), "threads": (2, True)}
kinds = pytest.mark.parametrize(("num_workers", "threads"), KINDS.values(), ids=KINDS)


def double(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


@kinds
def test_results_keep_the_order_of_the_tasks(num_workers: int, threads: bool) -> None:
    with map_ordered(double, range(12), num_workers, threads=threads) as results:
        assert list(results) == list(range(0, 24, 2))


@kinds
def test_few_tasks_are_taken_ahead(num_workers: int, threads: bool) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    with map_ordered(double, numbers(), num_workers, threads=threads) as results:
        for done, result in enumerate(results, start=1):
            assert result == 2 * (done - 1)
            assert len(taken) - done <= max(0, 2 * num_workers - 1)
    assert len(taken) == 12


@kinds
def test_an_exception_of_the_function_is_raised(num_workers: int, threads: bool) -> None:
    seen: list[int] = []
    with (
        pytest.raises(ValueError, match="thirteen"),
        map_ordered(double, range(11, 20), num_workers, threads=threads) as results,
    ):
        seen.extend(results)
    assert seen == [22, 24]


def test_leaving_early_cancels_queued_tasks_and_ends_the_threads() -> None:
    before, calls = threading.active_count(), []

    def wait(number: int) -> int:
        calls.append(number)
        time.sleep(0.05)
        return number

    with map_ordered(wait, range(100), 2, threads=True) as results:
        assert next(results) == 0
    assert threading.active_count() == before
    assert len(calls) <= 4


def test_a_worker_process_that_dies_is_reported() -> None:
    with (
        pytest.raises(RuntimeError, match=r"a worker process died.*`num_workers` than 2"),
        map_ordered(os._exit, [1, 1], 2) as results,
    ):
        list(results)


def send_half(size: int) -> bytes:
    """Return bytes, or be killed while the bytes are sent."""
    if size > 1 << 20:
        killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL))
        killer.start()
    return bytes(size)


def test_a_worker_that_is_killed_while_it_sends_a_result_is_reported() -> None:
    """The parent must not wait for the rest of the result, which the others cannot send."""
    with map_ordered(send_half, [1, 1 << 27, 1, 1], 2) as results:
        assert next(results) == b"\0"
        time.sleep(0.5)  # the pipe is full, and the worker is dead
        with pytest.raises(RuntimeError, match="a worker process died"):
            list(results)


def test_results_and_errors_that_cannot_be_pickled_are_reported() -> None:
    with (
        pytest.raises(RuntimeError, match="cannot be pickled"),
        map_ordered(lambda _: threading.Lock(), [1, 2], 2) as results,
    ):
        list(results)
