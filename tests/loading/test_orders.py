"""Every rank's share of every epoch, for each order."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.loading.orders import ORDERS, quasi_random_order, random_order, sequential_order

SHUFFLED = ["quasi_random", "random"]
OPTIONS = {
    "quasi_random": st.fixed_dictionaries(
        {}, optional={"block": st.integers(1, 90), "group": st.integers(1, 90)}
    ),
    "random": st.just({}),
    "sequential": st.just({}),
}
CASES = st.sampled_from(sorted(ORDERS)).flatmap(
    lambda name: st.tuples(st.just(name), OPTIONS[name])
)
IDS = st.lists(st.integers(0, 60), max_size=80).map(lambda ids: np.array(ids, np.int64))
WORLDS = st.integers(1, 9)
SEEDS = st.integers(0, 2**63)
EPOCHS = st.integers(0, 1000)
# If these change, the order of every user's training changes.
RANDOM = [
    [31, 19, 7, 27, 26, 18, 5, 22, 28, 10, 24, 23, 20, 9, 6, 16,
     3, 0, 15, 17, 25, 12, 21, 11, 14, 30, 2, 4, 29, 1, 13, 8],
    [1, 12, 4, 11, 14, 9, 30, 31, 28, 2, 3, 8, 6, 0, 10, 19,
     23, 7, 20, 24, 16, 18, 15, 13, 17, 25, 26, 21, 22, 5, 27, 29],
]  # fmt: skip
QUASI_RANDOM = [
    [16, 31, 10, 0, 15, 17, 14, 2, 5, 3, 11, 1, 13, 12, 30, 4,
     28, 8, 24, 25, 26, 23, 29, 27, 20, 9, 19, 21, 22, 18, 7, 6],
    [6, 20, 21, 7, 19, 17, 22, 23, 25, 24, 18, 5, 27, 26, 4, 16,
     10, 11, 29, 1, 9, 12, 14, 8, 15, 31, 30, 0, 2, 28, 13, 3],
]  # fmt: skip
QUASI_RANDOM_SHARES = [
    [9, 3, 2, 10, 4, 12, 1, 11, 18, 17],
    [14, 15, 5, 13, 6, 7, 16, 8, 0, 1],
]


def shares(name: str, ids: NDArray[Any], world_size: int, **options: Any) -> list[list[int]]:
    return [
        ORDERS[name](ids, rank=rank, world_size=world_size, **options).tolist()
        for rank in range(world_size)
    ]


def permutation(name: str, ids: NDArray[Any], **options: Any) -> NDArray[Any]:
    """Return the order of all ranks together, before groups are shuffled."""
    if name == "quasi_random":
        options["group"] = 1
    return ORDERS[name](ids, rank=0, world_size=1, **options)


def joined(parts: list[list[int]]) -> Counter[int]:
    return Counter(number for part in parts for number in part)


def runs(positions: NDArray[Any]) -> int:
    """Return the number of runs of consecutive positions."""
    return int(np.count_nonzero(np.diff(np.sort(positions)) > 1)) + 1


def test_orders_never_change() -> None:
    for epoch in range(2):
        assert random_order(np.arange(32), seed=42, epoch=epoch).tolist() == RANDOM[epoch]
        order = quasi_random_order(np.arange(32), seed=42, epoch=epoch, block=4, group=16)
        assert order.tolist() == QUASI_RANDOM[epoch]
    parts = shares("quasi_random", np.arange(19), 2, seed=42, epoch=0, block=4, group=8)
    assert parts == QUASI_RANDOM_SHARES
    ids = np.array([5, 3, 9])
    assert sequential_order(ids).tolist() == sequential_order(ids, seed=4, epoch=2).tolist()
    # The examples of the module's docstring.
    ids = np.arange(5)
    assert shares("sequential", ids, 2, seed=0, epoch=0) == [[0, 2, 4], [1, 3, 0]]
    assert shares("sequential", ids, 2, seed=0, epoch=0, pad=False) == [[0, 2], [1, 3]]


@given(CASES, IDS, WORLDS, SEEDS, EPOCHS, st.booleans())
def test_shares_are_pure_functions_have_equal_length_and_make_one_permutation(
    case: tuple[str, dict[str, int]],
    ids: NDArray[Any],
    world_size: int,
    seed: int,
    epoch: int,
    pad: bool,
) -> None:
    name, options = case
    options = {**options, "seed": seed, "epoch": epoch}
    before = ids.copy()
    ids.setflags(write=not ids.size)  # numpy cannot permute an empty read-only array
    states = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    parts = shares(name, ids, world_size, pad=pad, **options)
    assert (random.getstate(), str(np.random.get_state())) == states  # noqa: NPY002
    assert parts == shares(name, before.copy(), world_size, pad=pad, **options)
    assert np.array_equal(ids, before)
    length = -(-len(ids) // world_size) if pad else len(ids) // world_size
    assert {len(part) for part in parts} == {length}
    whole = permutation(name, ids, **options)
    assert sorted(whole) == sorted(ids)
    # np.resize fills up from the start
    assert joined(parts) == Counter(np.resize(whole, length * world_size).tolist())


@pytest.mark.parametrize("name", SHUFFLED)
def test_epochs_and_seeds_differ(name: str) -> None:
    ids = np.arange(100)
    orders = {
        (seed, epoch): tuple(ORDERS[name](ids, seed=seed, epoch=epoch, rank=0, world_size=1))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(set(orders.values())) == 25


@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
@pytest.mark.parametrize("name", sorted(ORDERS))
def test_an_order_is_a_new_array_of_the_ids_dtype(name: str, dtype: Any) -> None:
    for n in (0, 8, 9):
        ids = np.arange(n).astype(dtype)
        order = ORDERS[name](ids, seed=0, epoch=0, rank=0, world_size=2)
        assert order.dtype == dtype
        assert not np.shares_memory(order, ids)


@given(IDS, WORLDS, EPOCHS, st.integers(1, 20))
def test_a_ranks_share_is_whole_blocks_up_to_the_remainder(
    ids: NDArray[Any], world_size: int, epoch: int, block: int
) -> None:
    options = {"seed": 1, "epoch": epoch, "block": block, "group": 1}
    whole = permutation("quasi_random", ids, **options).tolist()
    length = len(ids) // block // world_size * block
    for rank, part in enumerate(shares("quasi_random", ids, world_size, **options)):
        assert part[:length] == whole[rank * length : (rank + 1) * length]


@given(IDS, WORLDS, EPOCHS, st.integers(1, 20), st.integers(1, 90))
def test_samples_are_shuffled_within_groups_only(
    ids: NDArray[Any], world_size: int, epoch: int, block: int, group: int
) -> None:
    options = {"seed": 1, "epoch": epoch, "block": block}
    before = shares("quasi_random", ids, world_size, group=1, **options)
    after = shares("quasi_random", ids, world_size, group=group, **options)
    for one, other in zip(before, after, strict=True):
        for start in range(0, len(one), group):
            window = slice(start, start + group)
            assert sorted(one[window]) == sorted(other[window])


def test_ranks_and_groups_are_shuffled_differently() -> None:
    parts = shares("quasi_random", np.arange(256), 2, seed=0, epoch=0, block=64, group=64)
    shuffles = {tuple(np.argsort(part[at : at + 64])) for part in parts for at in (0, 64)}
    assert len(shuffles) == 4


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 3000), WORLDS, EPOCHS, st.booleans())
def test_a_group_is_read_from_few_places(
    block: int, blocks: int, n: int, world_size: int, epoch: int, pad: bool
) -> None:
    group = block * blocks
    options = {"seed": 2, "epoch": epoch, "pad": pad, "block": block, "group": group}
    for part in shares("quasi_random", np.arange(n), world_size, **options):
        for start in range(0, len(part), group):
            # The last group may hold partial blocks, and one block may wrap around the file's end.
            assert runs(np.array(part[start : start + group])) <= blocks + 3


def test_batches_hold_many_classes_if_the_file_is_in_class_order() -> None:
    labels = np.repeat(np.arange(100), 400)
    classes = {
        name: [len(np.unique(labels[order[at : at + 64]])) for at in range(0, len(order) - 64, 64)]
        for name in SHUFFLED
        for order in [ORDERS[name](np.arange(40_000), seed=0, epoch=0, rank=0, world_size=1)]
    }
    assert np.mean(classes["quasi_random"]) > 0.8 * np.mean(classes["random"])
    assert min(classes["quasi_random"]) > 0.6 * min(classes["random"])


def test_quasi_random_order_does_not_depend_on_the_order_of_ids() -> None:
    ids = np.arange(50) * 7
    expected = quasi_random_order(ids, seed=0, epoch=0, block=4, group=8)
    shuffled = random_order(ids, seed=1, epoch=0)
    order = quasi_random_order(shuffled, seed=0, epoch=0, block=4, group=8)
    assert order.tolist() == expected.tolist()


@pytest.mark.parametrize("name", SHUFFLED)
def test_no_sample_is_dropped_in_every_epoch(name: str) -> None:
    options = {"block": 8} if name == "quasi_random" else {}
    seen: set[int] = set()
    for epoch in range(30):
        seen |= set(
            joined(shares(name, np.arange(35), 4, seed=0, epoch=epoch, pad=False, **options))
        )
    assert len(seen) == 35


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        *((ORDERS, {"rank": rank, "world_size": size}, rf"^`rank` must .* {size}\); got {rank}")
          for rank, size in ((2, 2), (-1, 2), (0, 0))),
        *((["quasi_random"], {name: value}, f"^`{name}` must be at least 1; got {value}")
          for name in ("block", "group") for value in (0, -3)),
    ],
)  # fmt: skip
def test_bad_arguments_of_orders_are_rejected(names: Any, options: Any, match: str) -> None:
    for name in names:
        with pytest.raises(ValueError, match=match):
            ORDERS[name](np.arange(4), **{"seed": 0, "epoch": 0, **options})
