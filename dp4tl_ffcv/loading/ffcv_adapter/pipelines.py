"""The caller's pipelines: copied before ffcv takes them apart, and with new labels if asked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ffcv.fields.basics import IntDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor

from ...selection import Selection
from ..labels import RemapLabel


def copy_pipelines(pipelines: Mapping[str, Any]) -> dict[str, Any]:
    """Copy what ffcv would otherwise take apart; the operations themselves stay the caller's."""
    copies: dict[str, Any] = {}
    for name, spec in pipelines.items():
        if isinstance(spec, PipelineSpec):
            copies[name] = PipelineSpec(spec.source, spec.decoder, list(spec.transforms))
        else:
            is_list = isinstance(spec, Sequence) and not isinstance(spec, str)
            copies[name] = list(spec) if is_list else spec
    return copies


def insert_remap(pipelines: dict[str, Any], selection: Selection | None) -> RemapLabel:
    """Put a `RemapLabel` behind the decoder of the selection's label field, and return it."""
    if selection is None:
        raise ValueError("`relabel` must come with a `selection`; got none. Pass one.")
    name = selection.label_field
    steps = pipelines.get(name, [])
    if steps == []:  # ffcv's default
        steps = [IntDecoder(), ToTensor()]
    if not isinstance(steps, list):
        raise ValueError(
            f"`pipelines` must give {name!r} a list of operations for `relabel`; got {steps!r}. "
            "Put RemapLabel into your own pipeline instead."
        )
    remap = RemapLabel(selection)
    at = 1 if isinstance(steps[0], IntDecoder) else 0
    pipelines[name] = [*steps[:at], remap, *steps[at:]]
    return remap


def pipeline_specs(pipelines: Mapping[str, Any], fields: Iterable[str]) -> dict[str, PipelineSpec]:
    """Describe each output: the fields in their order, but for disabled ones, then all others."""
    given = {name: _spec(name, steps) for name, steps in copy_pipelines(pipelines).items()}
    fields = list(fields)
    for name, spec in given.items():
        if spec is not None and isinstance(spec.source, str) and spec.source not in fields:
            raise ValueError(
                f"`pipelines` must start from the fields {', '.join(fields)}; got {spec.source!r} "
                f"for {name!r}. Name a field, or give a PipelineSpec with another source."
            )
    specs = {name: given[name] if name in given else PipelineSpec(name) for name in fields}
    return {name: spec for name, spec in {**specs, **given}.items() if spec is not None}


def _spec(name: str, steps: Any) -> PipelineSpec | None:
    if steps is None or isinstance(steps, PipelineSpec):
        return steps
    if isinstance(steps, list):
        return PipelineSpec(name, decoder=None, transforms=steps)
    raise ValueError(
        f"`pipelines` must give {name!r} a PipelineSpec, operations or None; got {steps!r}. "
        "Pass a list of operations."
    )
