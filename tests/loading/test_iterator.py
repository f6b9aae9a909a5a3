"""Errors of the loading thread are raised in the loop, and leaving a loop ends its thread.

Without a GPU, a fake shows that pinned buffers are not overwritten before they are copied.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ffcv.loader.epoch_iterator as stock
import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.transforms import ToTensor

from dp4tl_ffcv import PrunedLoader
from dp4tl_ffcv.loading.ffcv_adapter.iterator import _CheckedThread
from tests.support.loading import Guarded, Step, only

LONGEST_WAIT = 60.0  # seconds for threads to stop


def fails_at(wanted: int, jit: bool) -> Step:
    """Return an operation that raises an error at a value, in compiled code or in Python."""

    def check(values: Any, _: Any) -> Any:
        for value in values.reshape(-1):
            if value == wanted:
                raise ValueError("this value is refused")
        return values

    return Step(lambda: check, jit)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Check that every test ends with the threads that it began with."""
    gc.collect()
    before = set(threading.enumerate())
    yield
    gc.collect()
    until = time.monotonic() + LONGEST_WAIT
    while left := set(threading.enumerate()) - before:  # ffcv's page readers are not waited for
        assert time.monotonic() < until, left
        time.sleep(0.01)


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "CheckedThread" in type(thread).__name__]


@pytest.mark.parametrize(("position", "jit"), [(0, False), (60, True), (119, False)])
def test_an_error_in_the_thread_is_raised_in_the_loop(
    position: int, jit: bool, photos: Any, guarded: Guarded
) -> None:
    pipelines = only(identifier=[IntDecoder(), fails_at(position, jit), ToTensor()])
    loader = PrunedLoader(photos.path, 10, pipelines=pipelines)
    seen = []

    def run() -> None:
        seen.extend(batch.clone() for (batch,) in loader)

    batch = position // 10
    place = rf"batch {batch}, samples \[{10 * batch}, .*, {10 * batch + 9}\]"
    for _ in range(2):  # the error is raised again in the next epoch
        seen.clear()
        failure = f"loading failed at {place}: ValueError: this value is refused"
        with pytest.raises(ValueError, match=failure) as raised:
            guarded(run)
        assert isinstance(raised.value.__cause__, ValueError)
        assert len(seen) == batch
        assert not loading_threads()


