"""`PrunedLoader` against ffcv's own Loader, and what it loads of a selection."""

import time
from typing import Any

import numba
import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor
from numpy.typing import NDArray

from dp4tl_ffcv import PrunedLoader, Selection
from dp4tl_ffcv.loading.orders import quasi_random_order
from tests.support.loading import only, run_script, samples_of

KEPT = [7, 2, 4]
BATCH = 7  # does not divide the 36 samples of three classes, nor the 120 of all
# In another process, because ffcv's Loader changes numba's types for all later loaders.
STOCK = """
import sys
import numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.loader.loader import ORDER_MAP

path, out = sys.argv[1:]
found = {}
loader = Loader(path, 7, num_workers=1, os_cache=True, seed=5)
for option in (OrderOption.SEQUENTIAL, OrderOption.RANDOM):
    loader.traversal_order = ORDER_MAP[option](loader)
    loader.next_epoch = 0
    for epoch in range(2):
        for batch, (pixels, labels, numbers) in enumerate(loader):
            shown = pixels.numpy()[:, :2, :2], labels.numpy(), numbers.numpy()
            for name, values in zip("pln", shown):
                found[f"{option.name}-{epoch}-{batch}-{name}"] = values.copy()
np.savez(out, **found)
"""


# numba must print no KeyErrors on stderr, as it does for ffcv's Loader.
MANY = """
import gc, sys
from dp4tl_ffcv import PrunedLoader, Selection, BetonIndex

index = BetonIndex.open(sys.argv[1])
for turn in range(6):
    selection = Selection.of_classes(index, [turn % 10, 3 + turn % 7][: 1 + turn % 2])
    loader = PrunedLoader(
        index, 6, selection=selection, relabel=True, order="random", num_workers=1,
        cache=("extents", "ram")[turn % 2],
    )
    count = sum(len(labels) for _, labels, _ in loader)
    assert count == len(selection), (count, len(selection))
    if turn % 4 == 0:
        del loader
    gc.collect()
print("done")
"""


def load(loader: Any) -> list[list[NDArray[Any]]]:
    """Copy one epoch, because ffcv reuses the buffers of its batches."""
    return [[torch.as_tensor(part).numpy().copy() for part in batch] for batch in loader]


