"""Errors of the loading thread are raised in the loop, and leaving a loop ends its thread.

Without a GPU, a fake shows that pinned buffers are not overwritten before they are copied.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ffcv.loader.epoch_iterator as stock
import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.operation import Operation
from ffcv.transforms import ToTensor

from dp4tl_ffcv import PrunedLoader
from dp4tl_ffcv.loading.ffcv_adapter.iterator import _CheckedThread
from tests.support.loading import only

LONGEST_WAIT = 60.0  # seconds for threads to stop


class FailsAt(Operation):
    """Raises when it meets a label, in compiled code or in Python."""

    def __init__(self, label: int, jit: bool) -> None:
        super().__init__()
        self.label, self.jit = label, jit

    def generate_code(self) -> Callable[..., Any]:
        wanted = self.label

        def check(labels: Any, _: Any) -> Any:
            for label in labels.reshape(-1):
                if label == wanted:
                    raise ValueError("this label is refused")
            return labels

        return check

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        return replace(previous_state, jit_mode=self.jit), None


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Let every test end with the threads that it began with."""
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


def loader_of(dataset: Any, batches: int, **options: Any) -> PrunedLoader:
    """Load eight samples a batch."""
    return PrunedLoader(dataset.path, 8, indices=range(8 * batches), **options)


