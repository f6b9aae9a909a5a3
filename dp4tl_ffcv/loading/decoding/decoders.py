"""Decoders of images that decode, crop, mirror and resize in one pass.

They take the place of ffcv's decoders of the same names: the crops depend on the sample, the epoch
and the loader's seed alone, not on the threads; what cannot be decoded is an error that names the
sample; scratch memory is kept per thread.
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
from numpy.typing import NDArray

from ...beton.format import IMAGE_MODES
from ...jpeg.crop import WRONG_SIZE, decode_crop, jpeg_scratch_bytes
from ...kernels.checks import as_ints
from ...kernels.compiled import compiled
from ...kernels.crops import as_probability, as_range, draw_crop, draw_flip
from ...kernels.resize import resize_crop, resize_scratch_bytes
from ..ffcv_adapter.compilation import precompiled
from ..ffcv_adapter.memory import bytes_at
from .workspace import NO_BYTES, WRONG_LENGTH, aligned

_JPEG = next(number for number, mode in IMAGE_MODES.items() if mode == "jpg")

# What compiled code is told of a crop: a row of numbers, so that all decoders share one function.
_RANDOM, _SCALE, _RATIO, _FLIP, _VIEW, _COLUMNS = 0, 1, 3, 5, 6, 7
_MOST_VIEWS = 1 << 20
_BOX_BYTES = 5 * 8  # top, left, height, width and whether it is mirrored, as int64


class CropDecoder(SimpleRGBImageDecoder):
    """Decoder of a crop, resized with the area filter to `output_size`.

    Args:
        output_size: height and width of what it yields, in pixels. It may be set between epochs.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of what it yields, in pixels."""
        return self._output_size

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        height, width = as_ints(size, "output_size", 2, least=1)
        self._output_size = height, width

    @property
    @abstractmethod
    def crop(self) -> NDArray[np.float64]:
        """How to crop, in the columns that `_choose_boxes` reads."""

    def scratch_bytes(self, max_height: int, max_width: int) -> int:
        """Return the memory that a thread needs for images of at most this size."""
        return scratch_bytes((self,), max_height, max_width)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask ffcv for the memory of the results alone."""
        height, width = self.output_size
        shape, dtype = (height, width, 3), np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that ffcv calls."""
        decode_crops = crops_decoder((self,))

        @precompiled
        def decode(batch_indices: Any, destination: Any, metadata: Any, state: Any) -> Any:
            decode_crops(batch_indices, (destination,), metadata, state)
            return destination

        return decode


class RandomResizedCropRGBImageDecoder(CropDecoder):
    """Decoder of a random crop, as for `torchvision.transforms.RandomResizedCrop`.

    The crop of a sample is `dp4tl_ffcv.kernels.random_crops` of the loader's seed, the epoch and
    the sample's id.

    Args:
        output_size: height and width of what it yields, in pixels. It may be set between epochs.
        scale: smallest and largest area of the crop, as shares of the image.
        ratio: smallest and largest width / height of the crop.
        flip: probability of mirroring it, which costs nothing here.
        view: number of the crop, where one image gives several: others are drawn for each.

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
        self.scale = as_range(scale, "scale", most=1.0)
        self.ratio = as_range(ratio, "ratio")
        self.flip = as_probability(flip, "flip")
        (self.view,) = as_ints((view,), "view", 1, least=0, most=_MOST_VIEWS)

    @property
    def crop(self) -> NDArray[np.float64]:
        """How to crop, in the columns that `_choose_boxes` reads."""
        return np.array([1.0, *self.scale, *self.ratio, self.flip, self.view])


class CenterCropRGBImageDecoder(CropDecoder):
    """Decoder of the square in the centre.

    Args:
        output_size: height and width of what it yields, in pixels. It may be set between epochs.
        ratio: side of the crop / shorter side of the image.

    Yields uint8 `(B, height, width, 3)`.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, output_size: tuple[int, int], ratio: float) -> None:
        super().__init__(output_size)
        self.ratio = as_range((ratio, ratio), "ratio", most=1.0)[0]

    @property
    def crop(self) -> NDArray[np.float64]:
        """How to crop, in the columns that `_choose_boxes` reads."""
        crop = np.zeros(_COLUMNS)
        crop[_RATIO] = self.ratio
        return crop


def scratch_bytes(decoders: Sequence[CropDecoder], max_height: int, max_width: int) -> int:
    """Return the memory that a thread of `crops_decoder` needs for images of at most this size."""
    resizing = max(
        int(resize_scratch_bytes(max_height, max_width, *decoder.output_size))
        for decoder in decoders
    )
    pixels = aligned(3 * max_height * max_width)
    work = max(int(jpeg_scratch_bytes(max_height, max_width)), resizing)
    return aligned(len(decoders) * _BOX_BYTES) + pixels + work


def crops_decoder(decoders: Sequence[CropDecoder]) -> Callable[..., None]:
    """Return what decodes each image of a batch once, for the crops of all `decoders`.

    It takes the batch's sample ids, a destination `(B, height, width, 3)` for each decoder, the
    image field's metadata and the state of `EpochMemory`.
    """
    crops = np.stack([decoder.crop for decoder in decoders])

    def decode_crops(batch_indices: Any, destinations: Any, metadata: Any, state: Any) -> None:
        _decode_batch(batch_indices.astype(np.uint64), destinations, metadata, state, crops)

    return decode_crops


@compiled(parallel=True)
def _decode_batch(batch: Any, destinations: Any, metadata: Any, state: Any, crops: Any) -> None:
    data, places, ptrs, sizes, counter, scratch, failures = state
    num_threads, boxes_bytes = len(failures), len(crops) * _BOX_BYTES
    for thread in prange(num_threads):
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
    """Make every crop of an image stored as pixels; return 0, or what is wrong with it."""
    size = 3 * height * width
    if data.size != size or size == 0:
        return NO_BYTES if data.size == 0 else WRONG_LENGTH
    pixels = data.reshape((height, width, 3))
    _resize_boxes(pixels, 0, 0, boxes, destinations, position, scratch)
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
    """Make every crop of a JPEG, and decode no more; return 0, or what is wrong with it."""
    if data.size == 0 or height * width == 0:
        return NO_BYTES if data.size == 0 else WRONG_SIZE
    top, left = boxes[:, 0].min(), boxes[:, 1].min()
    rows = (boxes[:, 0] + boxes[:, 2]).max() - top
    columns = (boxes[:, 1] + boxes[:, 3]).max() - left
    size = 3 * rows * columns
    pixels = scratch[:size].reshape((rows, columns, 3))
    rest = scratch[aligned(size) :]
    status = decode_crop(data, height, width, top, left, rows, columns, rest, pixels)
    if status == 0:
        _resize_boxes(pixels, top, left, boxes, destinations, position, rest)
    return status


@compiled()
def _resize_boxes(
    pixels: Any, top: Any, left: Any, boxes: Any, destinations: Any, position: Any, scratch: Any
) -> None:
    """Resize the boxes of an image, of which `pixels` hold the part from `top` and `left` on."""
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
    """Write top, left, height and width of a sample's crops, and whether each is mirrored."""
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
