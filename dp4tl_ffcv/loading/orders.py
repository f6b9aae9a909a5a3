"""Orders: pure functions from sample ids to the ids that one rank reads in one epoch.

With ids 0 to 4 and two ranks, `sequential_order` deals them out in turn; the last round is filled
up from the start, or dropped, so that all ranks take the same number of steps:

    rank   pad      drop
    0      0 2 4    0 2
    1      1 3 0    1 3
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ORDERS", "Order", "random_order", "sequential_order"]


class Order(Protocol):
    """What `PrunedLoader` calls at the start of every epoch."""

    def __call__(
        self, ids: NDArray[np.int64], *, seed: int, epoch: int, rank: int, world_size: int
    ) -> NDArray[np.int64]:
        """Return the ids that `rank` reads in `epoch`, in order."""


def sequential_order(
    ids: NDArray[np.int64],
    *,
    seed: int = 0,  # noqa: ARG001  # every order takes the same arguments
    epoch: int = 0,  # noqa: ARG001
    rank: int = 0,
    world_size: int = 1,
    pad: bool = True,
) -> NDArray[np.int64]:
    """Return this rank's share of `ids` in the order given."""
    return _share(ids, rank, world_size, pad)


def random_order(
    ids: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    pad: bool = True,
) -> NDArray[np.int64]:
    """Return this rank's share of a permutation that `(seed, epoch)` alone determines."""
    return _share(np.random.default_rng((seed, epoch)).permutation(ids), rank, world_size, pad)


def _share(ids: NDArray[np.int64], rank: int, world_size: int, pad: bool) -> NDArray[np.int64]:
    if not 0 <= rank < world_size:
        raise ValueError(
            f"`rank` must lie in [0, {world_size}); got {rank}. Check the process group."
        )
    if pad:
        length = -(-len(ids) // world_size) * world_size
        return np.resize(ids, length)[rank::world_size]
    return ids[: len(ids) // world_size * world_size][rank::world_size]


ORDERS: dict[str, Order] = {"sequential": sequential_order, "random": random_order}
