"""Image decoders that decode, crop, mirror and resize in one pass.

They replace ffcv's decoders of the same names. Crops depend only on the sample, the epoch and the
loader's seed, not on the number of threads. An image that cannot be decoded raises an error that
names the sample. Each thread has its own scratch memory.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.state import State
from numpy.typing import NDArray

from ...validate import check_fraction, check_int, check_ints, check_number, check_range
from ..ffcv_adapter.compilation import precompiled
from .crop_kernels import COLUMNS, FAILURES, RATIO, decode_share
from .threads import call_in_threads

_MOST_VIEWS = 1 << 20  # the parameters of a crop are floats, which hold small integers exactly


class CropDecoder(SimpleRGBImageDecoder):
    """Base of decoders that resize a crop to `output_size` with the area filter."""

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the result, in pixels."""
        return self._output_size

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        height, width = check_ints("output_size", size, 2, at_least=1)
        self._output_size = height, width

    @property
    @abstractmethod
    def crop(self) -> NDArray[np.float64]:
        """Parameters of the crop, for `decode_share`."""

    @property
    def decoders(self) -> tuple["CropDecoder", ...]:
        """The decoders that share one decoded image: this one."""
        return (self,)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask ffcv for the memory of the results."""
        height, width = self.output_size
        shape, dtype = (height, width, 3), np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that ffcv calls for each batch."""
        decode_crops = crops_decoder(self.decoders)

        @precompiled
        def decode(batch_indices: Any, destination: Any, metadata: Any, state: Any) -> Any:
            decode_crops(batch_indices, (destination,), metadata, state)
            return destination

        return decode


class RandomResizedCropRGBImageDecoder(CropDecoder):
    """Decoder of random crops, drawn as in `torchvision.transforms.RandomResizedCrop`.

    The loader's seed, the epoch and the sample id determine each crop.

    Args:
        output_size: height and width of the result, in pixels. Can be changed between epochs.
        scale: smallest and largest area of the crop, as fractions of the image.
        ratio: smallest and largest width / height of the crop.
        flip: probability of mirroring the crop.
        view: number of the view, for several crops of each image. Each view draws its own crop.

    Yields uint8 `(B, height, width, 3)`.
    """

    def __init__(
        self,
        output_size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        flip: float = 0.0,
        view: int = 0,
    ) -> None:
        super().__init__(output_size)
        self.scale = check_range("scale", scale, at_most=1.0)
        self.ratio = check_range("ratio", ratio)
        self.flip = check_number("flip", flip, at_least=0, at_most=1)
        self.view = check_int("view", view, 0, _MOST_VIEWS)

    @property
    def crop(self) -> NDArray[np.float64]:
        """Parameters of the crop, for `decode_share`."""
        return np.array([1.0, *self.scale, *self.ratio, self.flip, self.view])


class CenterCropRGBImageDecoder(CropDecoder):
    """Decoder of a centred square crop.

    Args:
        output_size: height and width of the result, in pixels. Can be changed between epochs.
        ratio: side of the crop / shorter side of the image.

    Yields uint8 `(B, height, width, 3)`.
    """

    def __init__(self, output_size: tuple[int, int], ratio: float) -> None:
        super().__init__(output_size)
        self.ratio = check_fraction("ratio", ratio)

    @property
    def crop(self) -> NDArray[np.float64]:
        """Parameters of the crop, for `decode_share`."""
        crop = np.zeros(COLUMNS)
        crop[RATIO] = self.ratio
        return crop


def crops_decoder(decoders: Sequence[CropDecoder]) -> Callable[..., Any]:
    """Return a function that decodes each image of a batch once for all `decoders`.

    The function takes the first four arguments of `decode_share` and returns the destinations.
    """
    crops = np.stack([decoder.crop for decoder in decoders])

    @precompiled
    def decode(batch_indices: Any, destinations: Any, metadata: Any, state: Any) -> Any:
        batch = batch_indices.astype(np.uint64)
        share = partial(decode_share, batch, destinations, metadata, state, crops)
        call_in_threads(share, len(state[FAILURES]))
        return destinations

    return decode