class NeedsTwoError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("k"), KeyError),
        (MemoryError(), MemoryError),
        (AssertionError(), AssertionError),
        (TimeoutError("my own"), TimeoutError),
        (FileNotFoundError(2, "no such file", "a.txt"), FileNotFoundError),
        (NeedsTwoError(1, 2), RuntimeError),
        (UnicodeDecodeError("ascii", b"a", 0, 1, "reason"), RuntimeError),
        (SystemExit(3), RuntimeError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_error_keeps_its_type_and_says_where(
    error: BaseException, kind: type[Exception], photos: Any, guarded: Guarded
) -> None:
    def fail(*_: Any) -> None:
        raise error

    pipelines = only(label=[IntDecoder(), Step(lambda: fail, jit=False)])
    loader = PrunedLoader(photos.path, 60, pipelines=pipelines)
    with pytest.raises(Exception, match=r"batch 0, samples \[.*59\]") as raised:
        guarded(lambda: list(loader))
    assert type(raised.value) is kind
    assert type(error).__name__ in str(raised.value)
    assert str(error).strip("'") in str(raised.value)
    assert raised.value.__cause__ is error


def test_an_operation_cannot_end_the_epoch(photos: Any, guarded: Guarded) -> None:
    values = iter([1])

    def stop(labels: Any, _: Any) -> Any:
        next(values)  # StopIteration ends an epoch in ffcv's own thread
        return labels

    pipelines = only(label=[IntDecoder(), Step(lambda: stop, jit=False), ToTensor()])
    loader = PrunedLoader(photos.path, 60, pipelines=pipelines)
    with pytest.raises(
        RuntimeError, match=r"batch 1, .*: RuntimeError: an operation raised StopIteration"
    ):
        guarded(lambda: list(loader))


def test_an_iterator_with_a_full_queue_can_be_closed(paged: Any, guarded: Guarded) -> None:
    loader = PrunedLoader(paged.path, 8, indices=range(32), cache="extents", batches_ahead=3)
    batches = iter(loader)
    next(batches)
    until = time.monotonic() + LONGEST_WAIT
    while batches._thread.output_queue.qsize() < 3:  # then it waits to put its end mark
        assert time.monotonic() < until
        time.sleep(0.01)
    guarded(batches.close)
    assert not loading_threads()


def test_a_finished_or_closed_epoch_stays_finished(colours: Any) -> None:
    loader = PrunedLoader(colours.path, 8)
    batches = iter(loader)
    assert iter(batches) is batches
    assert len(list(batches)) == 15
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
    batches.close()
    batches.join()
    batches = iter(loader)
    next(batches)
    for _ in range(2):
        batches.close()
    assert list(batches) == []


# Pinned buffers.


class LateGpu:
    """Stands in for `torch.cuda`. It does its work only when someone waits for it."""

    def __init__(self) -> None:
        self.work: dict[int, list[Callable[[], None]]] = {}
        self.current = threading.local()
        self.waits = 0
        self.lock = threading.Lock()  # two threads read how much has been done

    def finish(self, stream: int, count: int | None = None) -> None:
        """Do the first pieces of a stream's work, or all of it."""
        queue = self.work[stream]
        for _ in range(len(queue) if count is None else count):
            queue.pop(0)()

    @contextmanager
    def stream(self, stream: "LateStream") -> Iterator[None]:
        before, self.current.stream = getattr(self.current, "stream", None), stream
        yield
        self.current.stream = before


class LateStream:
    """A stream: a list of work."""

    gpu: LateGpu

    def __init__(self) -> None:
        self.number = len(self.gpu.work)
        self.gpu.work[self.number] = []
        self.done = 0

    def wait_stream(self, other: "LateStream") -> None:
        """Only the GPU waits."""


class LateEvent:
    """An event: the work that a stream had when the event was recorded."""

    gpu: LateGpu

    def __init__(self, *, blocking: bool = False) -> None:
        self.stream: LateStream | None = None

    def record(self, stream: LateStream) -> None:
        with self.gpu.lock:
            self.stream, self.until = stream, stream.done + len(self.gpu.work[stream.number])

    def wait(self) -> None:
        """Only the GPU waits."""

    def synchronize(self) -> None:
        assert self.stream is not None
        self.gpu.waits += 1
        with self.gpu.lock:
            left = max(0, self.until - self.stream.done)
            self.gpu.finish(self.stream.number, left)
            self.stream.done += left


@pytest.fixture
def late_gpu(monkeypatch: pytest.MonkeyPatch) -> LateGpu:
    """Let ffcv find a GPU that works only when someone waits."""
    gpu = LateGpu()
    monkeypatch.setattr(LateStream, "gpu", gpu, raising=False)
    monkeypatch.setattr(LateEvent, "gpu", gpu, raising=False)
    training = LateStream()
    monkeypatch.setattr(stock, "IS_CUDA", True)
    monkeypatch.setattr(torch.cuda, "Stream", LateStream)
    monkeypatch.setattr(torch.cuda, "Event", LateEvent)
    monkeypatch.setattr(torch.cuda, "stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: training)
    return gpu


def copied(dataset: Any, gpu: LateGpu, batches_ahead: int) -> list[list[int]]:
    """Load two epochs; return the samples of each copy when the GPU has done all its work."""
    copies: list[Any] = []

    def copy_later(batch: Any, _: Any) -> Any:
        """Copy after the call, as `ToDevice(non_blocking=True)` does."""
        place = torch.zeros_like(batch)
        copies.append(place)
        gpu.work[gpu.current.stream.number].append(lambda: place.copy_(batch))
        return place

    late_copy = Step(lambda: copy_later, jit=False)
    pipelines = only(image=[SimpleRGBImageDecoder(), ToTensor(), late_copy])
    loader = PrunedLoader(
        dataset.path, 8, pipelines=pipelines, batches_ahead=batches_ahead, num_workers=1
    )
    for _ in range(2):
        assert sum(1 for _ in loader) == 15
    for stream in gpu.work:
        gpu.finish(stream)
    return [dataset.ids_of(copy).tolist() for copy in copies]


@pytest.mark.parametrize("batches_ahead", [1, 3, 20])
def test_no_buffer_is_overwritten_before_its_copy(
    batches_ahead: int, colours: Any, late_gpu: LateGpu, guarded: Guarded
) -> None:
    found = guarded(lambda: copied(colours, late_gpu, batches_ahead))
    batches = np.arange(120).reshape(15, 8).tolist()
    assert found == batches + batches
    # The loader waits only for buffers that were used before: for two events per batch, in two
    # epochs.
    assert late_gpu.waits == 4 * max(0, 15 - (batches_ahead + 2))


def test_ffcvs_own_thread_overwrites_buffers_before_their_copy(
    colours: Any, late_gpu: LateGpu, monkeypatch: pytest.MonkeyPatch, guarded: Guarded
) -> None:
    monkeypatch.setattr(_CheckedThread, "run_pipeline", stock.EpochIterator.run_pipeline)
    found = guarded(lambda: copied(colours, late_gpu, batches_ahead=1))
    batches = np.arange(120).reshape(15, 8).tolist()
    assert len(found) == 30
    assert found != batches + batches


def test_no_buffer_is_overwritten_before_the_training_loops_copy(
    paged: Any, late_gpu: LateGpu
) -> None:
    pipelines = only(image=[SimpleRGBImageDecoder(), ToTensor()])
    loader = PrunedLoader(paged.path, 8, pipelines=pipelines, batches_ahead=1, num_workers=1)
    training, copies = torch.cuda.current_stream().number, []
    for (images,) in loader:
        place = torch.zeros_like(images)
        copies.append(place)
        late_gpu.work[training].append(partial(place.copy_, images))
    late_gpu.finish(training)
    expected = [list(range(start, start + 8)) for start in range(0, 120, 8)]
    assert [paged.ids_of(copy).tolist() for copy in copies] == expected
    assert late_gpu.waits
