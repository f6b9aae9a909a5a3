"""Compiled code that decodes, crops, mirrors and resizes a batch of images.

This module imports little, because a change in an imported module recompiles it.
"""

from typing import Any

import numpy as np
from numba import prange
from numba.core.imputils import impl_ret_borrowed

from ...beton.format import IMAGE_MODES
from ...jpeg.crop import WRONG_SIZE, decode_crop
from ...kernels.compiled import compiled, compiled_intrinsic
from ...kernels.crops import draw_crop, draw_flip
from ...kernels.resize import resize_crop
from ...kernels.scratch import aligned

# Failures of raw images, in addition to those of JPEGs.
NO_BYTES, WRONG_LENGTH = 101, 102
# Columns of a crop's parameters: numbers in an array, so that all decoders share compiled code.
RANDOM, SCALE, RATIO, FLIP, VIEW, COLUMNS = 0, 1, 3, 5, 6, 7
BOX_BYTES = 5 * 8  # top, left, height, width and a flag for mirroring, as int64

_JPEG = next(number for number, mode in IMAGE_MODES.items() if mode == "jpg")
# Numba optimises a function with everything that it calls: each level adds a second of compiling.
_inlined = compiled(inline="always")


@compiled()
def bytes_at(address: Any, data: Any, places: Any, ptrs: Any, sizes: Any) -> Any:
    """Return the byte range at `address` of the file; empty if it is not retained or in memory."""
    row = np.searchsorted(ptrs, address)
    if row == len(ptrs) or ptrs[row] != address or places[row] < 0:
        return data[:0]
    return data[places[row] : places[row] + sizes[row]]


@compiled(parallel=True)
def decode_batch(batch: Any, destinations: Any, metadata: Any, state: Any, crops: Any) -> None:
    """Write the crops of a batch `(B,)` to a destination `(B, height, width, 3)` per decoder.

    `metadata` is the column of the image field, `state` is `EpochMemory.state`, and `crops` are the
    parameters of each decoder's crop `(decoders, COLUMNS)`.
    """
    data, places, ptrs, sizes, counter, scratch, failures = state
    # The work is in another function because numba compiles parallel code several times.
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
    num_threads, boxes_bytes = len(failures), len(crops) * BOX_BYTES
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


@_inlined
def _crop_raw(
    data: Any, height: Any, width: Any, boxes: Any, scratch: Any, destinations: Any, position: Any
) -> Any:
    """Make every crop of a raw image; return 0 or a failure."""
    size = 3 * height * width
    if data.size != size or size == 0:
        return NO_BYTES if data.size == 0 else WRONG_LENGTH
    pixels = data.reshape((height, width, 3))
    zero = np.int64(0)
    _resize_boxes(pixels, zero, zero, boxes, destinations, position, scratch)
    return 0


@_inlined
def _crop_jpeg(
    data: Any, height: Any, width: Any, boxes: Any, scratch: Any, destinations: Any, position: Any
) -> Any:
    """Decode the part of a JPEG that holds all crops, and make them; return 0 or a failure."""
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


@compiled_intrinsic
def _read_only(_: Any, array: Any) -> Any:
    """Return an array as read-only, as raw images are, so that `_resize_boxes` compiles once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])  # type: ignore[no-untyped-call]

    return array.copy(readonly=True)(array), generate


@_inlined
def _resize_boxes(
    pixels: Any, top: Any, left: Any, boxes: Any, destinations: Any, position: Any, scratch: Any
) -> None:
    """Resize the boxes of an image from `pixels`, its part that starts at `top` and `left`."""
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
        if crop[RANDOM] == 0:
            side = max(np.int64(1), np.int64(crop[RATIO] * min(height, width)))
            box[0], box[1], box[2], box[3] = (height - side) // 2, (width - side) // 2, side, side
            box[4] = 0
        else:
            view = np.uint64(crop[VIEW])
            scale, ratio = (crop[SCALE], crop[SCALE + 1]), (crop[RATIO], crop[RATIO + 1])
            box[0], box[1], box[2], box[3] = draw_crop(
                seed, epoch, sample, view, height, width, scale, ratio
            )
            box[4] = draw_flip(seed, epoch, sample, view, crop[FLIP])
