"""Orders: pure functions from sample ids to the ids that one rank reads in one epoch.

With ids 0 to 4 and two ranks, `sequential_order` deals them out in turn; the last round is filled
up from the start, or dropped, so that all ranks take the same number of steps:

    rank   pad      drop
    0      0 2 4    0 2
    1      1 3 0    1 3

`random_order` deals out a permutation in the same way. `quasi_random_order` shuffles blocks of
neighbours, gives every rank whole blocks, and then mixes the samples of a few blocks; here ids 0
to 15 for one rank with block=2 and group=8:

    blocks   10 11   12 13    0  1   14 15  |   4  5    8  9    6  7    2  3
    order    10 11 1 14 0 13 12 15          |   2 9 3 8 4 5 7 6
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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

    For disks on which a jump costs more than a sample. Sorted, the ids follow the file; `block`
    consecutive ones stay together, so that `group` samples lie in about `group / block` places.
    Where the blocks begin changes with the epoch.

    Args:
        ids: sample ids in any order; an id given twice is read twice.
        seed: of the permutation.
        epoch: of the permutation.
        rank: whose share to return.
        world_size: number of ranks.
        pad: fill the shares up to equal length from the start of the permutation, instead of
            dropping what does not divide.
        block: neighbours in the file that are read together.
        group: samples of a share that are shuffled together: what the reader should hold at a
            time, and several batches, so that a batch draws on many blocks.
    """
    _check_rank(rank, world_size)
    _check_positive("block", block, "Choose how many neighbours stay together.")
    _check_positive("group", group, "Choose how many samples are mixed.")
    seeds = np.random.SeedSequence((seed, epoch))
    places = _shuffled_blocks(len(ids), block, np.random.default_rng(seeds))
    share = places[_share_of_blocks(len(ids), block, rank, world_size, pad)]
    # A stream of its own for every rank, apart from the one that all ranks share.
    own = np.random.SeedSequence((seed, epoch), spawn_key=(rank,))
    return np.sort(ids)[_shuffled_groups(share, group, np.random.default_rng(own))]


def _deal(ids: NDArray[np.int64], rank: int, world_size: int, pad: bool) -> NDArray[np.int64]:
    """Deal `ids` out in turn, as a copy."""
    _check_rank(rank, world_size)
    rounds, rest = divmod(len(ids), world_size)
    share = ids[rank : rounds * world_size : world_size]
    if not (pad and rest):
        return share.copy()
    last = (rounds * world_size + rank) % len(ids)
    return np.append(share, ids[last : last + 1])


def _shuffled_blocks(n: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a permutation of 0 to n - 1 in runs of `block`, but for the last, shorter one.

    The runs begin at a random place and go round the end. Otherwise the same last few samples
    would be in the short run, and thus be those dropped, in every epoch.
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
    """Return where in the permutation a rank's share is: whole blocks, then part of the rest."""
    length = -(-n // world_size) if pad else n // world_size
    whole = n // block // world_size * block
    rest = length - whole
    shared = whole * world_size + rank * rest
    return np.concatenate(
        [np.arange(rank * whole, (rank + 1) * whole), np.arange(shared, shared + rest) % max(n, 1)]
    )


def _shuffled_groups(
    places: NDArray[np.int64], group: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    whole = len(places) // group * group
    groups = rng.permuted(places[:whole].reshape(-1, group), axis=1)
    return np.concatenate([groups.ravel(), rng.permutation(places[whole:])])


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(
            f"`rank` must lie in [0, {world_size}); got {rank}. Check the process group."
        )


def _check_positive(name: str, value: int, advice: str) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1; got {value}. {advice}")


ORDERS: dict[str, Order] = {
    "quasi_random": quasi_random_order,
    "random": random_order,
    "sequential": sequential_order,
}
