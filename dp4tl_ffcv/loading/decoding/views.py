"""Several crops of one image from one decode, as self-supervised methods need them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State

from ..ffcv_adapter.compilation import precompiled
from .decoders import CropDecoder, RandomResizedCropRGBImageDecoder, crops_decoder, scratch_bytes


def view_pipelines(
    views: Mapping[str, CropDecoder], steps: Callable[[], Sequence[Any]]
) -> dict[str, Any]:
    """Return pipelines that yield several crops of each image, which is decoded once.

    Args:
        views: a decoder for each output. The first output bears the name of the image field; the
            others follow behind all fields in a batch. The `view` of random crops is set to their
            place, so that each draws its own.
        steps: makes the operations behind each decoder, anew for each.

    Example:
        >>> crops = {"image": RandomResizedCropRGBImageDecoder((224, 224), flip=0.5),
        ...          "image_2": RandomResizedCropRGBImageDecoder((224, 224), flip=0.5)}
        >>> pipelines = view_pipelines(crops, lambda: [ToTensor(), ToTorchImage()])
        >>> loader = PrunedLoader(path, 256, pipelines={**pipelines, "label": None})
        >>> for first, second in loader: ...

    Raises:
        TypeError: a decoder is none of this package's.
        ValueError: there are no views, or one decoder is given twice.
    """
    decoders = list(views.values())
    if not decoders or len(set(map(id, decoders))) < len(decoders):
        raise ValueError(
            f"`views` must give each output a decoder of its own; got {dict(views)}. "
            "Construct one for each."
        )
    for number, decoder in enumerate(decoders):
        if not isinstance(decoder, CropDecoder):
            raise TypeError(
                f"`views` must hold decoders of dp4tl_ffcv; got {type(decoder)}. Import them "
                "from there."
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
    """Decodes each image once for all views; yields a tuple of their batches."""

    def __init__(self, decoders: Sequence[CropDecoder]) -> None:
        super().__init__()
        self.decoders = tuple(decoders)

    def scratch_bytes(self, max_height: int, max_width: int) -> int:
        """Return the memory that a thread needs for images of at most this size."""
        return scratch_bytes(self.decoders, max_height, max_width)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask ffcv for the memory of each view."""
        declared = [decoder.declare_state_and_memory(previous_state) for decoder in self.decoders]
        return declared[0][0], tuple(memory for _, memory in declared)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that ffcv calls."""
        decode_crops = crops_decoder(self.decoders)

        @precompiled
        def decode(batch_indices: Any, destinations: Any, metadata: Any, state: Any) -> Any:
            decode_crops(batch_indices, destinations, metadata, state)
            return destinations

        return decode


class _TakeView(Operation):
    """Picks one view of those that a `_ViewsDecoder` yields."""

    def __init__(self, decoder: _ViewsDecoder, number: int) -> None:
        super().__init__()
        self._decoder = decoder
        self._number = number

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that ffcv compiles."""
        number = self._number

        def take(views: Any, _: Any) -> Any:
            return views[number]

        return take

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, AllocationQuery | None]:
        """Describe the view; it needs no memory of its own."""
        height, width = self._decoder.decoders[self._number].output_size
        return replace(previous_state, shape=(height, width, 3)), None
