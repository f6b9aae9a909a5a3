"""Problems found in a beton."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a beton."""

    kind: str
    """`tables`, `manifest`, `owner`, `bounds`, `page`, `start`, `overlap`, `pointer`, `unused`,
    `size`, `image`, `label`, `read` or `jpeg`."""
    sample_id: int | None
    """The affected sample; None if the problem affects the whole file."""
    message: str


@dataclass(slots=True)
class Problems:
    """The first `MAX_KEPT` problems in the order of discovery, and the number of all problems."""

    kept: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, kind: str, sample_id: int | None, message: str) -> None:
        """Add one problem."""
        self.count += 1
        if len(self.kept) < MAX_KEPT:
            self.kept.append(Problem(kind, sample_id, message))

    def add_rows(
        self, kind: str, wrong: NDArray[np.bool_], describe: Callable[[int], tuple[int, str]]
    ) -> None:
        """Add a problem for each true `wrong[i]`; `describe(i)` returns its sample and message."""
        rows = np.flatnonzero(wrong)
        for row in rows[: MAX_KEPT - len(self.kept)].tolist():
            self.kept.append(Problem(kind, *describe(row)))
        self.count += len(rows)
