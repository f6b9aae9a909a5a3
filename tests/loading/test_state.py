"""Loaders that continue in mid-epoch: the same batches, pixels and errors as users see them."""

import json
from collections.abc import Callable
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import ToTensor
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray
from torch.distributed.checkpoint.stateful import Stateful

from dp4tl_ffcv import (
    PrunedLoader,
    RandomResizedCropRGBImageDecoder,
    StaleArtifactError,
    training_loader,
)
from dp4tl_ffcv.loading.orders import quasi_random_order
from tests.support.loading import ids_of, loader_of, of_classes, only, pretend_rank

BATCH = 7  # does not divide the 120 samples


class Backwards(TraversalOrder):
    """An order as ffcv's users write them."""

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return np.roll(self.indices[::-1], epoch)


ORDERS: dict[str, Any] = {
    "sequential": "sequential",
    "random": "random",
    "quasi_random": "quasi_random",
    "small groups": partial(quasi_random_order, block=4, group=24),
    "ffcv's random": OrderOption.RANDOM,
    "a class": Backwards,
}


def take(loader: PrunedLoader, count: int) -> tuple[list[Any], dict[str, Any]]:
    """Return copies of the first batches of an epoch, and the state after them."""
    batches = iter(loader)
    found = [[part.clone() for part in next(batches)] for _ in range(count)]
    return found, loader.state_dict()


def whole(loader: PrunedLoader) -> list[Any]:
    return [[part.clone() for part in batch] for batch in loader]


