"""Orders: pure functions from sample ids to the ids that one rank reads in one epoch.

A function of this module called `NAME_order` is the order "NAME".

`sequential_order` gives each rank every `world_size`-th id. The last round is padded from the start
or dropped, so that all ranks take the same number of steps. With ids 0 to 4 and two ranks, rank 0
gets 0 2 4 and rank 1 gets 1 3 0 (padded), or 0 2 and 1 3 (dropped).

`random_order` shares out a permutation in the same way. `quasi_random_order` shuffles blocks of
neighbours, gives each rank whole blocks, and then shuffles the samples of a few blocks together.
With ids 0 to 15, one rank, block=2 and group=8:

    blocks   10 11   12 13    0  1   14 15  |   4  5    8  9    6  7    2  3
    order    10 11 1 14 0 13 12 15          |   2 9 3 8 4 5 7 6
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..validate import check_int


class Order(Protocol):
    """A function that `PrunedLoader` calls at the start of every epoch."""

    def __call__(
        self, ids: NDArray[np.int64], *, seed: int, epoch: int, rank: int, world_size: int
    ) -> NDArray[np.int64]:
        """Return the ids that `rank` reads in `epoch`, in order."""


ORDERS: dict[str, Order]  # see __getattr__


def sequential_order(
    ids: NDArray[np.int64],
    *,
    seed: int = 0,  # noqa: ARG001  # all orders have the same arguments
    epoch: int = 0,  # noqa: ARG001
    rank: int = 0,
    world_size: int = 1,
    pad: bool = True,
) -> NDArray[np.int64]:
    """Return this rank's share of `ids` in the order given."""
    return _deal(ids, rank, world_size, pad)


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
    return _deal(np.random.default_rng((seed, epoch)).permutation(ids), rank, world_size, pad)


def quasi_random_order(
    ids: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    pad: bool = True,
    block: int = 16,
    group: int = 2048,
) -> NDArray[np.int64]:
    """Return this rank's share of a random order that reads neighbours together.

    Use this order on disks where a seek costs more than reading a sample. `block` consecutive ids
    stay together, so that `group` samples come from about `group / block` places in the file. The
    blocks start at other ids in each epoch.

    Args:
        ids: sample ids in any order. An id given twice is read twice.
        seed: seed of the permutation.
        epoch: epoch number. Each epoch has its own permutation.
        rank: rank whose share to return.
        world_size: number of ranks.
        pad: pad the shares to equal length from the start of the permutation, instead of dropping
            the remainder.
        block: number of neighbours in the file that are read together.
        group: number of samples that are shuffled together. Use several batches, so that each
            batch holds samples of many blocks, but no more than fit into memory.
    """
    _check_rank(rank, world_size)
    check_int("block", block, 1)
    check_int("group", group, 1)
    seeds = np.random.SeedSequence((seed, epoch))
    places = _shuffled_blocks(len(ids), block, np.random.default_rng(seeds))
    share = places[_share_of_blocks(len(ids), block, rank, world_size, pad)]
    # Each rank shuffles with its own seed, which differs from the seed that all ranks share.
    own = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(rank,)))
    whole = len(share) // group * group
    groups = own.permuted(share[:whole].reshape(-1, group), axis=1)
    shuffled = np.concatenate([groups.ravel(), own.permutation(share[whole:])])
    order: NDArray[np.int64] = np.sort(ids)[shuffled]
    return order


def _deal(ids: NDArray[np.int64], rank: int, world_size: int, pad: bool) -> NDArray[np.int64]:
    """Return a copy of every `world_size`-th id, starting with number `rank`."""
    _check_rank(rank, world_size)
    rounds, rest = divmod(len(ids), world_size)
    share = ids[rank : rounds * world_size : world_size]
    if not (pad and rest):
        return share.copy()
    last = (rounds * world_size + rank) % len(ids)
    return np.append(share, ids[last : last + 1])


def _shuffled_blocks(n: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a permutation of 0 to n - 1 in runs of `block`; the last run may be shorter.

    The runs start at a random place and wrap around, so that the samples of the short run, which
    may be dropped, differ between epochs.
    """
    start = rng.integers(max(n, 1))
    whole = n // block * block
    blocks = rng.permutation(np.arange(whole).reshape(-1, block))
    places = np.concatenate([blocks.ravel(), np.arange(whole, n)]) + start
    places[places >= n] -= n
    return places


def _share_of_blocks(
    n: int, block: int, rank: int, world_size: int, pad: bool
) -> NDArray[np.int64]:
    """Return the positions of a rank's share in the permutation: whole blocks, then a remainder."""
    length = -(-n // world_size) if pad else n // world_size
    whole = n // block // world_size * block
    rest = length - whole
    shared = whole * world_size + rank * rest
    return np.concatenate(
        [np.arange(rank * whole, (rank + 1) * whole), np.arange(shared, shared + rest) % max(n, 1)]
    )


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must lie in [0, {world_size}); got {rank}.")


def __getattr__(name: str) -> dict[str, Order]:
    """Return `ORDERS`, all orders of this module by name, wherever in the file they stand."""
    if name != "ORDERS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return {
        each.removesuffix("_order"): function
        for each, function in globals().items()
        if each.endswith("_order") and not each.startswith("_")
    }
