"""`PrunedLoader` against ffcv's own Loader, and what it loads of a selection."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.basics import FloatDecoder, IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.loader.loader import ORDER_MAP
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, PrunedLoader, Selection, StaleArtifactError, write_beton

KEPT = [7, 2, 4]
BATCH = 7  # does not divide the 36 samples of three classes, nor the 120 of all
# One epoch is loaded with each of these; the order is set by number, to compile less.
CASES = {
    "os_cache, sequential": (True, OrderOption.SEQUENTIAL),
    "os_cache, random": (True, OrderOption.RANDOM),
    "page cache, sequential": (False, OrderOption.SEQUENTIAL),
    "page cache, random": (False, OrderOption.RANDOM),
}
# ffcv's Loader spoils numba's tables for the loaders after it, so it gets a process of its own.
STOCK = """
import sys
import numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.loader.loader import ORDER_MAP

path, out = sys.argv[1:]
found = {}
for os_cache in (False, True):
    loader = Loader(path, 7, num_workers=1, os_cache=os_cache, seed=5)
    for option in map(OrderOption, (1, 2)):
        loader.traversal_order = ORDER_MAP[option](loader)
        loader.next_epoch = 0
        for epoch in range(2):
            for batch, (pixels, labels, numbers) in enumerate(loader):
                shown = pixels.numpy()[:, :2, :2].copy(), labels.numpy().copy(), numbers.numpy()
                for name, values in zip("pln", shown):
                    found[f"{os_cache}-{option.value}-{epoch}-{batch}-{name}"] = values.copy()
np.savez(out, **found)
"""


def load(loader: Any) -> list[list[NDArray[Any]]]:
    """Copy one epoch: ffcv's batches live in buffers that are used again."""
    return [[torch.as_tensor(part).numpy().copy() for part in batch] for batch in loader]


