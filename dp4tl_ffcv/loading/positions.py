"""Positions in an epoch, from which any number of ranks can continue.

Orders are pure functions, so a position holds no sample ids. It describes an epoch in progress by
segments: a world size, and the number of samples that each rank has taken. With the same world size
a rank skips what it has taken. Otherwise the ranks' remainders are interleaved, and the new ranks
share the samples that are left: each gets every `world_size`-th. With ids 0 to 9 in sequential
order, two ranks take two samples each, and three ranks continue:

    2 ranks     0 2 | 4 6 8     1 3 | 5 7 9
    left        4 5 6 7 8 9
    3 ranks     4 7     5 8     6 9
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ffcv_adapter.traversal import FunctionOrder, check_order, name_of
from .orders import sequential_order


@dataclass(frozen=True)
class Position:
    """A position in an epoch, the same on all ranks."""

    epoch: int
    batch_size: int
    """Batch size with which the epoch began. Orders with groups depend on it."""
    segments: tuple[tuple[int, int], ...] = ()
    """World size and samples per rank. Neighbours have different world sizes."""

    def after(self, world_size: int, samples: int) -> "Position":
        """Return the position after each of `world_size` ranks has taken more samples."""
        before = self.segments
        if before and before[-1][0] == world_size:
            samples += before[-1][1]
            before = before[:-1]
        return replace(self, segments=(*before, (world_size, samples)) if samples else before)


class Progress:
    """The progress of the training loop in an epoch.

    Args:
        start: position at which the loop began.
        ids: retained samples of the epoch.
        world_size: number of ranks.
        length: samples that this rank will yield.
    """

    def __init__(self, start: Position, ids: NDArray[Any], world_size: int, length: int) -> None:
        self.start = start
        self.ids = ids
        self.length = length
        self._world_size = world_size
        self._taken = 0

    def advance(self, samples: int) -> None:
        """Count a batch that the loop has received."""
        self._taken = min(self._taken + samples, self.length)

    @property
    def finished(self) -> bool:
        """Whether the loop has received the last batch."""
        return self._taken == self.length

    @property
    def position(self) -> Position:
        """The position after the batches that the loop has received."""
        return self.start.after(self._world_size, self._taken)


def order_from(order: Any, position: Position, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the ids that a rank still has to read in an epoch.

    Args:
        order: the traversal order of a loader.
        position: position in the epoch.
        rank: rank whose ids to return.
        world_size: number of ranks from here on.

    Raises:
        ValueError: `position` is past the end of the epoch, or the order is a class and cannot
            give the samples of other ranks.
    """
    before, taken = list(position.segments), 0
    if before and before[-1][0] == world_size:
        taken = before.pop()[1]
    if before:
        left = _samples_left(order, position, before)
        ids = sequential_order(left, rank=rank, world_size=world_size, pad=order.pads)
    elif isinstance(order, FunctionOrder):
        ids = order.share(position.epoch, rank, world_size, position.batch_size)
    else:
        ids = np.asarray(order.sample_order(position.epoch))
    _check_length(taken, len(ids))
    return ids[taken:]


def _samples_left(
    order: Any, position: Position, segments: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """Return the ids that are left after these segments, in the order in which ranks share them."""
    (world_size, taken), *others = segments
    if not isinstance(order, FunctionOrder):
        raise ValueError(
            f"`state` is of an epoch that began with world size {world_size}. The order "
            f"{name_of(order)!r} is a class, which gives only the samples of its own rank, so that "
            "no other world size can continue the epoch. Use an order by name, or a function."
        )
    ids = order.indices.astype(np.int64)
    if world_size > len(ids):
        raise ValueError(
            f"`state` is of an epoch that began with world size {world_size}, which is more than "
            f"its {len(ids)} samples. Continue it with {world_size} ranks."
        )
    options = {"world_size": world_size, "batch_size": position.batch_size}
    shares = [order.share(position.epoch, rank, **options) for rank in range(world_size)]
    num_ids = int(ids.max()) + 1
    shares = [check_order(share, ids, num_ids).astype(np.int64) for share in shares]
    _check_length(taken, min(map(len, shares)))
    left = unseen(ids, shares, taken)
    skipped = sum(ranks * samples for ranks, samples in others)
    _check_length(skipped, len(left))
    return left[skipped:].astype(order.indices.dtype)  # the type that code is compiled for


def unseen(
    ids: NDArray[np.int64], shares: Sequence[NDArray[np.int64]], taken: int
) -> NDArray[np.int64]:
    """Return the samples of an epoch that no rank has taken, each as often as in `ids`.

    Args:
        ids: retained samples `(M,)`.
        shares: ids of each rank, in its order.
        taken: samples that each rank has taken.

    Returns:
        the next id of rank 0, the next id of rank 1 and so on, without the ids that were only
        repeated to give the ranks equal shares.

    Raises:
        ValueError: the shares repeat more ids than that.
    """
    size = int(ids.max(initial=-1)) + 1
    wanted = np.bincount(ids, minlength=size)
    repeated = np.bincount(np.concatenate(shares), minlength=size) - wanted
    if repeated.clip(min=0).sum() >= len(shares):
        raise ValueError(
            f"`state` is of an epoch whose order repeats samples, so that only the world size "
            f"{len(shares)} can continue it."
        )
    wanted -= np.bincount(np.concatenate([share[:taken] for share in shares]), minlength=size)
    rests = [share[taken:] for share in shares]
    rounds = np.concatenate([np.arange(len(rest)) for rest in rests])
    left = np.concatenate(rests)[np.argsort(rounds, kind="stable")]
    return left[_earlier(left) < wanted[left]]


def _earlier(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each value how many equal values precede it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(values)]
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(values)), 0))
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.arange(len(values)) - starts
    return counts


def _check_length(taken: int, length: int) -> None:
    if taken > length:
        raise ValueError(
            f"`state` is not the state of a PrunedLoader with these samples: {taken} were taken "
            f"of {length}."
        )
