"""Budgets of a selection: a share, a number of classes or of samples, or bytes."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NAMES = ("keep", "keep_classes", "keep_samples", "keep_bytes")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class Budget:
    """The one budget that was given."""

    name: str
    """The argument's name."""
    value: Any
    """What it allows, as JSON can keep it; bytes are a number."""

    def first_that_fit(self, costs: NDArray[np.int64], what: str) -> int:
        """Return how many of the first entries together cost no more than the budget.

        Args:
            costs: samples or bytes of each entry, best first.
            what: an entry, for the error.

        Raises:
            ValueError: the first costs more.
        """
        count = int(np.searchsorted(np.cumsum(costs), self.value, side="right"))
        if not count:
            unit = "bytes" if self.name == "keep_bytes" else "samples"
            raise ValueError(
                f"`{self.name}` must hold the best {what}, of {costs[0]} {unit}; got "
                f"{self.value}. Raise it."
            )
        return count

    def number_of(self, total: int) -> int:
        """Return how many of `total` entries a share, or a number of them, allows."""
        if self.name == "keep":
            return int(part_of(self.value, total))
        return whole(self.name, self.value, total)


def one_budget(**given: Any) -> Budget:
    """Return the budget that is not None, checked as far as it can be without a beton.

    Raises:
        TypeError: a number is not whole.
        ValueError: none or several are given, or one is out of range.
    """
    found = {name: _plain(given[name]) for name in _NAMES if given[name] is not None}
    if len(found) != 1:
        names = ", ".join(f"`{name}`" for name in _NAMES)
        raise ValueError(
            f"{names}: exactly one must be given; got {sorted(found) or 'none'}. Choose one budget."
        )
    ((name, value),) = found.items()
    if name == "keep":
        value = share(name, value)
    elif name == "keep_bytes":
        value = _num_bytes(name, value)
    return Budget(name, value)


def share(name: str, value: Any) -> float:
    """Return `value`, or raise ValueError unless it is a number in (0, 1]."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must lie in (0, 1]; got {value!r}. Pass the fraction to retain, such as 0.4."
        )
    return value


def part_of(keep: float, total: ArrayLike) -> NDArray[np.int64]:
    """Return the share `keep` of each total: rounded, halves up, and one at least."""
    exact = np.round(keep * np.asarray(total), 6)  # 0.145 of 100 is 14.5, though not in binary
    part: NDArray[np.int64] = np.maximum(1, np.floor(exact + 0.5)).astype(np.int64)
    return part


def whole(name: str, value: Any, total: int) -> int:
    """Return `value`, or raise TypeError or ValueError unless it is an int in `[1, total]`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int; got {value!r}. Pass a whole number.")
    if not 1 <= value <= total:
        raise ValueError(
            f"`{name}` must lie in [1, {total}]; got {value}. Retain no more than there is."
        )
    return value


def _num_bytes(name: str, size: Any) -> int:
    """Return the bytes of a number, or of text such as 64GiB, 500 MB or 1.5T."""
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found:
        number, unit, binary = found.groups()
        with suppress(OverflowError):  # of more digits than any disk has bytes
            size = int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()])
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(
            f"`{name}` must be a number of bytes, or text such as 64GiB; got {size!r}. "
            "Pass the bytes that the retained samples may take."
        )
    return size


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
