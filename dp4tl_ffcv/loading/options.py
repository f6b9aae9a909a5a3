"""What a loader's arguments mean: its cache, threads and order."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import numba
import numpy as np
from ffcv.loader.loader import ORDER_MAP, OrderOption
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from .caches.base import CACHES
from .orders import ORDERS, Order, quasi_random_order

# Samples whose reads are sorted together in quasi-random order: a few hundred MB of photographs.
_WINDOW = 4096


def at_least_one(name: str, value: int) -> int:
    """Return `value` as an int, or raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an int; got {value!r}. Pass a whole number.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1; got {value}. Pass a positive number.")
    return int(value)


def cache_option(cache: str | None, os_cache: bool | None) -> str:
    """Return the cache asked for, in our words or in ffcv's."""
    if cache is None:
        return "auto" if os_cache is None else "os" if os_cache else "extents"
    if cache not in (*CACHES, "auto"):
        raise ValueError(
            f"`cache` must be one of {', '.join(CACHES)} or auto; got {cache!r}. Choose one."
        )
    return cache


def clamp_workers(num_workers: int) -> int:
    """Return the number of threads: all where none is asked for, never more than numba accepts."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set at import
    return most if num_workers < 1 else min(num_workers, most)


def order_factory(
    order: Any, order_kwargs: Mapping[str, Any], batch_size: int
) -> Callable[[Any], TraversalOrder]:
    """Return what makes a loader's traversal order; `order_kwargs` are of ffcv's main branch.

    The order may have a `window_size`: how many samples are to be read together.
    """
    known = isinstance(order, Hashable)
    if known and order in (OrderOption.QUASI_RANDOM, "quasi_random"):
        window_size = batch_size * max(1, round(_WINDOW / batch_size))
        function = partial(quasi_random_order, group=window_size)
        return lambda loader: _FunctionOrder(loader, function, window_size)
    if known and order in ORDER_MAP:
        return ORDER_MAP[order]  # type: ignore[no-any-return]  # ffcv has no types
    if isinstance(order, str) and order in ORDERS:
        order = ORDERS[order]
    if inspect.isclass(order) and issubclass(order, TraversalOrder):
        return partial(order, **order_kwargs)
    if callable(order) and not inspect.isclass(order):
        return lambda loader: _FunctionOrder(loader, order, batch_size)
    raise ValueError(
        f"`order` must be an OrderOption, one of {sorted(ORDERS)}, a function or a TraversalOrder "
        f"class; got {order!r}. Choose one."
    )


class _FunctionOrder(TraversalOrder):
    """An order function in the form that ffcv's Loader calls."""

    def __init__(self, loader: Any, function: Order, window_size: int) -> None:
        super().__init__(loader)
        self.window_size = window_size
        self._function = function
        self._rank, self._world_size = _place_in_group(loader.distributed)

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self._function(
            self.indices,
            seed=self.seed,
            epoch=epoch,
            rank=self._rank,
            world_size=self._world_size,
        )


def _place_in_group(distributed: bool) -> tuple[int, int]:
    if not distributed:
        return 0, 1
    from torch import distributed as group  # not needed, nor always built, for a single process

    return group.get_rank(), group.get_world_size()
