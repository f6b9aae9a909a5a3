"""What a loader's arguments mean, one by one."""

from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
import torch
from ffcv.loader import OrderOption
from ffcv.loader.loader import ORDER_MAP
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from dp4tl_ffcv.loading import ORDERS
from dp4tl_ffcv.loading.caches import cache_name as cache_option
from dp4tl_ffcv.loading.ffcv_adapter.compilation import num_threads as clamp_workers
from dp4tl_ffcv.loading.ffcv_adapter.traversal import order_factory
from dp4tl_ffcv.loading.orders import quasi_random_order

IDS = np.arange(40)


def loader(**changes: Any) -> Any:
    """What an order asks of its loader."""
    return SimpleNamespace(**{"indices": IDS, "seed": 3, "distributed": False, **changes})


class Strided(TraversalOrder):
    """An order with arguments of its own."""

    def __init__(self, of: Any, step: int = 1) -> None:
        super().__init__(of)
        self.step = step

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self.indices[:: self.step]


@pytest.mark.parametrize(
    ("cache", "os_cache", "expected"),
    [
        (None, None, "auto"),
        (None, True, "os"),
        (None, False, "extents"),
        ("auto", True, "auto"),
        ("ram", False, "ram"),
        ("extents", True, "extents"),
        ("os", None, "os"),
    ],
)
def test_a_cache_is_named_in_our_words_or_ffcvs(cache: Any, os_cache: Any, expected: str) -> None:
    assert cache_option(cache, os_cache) == expected


@pytest.mark.parametrize("cache", ["", "RAM", "page", True, 1])
def test_an_unknown_cache_is_refused(cache: Any) -> None:
    with pytest.raises(ValueError, match=r"^`cache` must be one of extents, os, ram, auto; got"):
        cache_option(cache, None)


def test_workers_are_as_many_as_numba_has_at_most() -> None:
    most = numba.config.NUMBA_NUM_THREADS
    assert [clamp_workers(given) for given in (-1, 0, most, most + 1, 10_000)] == [most] * 5
    assert clamp_workers(1) == 1


# Orders.


@pytest.mark.parametrize("option", [OrderOption.SEQUENTIAL, OrderOption.RANDOM])
def test_options_of_ffcv_are_its_own_orders(option: OrderOption) -> None:
    order = order_factory(option, {}, 8)(loader())
    theirs = ORDER_MAP[option](loader())
    assert type(order) is type(theirs)
    for epoch in range(2):
        np.testing.assert_array_equal(order.sample_order(epoch), theirs.sample_order(epoch))


@pytest.mark.parametrize("name", ["sequential", "random"])
def test_names_are_our_functions(name: str) -> None:
    order = order_factory(name, {}, 8)(loader())
    for epoch in range(2):
        expected = ORDERS[name](IDS, seed=3, epoch=epoch, rank=0, world_size=1)
        np.testing.assert_array_equal(order.sample_order(epoch), expected)


@pytest.mark.parametrize("given", [OrderOption.QUASI_RANDOM, "quasi_random"])
@pytest.mark.parametrize(
    ("batch_size", "window"), [(1, 4096), (8, 4096), (100, 4100), (1500, 4500), (5000, 5000)]
)
def test_quasi_random_order_mixes_the_samples_that_are_read_together(
    given: Any, batch_size: int, window: int
) -> None:
    order = order_factory(given, {}, batch_size)(loader(indices=np.arange(9000)))
    assert order.window_size == window
    assert window % batch_size == 0
    expected = quasi_random_order(np.arange(9000), seed=3, epoch=1, group=window)
    np.testing.assert_array_equal(order.sample_order(1), expected)


def test_a_function_gets_its_place_in_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    asked = []

    def function(ids: Any, **place: int) -> Any:
        asked.append(place)
        return ids

    for distributed in (True, False):
        order_factory(function, {}, 8)(loader(distributed=distributed)).sample_order(7)
    assert asked == [
        {"seed": 3, "epoch": 7, "rank": 2, "world_size": 5},
        {"seed": 3, "epoch": 7, "rank": 0, "world_size": 1},
    ]


def test_a_class_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, strided = (order_factory(Strided, given, 8)(loader()) for given in ({}, {"step": 4}))
    assert len(plain.sample_order(0)) == 40
    assert strided.sample_order(0).tolist() == list(range(0, 40, 4))
    monkeypatch.setitem(ORDER_MAP, "strided", Strided)
    assert isinstance(order_factory("strided", {}, 8)(loader()), Strided)


def test_any_callable_is_a_function() -> None:
    class Reverse:
        def __call__(self, ids: Any, **_: int) -> Any:
            return ids[::-1]

    for function in (Reverse(), lambda ids, **_: ids[::-1]):
        order = order_factory(function, {}, 8)(loader())
        np.testing.assert_array_equal(order.sample_order(0), IDS[::-1])


@pytest.mark.parametrize("given", ["shuffled", 2, None, dict, [1, 2], {"a": 1}, np.arange(3)])
def test_an_unknown_order_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^`order` must be an OrderOption, one of sequential"):
        order_factory(given, {}, 8)
