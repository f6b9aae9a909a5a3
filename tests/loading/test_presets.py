"""The loaders for training and evaluation."""

from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    Selection,
    evaluation_loader,
    image_fields,
    training_loader,
    write_beton,
)
from tests.support.loading import of_classes, pretend_rank

KEPT = [6, 1]


def collect(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [(images.clone(), labels.clone()) for images, labels in loader]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return images, labels


def ids_of(images: torch.Tensor, dataset: Any) -> np.ndarray:
    return dataset.ids_of(images.permute(0, 2, 3, 1).numpy())


def test_batches_are_channels_first_pixels_and_flat_labels(photos: Any) -> None:
    for loader in (
        training_loader(photos.path, batch_size=50, resolution=24, seed=0),
        evaluation_loader(photos.path, batch_size=50, resolution=24),
    ):
        images, labels = next(iter(loader))
        assert (images.dtype, images.shape) == (torch.uint8, (50, 3, 24, 24))
        assert (labels.dtype, labels.shape) == (torch.int64, (50,))


@pytest.mark.parametrize("batch_size", [7, 120, 500])
def test_evaluation_loads_every_sample_once_in_order(batch_size: int, colours: Any) -> None:
    loader = evaluation_loader(colours.path, batch_size=batch_size, resolution=8)
    for _ in range(2):
        images, labels = collect(loader)
        np.testing.assert_array_equal(ids_of(images, colours), np.arange(120))
        np.testing.assert_array_equal(labels, colours.labels)
    options = {"batch_size": batch_size, "resolution": 8, "indices": [60, 3, 17]}
    images, _ = collect(evaluation_loader(colours.path, **options))
    assert ids_of(images, colours).tolist() == [60, 3, 17]


@pytest.mark.parametrize("relabel", [True, False])
def test_relabel_renumbers_the_labels(relabel: bool, colours: Any) -> None:
    selection = of_classes(colours, KEPT)
    options = {"batch_size": 6, "resolution": 8, "selection": selection, "relabel": relabel}
    for loader in (
        training_loader(colours.path, seed=3, **options),
        evaluation_loader(colours.path, **options),
    ):
        images, labels = collect(loader)
        ids = ids_of(images, colours)
        np.testing.assert_array_equal(np.sort(ids), selection.indices)
        kept = colours.labels[ids]
        np.testing.assert_array_equal(labels, selection.label_map[kept] if relabel else kept)


def test_cache_and_order_are_passed_on(colours: Any) -> None:
    shared = {"batch_size": 40, "resolution": 8}
    loader = training_loader(colours.path, seed=0, cache="extents", order="sequential", **shared)
    assert loader.cache == "extents"
    np.testing.assert_array_equal(ids_of(collect(loader)[0], colours), np.arange(120))
    assert evaluation_loader(colours.path, cache="ram", **shared).cache == "ram"


def test_seed_and_epoch_determine_the_order_of_training(colours: Any) -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = training_loader(colours.path, batch_size=40, resolution=8, seed=seed)
        return [ids_of(collect(loader)[0], colours).tolist() for _ in range(2)]

    first, second = epochs(0)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(120))
    assert epochs(0) == [first, second]
    assert epochs(1) != [first, second]


@pytest.mark.parametrize(("batch_size", "count"), [(7, 119), (120, 120), (121, 120)])
def test_training_drops_the_last_batch_unless_it_is_the_only_one(
    batch_size: int, count: int, colours: Any
) -> None:
    loader = training_loader(colours.path, batch_size=batch_size, resolution=8, seed=0)
    assert len(collect(loader)[1]) == count
    small = of_classes(colours, KEPT)
    loader = training_loader(colours.path, batch_size=25, resolution=8, seed=0, selection=small)
    assert len(collect(loader)[1]) == len(small) == 24


@pytest.mark.parametrize("order", ["random", "sequential", "quasi_random"])
def test_batches_of_all_ranks_equal_batches_of_one_process(
    order: str, colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = Selection.of_indices(colours.index, np.arange(119))
    options = {"resolution": 8, "seed": 3, "selection": selection, "order": order}
    whole = ids_of(collect(training_loader(colours.path, batch_size=16, **options))[0], colours)
    shares = []
    for rank in range(2):
        pretend_rank(monkeypatch, rank, 2)
        loader = training_loader(colours.path, batch_size=8, distributed=True, **options)
        shares.append(ids_of(collect(loader)[0], colours))
    assert [len(share) for share in shares] == [56, 56]
    if order != "quasi_random":  # whose shares are blocks of the file
        np.testing.assert_array_equal(np.stack(shares, axis=1).reshape(-1), whole)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Images whose red rises to the right and whose green rises downwards."""
    path = tmp_path_factory.mktemp("ramps") / "ramps.beton"
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = ramp[None, :], ramp[:, None]
    return write_beton(path, [(image, 0, 0)] * 64, image_fields(mode="raw"))


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_with_flip(flip: bool, ramps: Any) -> None:
    loader = training_loader(ramps.path, batch_size=64, resolution=16, seed=0, flip=flip)
    images, _ = collect(loader)
    mirrored = images[:, 0, 8, 0] > images[:, 0, 8, -1]
    assert (0 < mirrored.sum() < 64) if flip else not mirrored.any()
    assert (images[:, 1, 0, 8] < images[:, 1, -1, 8]).all()


@pytest.mark.parametrize("min_scale", [0.1, 0.9])
def test_crops_are_at_least_min_scale(min_scale: float, ramps: Any) -> None:
    loader = training_loader(
        ramps.path, batch_size=64, resolution=16, seed=0, flip=False, min_scale=min_scale
    )
    images = collect(loader)[0].int()
    width = (images[:, 0, 8, -1] - images[:, 0, 8, 0]) / 255
    height = (images[:, 1, -1, 8] - images[:, 1, 0, 8]) / 255
    area = width * height
    assert area.max() > 0.75
    assert area.min() > 0.8 * min_scale  # the centres of the outer pixels are inside the crop
    assert (area.min() < 0.5) == (min_scale < 0.5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 100), (100, 64)], ids=str)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_evaluation_crops_the_centre(ratio: float, shape: tuple[int, int], tmp_path: Any) -> None:
    image = np.zeros((*shape, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = 2 * np.arange(shape[1]), 2 * np.arange(shape[0])[:, None]
    # Two samples: numba compiles another variant for the table of a single one.
    index = write_beton(tmp_path / "a.beton", [(image, 0, 0)] * 2, image_fields(mode="raw"))
    side = int(64 * ratio)
    top, left = ((length - side) // 2 for length in shape)
    loader = evaluation_loader(index.path, batch_size=1, resolution=side, crop_ratio=ratio)
    crop = collect(loader)[0][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(crop, image[top : top + side, left : left + side])
