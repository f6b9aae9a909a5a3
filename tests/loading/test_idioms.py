"""Code written for ffcv's Loader works with PrunedLoader."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import FloatDecoder, IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import OrderOption
from ffcv.loader.loader import ORDER_MAP
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from ffcv.traversal_order.base import TraversalOrder
from ffcv.traversal_order.quasi_random import QuasiRandom
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, PrunedLoader, Selection, write_beton
from dp4tl_ffcv.loading import loader as loading_module
from dp4tl_ffcv.loading.decoding.decoders import CenterCropRGBImageDecoder
from tests.support.betons import OpaqueField
from tests.support.loading import Step, ids_of, only, plus


def test_all_batches_can_be_kept_if_all_are_made_ahead(colours: Any) -> None:
    kept = list(PrunedLoader(colours.path, 10, batches_ahead=12))
    assert ids_of(kept, colours) == list(range(120))


# Caches.


def test_os_cache_chooses_the_cache_unless_cache_is_given(colours: Any) -> None:
    for os_cache, cache in ((True, "ram"), (False, "extents")):
        for loader in (
            PrunedLoader(colours.path, 30, 2, os_cache),
            PrunedLoader(colours.path, 30, os_cache=not os_cache, cache=cache),
        ):
            assert loader.cache == cache
            assert ids_of(loader, colours) == list(range(120))


# Pipelines.


def test_a_changed_operation_takes_effect_with_recompile(colours: Any) -> None:
    for recompile in (True, False):
        numbers = [100]
        steps = [IntDecoder(), Step(lambda numbers=numbers: plus(numbers[0]))]
        loader = PrunedLoader(colours.path, 120, recompile=recompile, pipelines=only(label=steps))
        for numbers[0], expected in ((100, 100), (200, 200 if recompile else 100)):
            ((labels,),) = loader
            np.testing.assert_array_equal(labels[:, 0], colours.labels + expected)


def test_a_size_set_during_an_epoch_takes_effect_in_the_next(colours: Any) -> None:
    decoder = CenterCropRGBImageDecoder((8, 8), ratio=1.0)
    loader = PrunedLoader(colours.path, 10, pipelines={"image": [decoder]}, batches_ahead=1)
    batches = iter(loader)
    next(batches)
    decoder.output_size = (12, 12)
    for pixels, *_ in batches:
        assert pixels.shape == (10, 8, 8, 3)
        colours.ids_of(pixels)
    assert next(iter(loader))[0].shape == (10, 12, 12, 3)


def test_fields_have_a_default_pipeline_and_none_disables_them(colours: Any) -> None:
    for pipelines, outputs in (
        ({}, 3),
        ({"image": None}, 2),
        ({"label": None, "identifier": None}, 1),
        ({"image": [SimpleRGBImageDecoder(), ToTensor()]}, 3),
        ({"image": [SimpleRGBImageDecoder()], "label": None}, 2),
    ):
        batch = next(iter(PrunedLoader(colours.path, 12, pipelines=pipelines)))
        assert len(batch) == outputs


def test_outputs_can_share_a_field_or_the_operations_of_another(colours: Any) -> None:
    shared, again = (Step(lambda: plus(100)) for _ in range(2))
    pipelines = only(
        label=[IntDecoder(), shared, ToTensor()],
        twice=PipelineSpec(shared, transforms=[again, ToTensor()]),
        plain=PipelineSpec("label", IntDecoder(), [ToTensor()]),
    )
    for once, twice, plain in PrunedLoader(colours.path, 30, pipelines=pipelines, order="random"):
        np.testing.assert_array_equal(plain + 100, once)
        np.testing.assert_array_equal(plain + 200, twice)


def test_torch_modules_work_in_a_pipeline(colours: Any) -> None:
    class Halve(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float() / 2

    pipelines = only(image=[SimpleRGBImageDecoder(), ToTensor(), ToTorchImage(), Halve()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # ffcv advises against it on the CPU
        loader = PrunedLoader(colours.path, 40, pipelines=pipelines)
        pixels = [((2 * x).to(torch.uint8).permute(0, 2, 3, 1),) for (x,) in loader]
    assert ids_of(pixels, colours) == list(range(120))


# Orders.


class Backwards(TraversalOrder):
    """An order as ffcv's users write them."""

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self.indices[::-1]


def test_an_order_can_be_given_in_many_forms(colours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ORDER_MAP, "backwards", Backwards)
    backwards = list(range(119, -1, -1))
    for order in (Backwards, "backwards", lambda ids, **_: ids[::-1]):
        assert ids_of(PrunedLoader(colours.path, 30, order=order), colours) == backwards
    for order in (*OrderOption, "sequential", "random", "quasi_random", QuasiRandom):
        loader = PrunedLoader(colours.path, 30, order=order)
        assert sorted(ids_of(loader, colours)) == list(range(120))


def test_ffcvs_own_quasi_random_order_works(paged: Any) -> None:
    selection = Selection.of_classes(paged.index, [2, 8])
    loader = PrunedLoader(paged.path, 4, order=QuasiRandom, selection=selection, seed=3)
    assert isinstance(loader.traversal_order, QuasiRandom)
    for _ in range(2):
        np.testing.assert_array_equal(np.sort(ids_of(loader, paged)), selection.indices)
    loader.set_selection([5, 90, 41, 7])
    assert sorted(ids_of(loader, paged)) == [5, 7, 41, 90]