@pytest.fixture(scope="module")
def stock(paged: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two epochs of ffcv's own Loader in each order, by `order-epoch-batch-part`."""
    out = tmp_path_factory.mktemp("stock") / "epochs.npz"
    run_script(STOCK, paged.path, out)
    return np.load(out)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("order", [OrderOption.SEQUENTIAL, OrderOption.RANDOM])
def test_batches_equal_those_of_ffcvs_loader(
    order: OrderOption, os_cache: bool, stock: Any, paged: Any
) -> None:
    loader = PrunedLoader(paged.path, BATCH, num_workers=1, os_cache=os_cache, order=order, seed=5)
    for epoch in range(2):
        batches = load(loader)
        assert len(batches) == len(loader) == len(paged.labels) // BATCH
        for number, (pixels, labels, numbers) in enumerate(batches):
            prefix = f"{order.name}-{epoch}-{number}-"
            assert pixels.shape == (BATCH, 160, 160, 3)
            np.testing.assert_array_equal(pixels[:, :2, :2], stock[prefix + "p"])
            np.testing.assert_array_equal(labels, stock[prefix + "l"])
            np.testing.assert_array_equal(numbers, stock[prefix + "n"])
            assert (labels.dtype, labels.shape) == (np.int64, (BATCH, 1))
            paged.ids_of(pixels)


def test_the_default_arguments_are_those_of_ffcvs_loader(colours: Any) -> None:
    loader = PrunedLoader(colours.path, BATCH)
    assert isinstance(loader, Loader)
    assert (loader.drop_last, loader.batches_ahead, loader.distributed) == (True, 3, False)
    ids, labels = samples_of(loader, colours)
    np.testing.assert_array_equal(ids, np.arange(119))
    np.testing.assert_array_equal(labels, colours.labels[:119])
    np.testing.assert_array_equal(loader.first_traversal_order, np.arange(120))
    batch = next(iter(loader))
    assert all(isinstance(part, torch.Tensor) for part in batch)


@pytest.mark.parametrize(
    "steps",
    [[IntDecoder(), ToTensor()], [IntDecoder()], [ToTensor()], []],
    ids=["decoder and tensor", "decoder", "tensor", "none"],
)
def test_labels_are_remapped_in_any_pipeline(steps: Any, colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    loader = PrunedLoader(
        colours.path, 6, selection=selection, relabel=True, pipelines={"label": steps}
    )
    _, labels = samples_of(loader, colours)
    plain = PrunedLoader(colours.path, 6, pipelines={"label": steps})
    assert type(next(iter(loader))[1]) is type(next(iter(plain))[1])
    expected = selection.label_map[colours.labels[selection.indices]]
    np.testing.assert_array_equal(labels, expected)


def test_indices_can_have_any_integer_type_and_order(colours: Any) -> None:
    wanted = [30, 5, 100, 7, 7, 0]
    for given in (wanted, tuple(wanted), np.array(wanted, np.uint8), torch.tensor(wanted)):
        ids, labels = samples_of(PrunedLoader(colours.path, 3, indices=given), colours)
        assert ids.tolist() == wanted
        np.testing.assert_array_equal(labels, colours.labels[wanted])


# Objects of the caller.


def test_the_callers_pipelines_are_not_changed(colours: Any) -> None:
    spec = PipelineSpec("label", None, [IntDecoder(), ToTensor()])
    pipelines: dict[str, Any] = only(
        image=[SimpleRGBImageDecoder(), ToTensor()], label=[IntDecoder(), ToTensor()], again=spec
    )
    before = {name: list(steps or ()) for name, steps in pipelines.items() if name != "again"}
    transforms = list(spec.transforms)
    selection = Selection.of_classes(colours.index, KEPT)
    loaders = [
        PrunedLoader(
            colours.path, 6, pipelines=pipelines, selection=selection, relabel=relabel,
            order="random", seed=2,
        )
        for relabel in (False, True)
    ]  # fmt: skip
    assert {n: list(s or ()) for n, s in pipelines.items() if n != "again"} == before
    assert pipelines["again"] is spec
    assert (spec.decoder, spec.transforms) == (None, transforms)
    plain, relabelled = (load(loader) for loader in loaders)
    for (pixels, labels, again), (others, numbered, _) in zip(plain, relabelled, strict=True):
        np.testing.assert_array_equal(pixels, others)
        np.testing.assert_array_equal(labels, again)
        np.testing.assert_array_equal(selection.label_map[labels], numbered)


def test_two_loaders_can_share_a_pipeline_and_run_at_once(colours: Any) -> None:
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "identifier": None}
    one, other = (
        PrunedLoader(colours.path, 6, pipelines=pipelines, indices=range(start, start + 60))
        for start in (0, 60)
    )
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        assert colours.ids_of(left[0]).tolist() == list(range(6 * number, 6 * number + 6))
        assert colours.ids_of(right[0]).tolist() == list(range(60 + 6 * number, 66 + 6 * number))


@pytest.mark.parametrize("given", [-1, 0, 1, 10_000])
def test_workers_are_at_most_the_cores(given: int, colours: Any) -> None:
    most = numba.config.NUMBA_NUM_THREADS
    loader = PrunedLoader(colours.path, 60, num_workers=given)
    assert loader.num_workers == (1 if given == 1 else most)
    assert samples_of(loader, colours)[0].tolist() == list(range(120))


def test_too_few_samples_for_one_batch_are_an_error(colours: Any) -> None:
    loader = PrunedLoader(colours.path, 6, indices=range(5))
    assert len(loader) == 0
    for _ in range(2):
        with pytest.raises(ValueError, match=r"is 6: none of the 5 samples .*Pass drop_last=False"):
            iter(loader)
    whole = PrunedLoader(colours.path, 6, indices=range(5), drop_last=False)
    assert samples_of(whole, colours)[0].tolist() == list(range(5))


def test_every_argument_of_ffcvs_loader_works_by_position(colours: Any) -> None:
    loader = PrunedLoader(
        colours.path, 6, 1, False, OrderOption.RANDOM, False, 9, [1, 2, 3, 4, 5, 6], {}, {},
        False, 2, True,
    )  # fmt: skip
    assert (loader.num_workers, loader.seed, loader.drop_last) == (1, 9, False)
    assert (loader.batches_ahead, loader.recompile) == (2, True)
    for _ in range(2):
        assert sorted(samples_of(loader, colours)[0]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("batches_ahead", [1, 2, 5])
def test_a_batch_is_valid_until_the_next_is_loaded(batches_ahead: int, colours: Any) -> None:
    loader = PrunedLoader(colours.path, 6, batches_ahead=batches_ahead, order="random", seed=1)
    found = []
    for pixels, *_ in loader:
        ids = colours.ids_of(pixels)
        time.sleep(0.01)  # meanwhile, the loader makes other batches
        np.testing.assert_array_equal(colours.ids_of(pixels), ids)
        found += ids.tolist()
    assert sorted(found) == list(range(120))


def test_any_field_may_hold_the_labels(colours: Any) -> None:
    index = colours.index
    selection = Selection(
        classes=[3], indices=range(12), label_map=[-1, -1, -1, 0], fingerprint=index.fingerprint,
        label_field="identifier",
    )  # fmt: skip
    for pixels, labels, others in PrunedLoader(index, 6, selection=selection, relabel=True):
        ids = colours.ids_of(pixels)
        np.testing.assert_array_equal(labels[:, 0], colours.labels[ids])
        np.testing.assert_array_equal(others[:, 0], np.where(ids == 3, 0, -1))


@pytest.mark.parametrize("order", [OrderOption.QUASI_RANDOM, "quasi_random"])
@pytest.mark.parametrize(("batch_size", "window"), [(8, 4096), (1500, 4500), (5000, 5000)])
def test_quasi_random_order_shuffles_each_window(
    order: Any, batch_size: int, window: int, colours: Any
) -> None:
    ids = np.resize(np.arange(120), 9000)
    loader = PrunedLoader(
        colours.path, batch_size, order=order, indices=ids, seed=3, drop_last=False
    )
    plan = loader.plan_epoch(1)
    assert plan.window_size == window
    expected = quasi_random_order(ids, seed=3, epoch=1, group=window)
    np.testing.assert_array_equal(plan.order, expected)


def test_many_loaders_in_one_process_print_nothing(colours: Any) -> None:
    assert run_script(MANY, colours.path, flags=["-W", "error::UserWarning"]) == "done\n"
