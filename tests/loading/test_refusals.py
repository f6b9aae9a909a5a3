"""Arguments that loaders and pipelines refuse, each with the words of its error."""

from typing import Any

import numpy as np
import pytest
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder as StockDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor

from dp4tl_ffcv import (
    BetonError,
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
SPEC = PipelineSpec("label", None, [])
WRONG_SOURCE = PipelineSpec("picture", None, [ToTensor()])
ONE_OF = "^`order` must be an OrderOption, one of sequential, random, quasi_random"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cache": "disk"}, "^`cache` must be one of extents, os, ram, auto; got 'disk'"),
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
def test_bad_arguments_are_refused(options: Any, match: str, colours: Any) -> None:
    if "selection" in options:
        options = {**options, "selection": of_classes(colours, [7, 2])}
    with pytest.raises((TypeError, ValueError), match=match):
        PrunedLoader(colours.path, **{"batch_size": 6, **options})


@pytest.mark.parametrize(
    ("views", "match"),
    [
        ({}, "its own decoder"),
        ({"image": CROPS, "image_2": CROPS}, "its own decoder"),
        ({"image": StockDecoder((8, 8), ratio=1.0)}, "must hold decoders of dp4tl_ffcv"),
    ],
    ids=["none", "one for two", "ffcv's"],
)
def test_bad_views_are_refused(views: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^`views` .*{match}"):
        view_pipelines(views, list)


@pytest.mark.parametrize("make", [training_loader, evaluation_loader])
def test_a_beton_without_labels_is_refused(make: Any, tmp_path: Any) -> None:
    fields = {"image": image_fields()["image"]}
    index = write_beton(tmp_path / "a.beton", [(np.zeros((8, 8, 3), np.uint8),)], fields)
    options = {"seed": 0} if make is training_loader else {}
    with pytest.raises(BetonError, match=r"has no field 'label'\. Its fields are image"):
        make(index, batch_size=1, resolution=8, **options)
