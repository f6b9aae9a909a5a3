"""Traversal orders for ffcv's Loader, made from the argument `order`."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import numpy as np
from ffcv.loader.loader import ORDER_MAP, OrderOption
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from ..orders import ORDERS, Order, sequential_order

# Samples whose reads are sorted together in quasi-random order: a few hundred MB of photographs.
_WINDOW = 4096


def order_factory(order: Any, order_kwargs: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a function that makes the traversal order of a loader.

    If `order` is a class, it is called with `order_kwargs`, as in ffcv's main branch. A traversal
    order may have a `window_size`: the number of samples to read together.
    """
    known = isinstance(order, Hashable)
    if known and order is OrderOption.QUASI_RANDOM:
        order = "quasi_random"  # ffcv's own cannot be distributed
    if known and order in _STOCK:
        return partial(FunctionOrder, function=_STOCK[order])
    if known and order in ORDER_MAP:
        return ORDER_MAP[order]  # type: ignore[no-any-return]  # ffcv has no types
    if isinstance(order, str) and order in ORDERS:
        grouped = "group" in inspect.signature(ORDERS[order]).parameters
        return partial(FunctionOrder, function=ORDERS[order], grouped=grouped)
    if inspect.isclass(order) and issubclass(order, TraversalOrder):
        return partial(order, **order_kwargs)
    if callable(order) and not inspect.isclass(order):
        return partial(FunctionOrder, function=order)
    raise ValueError(
        f"`order` must be an OrderOption, one of {', '.join(ORDERS)}, a function or a "
        f"TraversalOrder class; got {order!r}."
    )


class FunctionOrder(TraversalOrder):
    """Calls an order function as ffcv's Loader calls a traversal order.

    `grouped` lets a function that shuffles groups of samples shuffle the samples that are read
    together.
    """

    def __init__(self, loader: Any, function: Order, *, grouped: bool = False) -> None:
        super().__init__(loader)
        self.function = function
        self._grouped = grouped
        self._batch_size = loader.batch_size
        self._place = place_of(loader)
        self.window_size = _window(self._batch_size) if grouped else self._batch_size

    def sample_order(self, epoch: int) -> NDArray[Any]:
        """Return the order of this rank."""
        return self.share(epoch, *self._place, self._batch_size)

    def share(self, epoch: int, rank: int, world_size: int, batch_size: int) -> NDArray[Any]:
        """Return the order of any rank, in a loader with this world size and batch size."""
        options: dict[str, Any] = {"group": _window(batch_size)} if self._grouped else {}
        return self.function(
            self.indices, seed=self.seed, epoch=epoch, rank=rank, world_size=world_size, **options
        )

    @property
    def pads(self) -> bool:
        """Whether the function pads the shares to equal length, instead of dropping samples."""
        pad = inspect.signature(self.function).parameters.get("pad")
        return pad is None or pad.default is not False


def place_of(loader: Any) -> tuple[int, int]:
    """Return the rank and the world size of a loader: 0 and 1 if it is not distributed."""
    if not loader.distributed:
        return 0, 1
    from torch import distributed  # not built into every torch

    return distributed.get_rank(), distributed.get_world_size()


def name_of(order: Any) -> str:
    """Return the name of a traversal order: the name of its function or class."""
    function = getattr(order, "function", order)
    while isinstance(function, partial):
        function = function.func
    name: str = getattr(function, "__name__", type(function).__name__)
    return name.removesuffix("_order")


def _window(batch_size: int) -> int:
    """Return the number of samples that an order with groups reads together."""
    return batch_size * max(1, round(_WINDOW / batch_size))


def _ffcv_random(
    ids: NDArray[Any], *, seed: int, epoch: int, rank: int, world_size: int
) -> NDArray[Any]:
    """Return what ffcv's random order does, for any rank."""
    if world_size == 1:
        return np.random.default_rng(seed + epoch).permutation(ids)
    from torch.utils.data import DistributedSampler

    sampler: DistributedSampler[Any]
    sampler = DistributedSampler(ids, world_size, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]  # an array will do
    sampler.set_epoch(epoch)
    return ids[np.array(list(sampler), dtype=np.int64)]


_STOCK: dict[Any, Order] = {
    OrderOption.SEQUENTIAL: sequential_order,
    OrderOption.RANDOM: _ffcv_random,
}


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