class Every(TraversalOrder):
    """An order with arguments, which ffcv's main branch passes to its class."""

    def __init__(self, loader: Any, step: int = 1, start: int = 0) -> None:
        super().__init__(loader)
        self.step, self.start = step, start

    def sample_order(self, epoch: int) -> NDArray[Any]:
        return self.indices[self.start :: self.step]


def test_order_kwargs_of_ffcvs_main_branch_work(
    colours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = loading_module._SIGNATURE
    added = inspect.Parameter("order_kwargs", inspect.Parameter.POSITIONAL_OR_KEYWORD, default={})
    main_branch = ours.replace(parameters=[*ours.parameters.values(), added])
    monkeypatch.setattr(loading_module, "_SIGNATURE", main_branch)
    assert ids_of(PrunedLoader(colours.path, 10, order=Every), colours) == list(range(120))
    options = {"step": 2, "start": 1}
    loader = PrunedLoader(colours.path, 10, order=Every, order_kwargs=options)
    assert len(loader) == 6
    for _ in range(2):
        assert ids_of(loader, colours) == list(range(1, 120, 2))
    loader.set_selection(range(40))
    assert ids_of(loader, colours) == list(range(1, 40, 2))
    kept = loader.filter("label", lambda label: label < 5)
    assert set(kept.indices) < set(range(40))


# Filters.


def test_filters_return_ids_not_positions(colours: Any) -> None:
    chosen = [100, 3, 44, 71, 9, 10, 12]
    loader = PrunedLoader(colours.path, 3, indices=chosen, order="random", drop_last=False)
    filtered = loader.filter("label", lambda label: label[0] in (1, 5, 7))
    expected = [number for number in chosen if colours.labels[number] in (1, 5, 7)]
    assert 0 < len(expected) < len(chosen)
    assert isinstance(filtered, PrunedLoader)
    assert filtered.indices.tolist() == expected
    assert sorted(ids_of(filtered, colours)) == sorted(expected)
    assert loader.indices.tolist() == chosen
    again = filtered.filter("label", lambda label: label < 6)
    assert again.indices.tolist() == [n for n in expected if colours.labels[n] < 6]


def test_filters_read_every_sample_and_keep_the_options(colours: Any) -> None:
    loader = PrunedLoader(
        colours.path, 50, order=OrderOption.RANDOM, seed=8, cache="extents", batches_ahead=2,
        pipelines={"identifier": None, "label": [IntDecoder(), ToTensor(), Squeeze(1)]},
    )  # fmt: skip
    filtered = loader.filter("label", lambda label: label >= 5)
    assert sorted(filtered.indices.tolist()) == np.flatnonzero(colours.labels >= 5).tolist()
    assert (filtered.cache, filtered.seed, filtered.batches_ahead) == ("extents", 8, 2)
    ((pixels, labels),) = filtered
    np.testing.assert_array_equal(labels, colours.labels[colours.ids_of(pixels)])


def test_a_filter_can_use_a_disabled_field(colours: Any) -> None:
    pipelines = {"label": None, "identifier": None}
    loader = PrunedLoader(colours.path, 20, pipelines=pipelines)
    filtered = loader.filter("label", lambda label: label == 3)
    np.testing.assert_array_equal(filtered.indices, np.flatnonzero(colours.labels == 3))


# Fields that ffcv does not know.


class HalfField(OpaqueField):
    """A number per sample, of a type that ffcv does not know."""

    metadata_type = np.dtype("<f8")

    def encode(self, destination: Any, value: float, malloc: Any) -> None:
        destination[0] = value / 2

    def get_decoder_class(self) -> Any:
        return FloatDecoder


class OwnImageField(RGBImageField):
    """An image field that ffcv's table of types does not list."""


def test_custom_fields_are_loaded(colours: Any, tmp_path: Path) -> None:
    path = tmp_path / "custom.beton"
    fields = {"image": OwnImageField(), "half": HalfField(), "label": IntField()}
    rows = [(image, number, number % 3) for number, image in enumerate(colours.images[:20])]
    write_beton(path, rows, fields, seed=None)
    custom = {"image": RGBImageField, "half": HalfField}
    pipelines = {"image": [CenterCropRGBImageDecoder((16, 16), ratio=1.0)]}
    loader = PrunedLoader(
        path, 10, order="random", cache="extents", custom_fields=custom, pipelines=pipelines
    )
    seen = []
    for pixels, halves, labels in loader:
        ids = colours.ids_of(pixels)
        np.testing.assert_array_equal(2 * halves[:, 0], ids)
        np.testing.assert_array_equal(labels[:, 0], ids % 3)
        seen += ids.tolist()
    assert sorted(seen) == list(range(20))
    with pytest.raises(BetonError, match=r"custom field '(image|half)'"):
        PrunedLoader(path, 2)
    assert loader.filter("half", lambda half: half < 2).indices.tolist() == [0, 1, 2, 3]
