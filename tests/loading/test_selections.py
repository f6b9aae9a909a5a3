"""Changing the retained samples of a loader: `set_selection` and the attribute `indices`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.traversal_order.base import TraversalOrder
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex, PrunedLoader, Selection, StaleArtifactError
from dp4tl_ffcv.loading import caches
from tests.support.loading import CACHE_OPTIONS, ORDER_NAMES, loader_of, of_classes, samples_of

STEPS = [[3], [3, 7, 1], [0, 9], list(range(10)), [7]]  # classes


@pytest.mark.parametrize("cache", CACHE_OPTIONS)
@pytest.mark.parametrize("order", ORDER_NAMES)
def test_a_selection_grows_and_shrinks_between_epochs(order: str, cache: str, paged: Any) -> None:
    loader = loader_of(paged, 5, order=order, cache=cache, selection=of_classes(paged, [2, 5]))
    samples_of(loader, paged)
    for classes in STEPS:
        selection = of_classes(paged, classes)
        loader.set_selection(selection)
        assert len(loader) == -(-len(selection) // 5)  # at once
        np.testing.assert_array_equal(loader.indices, selection.indices)
        for _ in range(2):
            ids, labels = samples_of(loader, paged)
            np.testing.assert_array_equal(np.sort(ids), selection.indices)
            np.testing.assert_array_equal(labels, paged.labels[ids])
    assert loader.next_epoch == 1 + 2 * len(STEPS)


@pytest.mark.parametrize("order", ORDER_NAMES)
def test_a_changed_loader_equals_a_new_one(order: str, colours: Any) -> None:
    changed, made = (
        loader_of(colours, 5, order=order, seed=3, selection=of_classes(colours, classes))
        for classes in ([1], [4, 6])
    )
    for loader in (changed, made):
        samples_of(loader, colours)
    changed.set_selection(of_classes(colours, [4, 6]))
    for found, expected in zip(
        samples_of(changed, colours), samples_of(made, colours), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_sample_ids_can_be_set_or_assigned(colours: Any) -> None:
    loader = loader_of(colours, 5, selection=of_classes(colours, [4]))
    for given in ([9, 3, 3, 80], np.array([1], np.uint8), torch.arange(120), range(40, 60, 3)):
        if isinstance(given, list | range):
            loader.indices = given
        else:
            loader.set_selection(given)
        assert loader.selection is None
        assert len(loader) == -(-len(given) // 5)
        np.testing.assert_array_equal(samples_of(loader, colours)[0], np.asarray(given))


def test_retained_classes_are_renumbered(colours: Any, tmp_path: Path) -> None:
    loader = loader_of(colours, 5, selection=of_classes(colours, [2, 5]), relabel=True)
    for classes in ([2, 5], [5], [9, 0, 5], [2, 5]):
        of_classes(colours, classes).save(tmp_path / "s.npz")
        loader.set_selection(tmp_path / "s.npz")
        ids, labels = samples_of(loader, colours)
        np.testing.assert_array_equal(np.sort(classes)[labels], colours.labels[ids])


@pytest.mark.parametrize("cache", CACHE_OPTIONS)
def test_a_running_epoch_keeps_its_selection(cache: str, paged: Any) -> None:
    old, new = of_classes(paged, [2, 5, 6]), of_classes(paged, [5, 6])
    loader = loader_of(
        paged, 5, selection=old, relabel=True, cache=cache, order="random", batches_ahead=1
    )
    batches = iter(loader)
    pixels, shown, _ = next(batches)
    first = paged.ids_of(pixels), shown.numpy().ravel().copy()
    loader.set_selection(new)
    assert len(loader) == 5
    second = iter(loader)
    rest = samples_of(batches, paged)
    ids, labels = (np.concatenate(parts) for parts in zip(first, rest, strict=True))
    np.testing.assert_array_equal(np.sort(ids), old.indices)
    np.testing.assert_array_equal(labels, old.label_map[paged.labels[ids]])
    ids, labels = samples_of(second, paged)
    np.testing.assert_array_equal(np.sort(ids), new.indices)
    np.testing.assert_array_equal(labels, new.label_map[paged.labels[ids]])


def test_the_cache_is_chosen_again(colours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "available_memory", lambda: 4 * 20 * 3 * 16 * 16)
    loader = loader_of(colours, 5, selection=of_classes(colours, [2]))
    assert loader.cache == "ram"
    loader.set_selection(np.arange(21))
    assert loader.cache == "extents"
    np.testing.assert_array_equal(samples_of(loader, colours)[0], np.arange(21))
    loader.set_selection(np.arange(20))
    assert loader.cache == "ram"


def test_ram_frees_the_memory_of_pruned_samples(colours: Any) -> None:
    loader = loader_of(colours, 5, cache="ram")
    samples_of(loader, colours)
    before = loader.bytes_read
    loader.set_selection(np.arange(10))
    assert loader.pool_bytes <= 10 * 3 * 16 * 16 + 10 * 64
    samples_of(loader, colours)
    assert loader.bytes_read - before <= 10 * 3 * 16 * 16 + 10 * 64


# An error leaves the loader unchanged.


class NeedsTen(TraversalOrder):
    """An order that needs ten samples."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        if len(self.indices) < 10:
            raise ValueError("ten samples are needed")

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self.indices


