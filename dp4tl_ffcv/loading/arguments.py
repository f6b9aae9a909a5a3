"""Arguments of loaders: the selection, the ids and the seed."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..selection import Selection
from ..validate import check_int


def load_selection(
    selection: Selection | str | os.PathLike[str] | None, index: BetonIndex
) -> Selection | None:
    """Load a selection if it is a path, and check that it was made for `index`."""
    if selection is None:
        return None
    if not isinstance(selection, Selection | str | os.PathLike):
        raise TypeError(
            f"`selection` must be a Selection or the path of one; got {type(selection).__name__}. "
            "Pass sample ids as `indices`."
        )
    loaded = selection if isinstance(selection, Selection) else Selection.load(selection)
    loaded.check(index)
    return loaded


def choose_seed(seed: int | None, distributed: bool) -> int:
    """Return the seed of a loader, which without an argument is random or that of all ranks."""
    if seed is not None:
        return check_int("seed", seed, 0, (1 << 63) - 1)
    # Ranks with different seeds would repeat and miss samples.
    return 0 if distributed else int(np.random.randint(0, np.iinfo(np.int32).max))  # noqa: NPY002


def choose_timeout(timeout: float | None) -> float | None:
    """Return the longest time without progress, in seconds; None for no limit."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number):
        raise TypeError(f"`timeout` must be seconds or None; got {timeout!r}.")
    if not timeout > 0:
        raise ValueError(f"`timeout` must be above 0; got {timeout}. Pass None to wait for ever.")
    return float(timeout)


def choose_indices(
    index: BetonIndex, selection: Selection | None, indices: Any
) -> NDArray[np.uint64]:
    """Return the ids that a selection or the argument `indices` retains, else all ids."""
    if selection is not None:
        if indices is not None:
            raise ValueError("`indices` and `selection` were both given. Pass one of them.")
        indices = selection.indices
    if indices is None:
        return np.arange(index.num_samples, dtype=np.uint64)
    ids = index.check_ids("indices", indices)
    if not ids.size:
        raise ValueError("`indices` is empty: there is nothing to load.")
    return ids.astype(np.uint64)  # ffcv's type for "all samples", so that both share compiled code
