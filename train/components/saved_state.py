"""The state of a stopped run, in a file: all that training has changed."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp4tl_ffcv.utils import atomic_open, on_rank_zero

from .counters import Counters
from .processes import Processes


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
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Return whether `every_minutes` have passed since the state was saved, by rank 0's clock.

        Costs a broadcast unless `every_minutes` is 0.
        """
        if not self.every_minutes:
            return False
        minutes = (time.monotonic() - self._saved_at) / 60
        return self.processes.agree(minutes >= self.every_minutes)

    def exists(self) -> bool:
        """Return whether a run was stopped."""
        return on_rank_zero(self.path.exists)

    def delete(self) -> None:
        """Delete the file."""
        if self.processes.rank == 0:
            self.path.unlink(missing_ok=True)

    def save(self, counters: Counters, loader: Any, stateful: Mapping[str, Any]) -> None:
        """Save counters, the position of the loader, and the states of the objects `stateful`."""
        statistics = {
            name: self.processes.statistics(part.named_buffers())
            for name, part in stateful.items()
            if hasattr(part, "named_buffers")
        }
        on_rank_zero(partial(self._write, counters, loader, stateful, statistics))
        self._saved_at = time.monotonic()

    def load(self, stateful: Mapping[str, Any]) -> tuple[Counters, dict[str, Any]]:
        """Load the objects `stateful`, and return the counters and the state of the loader.

        Raises:
            ValueError: the file is corrupt, or holds other objects.
        """
        try:
            values = torch.load(self.path, map_location="cpu", weights_only=True)
            states = values["states"]
            if states.keys() != stateful.keys():
                raise KeyError(f"the file holds {sorted(states)}")
            for name, part in stateful.items():
                part.load_state_dict(states[name])
            # In mid-epoch each process has running statistics of its own.
            for name, rows in values["statistics"].items():
                self.processes.set_statistics(stateful[name].named_buffers(), rows)
            return Counters(**values["counters"]), values["loader"]
        except OSError:
            raise
        except Exception as error:  # torch does not document what it raises for a corrupt file
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
        with atomic_open(self.path) as stream:
            torch.save(state, stream)
