"""The batches of one epoch, made by a background thread.

Errors of the thread are raised in the training loop, and the thread stops when the loop is left.
"""

import os
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty
from typing import Any

import numpy as np
import torch
from ffcv.loader.epoch_iterator import EpochIterator
from numpy.typing import NDArray

from ...errors import BetonError
from ..decoding.threads import decoding_threads
from ..positions import Progress
from .compilation import shared_compilation


class _ClosedError(Exception):
    """The training loop was left: no more batches are needed."""


class _CheckedThread(EpochIterator):
    """ffcv's loading thread. It keeps its error for the training loop instead of hanging."""

    def __init__(self, loader: Any, order: NDArray[Any]) -> None:
        self.error: BaseException | None = None
        self._open = False
        self._process = os.getpid()
        # Events of each slot: after the pipeline's copy of its batch, and after the loop's work.
        self._copied: dict[int, torch.cuda.Event] = {}
        self._used: dict[int, torch.cuda.Event] = {}
        self._taken = 0
        self._batch: tuple[int, Any] = (0, ())
        try:
            with shared_compilation():
                super().__init__(loader, order)
        except BaseException:
            if context := self.__dict__.get("memory_context"):  # reading has started
                context.__exit__(None, None, None)
            raise
        self._open = True

    def run(self) -> None:
        """Produce batches until the epoch ends, fails or is closed."""
        try:
            with decoding_threads(self.loader.num_workers):
                super().run()
        except _ClosedError:
            pass
        except BaseException as error:
            self.error = error
            self.output_queue.put(None)

    def run_pipeline(self, number: int, ids: Any, slot: int, used: Any) -> Any:
        """Produce one batch, unless the epoch was closed."""
        if self.terminate_event.is_set():
            raise _ClosedError
        self._batch = number, ids
        # In ffcv only the GPU waits for a slot's buffers. But the GPU may still have to copy from
        # this slot's pinned memory, so that the CPU must wait too.
        for events in (self._copied, self._used):
            if slot in events:
                events[slot].synchronize()
        try:
            result = super().run_pipeline(number, ids, slot, used)
        except StopIteration as error:  # which would end the epoch in ffcv
            raise RuntimeError("an operation raised StopIteration") from error
        self.memory_context.check()
        if self.cuda_streams[slot] is not None:
            self._copied[slot] = _event_on(self.cuda_streams[slot])
        return result

    def __next__(self) -> Any:
        """Return the next batch, after the loop has submitted its work on the last one."""
        slots = len(self.cuda_streams)
        if self._taken and self.cuda_streams[0] is not None:
            self._used[(self._taken - 1) % slots] = _event_on(torch.cuda.current_stream())
        result = super().__next__()
        self._taken += 1
        return result

    def failure(self) -> BaseException | None:
        """Return the error to raise in the training loop, if any.

        It has the type of the thread's error, unless that needs other arguments than a message.
        """
        if self.error is None or isinstance(self.error, BetonError):  # it names the sample
            return self.error
        number, ids = self._batch
        samples = np.array2string(np.asarray(ids), threshold=8, separator=", ")
        cause = "".join(traceback.format_exception_only(self.error)).strip()
        failure = _same_error(
            self.error, f"loading failed at batch {number}, samples {samples}: {cause}"
        )
        failure.__cause__ = self.error
        return failure

    def close(self) -> None:
        """Stop the thread and wait for it, then release the memory context.

        A forked process has no threads, and leaves everything to its parent.
        """
        if not self._open or self._process != os.getpid():
            return
        self.terminate_event.set()
        self.memory_context.stop_waiting()
        if threading.current_thread() is self:
            return  # the thread itself collects this object, and cannot wait for itself
        while self.is_alive():
            with suppress(Empty):  # the thread may wait for room in the queue
                self.output_queue.get_nowait()
            self.join(0.01)
        self._open = False
        # Last: without reads, the thread would wait forever for its bytes.
        self.memory_context.__exit__(None, None, None)


def _same_error(error: BaseException, message: str) -> Exception:
    """Return an error of the same type with another message, or a RuntimeError."""
    if isinstance(error, Exception):
        with suppress(Exception):  # whatever the constructor of a type may raise
            failure = type(error)(message)
            if message in " ".join(map(str, failure.args)):
                return failure
    return RuntimeError(message)


def _event_on(stream: Any) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without a core
    event.record(stream)
    return event


class EpochBatches(Iterator[Any]):
    """Iterator of one epoch. Leaving the loop, or deleting the iterator, stops the thread.

    `progress` counts the samples that the loop receives.
    """

    def __init__(self, loader: Any, order: NDArray[Any], progress: Progress) -> None:
        self._thread: _CheckedThread | None = None
        self._process = os.getpid()
        self._progress, self._batch_size = progress, loader.batch_size
        if not len(order):
            if progress.start.segments:
                return  # the rest of the epoch is less than a batch
            samples = f"of the {len(loader.indices)} samples"
            raise ValueError(
                f"`batch_size` is {loader.batch_size}: none {samples} make a whole batch. Pass "
                "drop_last=False."
                if loader.drop_last
                else f"this rank gets none {samples}. Use fewer ranks, or an order that pads."
            )
        self._thread = _CheckedThread(loader, order)
        # Also called at the end of the program, while threads still run.
        self._end = weakref.finalize(self, self._thread.close)

    def __next__(self) -> Any:
        if self._thread is None:
            raise StopIteration
        if self._process != os.getpid():
            raise RuntimeError(
                "this process was forked during the epoch, and has no thread that loads its "
                "batches. Start an epoch of its own with iter(loader)."
            )
        try:
            batch = next(self._thread)
        except StopIteration:
            failure = self._thread.failure()
            self.close()
            if failure is None:
                raise
        else:
            self._progress.advance(self._batch_size)
            return batch
        raise failure

    def close(self) -> None:
        """Stop the background thread and wait for it."""
        if self._thread is not None:
            self._end()
            self._thread = None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the background thread, as ffcv's iterator does."""
        if self._thread is not None:
            self._thread.join(timeout)
