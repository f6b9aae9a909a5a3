"""One epoch's batches, whose background thread never fails in silence nor outlives its use."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty
from typing import Any

from ffcv.loader.epoch_iterator import EpochIterator
from numpy.typing import NDArray

from .compilation import shared_compilation

__all__ = ["EpochBatches"]


class _ClosedError(Exception):
    """The consumer has left: no further batch is wanted."""


class _CheckedThread(EpochIterator):
    """ffcv's loading thread, which keeps its error for the consumer instead of hanging."""

    def __init__(self, loader: Any, order: NDArray[Any]) -> None:
        self.error: BaseException | None = None
        self._open = False
        with shared_compilation():
            super().__init__(loader, order)
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

    def run_pipeline(self, *batch: Any) -> Any:
        """Make one batch, unless nobody wants it any more."""
        if self.terminate_event.is_set():
            raise _ClosedError
        return super().run_pipeline(*batch)

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


class EpochBatches(Iterator[Any]):
    """The batches of one epoch. Leaving a loop early, or dropping this, stops the thread."""

    def __init__(self, loader: Any, order: NDArray[Any]) -> None:
        self._thread: _CheckedThread | None = None
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
            error = self._thread.error
            self.close()
            if error is None:
                raise
            raise RuntimeError(f"the loading thread failed: {error}") from error

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
