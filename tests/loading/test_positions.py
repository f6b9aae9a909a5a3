"""A resumed epoch yields the samples that are left, for all orders and changes of world size."""

from collections import Counter
from functools import partial
from itertools import chain, zip_longest
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ffcv.loader import OrderOption
from ffcv.traversal_order.random import Random
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.loading.ffcv_adapter.traversal import FunctionOrder, order_factory
from dp4tl_ffcv.loading.orders import quasi_random_order, random_order, sequential_order
from dp4tl_ffcv.loading.positions import Position, Progress, order_from
from tests.support.loading import pretend_rank

FUNCTIONS: dict[str, Any] = {
    "sequential": sequential_order,
    "random": random_order,
    "quasi_random": partial(quasi_random_order, block=3, group=8),
}
# Each id up to three times.
IDS = st.lists(st.integers(0, 60), min_size=1, max_size=70).map(lambda ids: np.array(ids, np.int64))
WORLDS = st.integers(1, 4)


def order_of(function: Any, ids: Any, batch_size: int = 1) -> FunctionOrder:
    loader = SimpleNamespace(
        indices=np.asarray(ids, np.uint64), seed=3, distributed=False, batch_size=batch_size
    )
    order: FunctionOrder = order_factory(function, {})(loader)
    return order


def rests(order: Any, position: Position, world_size: int) -> list[list[int]]:
    return [order_from(order, position, rank, world_size).tolist() for rank in range(world_size)]


def in_turn(shares: list[list[int]]) -> list[int]:
    """Return the ids that all ranks read, in the order in which they read them."""
    return [number for turn in zip_longest(*shares) for number in turn]


@given(
    st.sampled_from(sorted(FUNCTIONS)), IDS, st.booleans(), st.integers(0, 9),
    st.lists(st.tuples(WORLDS, st.integers(0, 6)), min_size=2, max_size=4),
)  # fmt: skip
def test_every_sample_is_read_once_whatever_the_cuts_and_the_numbers_of_ranks(
    name: str, ids: NDArray[Any], pad: bool, epoch: int, parts: list[tuple[int, int]]
) -> None:
    order = order_of(partial(FUNCTIONS[name], pad=pad), ids)
    position, wanted, read = Position(epoch, 1), Counter(ids.tolist()), list[int]()
    for world_size, taken in parts:
        shares = rests(order, position, world_size)
        assert len(set(map(len, shares))) == 1
        found = Counter(chain(*shares))
        if not (pad or position.segments):  # the first ranks may drop samples
            wanted = Counter(ids.tolist()) & found
        left = wanted - Counter(read)
        if pad:
            assert found >= left
            if position.segments:  # padding comes last
                assert Counter(in_turn(shares)[: left.total()]) == left
            assert found.total() - left.total() < world_size
        else:
            assert found <= left
            assert left.total() - found.total() < world_size
        if taken >= len(shares[0]):
            return  # the end of the epoch
        read += in_turn([share[:taken] for share in shares])
        if name != "quasi_random":  # the order over all ranks does not depend on them
            whole = FUNCTIONS[name](ids, seed=3, epoch=epoch).tolist()
            assert read == whole[: len(read)]
        position = position.after(world_size, taken)


@given(
    st.sampled_from(sorted(FUNCTIONS)), IDS, st.booleans(), WORLDS,
    st.lists(st.tuples(WORLDS, st.integers(0, 4)), max_size=2), st.lists(st.integers(0, 3)),
)  # fmt: skip
def test_the_same_ranks_continue_as_if_nothing_had_stopped_them(
    name: str, ids: NDArray[Any], pad: bool, world_size: int,
    before: list[tuple[int, int]], stops: list[int],
) -> None:  # fmt: skip
    order, position = order_of(partial(FUNCTIONS[name], pad=pad), ids), Position(4, 1)
    for ranks, taken in before:
        if taken < len(rests(order, position, ranks)[0]):
            position = position.after(ranks, taken)
    whole, taken = rests(order, position, world_size), 0
    for samples in stops:
        taken = min(taken + samples, len(whole[0]))
        stopped = position.after(world_size, taken)
        assert rests(order, stopped, world_size) == [share[taken:] for share in whole]


