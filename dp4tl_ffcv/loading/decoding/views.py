"""Several crops of each image from one decode, for self-supervised methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State

from .decoders import CropDecoder, RandomResizedCropRGBImageDecoder, crops_decoder


def view_pipelines(
    views: Mapping[str, CropDecoder], steps: Callable[[], Sequence[Any]]
) -> dict[str, Any]:
    """Return pipelines that yield several crops of each image and decode each image once.

    Args:
        views: a decoder for each output. The first output must have the name of the image field.
            The other outputs come after all fields in a batch. Each random crop gets its own
            `view` number, so that the crops differ.
        steps: function that returns the operations after a decoder. Called once per view.

    Example:
        >>> crops = {"image": RandomResizedCropRGBImageDecoder((224, 224), flip=0.5),
        ...          "image_2": RandomResizedCropRGBImageDecoder((224, 224), flip=0.5)}
        >>> pipelines = view_pipelines(crops, lambda: [ToTensor(), ToTorchImage()])
        >>> loader = PrunedLoader(path, 256, pipelines={**pipelines, "label": None})
        >>> for first, second in loader: ...

    Raises:
        TypeError: a decoder is not from this package.
        ValueError: there are no views, or two views share a decoder.
    """
    decoders = list(views.values())
    if not decoders or len(set(map(id, decoders))) < len(decoders):
        raise ValueError(f"`views` must give each output its own decoder; got {dict(views)}.")
    for number, decoder in enumerate(decoders):
        if not isinstance(decoder, CropDecoder):
            raise TypeError(
                f"`views` must hold decoders of dp4tl_ffcv.loading; got {type(decoder)}."
            )
        if isinstance(decoder, RandomResizedCropRGBImageDecoder):
            decoder.view = number
    shared = _ViewsDecoder(decoders)
    first, *others = views
    return {
        first: [shared, _TakeView(shared, 0), *steps()],
        **{
            name: PipelineSpec(shared, transforms=[_TakeView(shared, number), *steps()])
            for number, name in enumerate(others, start=1)
        },
    }


class _ViewsDecoder(SimpleRGBImageDecoder):
    """Decodes each image once; returns a tuple with a batch for each view."""

    def __init__(self, decoders: Sequence[CropDecoder]) -> None:
        super().__init__()
        self.decoders = tuple(decoders)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the first view. Assigning a size sets it for all views."""
        return self.decoders[0].output_size

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        for decoder in self.decoders:
            decoder.output_size = size

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        declared = [decoder.declare_state_and_memory(previous_state) for decoder in self.decoders]
        return declared[0][0], tuple(memory for _, memory in declared)

    def generate_code(self) -> Callable[..., Any]:
        return crops_decoder(self.decoders)


class _TakeView(Operation):
    """Takes one view from the tuple of a `_ViewsDecoder`."""

    def __init__(self, decoder: _ViewsDecoder, number: int) -> None:
        super().__init__()
        self._decoder = decoder.decoders[number]
        self._number = number

    def generate_code(self) -> Callable[..., Any]:
        number = self._number
        return lambda views, _: views[number]

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, AllocationQuery | None]:
        return replace(previous_state, shape=(*self._decoder.output_size, 3)), None
