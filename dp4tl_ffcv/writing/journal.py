"""The journal of an unfinished beton, from which a later run continues."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import part_path
from ..beton.format import ALLOCATION
from ..stored import read_json


@dataclass(frozen=True, slots=True)
class WriteState:
    """How far a beton is written."""

    key: str
    """Identifies what is written. Only a run with the same key continues the file."""
    page_size: int
    position: int
    """Byte at which the next sample is placed."""
    done: int = 0
    """Samples that were placed or skipped."""
    placed: int = 0
    extents: int = 0
    skipped: tuple[dict[str, Any], ...] = ()


class Journal:
    """The files next to `.NAME.part`, the unfinished file of the beton `target`.

    `.NAME.part.table` is its allocation table so far. `.NAME.part.json` is the last `WriteState`
    for which both files are known to be on the disk.
    """

    def __init__(self, target: Path) -> None:
        self.part = part_path(target)
        self.table = self.part.with_name(f"{self.part.name}.table")
        self.state = self.part.with_name(f"{self.part.name}.json")
        self._new_state = self.part.with_name(f"{self.part.name}.json.new")

    def read(self) -> WriteState | None:
        """Return the recorded state, or None if there is none or the files are too short."""
        try:
            stored = read_json(self.state)
            state = WriteState(**{**stored, "skipped": tuple(stored["skipped"])})
            table_bytes = state.extents * ALLOCATION.itemsize
            is_whole = (
                self.part.stat().st_size >= state.position
                and self.table.stat().st_size >= table_bytes
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return state if is_whole else None

    def read_table(self, state: WriteState) -> NDArray[Any]:
        """Return the rows of the allocation table up to `state`."""
        return np.fromfile(self.table, dtype=ALLOCATION, count=state.extents)

    def write(self, state: WriteState) -> None:
        """Record `state`. The data and table up to `state` must be on the disk already."""
        self._new_state.write_text(json.dumps(asdict(state)))
        self._new_state.replace(self.state)

    def remove(self) -> None:
        """Delete the files of the journal, the recorded state first."""
        for path in (self._new_state, self.state, self.table):
            path.unlink(missing_ok=True)