def test_the_example_of_the_module() -> None:
    order, position = order_of(sequential_order, np.arange(10)), Position(0, 1).after(2, 2)
    assert rests(order, position, 2) == [[4, 6, 8], [5, 7, 9]]
    assert rests(order, position, 3) == [[4, 7], [5, 8], [6, 9]]
    assert rests(order, position.after(3, 1), 1) == [[7, 8, 9]]
    assert order_from(order, position, 0, 3).dtype == order.indices.dtype  # so code compiles once


def test_an_order_in_groups_keeps_the_groups_of_the_batch_size_with_which_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.loading.ffcv_adapter.traversal._WINDOW", 24)
    ids = np.arange(120)
    whole = order_of("quasi_random", ids, batch_size=8).sample_order(2).tolist()
    other = order_of("quasi_random", ids, batch_size=7)
    assert other.sample_order(2).tolist() != whole
    assert rests(other, Position(2, 8, ((1, 16),)), 1) == [whole[16:]]
    left = chain(*rests(other, Position(2, 8, ((1, 16),)), 2))
    assert sorted(left) == sorted(whole[16:])


def test_ffcvs_random_order_is_known_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(23)
    order = order_of(OrderOption.RANDOM, ids)
    for world_size in (1, 2, 3):
        shares = rests(order, Position(5, 1), world_size)
        for rank, share in enumerate(shares):
            pretend_rank(monkeypatch, rank, world_size)
            loader = SimpleNamespace(indices=ids, seed=3, distributed=world_size > 1)
            assert share == Random(loader).sample_order(5).tolist()
    left = chain(*rests(order, Position(5, 1, ((2, 4),)), 3))
    read = in_turn([share[:4] for share in rests(order, Position(5, 1), 2)])
    assert set(left) == set(range(23)) - set(read)


def test_users_functions_are_called_for_all_ranks() -> None:
    def backwards(ids: Any, *, rank: int, world_size: int, **_: Any) -> Any:
        return ids[::-1][rank : len(ids) // world_size * world_size : world_size]

    order = order_of(backwards, np.arange(9))
    assert rests(order, Position(0, 1, ((2, 1),)), 1) == [[6, 5, 4, 3, 2, 1]]


def test_an_order_that_repeats_samples_continues_with_the_same_ranks_only() -> None:
    def twice(ids: Any, **_: Any) -> Any:  # the same ids on all ranks
        return np.append(ids, ids)

    order, position = order_of(twice, np.arange(3)), Position(0, 1, ((2, 4),))
    assert rests(order, position, 2) == [[1, 2], [1, 2]]
    with pytest.raises(ValueError, match="repeats samples, so that only the world size 2 can"):
        order_from(order, position, 0, 1)


@pytest.mark.parametrize("segments", [((1, 11),), ((2, 6),), ((11, 1),), ((2, 1), (3, 3), (1, 1))])
def test_a_position_past_the_end_is_rejected(segments: Any) -> None:
    order = order_of(sequential_order, np.arange(10))
    for world_size in (1, 2):
        with pytest.raises(ValueError, match=r"with these samples|world size 11, which is more"):
            order_from(order, Position(0, 1, segments), 0, world_size)


def test_progress_counts_what_the_loop_received() -> None:
    start = Position(3, 4, ((2, 8),))
    progress = Progress(start, np.arange(30), world_size=1, length=6)
    assert progress.position == start
    progress.advance(4)
    assert progress.position == Position(3, 4, ((2, 8), (1, 4)))
    assert not progress.finished
    progress.advance(4)
    assert progress.finished
    again = Progress(progress.position, np.arange(30), world_size=1, length=0)
    assert again.finished
    assert again.position == Position(3, 4, ((2, 8), (1, 6)))
