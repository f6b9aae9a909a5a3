"""Peak memory of a process together with all processes that it starts."""

import threading
from pathlib import Path

PERIOD = 0.05  # seconds from one sample to the next
# Memory that the kernel cannot drop: what is mapped from files, such as libraries, is left out. It
# would count differently whenever a process that has nothing to do with it starts or ends.
COUNTED = ("Pss_Anon:", "Pss_Shmem:")


def tree_bytes(session: int) -> int:
    """Return the bytes that the processes of a session hold in anonymous and shared memory.

    A page that several processes share, as parent and workers do after a fork, counts once.
    """
    return sum(_proportional_bytes(process) for process in _processes(session))


class TreePeak:
    """Within the block, sample `tree_bytes` of a session in the background.

    It runs in the process that measures, so that nothing is added to those that are measured. An
    error in it is raised where the block ends.
    """

    def __init__(self, session: int) -> None:
        self._session = session
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._error: Exception | None = None
        self.start = self._peak = 0

    def __enter__(self) -> "TreePeak":
        self.start = self._peak = tree_bytes(self._session)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._error and not kind:
            raise self._error  # what was sampled before says too little

    @property
    def growth(self) -> int:
        """By how many bytes the largest sample exceeds the one at the start."""
        return self._peak - self.start

    def _sample(self) -> None:
        try:
            while not self._done.wait(PERIOD):
                self._peak = max(self._peak, tree_bytes(self._session))
        except Exception as error:
            self._error = error


def _processes(session: int) -> list[Path]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before the last bracket may hold anything; state, parent, group, session.
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[3]) == session:
                found.append(stat.parent)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended
    return found


def _proportional_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has ended
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(COUNTED))
