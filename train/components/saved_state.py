"""The state of a stopped run, in a file: all that training has changed."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import OutOfMemoryError, Tensor

from dp4tl_ffcv.utils import on_rank_zero, read_entries, write_entries

from .counters import Counters
from .processes import Processes

_LONGEST_WAIT = 10.0  # seconds between two questions whether the state is due


class SavedState:
    """The file to resume from. Every process calls each method.

    Args:
        path: the file.
        processes: processes of the run. Their number may differ from that of the stopped run.
        every_minutes: time after which the state is due again, 0 for never.
    """

    def __init__(self, path: Path, processes: Processes, every_minutes: float = 0.0) -> None:
        self.path = path
        self.processes = processes
        self.every_minutes = every_minutes
        self._saved_at = self._asked_at = time.monotonic()
        self._asked_step: int | None = None
        self._next_step = 0
        self._is_due = False

    def is_due(self, step: int) -> bool:
        """Return whether `every_minutes` have passed since the state was saved, by rank 0's clock.

        The processes agree about every ten seconds, in a step on which they agreed before: the
        other steps cost nothing.
        """
        if not self.every_minutes or step < self._next_step:
            return self._is_due
        now = time.monotonic()
        left = 60 * self.every_minutes - (now - self._saved_at)
        steps = 1
        if self._asked_step is not None and now > self._asked_at:
            rate = (step - self._asked_step) / (now - self._asked_at)
            steps = max(1, int(rate * min(left, _LONGEST_WAIT)))
        self._asked_step, self._asked_at = step, now
        is_due, self._next_step = self.processes.from_rank_zero(left <= 0, step + steps)
        self._is_due = bool(is_due)
        return self._is_due

    def exists(self) -> bool:
        """Return whether a run was stopped."""
        return on_rank_zero(self.path.exists)

    @property
    def folder(self) -> Path:
        """Folder of files that are too large to be written again with every state."""
        return self.path.with_suffix("")

    def delete(self) -> None:
        """Delete the file and the folder."""
        if self.processes.rank == 0:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, counters: Counters, loader: Any, stateful: Mapping[str, Any]) -> None:
        """Save counters, the position of the loader, and the states of the objects `stateful`.

        The state of rank 0 is saved. An object whose processes have different states collects them
        in its method `synchronize`, which every process calls first.
        """
        for part in stateful.values():
            if hasattr(part, "synchronize"):
                part.synchronize()
        statistics = {
            name: self.processes.statistics(part.named_buffers())
            for name, part in stateful.items()
            if hasattr(part, "named_buffers")
        }
        on_rank_zero(partial(self._write, counters, loader, stateful, statistics))
        self._saved_at, self._is_due = time.monotonic(), False

    def load(self, stateful: Mapping[str, Any]) -> tuple[Counters, dict[str, Any]]:
        """Load the objects `stateful`, and return the counters and the state of the loader.

        Raises:
            ValueError: the file is corrupt, or holds other objects.
        """
        try:
            values = read_entries(self.path)
            states = values["states"]
            if states.keys() != stateful.keys():
                raise KeyError(f"the file holds {sorted(states)}")
            for name, part in stateful.items():
                part.load_state_dict(states[name])
            # In mid-epoch each process has running statistics of its own.
            for name, rows in values["statistics"].items():
                self.processes.set_statistics(stateful[name].named_buffers(), rows)
            return Counters(**values["counters"]), values["loader"]
        except (OSError, MemoryError, OutOfMemoryError):
            raise
        except Exception as error:  # objects raise several kinds for a state that does not fit
            raise ValueError(
                f"cannot resume: {str(self.path)!r} is corrupt, or another version of this "
                "recipe wrote it. Start over with --no-resume."
            ) from error

    def _write(
        self,
        counters: Counters,
        loader: Any,
        stateful: Mapping[str, Any],
        statistics: Mapping[str, Tensor],
    ) -> None:
        state = {
            "counters": asdict(counters),
            "loader": loader.state_dict(),
            "states": {name: part.state_dict() for name, part in stateful.items()},
            "statistics": statistics,
        }
        write_entries(self.path, state)
