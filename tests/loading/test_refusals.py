"""Arguments that loaders, decoders and pipelines reject."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder as StockDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor

from dp4tl_ffcv import (
    BetonError,
    CenterCropRGBImageDecoder,
    PrunedLoader,
    RandomResizedCropRGBImageDecoder,
    evaluation_loader,
    image_fields,
    training_loader,
    view_pipelines,
    write_beton,
)
from tests.support.loading import of_classes

CROPS = RandomResizedCropRGBImageDecoder((8, 8))
CROP = partial(RandomResizedCropRGBImageDecoder, output_size=(8, 8))
CENTRE = partial(CenterCropRGBImageDecoder, (8, 8))
SPEC = PipelineSpec("label", None, [])
WRONG_SOURCE = PipelineSpec("picture", None, [ToTensor()])
ONE_OF = "^`order` must be an OrderOption, one of sequential, random, quasi_random"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cache": "disk"}, "^`cache` must be one of extents, ram, auto; got 'disk'"),
        ({"cache": "os"}, "^`cache` must be one of extents, ram, auto; got 'os'"),
        ({"cache": True}, "^`cache` must be one of"),
        ({"cache": ""}, "^`cache` must be one of"),
        ({"read_ahead": 0}, "^`read_ahead` must be at least 1; got 0"),
        ({"batch_size": 0}, "^`batch_size` must be at least 1; got 0"),
        ({"batch_size": 2.5}, "^`batch_size` must be an int"),
        ({"batches_ahead": 0}, "^`batches_ahead` must be at least 1; got 0"),
        ({"seed": -1}, "^`seed` must"),
        *(({"order": order}, ONE_OF)
          for order in ("shuffled", 2, None, dict, PrunedLoader, [1, 2], {"a": 1}, np.arange(3))),
        ({"worker": 3}, "unexpected keyword argument 'worker'"),
        ({"relabel": True}, "^`relabel` needs a `selection`"),
        ({"selection": "it", "indices": [1]}, "^`indices` and `selection` were both given"),
        *(({"selection": "it", "relabel": True, "pipelines": {"label": steps}},
           "^`relabel` needs a list of operations for 'label'") for steps in (None, SPEC)),
        *(({"pipelines": {"label": steps}}, "operations, a PipelineSpec or None for 'label'")
          for steps in (7, "label", ToTensor(), {"a": 1}, {ToTensor})),
        ({"pipelines": {"picture": [ToTensor()]}}, "'picture', which reads the field 'picture'"),
        ({"pipelines": {"image": WRONG_SOURCE}}, "'image', which reads the field 'picture'"),
    ],
)  # fmt: skip
def test_bad_arguments_of_loaders_are_rejected(options: Any, match: str, colours: Any) -> None:
    if "selection" in options:
        options = {**options, "selection": of_classes(colours, [7, 2])}
    with pytest.raises((TypeError, ValueError), match=match):
        PrunedLoader(colours.path, **{"batch_size": 6, **options})


@pytest.mark.parametrize("ids", [[0, 1], np.array([0, 1]), range(2), 3], ids=str)
def test_ids_as_a_selection_are_rejected_with_advice(ids: Any, colours: Any) -> None:
    with pytest.raises(TypeError, match=r"^`selection` .*Pass sample ids as `indices`\."):
        PrunedLoader(colours.path, 6, selection=ids)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (CROP, {"scale": (0.0, 1.0)}, r"^`scale` must be \(low, high\) with 0 < low <= high <= 1"),
        (CROP, {"scale": (0.5, 1.5)}, "^`scale` must be"),
        (CROP, {"scale": (0.5, 0.2)}, "^`scale` must be"),
        (CROP, {"ratio": (0.0, 1.0)}, "^`ratio` must be"),
        (CROP, {"ratio": (2.0, 1.0)}, "^`ratio` must be"),
        (CROP, {"flip": 1.5}, "^`flip` must be at least 0 and at most 1; got 1.5"),
        (CROP, {"flip": -0.1}, "^`flip` must be"),
        *((CROP, {"view": view}, "^`view` must") for view in (-1, 2**53)),
        *((CROP, {"output_size": size}, "^`output_size` must")
          for size in ((0, 8), (8,), 8, (8.5, 8))),
        *((CENTRE, {"ratio": ratio}, "^`ratio` must") for ratio in (0.0, -0.5, 1.01, float("nan"))),
    ],
)  # fmt: skip
def test_bad_arguments_of_decoders_are_rejected(make: Any, options: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        make(**options)


def test_views_of_an_unknown_field_are_rejected(colours: Any) -> None:
    pipelines = view_pipelines({"picture": CROP(), "again": CROP()}, list)
    with pytest.raises(ValueError, match="'picture', which reads the field 'picture'"):
        PrunedLoader(colours.path, 6, pipelines={**pipelines, "image": None})


@pytest.mark.parametrize(
    ("views", "match"),
    [
        ({}, "its own decoder"),
        ({"image": CROPS, "image_2": CROPS}, "its own decoder"),
        ({"image": StockDecoder((8, 8), ratio=1.0)}, "must hold decoders of dp4tl_ffcv"),
    ],
    ids=["none", "one for two", "ffcv's"],
)
def test_bad_views_are_rejected(views: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^`views` .*{match}"):
        view_pipelines(views, list)


@pytest.mark.parametrize("make", [training_loader, evaluation_loader])
def test_a_beton_without_labels_is_rejected(make: Any, tmp_path: Any) -> None:
    fields = {"image": image_fields()["image"]}
    index = write_beton(tmp_path / "a.beton", [(np.zeros((8, 8, 3), np.uint8),)], fields)
    options = {"seed": 0} if make is training_loader else {}
    with pytest.raises(BetonError, match=r"has no field 'label'\. Its fields are image"):
        make(index, batch_size=1, resolution=8, **options)
