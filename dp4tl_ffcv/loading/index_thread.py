"""A thread that reads and saves the indexes of JPEGs during an epoch.

The loader works without the file of the indexes, so that a file that is damaged, full or on a disk
that has stalled never stops an epoch.
"""

import threading
from contextlib import suppress

from ..beton.jpeg_index import JpegIndexes
from .reading.reading_threads import STALLED_AFTER

SAVES_EVERY = 60.0  # seconds: a killed epoch loses the indexes of no more


class IndexThread:
    """Reads the indexes that the file has, and saves new ones until `stop` is called."""

    def __init__(self, indexes: JpegIndexes) -> None:
        self._indexes = indexes
        self._has_read, self._stops = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="dp4tl-index", daemon=True)
        if indexes.file is not None:
            self._thread.start()
            self._has_read.wait(STALLED_AFTER)

    def stop(self) -> None:
        """Save what is left, and wait for that, unless the disk has stalled before."""
        self._stops.set()
        if self._has_read.is_set():
            self._thread.join(STALLED_AFTER)

    def _run(self) -> None:
        # A loader makes again what cannot be read or saved.
        with suppress(OSError, MemoryError):
            self._indexes.refresh()
        self._has_read.set()
        while not self._stops.wait(SAVES_EVERY):
            self._save()
        self._save()

    def _save(self) -> None:
        with suppress(OSError, MemoryError):
            self._indexes.save()
