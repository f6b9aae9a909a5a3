"""Budgets of a selection: a fraction, a number of classes or samples, bytes, or a score."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_fraction, check_int, parse_bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """The limit of a selection: the name of an argument of `select`, and its value."""

    name: str
    value: Any
    """The value; a number of bytes is an int."""

    def number_of(self, scores: NDArray[np.float64], costs: NDArray[np.int64], what: str) -> int:
        """Return how many entries, best first, the budget retains.

        Args:
            scores: scores of the entries, descending.
            costs: samples or bytes of the entries.
            what: word for an entry in the error.
        """
        if self.name == "keep":
            return int(part_of(self.value, len(costs)))
        if self.name == "keep_classes":
            return check_int(self.name, self.value, 1, len(costs))
        if self.name == "min_score":
            if not (count := int((scores >= self.value).sum())):
                raise ValueError(
                    f"`min_score` is {self.value}, but the best {what} has the score "
                    f"{scores[0]:g}. Lower it."
                )
            return count
        count = int(np.searchsorted(np.cumsum(costs), self.value, side="right"))
        if not count:
            unit = "bytes" if self.name == "keep_bytes" else "samples"
            raise ValueError(
                f"`{self.name}` is {self.value}, but the best {what} takes {costs[0]} {unit}. "
                "Raise the budget."
            )
        return count


def one_budget(**given: Any) -> Budget:
    """Return the one budget that is not None, with its value checked."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(found) != 1:
        names = ", ".join(f"`{name}`" for name in given)
        got = " and ".join(f"`{name}`" for name in found) or "none"
        raise ValueError(f"give exactly one of {names}; got {got}.")
    ((name, value),) = found.items()
    if name == "keep":
        value = (
            "auto" if isinstance(value, str) and value == "auto" else check_fraction(name, value)
        )
    elif name == "keep_bytes":
        value = parse_bytes(name, value)
    elif name == "min_score":
        if not np.isfinite(value):
            raise ValueError(f"`{name}` must be finite; got {value}.")
        value = float(value)
    else:
        value = check_int(name, value, 1)
    return Budget(name, value)


def part_of(keep: float, total: ArrayLike) -> NDArray[np.int64]:
    """Return the fraction `keep` of each total: rounded, halves up, at least one."""
    exact = np.round(keep * np.asarray(total), 6)  # 0.145 * 100 is 14.499999999999998 in binary
    part: NDArray[np.int64] = np.maximum(1, np.floor(exact + 0.5)).astype(np.int64)
    return part
