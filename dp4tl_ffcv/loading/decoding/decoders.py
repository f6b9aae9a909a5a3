"""Image decoders that decode, crop, mirror and resize in one pass.

They replace ffcv's decoders of the same names. Crops depend only on the sample, the epoch and the
loader's seed, not on the number of threads. An image that cannot be decoded raises an error that
names the sample. Scratch memory is allocated per thread.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.state import State
from numba import prange
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...beton.format import IMAGE_MODES
from ...jpeg.crop import WRONG_SIZE, decode_crop, jpeg_scratch_bytes
from ...kernels.compiled import compiled
from ...kernels.crops import draw_crop, draw_flip
from ...kernels.resize import resize_crop, resize_scratch_bytes
from ...validate import check_fraction, check_int, check_ints, check_probability, check_range
from ..ffcv_adapter.compilation import precompiled
from ..ffcv_adapter.memory import bytes_at
from .workspace import NO_BYTES, WRONG_LENGTH, aligned

_JPEG = next(number for number, mode in IMAGE_MODES.items() if mode == "jpg")

# Columns of a crop's parameters: numbers in an array, so that all decoders share compiled code.
_RANDOM, _SCALE, _RATIO, _FLIP, _VIEW, _COLUMNS = 0, 1, 3, 5, 6, 7
_MOST_VIEWS = 1 << 20
_BOX_BYTES = 5 * 8  # top, left, height, width and a flag for mirroring, as int64


class CropDecoder(SimpleRGBImageDecoder):
    """Decoder of a crop, resized to `output_size` with the area filter.

    Args:
        output_size: height and width of the result, in pixels. It may be set between epochs.
    """

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
        """Parameters of the crop, for `_choose_boxes`."""

    def scratch_bytes(self, max_height: int, max_width: int) -> int:
        """Return the scratch bytes of a thread for images of at most this size."""
        return scratch_bytes((self,), max_height, max_width)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask ffcv for the memory of the results."""
        height, width = self.output_size
        shape, dtype = (height, width, 3), np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that ffcv calls for each batch."""
        decode_crops = crops_decoder((self,))

        @precompiled
        def decode(batch_indices: Any, destination: Any, metadata: Any, state: Any) -> Any:
            decode_crops(batch_indices, (destination,), metadata, state)
            return destination

        return decode


class RandomResizedCropRGBImageDecoder(CropDecoder):
    """Decoder of a random crop, as for `torchvision.transforms.RandomResizedCrop`.

    `dp4tl_ffcv.kernels.random_crops` draws the crop from the loader's seed, the epoch and the
    sample's id.

    Args:
        output_size: height and width of the result, in pixels. It may be set between epochs.
        scale: smallest and largest area of the crop, as fractions of the image.
        ratio: smallest and largest width / height of the crop.
        flip: probability of mirroring the crop, at no cost.
        view: number of the crop, for images with several: each view draws its own crop.

    Yields uint8 `(B, height, width, 3)`.

    Raises:
        ValueError: a value is out of range.
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
        self.flip = check_probability("flip", flip)
        self.view = check_int("view", view, 0, _MOST_VIEWS)

    @property
    def crop(self) -> NDArray[np.float64]:
        """Parameters of the crop, for `_choose_boxes`."""
        return np.array([1.0, *self.scale, *self.ratio, self.flip, self.view])


