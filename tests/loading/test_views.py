"""Several crops from one decode equal the crops that each decoder makes alone."""

from typing import Any

import numpy as np
import torch
from ffcv.transforms import ToTensor, ToTorchImage
from numpy.typing import NDArray

from dp4tl_ffcv import PrunedLoader, Selection
from dp4tl_ffcv.loading.decoding.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
)
from dp4tl_ffcv.loading.decoding.views import view_pipelines
from dp4tl_ffcv.loading.decoding.workspace import scratch_bytes
from tests.support.loading import loader_of, only

NAMES = ["image", "image_2"]
SHAPES = [(20, 20, 3), (18, 30, 3)]


def decoders() -> dict[str, Any]:
    return {
        "image": CenterCropRGBImageDecoder((20, 20), ratio=224 / 256),
        "image_2": RandomResizedCropRGBImageDecoder((18, 30), flip=0.5),
    }


def images_of(dataset: Any, pipelines: Any, **options: Any) -> PrunedLoader:
    return loader_of(dataset, 50, pipelines=only(**pipelines), seed=4, **options)


def epoch(loader: PrunedLoader) -> list[NDArray[Any]]:
    """Load each output of all samples."""
    batches = [[torch.as_tensor(part).numpy().copy() for part in batch] for batch in loader]
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def alone(dataset: Any, name: str, epochs: int, **sizes: Any) -> list[NDArray[Any]]:
    """Load the crops of one decoder without the others, with the same view number."""
    decoder = decoders()[name]
    decoder.output_size = sizes.get(name, decoder.output_size)
    decoder.view = NAMES.index(name)
    loader = images_of(dataset, {"image": [decoder]})
    return [epoch(loader)[0] for _ in range(epochs)]


def test_each_view_equals_its_decoder_alone(photos: Any) -> None:
    loader = images_of(photos, view_pipelines(decoders(), list))
    expected = [alone(photos, name, epochs=2) for name in NAMES]
    for whole in zip(*expected, strict=True):
        found = epoch(loader)
        assert [part.shape[1:] for part in found] == SHAPES
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one, other)
    # One image at a time is decoded.
    needs = [scratch_bytes([decoder], 48, 48) for decoder in decoders().values()]
    threads, width = loader.memory_manager.new_workspace().scratch.shape
    assert threads == 2
    assert width <= max(needs) + 64


def test_views_of_raw_images_show_the_same_sample(colours: Any) -> None:
    loader = images_of(colours, view_pipelines(decoders(), list), order="random")
    first, second = (colours.ids_of(view) for view in epoch(loader))
    assert sorted(first) == list(range(120))
    np.testing.assert_array_equal(first, second)


def test_views_come_after_all_fields(photos: Any) -> None:
    selection = Selection.of_classes(photos.index, [3, 8])
    views: dict[str, Any] = {"label": [], "identifier": [], **view_pipelines(decoders(), list)}
    loader = images_of(photos, views, selection=selection, relabel=True, order="random")
    expected = [alone(photos, name, epochs=1)[0] for name in NAMES]
    first, labels, ids, second = epoch(loader)
    numbers = ids[:, 0]
    np.testing.assert_array_equal(np.sort(numbers), selection.indices)
    np.testing.assert_array_equal(labels[:, 0], photos.labels[numbers] == 8)
    for found, whole in zip((first, second), expected, strict=True):
        np.testing.assert_array_equal(found, whole[numbers])


def test_sizes_of_views_can_change_between_epochs(photos: Any) -> None:
    views = decoders()
    loader = images_of(photos, view_pipelines(views, list))
    before = epoch(loader)
    views["image_2"].output_size = (9, 12)
    after = epoch(loader)
    assert [part.shape[1:] for part in after] == [SHAPES[0], (9, 12, 3)]
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], alone(photos, "image_2", 2, image_2=(9, 12))[1])


def test_each_view_has_its_own_steps(photos: Any) -> None:
    made = []

    def steps() -> list[Any]:
        made.append([ToTensor(), ToTorchImage()])
        return made[-1]

    found = epoch(images_of(photos, view_pipelines(decoders(), steps)))
    assert len(made) == 2
    expected = epoch(images_of(photos, view_pipelines(decoders(), list)))
    for channels_first, channels_last in zip(found, expected, strict=True):
        np.testing.assert_array_equal(channels_first.transpose(0, 2, 3, 1), channels_last)