@pytest.mark.parametrize("case", ["other", "missing", "order"])
def test_a_rejected_selection_changes_nothing(
    case: str, colours: Any, paged: Any, tmp_path: Path
) -> None:
    given, error, match = {
        "other": (of_classes(paged, [2]), StaleArtifactError, "another beton"),
        "missing": (tmp_path / "none.npz", FileNotFoundError, r"none\.npz"),
        "order": (Selection.of_indices(colours.index, [1, 2]), ValueError, "ten samples"),
    }[case]
    selection = of_classes(colours, [2, 5])
    loader = loader_of(colours, 5, selection=selection, relabel=True, order=NeedsTen)
    with pytest.raises(error, match=match):
        loader.set_selection(given)
    assert_unchanged(loader, selection, relabel=True, dataset=colours)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([-1, 4], ValueError, r"^`indices` must lie in \[0, 120\)"),
        ([4, 120], ValueError, r"^`indices` must lie in \[0, 120\)"),
        ([], ValueError, "^`indices` is empty"),
        ([[1, 2]], ValueError, r"^`indices` must have shape \(N,\)"),
        ([True, False] * 60, TypeError, r"^`indices` must be integers; .*np\.flatnonzero"),
        ([0.5], TypeError, "^`indices` must be integers"),
        ([1, 2, 3], ValueError, "ten samples are needed"),
    ],
    ids=["negative", "too large", "none", "two axes", "a mask", "floats", "the order"],
)
def test_rejected_ids_change_nothing(
    given: Any, error: type[Exception], match: str, colours: Any
) -> None:
    selection = of_classes(colours, [2, 5])
    with pytest.raises(error, match=match):
        loader_of(colours, 5, indices=given, order=NeedsTen)
    loader = loader_of(colours, 5, selection=selection, order=NeedsTen)
    with pytest.raises(error, match=match):
        loader.set_selection(given)
    with pytest.raises(error, match=match):
        loader.indices = given
    assert_unchanged(loader, selection, relabel=False, dataset=colours)


def assert_unchanged(
    loader: PrunedLoader, selection: Selection, relabel: bool, dataset: Any
) -> None:
    """Check an epoch of the old selection, and then an epoch of another."""
    assert loader.selection is selection
    np.testing.assert_array_equal(loader.indices, selection.indices)
    assert len(loader) == 5
    ids, labels = samples_of(loader, dataset)
    np.testing.assert_array_equal(ids, selection.indices)
    expected = dataset.labels[ids]
    np.testing.assert_array_equal(labels, selection.label_map[expected] if relabel else expected)
    later = of_classes(dataset, [1])
    loader.set_selection(later)
    np.testing.assert_array_equal(samples_of(loader, dataset)[0], later.indices)


def test_relabel_needs_a_selection_instead_of_ids(colours: Any) -> None:
    selection = of_classes(colours, [2, 5])
    loader = loader_of(colours, 5, selection=selection, relabel=True)
    with pytest.raises(ValueError, match=r"needs a Selection.*of_indices"):
        loader.set_selection([1, 2])
    with pytest.raises(ValueError, match=r"needs a Selection"):
        loader.indices = [1, 2]
    assert loader.selection is selection
    ids, labels = samples_of(loader, colours)
    np.testing.assert_array_equal(labels, selection.label_map[colours.labels[ids]])
    loader.set_selection(Selection.of_indices(colours.index, [1, 2]))
    assert samples_of(loader, colours)[0].tolist() == [1, 2]


def test_a_selection_of_a_replaced_file_is_rejected(colours: Any, tmp_path: Path) -> None:
    path = tmp_path / "replaced.beton"
    path.write_bytes(colours.path.read_bytes())
    loader = loader_of(path, 5)
    labels = colours.index.column("label")
    data = bytearray(colours.path.read_bytes())
    at = data.find(labels[:1].tobytes())
    assert at > 0
    other = tmp_path / "other.beton"
    data[at] ^= 1
    other.write_bytes(data)
    assert BetonIndex.open(other).fingerprint != colours.index.fingerprint
    other.replace(path)
    with pytest.raises((StaleArtifactError, BetonError), match=r"another beton|was replaced"):
        loader.set_selection(Selection.of_classes(BetonIndex.open(path), [1]))
    # The old file is still open.
    np.testing.assert_array_equal(samples_of(loader, colours)[0], np.arange(120))


