"""Budgets of a selection: a fraction, a number of classes or of samples, or bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_fraction, check_int, parse_bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """The one budget that was given."""

    name: str
    """Name of the argument."""
    value: Any
    """What it allows; bytes as an int."""

    def first_that_fit(self, costs: NDArray[np.int64], what: str) -> int:
        """Return how many of the first entries together cost no more than the budget.

        Args:
            costs: samples or bytes of each entry, best first.
            what: name of an entry, for the error.

        Raises:
            ValueError: the first entry costs more.
        """
        count = int(np.searchsorted(np.cumsum(costs), self.value, side="right"))
        if not count:
            unit = "bytes" if self.name == "keep_bytes" else "samples"
            raise ValueError(
                f"`{self.name}` is {self.value}, but the best {what} takes {costs[0]} {unit}. "
                "Raise it."
            )
        return count

    def number_of(self, total: int) -> int:
        """Return how many of `total` entries a fraction, or a number of entries, allows."""
        if self.name == "keep":
            return int(part_of(self.value, total))
        return check_int(self.name, self.value, 1, total)


def one_budget(**given: Any) -> Budget:
    """Return the budget that is not None, checked as far as possible without a beton."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(found) != 1:
        names = ", ".join(f"`{name}`" for name in given)
        raise ValueError(f"give exactly one of {names}; got {sorted(found) or 'none'}.")
    ((name, value),) = found.items()
    if name == "keep":
        value = check_fraction(name, value)
    elif name == "keep_bytes":
        value = parse_bytes(name, value)
    else:
        value = check_int(name, value, 1)
    return Budget(name, value)


def part_of(keep: float, total: ArrayLike) -> NDArray[np.int64]:
    """Return the fraction `keep` of each total: rounded, halves up, at least one."""
    exact = np.round(keep * np.asarray(total), 6)  # 0.145 of 100 is 14.5, though not in binary
    part: NDArray[np.int64] = np.maximum(1, np.floor(exact + 0.5)).astype(np.int64)
    return part
