"""A lock on a run folder, which ends with the process and leaves no file."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 2.0  # seconds for a killed run's processes to end


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Keep other processes from using a folder, which is made if it is missing.

    File systems that do not lock folders, as some network file systems, give no protection.

    Raises:
        BlockingIOError: another process uses the folder.
        OSError: the folder cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _lock(folder):
            if time.monotonic() > deadline:
                raise BlockingIOError(
                    errno.EAGAIN, "another run uses it. Wait, or choose another folder", str(path)
                )
            time.sleep(_PATIENCE / 20)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not supported here
        return True
    return True
