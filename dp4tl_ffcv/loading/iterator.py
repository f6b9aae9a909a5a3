"""One epoch's batches, whose background thread never fails in silence nor outlives its use."""

from collections.abc import Iterator
from queue import Full
from typing import Any

from ffcv.loader.epoch_iterator import EpochIterator
from numpy.typing import NDArray

from .compilation import shared_compilation

__all__ = ["EpochBatches"]


class _CheckedThread(EpochIterator):
    """ffcv's loading thread, which keeps its error for the consumer instead of hanging."""

    def __init__(self, loader: Any, order: NDArray[Any]) -> None:
        self.error: BaseException | None = None
        self._exited = False
        with shared_compilation():
            super().__init__(loader, order)

    def run(self) -> None:
        """Produce batches until the epoch ends, fails or is closed."""
        try:
            super().run()
        except BaseException as error:  # whatever it is belongs to the training loop
            self.error = error
            while not self.terminate_event.is_set():
                try:
                    self.output_queue.put(None, timeout=0.1)
                    return
                except Full:
                    pass

    def close(self) -> None:
        """Ask the thread to stop and release the memory context, once."""
        self.terminate_event.set()
        if not self._exited:
            self._exited = True
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
        """Stop the background thread and wait for it (at most about half a second)."""
        if self._thread is not None:
            self._thread.close()
            self._thread.join()
            self._thread = None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the background thread, as on ffcv's own iterator."""
        if self._thread is not None:
            self._thread.join(timeout)

    def __del__(self) -> None:
        self.close()
