"""One epoch's batches, whose background thread never fails in silence nor outlives its use."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty
from typing import Any

import numpy as np
import torch
from ffcv.loader.epoch_iterator import EpochIterator
from numpy.typing import NDArray

from ...errors import BetonError
from .compilation import shared_compilation


class _ClosedError(Exception):
    """The consumer has left: no further batch is wanted."""


class _CheckedThread(EpochIterator):
    """ffcv's loading thread, which keeps its error for the consumer instead of hanging."""

    def __init__(self, loader: Any, order: NDArray[Any]) -> None:
        self.error: BaseException | None = None
        self._open = False
        # By slot: the copy of its batch within the pipeline, and the loop's work on that batch.
        self._copied: dict[int, torch.cuda.Event] = {}
        self._used: dict[int, torch.cuda.Event] = {}
        self._taken = 0
        self._batch: tuple[int, Any] = (0, ())
        try:
            with shared_compilation():
                super().__init__(loader, order)
        except BaseException:
            if context := self.__dict__.get("memory_context"):  # it may read already
                context.__exit__(None, None, None)
            raise
        self._open = True

    def run(self) -> None:
        """Produce batches until the epoch ends, fails or is closed."""
        try:
            super().run()
        except _ClosedError:
            pass
        except BaseException as error:  # whatever it is belongs to the training loop
            self.error = error
            self.output_queue.put(None)

    def run_pipeline(self, number: int, ids: Any, slot: int, used: Any) -> Any:
        """Make one batch, unless nobody wants it any more."""
        if self.terminate_event.is_set():
            raise _ClosedError
        self._batch = number, ids
        # ffcv lets the GPU wait for the buffers, not the CPU: copies of what is in this slot's
        # pinned memory, by the pipeline or the loop, may still be to come when the GPU is behind.
        for events in (self._copied, self._used):
            if slot in events:
                events[slot].synchronize()
        try:
            result = super().run_pipeline(number, ids, slot, used)
        except StopIteration as error:  # which ffcv would take for the end of the epoch
            raise RuntimeError("an operation raised StopIteration") from error
        self.memory_context.check()
        if self.cuda_streams[slot] is not None:
            self._copied[slot] = _event_on(self.cuda_streams[slot])
        return result

    def __next__(self) -> Any:
        """Return the next batch; whatever uses the one before has been submitted by now."""
        slots = len(self.cuda_streams)
        if self._taken and self.cuda_streams[0] is not None:
            self._used[(self._taken - 1) % slots] = _event_on(torch.cuda.current_stream())
        result = super().__next__()
        self._taken += 1
        return result

    def failure(self) -> BaseException | None:
        """Return what the training loop is to raise, if anything."""
        if self.error is None or isinstance(self.error, BetonError):  # that names its sample
            return self.error
        number, ids = self._batch
        samples = np.array2string(np.asarray(ids), threshold=8, separator=", ")
        failure = RuntimeError(
            f"the loading thread failed at batch {number}, samples {samples}: {self.error}"
        )
        failure.__cause__ = self.error
        return failure

    def close(self) -> None:
        """Stop the thread, wait until it has, then release the memory context; once."""
        if not self._open:
            return
        self.terminate_event.set()
        if threading.current_thread() is self:
            return  # collected as garbage from within; there is nobody left to wait
        while self.is_alive():
            with suppress(Empty):  # the thread may be waiting for room, with the end mark above all
                self.output_queue.get_nowait()
            self.join(0.01)
        self._open = False
        # Only now: a page that is asked for after this would never be read.
        self.memory_context.__exit__(None, None, None)


def _event_on(stream: Any) -> torch.cuda.Event:
    """Record an event that can be waited for without keeping a core busy."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


class EpochBatches(Iterator[Any]):
    """The batches of one epoch. Leaving a loop early, or dropping this, stops the thread."""

    def __init__(self, loader: Any, order: NDArray[Any]) -> None:
        self._thread: _CheckedThread | None = None
        if not len(order) and not loader.drop_last:
            raise ValueError(
                f"`order` must leave a sample to every rank; got none of {len(loader.indices)} for "
                "this one. Use fewer ranks, or an order that pads."
            )
        if not len(order):
            raise ValueError(
                f"`batch_size` must be at most the number of samples with `drop_last`; got "
                f"{loader.batch_size} for {len(loader.indices)} samples. Pass drop_last=False."
            )
        self._thread = _CheckedThread(loader, order)

    def __next__(self) -> Any:
        if self._thread is None:
            raise StopIteration
        try:
            return next(self._thread)
        except StopIteration:
            failure = self._thread.failure()
            self.close()
            if failure is None:
                raise
        raise failure

    def close(self) -> None:
        """Stop the background thread and wait for it."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the background thread, as on ffcv's own iterator."""
        if self._thread is not None:
            self._thread.join(timeout)

    def __del__(self) -> None:
        self.close()