def assert_equal_batches(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        for part, same in zip(batch, other, strict=True):
            assert torch.equal(part, same)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("name", ORDERS)
def test_a_continued_epoch_has_the_batches_of_one_without_interruption(
    name: str, drop_last: bool, photos: Any
) -> None:
    def make(**options: Any) -> PrunedLoader:
        crops = [RandomResizedCropRGBImageDecoder((16, 16), flip=0.5), ToTensor()]
        pipelines = only(image=crops, label=[IntDecoder(), ToTensor()])
        options = {"cache": "extents", "num_workers": 1, **options}
        return loader_of(
            photos, BATCH, order=ORDERS[name], seed=5, drop_last=drop_last, pipelines=pipelines,
            **options,
        )  # fmt: skip

    uninterrupted = make()
    epochs = [whole(uninterrupted) for _ in range(3)]
    first = make()
    whole(first)
    found, state = take(first, 5)
    assert_equal_batches(found, epochs[1][:5])
    second = make(cache="ram", num_workers=2, batches_ahead=1)
    second.load_state_dict(json.loads(json.dumps(state)))
    assert len(second) == len(epochs[1])
    found, state = take(second, 4)
    assert_equal_batches(found, epochs[1][5:9])
    third, file = make(), BytesIO()
    torch.save(state, file)
    file.seek(0)
    third.load_state_dict(torch.load(file, weights_only=True))
    assert_equal_batches(whole(third), epochs[1][9:])
    assert_equal_batches(whole(third), epochs[2])


def test_the_state_follows_the_loop_and_not_what_is_read_ahead(colours: Any) -> None:
    loader = loader_of(colours, 50, order="random", seed=1, batches_ahead=3)
    assert isinstance(loader, Stateful)
    start = loader.state_dict()
    assert (start["version"], start["epoch"], start["segments"]) == (1, 0, [])
    epoch = iter(loader)
    assert loader.state_dict() == start
    next(epoch)
    assert loader.state_dict() == {**start, "segments": [[1, 50]]}
    next(epoch)
    middle = loader.state_dict()
    assert middle == {**start, "segments": [[1, 100]]}
    next(epoch)  # the last batch
    end = {**start, "epoch": 1}
    assert loader.state_dict() == end
    assert list(epoch) == []
    assert loader.state_dict() == end

    loader.load_state_dict(middle)
    assert loader.state_dict() == middle
    assert [len(loader.plan_epoch(number).order) for number in (0, 1)] == [20, 120]
    for batch in loader:
        assert len(batch[0]) == 20
    assert loader.state_dict() == end
    loader.load_state_dict(end)
    assert len(ids_of(loader, colours)) == 120
    for _ in loader:
        break  # the state stays in this epoch until the next one begins
    assert loader.state_dict() == {**start, "epoch": 2, "segments": [[1, 50]]}
    assert len(ids_of(loader, colours)) == 120
    assert loader.state_dict() == {**start, "epoch": 4}


def test_set_epoch_keeps_a_loaded_position_in_that_epoch_only(colours: Any) -> None:
    loader = loader_of(colours, 50, order="random", seed=1)
    _, state = take(loader, 2)
    for epoch, count in ((0, 20), (1, 120)):
        loader.load_state_dict(state)
        loader.set_epoch(epoch)
        assert len(ids_of(loader, colours)) == count
        assert loader.next_epoch == epoch + 1


def test_a_rest_without_a_whole_batch_yields_nothing(colours: Any) -> None:
    _, state = take(loader_of(colours, 50, order="random", seed=1), 2)
    loader = loader_of(colours, 40, order="random", seed=1, drop_last=True)
    loader.load_state_dict(state)
    assert list(loader) == []
    assert (loader.state_dict()["epoch"], loader.state_dict()["segments"]) == (1, [])
    assert len(ids_of(loader, colours)) == 120


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "a class"])
def test_other_numbers_of_ranks_read_what_is_left(
    name: str, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranks(world_size: int, batch_size: int) -> list[PrunedLoader]:
        loaders = []
        for rank in range(world_size):
            pretend_rank(monkeypatch, rank, world_size)
            options = {"num_workers": 1, "distributed": world_size > 1, "seed": 4}
            loaders.append(loader_of(colours, batch_size, order=ORDERS[name], **options))
        return loaders

    state: dict[str, Any] = {}
    read: list[int] = []
    for world_size, batch_size, count in ((2, 7, 3), (3, 6, 2), (1, 12, 99)):
        shares, states = [], []
        for rank, loader in enumerate(ranks(world_size, batch_size)):
            pretend_rank(monkeypatch, rank, world_size)
            if state:
                loader.load_state_dict(state)
            shares.append(ids_of(islice(iter(loader), count), colours))
            states.append(loader.state_dict())
            assert len(loader) == -(-120 // world_size // batch_size)
        assert all(other == states[0] for other in states)
        state = states[0]
        read += np.stack(shares, axis=1).ravel().tolist()
    assert sorted(read) == list(range(120))
    assert (state["epoch"], state["segments"]) == (1, [])
    if name in ("sequential", "random"):
        assert read == loader_of(colours, 1, order=name, seed=4).plan_epoch(0).order.tolist()


def test_a_class_of_orders_continues_with_its_own_number_of_ranks_only(
    colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = take(loader_of(colours, BATCH, order=Backwards, seed=0), 1)
    pretend_rank(monkeypatch, 0, 2)
    loader = loader_of(colours, BATCH, order=Backwards, seed=0, distributed=True)
    with pytest.raises(ValueError, match=r"world size 1\. The order 'Backwards'"):
        loader.load_state_dict(state)


def test_training_loaders_of_other_numbers_of_ranks_have_the_same_steps(
    colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """119 samples: each rank of two drops one, and one rank does not."""

    def make(rank: int, world_size: int) -> PrunedLoader:
        pretend_rank(monkeypatch, rank, world_size)
        return training_loader(
            colours.path, selection=of_classes(colours, range(9)), batch_size=16 // world_size,
            resolution=8, seed=2, num_workers=1, distributed=world_size > 1,
        )  # fmt: skip

    def shown(batches: Any) -> list[list[int]]:
        return [colours.ids_of(images.permute(0, 2, 3, 1)).tolist() for images, _ in batches]

    alone = make(0, 1)
    steps = shown(alone)
    _, state = take(make(0, 2), 2)
    alone.load_state_dict(state)
    assert [sorted(step) for step in shown(alone)] == [sorted(step) for step in steps[2:]]
    alone.set_epoch(0)
    _, state = take(alone, 4)
    halves = []
    for rank in range(2):
        loader = make(rank, 2)
        loader.load_state_dict(state)
        halves.append(shown(loader))
    both = [sorted(a + b) for a, b in zip(*halves, strict=True)]
    assert both == [sorted(step) for step in steps[4:]]


def test_a_state_belongs_to_the_samples_of_its_epoch(colours: Any) -> None:
    first, second = of_classes(colours, [1, 2, 3]), of_classes(colours, [4, 5])
    loader = loader_of(colours, 8, selection=first, seed=0, order="random")
    expected = ids_of(loader, colours)
    loader.set_epoch(0)
    epoch = iter(loader)
    next(epoch)
    before = loader.state_dict()
    loader.set_selection(second)
    assert loader.state_dict() == before  # the running epoch keeps its samples
    with pytest.raises(ValueError, match="`set_selection` with the selection of that epoch"):
        loader.load_state_dict(before)
    for _ in epoch:
        pass
    after = loader.state_dict()
    assert after["epoch"] == 1
    assert after["samples"] != before["samples"]

    again = loader_of(colours, 8, selection=first, seed=0, order="random")
    again.load_state_dict(before)
    assert ids_of(again, colours) == expected[8:]
    again.load_state_dict(before)
    again.set_selection(second)  # the next epoch is one of the new samples
    assert again.state_dict() == {**before, "samples": after["samples"], "segments": []}
    again.load_state_dict(after)
    assert sorted(ids_of(again, colours)) == second.indices.tolist()


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "empty": (lambda state: {}, "has no 'version'"),
    "a list": (lambda state: [state], "not the state of a PrunedLoader"),
    "None": (lambda state: None, "not the state of a PrunedLoader"),
    "newer": (lambda state: {**state, "version": 2}, "version 2.*Upgrade"),
    "no version": (lambda state: {**state, "version": "1"}, "`version` must be an int"),
    "epoch": (lambda state: {**state, "epoch": -1}, "`epoch` must"),
    "large": (lambda state: {**state, "epoch": 1 << 64}, "`epoch` must"),
    "batch": (lambda state: {**state, "batch_size": 0}, "`batch_size` must"),
    "segment": (lambda state: {**state, "segments": [[1]]}, "`segments` must be 2 ints"),
    "segments": (lambda state: {**state, "segments": 3}, "not the state of a PrunedLoader"),
    "zero": (lambda state: {**state, "segments": [[0, 7]]}, "`segments` must be at least 1"),
    "too far": (lambda state: {**state, "segments": [[1, 200]]}, "200 were taken of 120"),
    "too many": (
        lambda state: {**state, "segments": [[200, 1]]},
        "200, which is more than its 120",
    ),
    "beton": (lambda state: {**state, "beton": None}, "`beton` must be text"),
    "seed": (lambda state: {**state, "seed": 6}, "seed=6; this loader has seed=5"),
    "order": (lambda state: {**state, "order": "sequential"}, "order='sequential'; this loader"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_does_not_fit_is_rejected_and_changes_nothing(name: str, colours: Any) -> None:
    change, match = WRONG[name]
    loader = loader_of(colours, BATCH, order="random", seed=5)
    _, state = take(loader, 2)
    loader.load_state_dict(state)
    with pytest.raises(ValueError, match=match):
        loader.load_state_dict(change(state))
    assert loader.state_dict() == state
    assert len(ids_of(loader, colours)) == 120 - 2 * BATCH


def test_a_state_of_another_beton_is_rejected(colours: Any, paged: Any) -> None:
    state = loader_of(colours, BATCH, seed=5).state_dict()
    with pytest.raises(StaleArtifactError, match="`state` was made for another beton"):
        loader_of(paged, BATCH, seed=5).load_state_dict(state)