@pytest.mark.parametrize("jit", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize("position", [0, 60, 119])
def test_an_error_in_the_thread_is_raised_in_the_loop(
    position: int, jit: bool, photos: Any, guarded: Callable[..., Any]
) -> None:
    label = 1000 + position
    pipelines = only(
        identifier=[IntDecoder(), Marks(position, label), FailsAt(label, jit), ToTensor()]
    )
    loader = PrunedLoader(photos.path, 10, pipelines=pipelines)
    seen = []

    def run() -> None:
        seen.extend(batch.clone() for (batch,) in loader)

    for _ in range(2):  # the error does not stick
        seen.clear()
        batch = position // 10
        place = rf"batch {batch}, samples \[{10 * batch}, .*, {10 * batch + 9}\]"
        failure = f"loading failed at {place}: this label is refused"
        with pytest.raises(RuntimeError, match=failure):
            guarded(run)
        assert len(seen) == position // 10
        assert not loading_threads()


class Marks(Operation):
    """Replaces a number by another, which marks where an error is raised."""

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old, self.new = old, new

    def generate_code(self) -> Callable[..., Any]:
        old, new = self.old, self.new

        def mark(numbers: Any, _: Any) -> Any:
            for row in range(len(numbers)):
                if numbers[row, 0] == old:
                    numbers[row, 0] = new
            return numbers

        return mark

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        return previous_state, None


class Stops(Operation):
    """Raises what ends an epoch in ffcv's own thread."""

    def generate_code(self) -> Callable[..., Any]:
        values = iter([1])

        def stop(labels: Any, _: Any) -> Any:
            next(values)
            return labels

        return stop

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        return replace(previous_state, jit_mode=False), None


def test_an_operation_cannot_end_the_epoch(photos: Any, guarded: Callable[..., Any]) -> None:
    steps = [IntDecoder(), Stops(), ToTensor()]
    pipelines = only(label=steps)
    loader = PrunedLoader(photos.path, 60, pipelines=pipelines)
    with pytest.raises(RuntimeError, match=r"batch 1, .*: an operation raised StopIteration"):
        guarded(lambda: list(loader))


def test_the_error_carries_its_cause(photos: Any, guarded: Callable[..., Any]) -> None:
    steps = [IntDecoder(), FailsAt(0, jit=False), ToTensor()]
    pipelines = only(label=steps)
    with pytest.raises(RuntimeError, match="refused") as raised:
        guarded(lambda: list(PrunedLoader(photos.path, 60, pipelines=pipelines)))
    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize("os_cache", [True, False])
def test_an_iterator_that_still_waits_for_room_is_closed(
    os_cache: bool, paged: Any, guarded: Callable[..., Any]
) -> None:
    loader = loader_of(paged, 4, os_cache=os_cache, batches_ahead=3)
    batches = iter(loader)
    next(batches)
    until = time.monotonic() + LONGEST_WAIT
    while batches._thread.output_queue.qsize() < 3:  # now it waits to put its end mark
        assert time.monotonic() < until
        time.sleep(0.01)
    guarded(batches.close)
    assert not loading_threads()


def test_an_exception_in_the_loop_stops_the_thread(colours: Any) -> None:
    def train() -> None:
        for _ in PrunedLoader(colours.path, 8):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    gc.collect()
    assert not loading_threads()


def test_a_finished_epoch_stays_finished(colours: Any) -> None:
    batches = iter(PrunedLoader(colours.path, 8))
    assert iter(batches) is batches
    assert len(list(batches)) == 15
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
    batches.close()
    batches.join()


def test_a_closed_epoch_is_finished(colours: Any) -> None:
    batches = iter(PrunedLoader(colours.path, 8))
    next(batches)
    for _ in range(2):
        batches.close()
    assert list(batches) == []


# Pinned buffers.


class LateGpu:
    """Stands in for `torch.cuda`, and does nothing of what it is given before somebody waits."""

    def __init__(self) -> None:
        self.work: dict[int, list[Callable[[], None]]] = {}
        self.current = threading.local()
        self.waits = 0
        self.lock = threading.Lock()  # two threads look at how much has been done

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
    """A stream: a list of work. The one that trains is never done with anything."""

    gpu: LateGpu

    def __init__(self) -> None:
        self.number = len(self.gpu.work)
        self.gpu.work[self.number] = []
        self.done = 0

    def wait_stream(self, other: "LateStream") -> None:
        """Only the GPU waits."""


class LateEvent:
    """An event: so much of a stream's work as there was when it was recorded."""

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


class LateCopy(Operation):
    """Copies some time after the call, as `ToDevice(non_blocking=True)` does."""

    def __init__(self, gpu: LateGpu, copies: list[Any]) -> None:
        super().__init__()
        self.gpu, self.copies = gpu, copies

    def generate_code(self) -> Callable[..., Any]:
        gpu, copies = self.gpu, self.copies

        def copy(batch: Any, _: Any) -> Any:
            place = torch.zeros_like(batch)
            copies.append(place)
            gpu.work[gpu.current.stream.number].append(lambda: place.copy_(batch))
            return place

        return copy

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        return replace(previous_state, jit_mode=False), None


@pytest.fixture
def late_gpu(monkeypatch: pytest.MonkeyPatch) -> LateGpu:
    """Let ffcv find a GPU that is as late as can be."""
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
    pipelines = only(image=[SimpleRGBImageDecoder(), ToTensor(), LateCopy(gpu, copies)])
    loader = PrunedLoader(
        dataset.path, 8, pipelines=pipelines, batches_ahead=batches_ahead, num_workers=1
    )
    for _ in range(2):
        assert sum(1 for _ in loader) == 15
    for stream in gpu.work:
        gpu.finish(stream)
    return [dataset.ids_of(copy).tolist() for copy in copies]


@pytest.mark.parametrize("batches_ahead", [1, 3, 20])
def test_no_buffer_is_written_before_its_copy_is_made(
    batches_ahead: int, colours: Any, late_gpu: LateGpu, guarded: Callable[..., Any]
) -> None:
    found = guarded(lambda: copied(colours, late_gpu, batches_ahead))
    batches = np.arange(120).reshape(15, 8).tolist()
    assert found == batches + batches
    # Nothing is waited for while there are buffers that were not used yet.
    # Afterwards it waits for two events per batch, in two epochs.
    assert late_gpu.waits == 4 * max(0, 15 - (batches_ahead + 2))


def test_ffcvs_own_thread_overwrites_buffers_before_their_copy(
    colours: Any, late_gpu: LateGpu, monkeypatch: pytest.MonkeyPatch, guarded: Callable[..., Any]
) -> None:
    monkeypatch.setattr(_CheckedThread, "run_pipeline", stock.EpochIterator.run_pipeline)
    found = guarded(lambda: copied(colours, late_gpu, batches_ahead=1))
    batches = np.arange(120).reshape(15, 8).tolist()
    assert len(found) == 30
    assert found != batches + batches


@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_no_buffer_is_written_before_the_loops_own_copy_is_made(
    batches_ahead: int, paged: Any, late_gpu: LateGpu
) -> None:
    pipelines = only(image=[SimpleRGBImageDecoder(), ToTensor()])
    loader = PrunedLoader(
        paged.path, 8, pipelines=pipelines, batches_ahead=batches_ahead, num_workers=1
    )
    training, copies = torch.cuda.current_stream().number, []
    for (images,) in loader:
        place = torch.zeros_like(images)
        copies.append(place)
        late_gpu.work[training].append(partial(place.copy_, images))
    late_gpu.finish(training)
    expected = [list(range(start, start + 8)) for start in range(0, 120, 8)]
    assert [paged.ids_of(copy).tolist() for copy in copies] == expected
    assert late_gpu.waits