class CenterCropRGBImageDecoder(CropDecoder):
    """Decoder of the square in the centre of the image.

    Args:
        output_size: height and width of the result, in pixels. It may be set between epochs.
        ratio: side of the crop / shorter side of the image.

    Yields uint8 `(B, height, width, 3)`.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, output_size: tuple[int, int], ratio: float) -> None:
        super().__init__(output_size)
        self.ratio = check_fraction("ratio", ratio)

    @property
    def crop(self) -> NDArray[np.float64]:
        """Parameters of the crop, for `_choose_boxes`."""
        crop = np.zeros(_COLUMNS)
        crop[_RATIO] = self.ratio
        return crop


def scratch_bytes(decoders: Sequence[CropDecoder], max_height: int, max_width: int) -> int:
    """Return the scratch bytes of a thread of `crops_decoder` for images of at most this size."""
    resizing = max(
        int(resize_scratch_bytes(max_height, max_width, *decoder.output_size))
        for decoder in decoders
    )
    pixels = aligned(3 * max_height * max_width)
    work = max(int(jpeg_scratch_bytes(max_height, max_width)), resizing)
    return aligned(len(decoders) * _BOX_BYTES) + pixels + work


def crops_decoder(decoders: Sequence[CropDecoder]) -> Callable[..., None]:
    """Return a function that decodes each image of a batch once, for the crops of all `decoders`.

    Its arguments are the batch's sample ids, a destination `(B, height, width, 3)` for each
    decoder, the metadata of the image field and the state of `EpochMemory`.
    """
    crops = np.stack([decoder.crop for decoder in decoders])

    def decode_crops(batch_indices: Any, destinations: Any, metadata: Any, state: Any) -> None:
        _decode_batch(batch_indices.astype(np.uint64), destinations, metadata, state, crops)

    return decode_crops


@compiled(parallel=True)
def _decode_batch(batch: Any, destinations: Any, metadata: Any, state: Any, crops: Any) -> None:
    data, places, ptrs, sizes, counter, scratch, failures = state
    # The work is in another function, since numba compiles parallel code several times.
    for thread in prange(len(failures)):
        extents = (data, places, ptrs, sizes)
        share = np.int64(thread)
        _decode_share(
            share, batch, destinations, metadata, extents, counter, scratch, failures, crops
        )


@compiled()
def _decode_share(
    thread: Any,
    batch: Any,
    destinations: Any,
    metadata: Any,
    extents: Any,
    counter: Any,
    scratch: Any,
    failures: Any,
    crops: Any,
) -> None:
    """Decode the images of one thread."""
    data, places, ptrs, sizes = extents
    num_threads, boxes_bytes = len(failures), len(crops) * _BOX_BYTES
    boxes = scratch[thread, :boxes_bytes].view(np.int64).reshape((-1, 5))
    memory = scratch[thread, aligned(boxes_bytes) :]
    first, last = thread * len(batch) // num_threads, (thread + 1) * len(batch) // num_threads
    for position in range(first, last):
        sample = batch[position]
        image = metadata[sample]
        height, width = np.int64(image["height"]), np.int64(image["width"])
        stored = bytes_at(image["data_ptr"], data, places, ptrs, sizes)
        _choose_boxes(crops, counter, sample, height, width, boxes)
        if image["mode"] == _JPEG:
            status = _crop_jpeg(stored, height, width, boxes, memory, destinations, position)
        else:
            status = _crop_raw(stored, height, width, boxes, memory, destinations, position)
        if status != 0:
            failures[thread, 0] = sample
            failures[thread, 1] = status


@compiled()
def _crop_raw(
    data: Any, height: Any, width: Any, boxes: Any, scratch: Any, destinations: Any, position: Any
) -> Any:
    """Make every crop of an image stored as pixels; return 0 or a failure."""
    size = 3 * height * width
    if data.size != size or size == 0:
        return NO_BYTES if data.size == 0 else WRONG_LENGTH
    pixels = data.reshape((height, width, 3))
    zero = np.int64(0)
    _resize_boxes(pixels, zero, zero, boxes, destinations, position, scratch)
    return 0


@compiled()
def _crop_jpeg(
    data: Any,
    height: Any,
    width: Any,
    boxes: Any,
    scratch: Any,
    destinations: Any,
    position: Any,
) -> Any:
    """Make every crop of a JPEG, decoding the part that holds them; return 0 or a failure."""
    if data.size == 0 or height * width == 0:
        return NO_BYTES if data.size == 0 else WRONG_SIZE
    # A loop: numba takes a second to compile the minima and maxima of columns.
    top, left, bottom, right = height, width, np.int64(0), np.int64(0)
    for box in boxes:
        top, left = min(top, box[0]), min(left, box[1])
        bottom, right = max(bottom, box[0] + box[2]), max(right, box[1] + box[3])
    rows, columns = bottom - top, right - left
    size = 3 * rows * columns
    pixels = scratch[:size].reshape((rows, columns, 3))
    rest = scratch[aligned(size) :]
    status = decode_crop(data, height, width, top, left, rows, columns, rest, pixels)
    if status == 0:
        _resize_boxes(_read_only(pixels), top, left, boxes, destinations, position, rest)
    return status


def _as_read_only(_: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])  # type: ignore[no-untyped-call]

    return array.copy(readonly=True)(array), generate


# Returns an array as read-only, the type of raw images, so that `_resize_boxes` compiles once.
_read_only: Any = intrinsic(_as_read_only)


@compiled()
def _resize_boxes(
    pixels: Any, top: Any, left: Any, boxes: Any, destinations: Any, position: Any, scratch: Any
) -> None:
    """Resize the boxes of an image; `pixels` hold the part that starts at `top` and `left`."""
    for view in range(len(boxes)):
        box = boxes[view]
        target = destinations[view][position]
        resize_crop(
            pixels, box[0] - top, box[1] - left, box[2], box[3], box[4] != 0, target, scratch
        )


@compiled()
def _choose_boxes(
    crops: Any, counter: Any, sample: Any, height: Any, width: Any, boxes: Any
) -> None:
    """Write top, left, height, width and the mirror flag of each crop of a sample to `boxes`."""
    seed, epoch = counter[0], counter[1]
    for row in range(len(crops)):
        crop, box = crops[row], boxes[row]
        if crop[_RANDOM] == 0:
            side = max(np.int64(1), np.int64(crop[_RATIO] * min(height, width)))
            box[0], box[1], box[2], box[3] = (height - side) // 2, (width - side) // 2, side, side
            box[4] = 0
        else:
            view = np.uint64(crop[_VIEW])
            scale, ratio = (crop[_SCALE], crop[_SCALE + 1]), (crop[_RATIO], crop[_RATIO + 1])
            box[0], box[1], box[2], box[3] = draw_crop(
                seed, epoch, sample, view, height, width, scale, ratio
            )
            box[4] = draw_flip(seed, epoch, sample, view, crop[_FLIP])
