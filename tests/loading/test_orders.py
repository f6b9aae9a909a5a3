"""Orders: every rank's share of every epoch, as pure functions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv.loading import ORDERS, random_order, sequential_order

ID_LISTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True)
NAMES = st.sampled_from(sorted(ORDERS))
# A change of these is a change of what every user's training reads.
GOLDEN = [
    [31, 19, 7, 27, 26, 18, 5, 22, 28, 10, 24, 23, 20, 9, 6, 16,
     3, 0, 15, 17, 25, 12, 21, 11, 14, 30, 2, 4, 29, 1, 13, 8],
    [1, 12, 4, 11, 14, 9, 30, 31, 28, 2, 3, 8, 6, 0, 10, 19,
     23, 7, 20, 24, 16, 18, 15, 13, 17, 25, 26, 21, 22, 5, 27, 29],
]  # fmt: skip


def shares(name: str, ids: Any, world_size: int, **options: Any) -> list[list[int]]:
    return [
        ORDERS[name](ids, rank=rank, world_size=world_size, **options).tolist()
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_random_order_is_the_same_for_ever(epoch: int) -> None:
    assert random_order(np.arange(32), seed=42, epoch=epoch).tolist() == GOLDEN[epoch]


def test_a_sequential_order_is_the_one_given() -> None:
    ids = np.array([5, 3, 9])
    assert sequential_order(ids).tolist() == [5, 3, 9]
    assert sequential_order(ids, seed=4, epoch=2).tolist() == [5, 3, 9]


@given(NAMES, ID_LISTS, st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_an_epoch_holds_every_id_once(name: str, ids: list[int], seed: int, epoch: int) -> None:
    order = ORDERS[name](np.array(ids), seed=seed, epoch=epoch, rank=0, world_size=1)
    assert sorted(order.tolist()) == sorted(ids)


@given(NAMES, ID_LISTS, st.integers(1, 9), st.integers(0, 99))
def test_padded_shares_are_equal_and_cover_the_ids(
    name: str, ids: list[int], world_size: int, epoch: int
) -> None:
    parts = shares(name, np.array(ids), world_size, seed=1, epoch=epoch)
    assert {len(part) for part in parts} == {-(-len(ids) // world_size)}
    together = [number for part in parts for number in part]
    assert set(together) == set(ids)
    padding = len(together) - len(ids)
    assert padding < world_size
    if padding <= len(ids):
        assert all(together.count(number) <= 2 for number in ids)


@given(NAMES, ID_LISTS, st.integers(1, 9), st.integers(0, 99))
def test_dropped_shares_are_equal_and_disjoint(
    name: str, ids: list[int], world_size: int, epoch: int
) -> None:
    parts = shares(name, np.array(ids), world_size, seed=1, epoch=epoch, pad=False)
    assert {len(part) for part in parts} == {len(ids) // world_size}
    together = [number for part in parts for number in part]
    assert len(set(together)) == len(together)
    assert set(together) <= set(ids)


@pytest.mark.parametrize("pad", [True, False])
def test_shares_of_a_number_that_divides_are_the_same_padded_or_not(pad: bool) -> None:
    parts = shares("random", np.arange(12), 3, seed=1, epoch=0, pad=pad)
    assert sorted(number for part in parts for number in part) == list(range(12))
    assert parts == shares("random", np.arange(12), 3, seed=1, epoch=0)


def test_the_shares_are_those_of_the_modules_table() -> None:
    ids = np.arange(5)
    assert shares("sequential", ids, 2, seed=0, epoch=0) == [[0, 2, 4], [1, 3, 0]]
    assert shares("sequential", ids, 2, seed=0, epoch=0, pad=False) == [[0, 2], [1, 3]]


def test_one_ranks_work_is_the_epoch_dealt_out_in_turn() -> None:
    whole = random_order(np.arange(32), seed=42, epoch=0).tolist()
    assert shares("random", np.arange(32), 4, seed=42, epoch=0) == [whole[r::4] for r in range(4)]


def test_epochs_and_seeds_differ_and_equal_arguments_agree() -> None:
    ids = np.arange(100)
    orders = {
        (seed, epoch): tuple(random_order(ids, seed=seed, epoch=epoch))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(set(orders.values())) == 25  # (seed 0, epoch 1) is not (seed 1, epoch 0), above all
    assert tuple(random_order(ids, seed=3, epoch=4)) == orders[3, 4]


def test_the_ids_given_are_left_as_they_are() -> None:
    ids = np.arange(20)
    ids.setflags(write=False)
    random_order(ids, seed=1, epoch=1)
    sequential_order(ids, world_size=3)
    assert ids.tolist() == list(range(20))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
@pytest.mark.parametrize("name", sorted(ORDERS))
def test_a_rank_outside_of_the_group_is_refused(name: str, rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"^`rank` must lie in \[0, {world_size}\); got {rank}"):
        ORDERS[name](np.arange(4), seed=0, epoch=0, rank=rank, world_size=world_size)
