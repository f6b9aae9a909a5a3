"""The caller's pipelines: copied, completed and given new labels."""

from typing import Any

import pytest
from ffcv.fields.basics import FloatDecoder, IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import Squeeze, ToTensor

from dp4tl_ffcv import RemapLabel, Selection
from dp4tl_ffcv.loading.ffcv_adapter.pipelines import copy_pipelines, insert_remap, pipeline_specs

FIELDS = ["image", "label", "identifier"]


@pytest.fixture
def selection(colours: Any) -> Selection:
    return Selection.of_classes(colours.index, [2, 5])


def kinds(steps: Any) -> list[type]:
    return [type(step) for step in steps]


# Copies.


def test_lists_and_specs_are_copied_but_not_their_operations() -> None:
    steps, spec = [IntDecoder(), ToTensor()], PipelineSpec("label", IntDecoder(), [ToTensor()])
    given = {"label": steps, "again": spec, "image": None, "pair": (IntDecoder(), ToTensor())}
    copies = copy_pipelines(given)
    assert list(copies) == list(given)
    assert copies["label"] == steps
    assert copies["label"] is not steps
    assert copies["pair"] == list(given["pair"])
    assert copies["image"] is None
    assert copies["again"] is not spec
    assert (copies["again"].source, copies["again"].decoder) == ("label", spec.decoder)
    assert copies["again"].transforms == spec.transforms
    assert copies["again"].transforms is not spec.transforms
    for name in ("label", "again"):
        (copies[name] if name == "label" else copies[name].transforms).clear()
    assert kinds(steps) == [IntDecoder, ToTensor]
    assert kinds(spec.transforms) == [ToTensor]


def test_a_spec_without_operations_stays_a_default_pipeline() -> None:
    assert copy_pipelines({"label": PipelineSpec("label")})["label"].default_pipeline


# Outputs.


def test_fields_come_in_their_order_and_other_outputs_behind() -> None:
    given = {
        "last": PipelineSpec("label", None, [IntDecoder()]),
        "identifier": [IntDecoder()],
        "image": [SimpleRGBImageDecoder(), ToTensor()],
    }
    specs = pipeline_specs(given, FIELDS)
    assert list(specs) == ["image", "label", "identifier", "last"]
    assert [spec.source for spec in specs.values()] == ["image", "label", "identifier", "label"]
    assert specs["label"].default_pipeline
    assert not specs["image"].default_pipeline
    assert kinds(specs["image"].transforms) == [SimpleRGBImageDecoder, ToTensor]


def test_none_disables_a_field_and_nothing_gives_it_the_default() -> None:
    assert list(pipeline_specs({"label": None}, FIELDS)) == ["image", "identifier"]
    assert all(spec.default_pipeline for spec in pipeline_specs({}, FIELDS).values())
    specs = pipeline_specs({"label": [], "image": ()}, FIELDS)
    assert list(specs) == FIELDS
    assert all(spec.default_pipeline for spec in specs.values())


@pytest.mark.parametrize("steps", [7, "label", ToTensor(), {"a": 1}, {ToTensor}])
def test_what_is_no_pipeline_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"^`pipelines` must hold a list .* for 'label'"):
        pipeline_specs({"label": steps}, FIELDS)


def test_an_output_of_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^`pipelines` has .*'picture'"):
        pipeline_specs({"picture": [ToTensor()]}, FIELDS)
    with pytest.raises(ValueError, match=r"^`pipelines` has .*'picture'"):
        pipeline_specs({"image": PipelineSpec("picture", None, [ToTensor()])}, FIELDS)


# New labels.


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([IntDecoder(), ToTensor()], [IntDecoder, RemapLabel, ToTensor]),
        ([IntDecoder()], [IntDecoder, RemapLabel]),
        ([ToTensor(), Squeeze(1)], [RemapLabel, ToTensor, Squeeze]),
        ([], [IntDecoder, RemapLabel, ToTensor]),
        (None, [IntDecoder, RemapLabel, ToTensor]),
    ],
    ids=["decoder", "decoder alone", "no decoder", "empty", "missing"],
)
def test_labels_are_numbered_anew_behind_their_decoder(
    steps: Any, expected: list[type], selection: Selection
) -> None:
    pipelines = {"image": None} if steps is None else {"image": None, "label": steps}
    before = None if steps is None else list(steps)
    remap = insert_remap(pipelines, selection)
    assert kinds(pipelines["label"]) == expected
    assert remap in pipelines["label"]
    assert remap.label_map.tolist() == selection.label_map.tolist()
    assert pipelines["image"] is None
    assert steps == before


def test_the_labels_may_be_in_any_field(colours: Any) -> None:
    selection = Selection(
        classes=[0], indices=[1], label_map=[0], fingerprint="", label_field="identifier"
    )
    pipelines: dict[str, Any] = {}
    insert_remap(pipelines, selection)
    assert list(pipelines) == ["identifier"]


@pytest.mark.parametrize("steps", [None, PipelineSpec("label", FloatDecoder())])
def test_new_labels_need_a_list_of_operations(steps: Any, selection: Selection) -> None:
    with pytest.raises(ValueError, match=r"^`relabel` needs a list of operations for 'label'"):
        insert_remap({"label": steps}, selection)


def test_new_labels_need_a_selection() -> None:
    with pytest.raises(ValueError, match=r"^`relabel` needs a `selection`"):
        insert_remap({}, None)
