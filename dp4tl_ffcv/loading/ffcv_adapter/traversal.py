"""Traversal orders for ffcv's Loader, made from the argument `order`."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import numpy as np
from ffcv.loader.loader import ORDER_MAP, OrderOption
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from ..orders import ORDERS, Order

# Samples whose reads are sorted together in quasi-random order: a few hundred MB of photographs.
_WINDOW = 4096


def order_factory(
    order: Any, order_kwargs: Mapping[str, Any], batch_size: int
) -> Callable[[Any], Any]:
    """Return a function that makes the traversal order of a loader.

    If `order` is a class, it is called with `order_kwargs`, as in ffcv's main branch. A traversal
    order may have a `window_size`: the number of samples to read together.
    """
    known = isinstance(order, Hashable)
    if known and order is OrderOption.QUASI_RANDOM:
        order = "quasi_random"  # ffcv's own cannot be distributed
    if known and order in ORDER_MAP:
        return ORDER_MAP[order]  # type: ignore[no-any-return]  # ffcv has no types
    if isinstance(order, str) and order in ORDERS:
        return _named_order(ORDERS[order], batch_size)
    if inspect.isclass(order) and issubclass(order, TraversalOrder):
        return partial(order, **order_kwargs)
    if callable(order) and not inspect.isclass(order):
        return lambda loader: _FunctionOrder(loader, order, batch_size)
    raise ValueError(
        f"`order` must be an OrderOption, one of {', '.join(ORDERS)}, a function or a "
        f"TraversalOrder class; got {order!r}."
    )


def _named_order(order: Any, batch_size: int) -> Callable[[Any], Any]:
    """Let an order that shuffles groups of samples shuffle the samples that are read together."""
    if "group" not in inspect.signature(order).parameters:
        return lambda loader: _FunctionOrder(loader, order, batch_size)
    window_size = batch_size * max(1, round(_WINDOW / batch_size))
    grouped = partial(order, group=window_size)
    return lambda loader: _FunctionOrder(loader, grouped, window_size)


class _FunctionOrder(TraversalOrder):
    """Calls an order function as ffcv's Loader calls a traversal order."""

    def __init__(self, loader: Any, function: Order, window_size: int) -> None:
        super().__init__(loader)
        self.window_size = window_size
        self._function = function
        self._place = 0, 1
        if loader.distributed:
            from torch import distributed  # not built into every torch

            self._place = distributed.get_rank(), distributed.get_world_size()

    def sample_order(self, epoch: int) -> NDArray[Any]:
        rank, world_size = self._place
        return self._function(
            self.indices, seed=self.seed, epoch=epoch, rank=rank, world_size=world_size
        )


def check_order(order: Any, retained: NDArray[np.int64], num_samples: int) -> NDArray[Any]:
    """Return the ids of an order, after checking that each is in `retained`."""
    ids = np.asarray(order)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise TypeError(f"`order` must return sample ids (M,); got {ids.dtype} {ids.shape}.")
    is_retained = np.zeros(num_samples, dtype=np.bool_)
    is_retained[retained] = True
    inside = (ids >= 0) & (ids < num_samples)
    if not inside.all() or not is_retained[ids].all():
        foreign = ids[~inside] if not inside.all() else ids[~is_retained[ids]]
        raise ValueError(
            f"`order` must return retained samples; got {len(foreign)} others, for example "
            f"{foreign[0]}. Permute the ids that it receives."
        )
    return ids
