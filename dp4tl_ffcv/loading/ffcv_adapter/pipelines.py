"""Copies of the caller's pipelines, with `RemapLabel` inserted if the loader relabels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ffcv.fields.basics import IntDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor

from ...selection import Selection
from ..labels import RemapLabel


def copy_pipelines(pipelines: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the lists of operations, which ffcv would modify, but not the operations."""
    copies: dict[str, Any] = {}
    for name, spec in pipelines.items():
        if isinstance(spec, PipelineSpec):
            copies[name] = PipelineSpec(spec.source, spec.decoder, list(spec.transforms))
        else:
            is_list = isinstance(spec, Sequence) and not isinstance(spec, str)
            copies[name] = list(spec) if is_list else spec
    return copies


def insert_remap(pipelines: dict[str, Any], selection: Selection | None) -> RemapLabel:
    """Insert a `RemapLabel` after the decoder of the selection's label field, and return it."""
    if selection is None:
        raise ValueError("`relabel` needs a `selection`, which numbers the classes.")
    name = selection.label_field
    steps = pipelines.get(name, [])
    if steps == []:  # ffcv's default
        steps = [IntDecoder(), ToTensor()]
    if not isinstance(steps, list):
        raise ValueError(
            f"`relabel` needs a list of operations for {name!r} in `pipelines`; got {steps!r}. "
            "Put RemapLabel into your pipeline and leave out `relabel`."
        )
    remap = RemapLabel(selection)
    at = 1 if isinstance(steps[0], IntDecoder) else 0
    pipelines[name] = [*steps[:at], remap, *steps[at:]]
    return remap


def pipeline_specs(pipelines: Mapping[str, Any], fields: Iterable[str]) -> dict[str, PipelineSpec]:
    """Return the spec of each output: the enabled fields in their order, then other outputs."""
    given = {name: _spec(name, steps) for name, steps in copy_pipelines(pipelines).items()}
    fields = list(fields)
    for name, spec in given.items():
        if spec is not None and isinstance(spec.source, str) and spec.source not in fields:
            raise ValueError(
                f"`pipelines` has {name!r}, which reads the field {spec.source!r}; the fields are "
                f"{', '.join(fields)}. Name a field, or pass a PipelineSpec with a `source`."
            )
    specs = {name: given[name] if name in given else PipelineSpec(name) for name in fields}
    return {name: spec for name, spec in {**specs, **given}.items() if spec is not None}


def has_crops(spec: PipelineSpec) -> bool:
    """Return whether a pipeline has a decoder that uses the indexes of JPEGs."""
    return any(hasattr(step, "decoders") for step in (spec.decoder, *spec.transforms))


def _spec(name: str, steps: Any) -> PipelineSpec | None:
    if steps is None or isinstance(steps, PipelineSpec):
        return steps
    if isinstance(steps, list):
        return PipelineSpec(name, decoder=None, transforms=steps)
    raise ValueError(
        f"`pipelines` must hold a list of operations, a PipelineSpec or None for {name!r}; got "
        f"{steps!r}."
    )