def samples_of(loader: Any, dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids that the pixels show and the labels beside them, over an epoch."""
    batches = load(loader)
    ids = np.concatenate([dataset.ids_of(pixels) for pixels, *_ in batches])
    return ids, np.concatenate([labels.reshape(-1) for _, labels, *_ in batches])


@pytest.fixture(scope="module")
def stock(paged: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two epochs of ffcv's own Loader in each case, by `os_cache-order-epoch-batch-part`."""
    out = tmp_path_factory.mktemp("stock") / "epochs.npz"
    assert [option.value for option in OrderOption] == [1, 2, 3]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(paged.path), str(out)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(out)


@pytest.mark.parametrize("case", CASES)
def test_everything_loads_as_with_ffcvs_own_loader(case: str, stock: Any, paged: Any) -> None:
    os_cache, order = CASES[case]
    loader = PrunedLoader(paged.path, BATCH, num_workers=1, os_cache=os_cache, order=order, seed=5)
    for epoch in range(2):
        batches = load(loader)
        assert len(batches) == len(loader) == len(paged.labels) // BATCH
        for number, (pixels, labels, numbers) in enumerate(batches):
            prefix = f"{os_cache}-{order.value}-{epoch}-{number}-"
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
    batch = next(iter(loader))
    assert all(isinstance(part, torch.Tensor) for part in batch)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize(
    "order", [OrderOption.SEQUENTIAL, OrderOption.RANDOM, "sequential", "random"]
)
def test_every_retained_sample_comes_once_an_epoch(order: Any, os_cache: bool, paged: Any) -> None:
    selection = Selection.of_classes(paged.index, KEPT)
    loader = PrunedLoader(
        paged.path, BATCH, selection=selection, order=order, os_cache=os_cache, drop_last=False,
        seed=1,
    )  # fmt: skip
    assert len(loader) == 6
    epochs = [samples_of(loader, paged) for _ in range(2)]
    for ids, labels in epochs:
        assert set(paged.labels[ids]) == set(KEPT)
        np.testing.assert_array_equal(np.sort(ids), selection.indices)
        np.testing.assert_array_equal(labels, paged.labels[ids])
    shuffled = order in (OrderOption.RANDOM, "random")
    assert (epochs[0][0].tolist() != epochs[1][0].tolist()) == shuffled


def test_quasi_random_order_covers_a_selection(paged: Any) -> None:
    selection = Selection.of_classes(paged.index, KEPT)
    loader = PrunedLoader(
        paged.path, 4, selection=selection, order=OrderOption.QUASI_RANDOM, os_cache=False
    )
    ids, labels = samples_of(loader, paged)
    np.testing.assert_array_equal(np.sort(ids), selection.indices)
    np.testing.assert_array_equal(labels, paged.labels[ids])


def test_retained_classes_are_numbered_anew_when_asked(colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    loader = PrunedLoader(colours.path, 6, selection=selection, relabel=True, order="random")
    ids, labels = samples_of(loader, colours)
    np.testing.assert_array_equal(np.sort(ids), selection.indices)
    np.testing.assert_array_equal(np.array(sorted(KEPT))[labels], colours.labels[ids])


@pytest.mark.parametrize(
    "steps",
    [[IntDecoder(), ToTensor()], [IntDecoder()], [ToTensor()], []],
    ids=["decoder and tensor", "decoder", "tensor", "none"],
)
def test_labels_are_remapped_behind_the_decoder_of_any_pipeline(steps: Any, colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    loader = PrunedLoader(
        colours.path, 6, selection=selection, relabel=True, pipelines={"label": steps}
    )
    _, labels = samples_of(loader, colours)
    plain = PrunedLoader(colours.path, 6, pipelines={"label": steps})
    assert type(next(iter(loader))[1]) is type(next(iter(plain))[1])
    expected = selection.label_map[colours.labels[selection.indices]]
    np.testing.assert_array_equal(labels, expected)


def test_a_selection_is_given_as_an_object_or_a_path(colours: Any, tmp_path: Path) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    selection.save(tmp_path / "s.npz")
    for given in (selection, tmp_path / "s.npz", str(tmp_path / "s.npz")):
        loader = PrunedLoader(str(colours.path), 6, selection=given)
        assert loader.selection is not None
        np.testing.assert_array_equal(loader.indices, selection.indices)


def test_indices_of_any_integer_type_choose_samples_in_their_order(colours: Any) -> None:
    wanted = [30, 5, 100, 7, 7, 0]
    for given in (wanted, tuple(wanted), np.array(wanted, np.uint8), torch.tensor(wanted)):
        ids, labels = samples_of(PrunedLoader(colours.path, 3, indices=given), colours)
        assert ids.tolist() == wanted
        np.testing.assert_array_equal(labels, colours.labels[wanted])


# Orders.


def reversed_order(ids: NDArray[Any], *, epoch: int, **_: Any) -> NDArray[Any]:
    return np.roll(ids[::-1], epoch)


class EveryOther(TraversalOrder):
    """An order as ffcv's users write them."""

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self.indices[epoch % 2 :: 2]


def test_an_order_is_a_function_of_ids_and_epoch(colours: Any) -> None:
    loader = PrunedLoader(colours.path, 40, order=reversed_order)
    assert samples_of(loader, colours)[0].tolist() == list(range(119, -1, -1))
    assert samples_of(loader, colours)[0].tolist() == [0, *range(119, 0, -1)]


def test_an_order_is_a_traversal_order_class(colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    loader = PrunedLoader(colours.path, 6, order=EveryOther, selection=selection)
    assert len(loader) == 3
    for start in (0, 1, 0):
        ids, _ = samples_of(loader, colours)
        np.testing.assert_array_equal(ids, selection.indices[start::2])


def test_an_order_that_the_user_registered_with_ffcv_works(
    colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ORDER_MAP, "every other", EveryOther)
    loader = PrunedLoader(colours.path, 6, order="every other")
    np.testing.assert_array_equal(samples_of(loader, colours)[0], np.arange(0, 120, 2))


def test_the_same_seed_gives_the_same_epochs(colours: Any) -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = PrunedLoader(colours.path, 40, order="random", seed=seed)
        return [samples_of(loader, colours)[0].tolist() for _ in range(2)]

    assert epochs(3) == epochs(3)
    assert epochs(3) != epochs(4)


def test_ranks_share_an_epoch_out(colours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader = PrunedLoader(colours.path, 60, order="random", distributed=True)
        shares.append(samples_of(loader, colours)[0])
    assert [len(share) for share in shares] == [60, 60]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(120))


@pytest.mark.parametrize("order", ["shuffled", 2, None, dict, PrunedLoader], ids=str)
def test_an_unknown_order_is_refused(order: Any, colours: Any) -> None:
    with pytest.raises(ValueError, match=r"^`order` must be an OrderOption, one of sequential"):
        PrunedLoader(colours.path, 6, order=order)


# What belongs to the caller.


def test_the_callers_pipelines_are_left_as_they_are(colours: Any) -> None:
    spec = PipelineSpec("label", None, [IntDecoder(), ToTensor()])
    pipelines: dict[str, Any] = {
        "image": [SimpleRGBImageDecoder(), ToTensor()],
        "label": [IntDecoder(), ToTensor()],
        "again": spec,
        "identifier": None,
    }
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
    plain, relabelled = (load(loader) for loader in loaders)  # turn and turn about would do, too
    for (pixels, labels, again), (others, numbered, _) in zip(plain, relabelled, strict=True):
        np.testing.assert_array_equal(pixels, others)
        np.testing.assert_array_equal(labels, again)
        np.testing.assert_array_equal(selection.label_map[labels], numbered)


def test_two_loaders_of_one_pipeline_run_side_by_side(colours: Any) -> None:
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "identifier": None}
    one, other = (
        PrunedLoader(colours.path, 6, pipelines=pipelines, indices=range(start, start + 60))
        for start in (0, 60)
    )
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        assert colours.ids_of(left[0]).tolist() == list(range(6 * number, 6 * number + 6))
        assert colours.ids_of(right[0]).tolist() == list(range(60 + 6 * number, 66 + 6 * number))


def test_a_decoders_size_may_change_between_epochs(colours: Any) -> None:
    decoder = RandomResizedCropRGBImageDecoder((8, 8))
    loader = PrunedLoader(colours.path, 60, pipelines={"image": [decoder, ToTensor()]})
    assert next(iter(loader))[0].shape == (60, 8, 8, 3)
    decoder.output_size = (12, 10)
    ids, _ = samples_of(loader, colours)
    assert ids.tolist() == list(range(120))
    assert next(iter(loader))[0].shape == (60, 12, 10, 3)


@pytest.mark.parametrize("given", [-1, 0, 1, 10_000])
def test_workers_are_at_most_the_cores(given: int, colours: Any) -> None:
    most = numba.config.NUMBA_NUM_THREADS
    loader = PrunedLoader(colours.path, 60, num_workers=given)
    assert loader.num_workers == (1 if given == 1 else most)
    assert samples_of(loader, colours)[0].tolist() == list(range(120))


def test_samples_are_filtered_by_a_value(colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    loader = PrunedLoader(
        colours.path, 7, selection=selection, order="random", seed=3, drop_last=False
    )
    filtered = loader.filter("label", lambda label: label < 5)
    assert isinstance(filtered, PrunedLoader)
    ids, labels = samples_of(filtered, colours)
    assert sorted(ids) == [number for number in range(120) if colours.labels[number] in (2, 4)]
    np.testing.assert_array_equal(labels, colours.labels[ids])
    assert len(loader) == 6


# Fields that ffcv does not know.


class DegreesField(Field):
    """A number per sample, of a type that ffcv does not know."""

    metadata_type = np.dtype("<f8")

    @classmethod
    def from_binary(cls, binary: Any) -> Field:
        return cls()

    def to_binary(self) -> Any:
        return np.zeros(1, dtype=ARG_TYPE)[0]

    def encode(self, destination: Any, value: float, malloc: Any) -> None:
        destination[0] = value

    def get_decoder_class(self) -> Any:
        return FloatDecoder


def test_custom_fields_are_loaded(tmp_path: Path) -> None:
    from ffcv.fields import IntField

    path = tmp_path / "custom.beton"
    fields = {"label": IntField(), "degrees": DegreesField()}
    index = write_beton(path, [(number % 3, number / 4) for number in range(12)], fields, seed=None)
    selection = Selection.of_classes(index, [1])
    loader = PrunedLoader(
        path, 2, selection=selection, custom_fields={"degrees": DegreesField}, relabel=True
    )
    labels, degrees = (np.concatenate(part) for part in zip(*load(loader), strict=True))
    assert labels.reshape(-1).tolist() == [0, 0, 0, 0]
    assert degrees.reshape(-1).tolist() == [0.25, 1.0, 1.75, 2.5]
    with pytest.raises(BetonError, match=r"custom field 'degrees'.*`custom_fields`"):
        PrunedLoader(path, 2)


# Bad input.


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (np.ones(120, dtype=bool), TypeError, r"`indices` must be integers; .*np\.flatnonzero"),
        ([True, False], TypeError, r"`indices` must be integers; .*np\.flatnonzero"),
        (np.arange(3.0), TypeError, r"^`indices` must be integers; got dtype float64"),
        ([-1, 4], ValueError, r"^`indices` must lie in \[0, 120\); got values from -1 to 4"),
        ([4, 120], ValueError, r"^`indices` must lie in \[0, 120\); got values from 4 to 120"),
        ([[1, 2], [3, 4]], ValueError, r"^`indices` must have shape \(M,\); got \(2, 2\)"),
        ([], ValueError, r"^`indices` is empty"),
        (np.zeros(0, np.int64), ValueError, r"^`indices` is empty"),
    ],
)  # fmt: skip
def test_bad_indices_are_refused(
    indices: Any, error: type[Exception], message: str, colours: Any
) -> None:
    with pytest.raises(error, match=message):
        PrunedLoader(colours.path, 6, indices=indices)


def test_indices_beside_a_selection_are_refused(colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    with pytest.raises(ValueError, match=r"^`indices` and `selection` were both given"):
        PrunedLoader(colours.path, 6, indices=[1, 2], selection=selection)


def test_a_selection_for_another_beton_is_refused(colours: Any, paged: Any, tmp_path: Path) -> None:
    selection = Selection.of_classes(paged.index, KEPT)
    selection.save(tmp_path / "s.npz")
    for given in (selection, tmp_path / "s.npz"):
        with pytest.raises(StaleArtifactError, match=r"another beton than '.*colours\.beton'"):
            PrunedLoader(colours.path, 6, selection=given)


def test_a_missing_selection_is_not_found(colours: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        PrunedLoader(colours.path, 6, selection=tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("fixture", "message"),
    [
        ("unfinished", "is unfinished: .*Write it again"),
        ("truncated", "is truncated or corrupt"),
    ],
)
def test_a_file_that_is_no_whole_beton_is_refused(
    fixture: str, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(BetonError, match=message):
        PrunedLoader(request.getfixturevalue(fixture), 6)


def test_a_missing_beton_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.beton"):
        PrunedLoader(tmp_path / "none.beton", 6)


def test_relabelling_needs_a_selection(colours: Any) -> None:
    with pytest.raises(ValueError, match=r"^`relabel` needs a `selection`"):
        PrunedLoader(colours.path, 6, relabel=True)


@pytest.mark.parametrize("steps", [None, PipelineSpec("label", None, [])], ids=["None", "a spec"])
def test_relabelling_needs_a_list_of_operations(steps: Any, colours: Any) -> None:
    selection = Selection.of_classes(colours.index, KEPT)
    with pytest.raises(ValueError, match=r"^`relabel` needs a list of operations for 'label'"):
        PrunedLoader(colours.path, 6, selection=selection, relabel=True, pipelines={"label": steps})


def test_too_few_samples_for_one_batch_are_an_error(colours: Any) -> None:
    loader = PrunedLoader(colours.path, 6, indices=range(5))
    assert len(loader) == 0
    for _ in range(2):
        with pytest.raises(ValueError, match=r"6 is more than the 5 samples.*Pass drop_last=False"):
            iter(loader)
    whole = PrunedLoader(colours.path, 6, indices=range(5), drop_last=False)
    assert samples_of(whole, colours)[0].tolist() == list(range(5))


@pytest.mark.parametrize(("field", "arguments"), [("worker", {"worker": 3}), ("size", {"size": 1})])
def test_an_unknown_argument_is_refused(field: str, arguments: Any, colours: Any) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{field}'"):
        PrunedLoader(colours.path, 6, **arguments)


def test_every_argument_of_ffcvs_loader_is_taken_by_position(colours: Any) -> None:
    loader = PrunedLoader(
        colours.path, 6, 1, False, OrderOption.RANDOM, False, 9, [1, 2, 3, 4, 5, 6], {}, {},
        False, 2, True,
    )  # fmt: skip
    assert (loader.num_workers, loader.seed, loader.drop_last) == (1, 9, False)
    assert (loader.batches_ahead, loader.recompile) == (2, True)
    for _ in range(2):
        assert sorted(samples_of(loader, colours)[0]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("batches_ahead", [1, 2, 5])
def test_a_batch_stays_whole_until_the_next_is_asked_for(batches_ahead: int, colours: Any) -> None:
    loader = PrunedLoader(colours.path, 6, batches_ahead=batches_ahead, order="random", seed=1)
    found = []
    for pixels, *_ in loader:
        ids = colours.ids_of(pixels)
        time.sleep(0.01)  # all others that there is room for are made meanwhile
        np.testing.assert_array_equal(colours.ids_of(pixels), ids)
        found += ids.tolist()
    assert sorted(found) == list(range(120))
