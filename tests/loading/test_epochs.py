"""Every epoch loads every sample once, with each cache, order and number of ranks."""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from ffcv.loader import OrderOption
from numpy.typing import NDArray

from dp4tl_ffcv import PrunedLoader
from dp4tl_ffcv.loading.orders import quasi_random_order, random_order, sequential_order
from tests.support.loading import pretend_rank

FUNCTIONS = {
    "sequential": sequential_order,
    "random": random_order,
    # Small groups, so that an epoch has several.
    "quasi_random": partial(quasi_random_order, block=4, group=24),
}
ORDERS: dict[str, tuple[Any, bool]] = {
    **{name: (name, True) for name in FUNCTIONS},
    "quasi_random, pad": (FUNCTIONS["quasi_random"], True),
    **{f"{name}, drop": (partial(f, pad=False), False) for name, f in FUNCTIONS.items()},
    **{str(option): (option, True) for option in OrderOption},
}
WORLDS = [1, 2, 3]
BATCH = 7  # divides neither the 119 samples nor any rank's share
CHOSEN = np.delete(np.arange(120), 50)  # 119 = 7 * 17 = 2 * 60 - 1 = 3 * 40 - 1


def batches_of(loader: PrunedLoader, dataset: Any) -> list[NDArray[np.int64]]:
    """Load an epoch; return the ids that the pixels of each batch show."""
    found = []
    for pixels, labels, numbers in loader:
        ids = dataset.ids_of(pixels)
        np.testing.assert_array_equal(labels[:, 0], dataset.labels[ids])
        np.testing.assert_array_equal(numbers[:, 0], ids)
        found.append(ids)
    assert len(found) == len(loader)
    return found


def ranks_of(
    dataset: Any, monkeypatch: pytest.MonkeyPatch, world_size: int, **options: Any
) -> list[PrunedLoader]:
    loaders = []
    for rank in range(world_size):
        pretend_rank(monkeypatch, rank, world_size)
        loaders.append(
            PrunedLoader(dataset.path, num_workers=2, distributed=world_size > 1, **options)
        )
    return loaders


@pytest.mark.parametrize(
    ("cache", "name"),
    [("ram", "random"), *(("extents", name) for name in ORDERS)],
)
def test_every_epoch_loads_every_sample_once(
    cache: str, name: str, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, pad = ORDERS[name]
    options = {"batch_size": BATCH, "cache": cache, "order": order, "indices": CHOSEN, "seed": 2}
    for world_size in WORLDS:
        share = -(-len(CHOSEN) // world_size) if pad else len(CHOSEN) // world_size
        loaders = ranks_of(colours, monkeypatch, world_size, drop_last=False, **options)
        dropping = ranks_of(colours, monkeypatch, world_size, drop_last=True, **options)
        for _ in range(2):
            epochs = [np.concatenate(batches_of(loader, colours)) for loader in loaders]
            assert [len(ids) for ids in epochs] == [share] * world_size
            counts = Counter(np.concatenate(epochs).tolist())
            assert set(counts) <= set(CHOSEN.tolist())
            repeated = share * world_size - len(counts)
            assert repeated == max(0, share * world_size - len(CHOSEN))
            if pad:
                assert len(counts) == len(CHOSEN)
            for ids, loader in zip(epochs, dropping, strict=True):
                batches = batches_of(loader, colours)
                assert {len(batch) for batch in batches} == {BATCH}
                np.testing.assert_array_equal(
                    np.concatenate(batches), ids[: share // BATCH * BATCH]
                )


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("order", list(FUNCTIONS))
def test_plan_epoch_returns_the_order_and_the_reads_of_the_epoch(
    order: str, drop_last: bool, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loader in ranks_of(
        colours, monkeypatch, 2, batch_size=BATCH, cache="extents", order=order, indices=CHOSEN,
        drop_last=drop_last, seed=1,
    ):  # fmt: skip
        size = 3 * 16 * 16
        for number in range(2):
            plan, before = loader.plan_epoch(number), loader.bytes_read
            np.testing.assert_array_equal(np.concatenate(batches_of(loader, colours)), plan.order)
            assert loader.bytes_read - before == plan.read_bytes
            assert size * len(plan.order) <= plan.read_bytes