def test_a_filtered_loader_keeps_its_own_labels(colours: Any) -> None:
    selection, other = (Selection.of_classes(colours.index, kept) for kept in ([7, 2, 4], [2, 9]))
    parent = loader_of(colours, 6, selection=selection, relabel=True)
    child = parent.filter("label", lambda label: label == 1)  # the second of the three: class 4
    assert child.selection is selection
    assert set(colours.labels[child.indices]) == {4}
    parent.set_selection(other)
    labels = np.concatenate([labels.numpy().ravel() for _, labels, *_ in child])
    assert labels.tolist() == [1] * len(child.indices)
    with pytest.raises(ValueError, match="needs a Selection"):
        child.set_selection([1, 2])
    child.set_selection(other)
    labels = np.concatenate([labels.numpy().ravel() for _, labels, *_ in child])
    np.testing.assert_array_equal(labels, other.label_map[colours.labels[other.indices]])


def test_the_batch_size_may_change_between_epochs(colours: Any) -> None:
    loader = loader_of(colours, 8, cache="extents", order="quasi_random")
    for batch_size in (8, 16, 5):
        loader.batch_size = batch_size
        batches = [colours.ids_of(pixels).tolist() for pixels, *_ in loader]
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert sorted(id_ for batch in batches for id_ in batch) == list(range(120))


def test_windows_are_rounded_up_to_whole_batches(colours: Any) -> None:
    class Windowed(TraversalOrder):
        window_size = 12

        def sample_order(self, epoch: int) -> Any:
            return self.indices

    loader = PrunedLoader(colours.path, 8, cache="extents", order=Windowed)
    assert [colours.ids_of(pixels).tolist() for pixels, *_ in loader] == [
        list(range(start, start + 8)) for start in range(0, 120, 8)
    ]


# Some of the retained samples.


@pytest.mark.parametrize("cache", CACHE_OPTIONS)
@pytest.mark.parametrize("order", ORDER_NAMES)
def test_an_epoch_may_have_some_of_the_retained_samples(order: str, cache: str, paged: Any) -> None:
    selection = of_classes(paged, [2, 5, 7])
    loader = loader_of(paged, 5, order=order, cache=cache, selection=selection, relabel=True)
    for chosen in (selection.indices[::2], selection.indices[:3], None, selection.indices[20:]):
        loader.set_samples(chosen)
        expected = selection.indices if chosen is None else chosen
        assert len(loader) == -(-len(expected) // 5)  # at once
        ids, labels = samples_of(loader, paged)
        np.testing.assert_array_equal(np.sort(ids), expected)
        np.testing.assert_array_equal(labels, selection.label_map[paged.labels[ids]])
    np.testing.assert_array_equal(loader.indices, selection.indices)
    loader.set_selection(selection)
    np.testing.assert_array_equal(np.sort(samples_of(loader, paged)[0]), selection.indices)


def test_bytes_in_memory_stay_there_when_the_samples_of_an_epoch_change(colours: Any) -> None:
    loader = loader_of(colours, 5, cache="ram")
    loader.set_samples(np.arange(60))
    samples_of(loader, colours)
    loader.set_samples(None)
    samples_of(loader, colours)
    before = loader.bytes_read
    for chosen in (np.arange(30), np.arange(20, 110), None):
        loader.set_samples(chosen)
        samples_of(loader, colours)
    assert loader.bytes_read == before


def test_a_state_is_of_the_samples_of_its_epoch(colours: Any) -> None:
    first, second = (loader_of(colours, 5, order="random", seed=1) for _ in range(2))
    first.set_samples(np.arange(0, 120, 4))
    batches = iter(first)
    begun = samples_of([next(batches) for _ in range(1)], colours)[0]
    state = first.state_dict()
    rest = samples_of(batches, colours)[0]
    with pytest.raises(ValueError, match="other samples"):
        second.load_state_dict(state)
    second.set_samples(np.arange(0, 120, 4))
    second.load_state_dict(state)
    np.testing.assert_array_equal(samples_of(second, colours)[0], rest)
    np.testing.assert_array_equal(np.sort(np.append(begun, rest)), np.arange(0, 120, 4))


def test_samples_that_are_not_retained_are_rejected(colours: Any) -> None:
    loader = loader_of(colours, 5, indices=[3, 8, 9])
    loader.set_samples([3, 9])
    for given, error, says in (
        ([3, 7], ValueError, "`ids` must be retained samples; 7 is not"),
        ([], ValueError, "empty"),
        ([0.5], TypeError, "indices"),
    ):
        with pytest.raises(error, match=says):
            loader.set_samples(given)
        assert samples_of(loader, colours)[0].tolist() == [3, 9]
