"""Several crops from one decode equal the crops that each decoder makes alone."""

from typing import Any

import numpy as np
import pytest
import torch
from ffcv.transforms import ToTensor, ToTorchImage
from numpy.typing import NDArray

from dp4tl_ffcv import PrunedLoader, Selection
from dp4tl_ffcv.loading.decoding.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
)
from dp4tl_ffcv.loading.decoding.views import view_pipelines

SEED = 4
NAMES = ["image", "image_2", "centre"]
OTHERS = {"label": None, "identifier": None}


def decoders() -> dict[str, Any]:
    # Always the same arguments, to compile them once.
    return {
        "image": RandomResizedCropRGBImageDecoder((24, 24), flip=0.5),
        "image_2": RandomResizedCropRGBImageDecoder((18, 30), flip=0.5),
        "centre": CenterCropRGBImageDecoder((20, 20), ratio=224 / 256),
    }


def nothing() -> list[Any]:
    return []


def loader_of(dataset: Any, pipelines: Any, **options: Any) -> PrunedLoader:
    options = {"num_workers": 2, "seed": SEED, "drop_last": False, **options}
    return PrunedLoader(dataset.path, 50, pipelines=pipelines, **options)


def epoch(loader: PrunedLoader) -> list[NDArray[Any]]:
    """Load each output of all samples."""
    batches = [[torch.as_tensor(part).numpy().copy() for part in batch] for batch in loader]
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def alone(dataset: Any, name: str, epochs: int, **sizes: Any) -> list[NDArray[Any]]:
    """Load the crops of one decoder without the others, with the same view number."""
    decoder = {**decoders()}[name]
    decoder.output_size = sizes.get(name, decoder.output_size)
    if name != "centre":
        decoder.view = NAMES.index(name)
    loader = loader_of(dataset, {"image": [decoder], **OTHERS})
    return [epoch(loader)[0] for _ in range(epochs)]


@pytest.mark.parametrize("name", NAMES)
def test_each_view_equals_its_decoder_alone(name: str, photos: Any) -> None:
    loader = loader_of(photos, {**view_pipelines(decoders(), nothing), **OTHERS})
    for expected in alone(photos, name, epochs=2):
        found = epoch(loader)
        assert [part.shape[1:] for part in found] == [(24, 24, 3), (18, 30, 3), (20, 20, 3)]
        np.testing.assert_array_equal(found[NAMES.index(name)], expected)


def test_views_of_raw_images_show_the_same_sample(colours: Any) -> None:
    loader = loader_of(colours, {**view_pipelines(decoders(), nothing), **OTHERS}, order="random")
    first, second, centre = epoch(loader)
    ids = colours.ids_of(first)
    assert sorted(ids) == list(range(120))
    np.testing.assert_array_equal(colours.ids_of(second), ids)
    np.testing.assert_array_equal(colours.ids_of(centre), ids)


def test_views_come_after_all_fields(photos: Any) -> None:
    selection = Selection.of_classes(photos.index, [3, 8])
    views = view_pipelines(decoders(), nothing)
    loader = loader_of(photos, views, selection=selection, relabel=True, order="random")
    expected = [alone(photos, name, epochs=1)[0] for name in NAMES]
    first, labels, ids, second, centre = epoch(loader)
    numbers = ids[:, 0]
    np.testing.assert_array_equal(np.sort(numbers), selection.indices)
    np.testing.assert_array_equal(labels[:, 0], photos.labels[numbers] == 8)
    for found, whole in zip((first, second, centre), expected, strict=True):
        np.testing.assert_array_equal(found, whole[numbers])


def test_sizes_of_views_can_change_between_epochs(photos: Any) -> None:
    views = decoders()
    loader = loader_of(photos, {**view_pipelines(views, nothing), **OTHERS})
    before = epoch(loader)
    views["image_2"].output_size = (9, 12)
    after = epoch(loader)
    assert [part.shape[1:3] for part in before] == [(24, 24), (18, 30), (20, 20)]
    assert [part.shape[1:3] for part in after] == [(24, 24), (9, 12), (20, 20)]
    np.testing.assert_array_equal(after[1], alone(photos, "image_2", 2, image_2=(9, 12))[1])
    np.testing.assert_array_equal(after[2], before[2])


def test_each_view_has_its_own_steps(photos: Any) -> None:
    made = []

    def steps() -> list[Any]:
        made.append([ToTensor(), ToTorchImage()])
        return made[-1]

    pipelines = view_pipelines(decoders(), steps)
    assert len(made) == 3
    expected = epoch(loader_of(photos, {**view_pipelines(decoders(), nothing), **OTHERS}))
    found = epoch(loader_of(photos, {**pipelines, **OTHERS}))
    for channels_first, channels_last in zip(found, expected, strict=True):
        np.testing.assert_array_equal(channels_first.transpose(0, 2, 3, 1), channels_last)


def test_views_need_scratch_memory_for_one_image(photos: Any) -> None:
    loader = loader_of(photos, {**view_pipelines(decoders(), nothing), **OTHERS})
    needs = [decoder.scratch_bytes(48, 48) for decoder in decoders().values()]
    threads, width = loader._make_workspace().scratch.shape
    assert threads == 2
    assert width <= max(needs) + 64
