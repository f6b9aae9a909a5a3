"""Compiled code that decodes, crops, mirrors and resizes a batch of images.

This module imports little, because a change in an imported module recompiles it.
"""

from typing import Any

import numpy as np
from numba.core.imputils import impl_ret_borrowed

from ...beton.format import IMAGE_MODES
from ...jpeg.crop import WRONG_SIZE, decode_crop
from ...jpeg.index_jpeg import index_jpeg
from ...jpeg.mcu_index import NONE, UNKNOWN, is_index_of
from ...jpeg.size import states_size
from ...kernels.compiled import compiled, compiled_intrinsic, copy_memory, inlined
from ...kernels.crops import draw_crop, draw_flip
from ...kernels.resize import resize_crop
from ...kernels.scratch import aligned

# Failures of raw images, in addition to those of JPEGs.
NO_BYTES, WRONG_LENGTH = 101, 102
# Columns of a crop's parameters: numbers in an array, so that all decoders share compiled code.
RANDOM, SCALE, RATIO, FLIP, VIEW, COLUMNS = 0, 1, 3, 5, 6, 7
FAILURES = 6  # of `EpochMemory.state`: one row per thread
BOX_BYTES = 5 * 8  # top, left, height, width and a flag for mirroring, as int64

_JPEG = next(number for number, mode in IMAGE_MODES.items() if mode == "jpg")


@compiled()
def _row_at(address: Any, places: Any, ptrs: Any) -> Any:
    """Return the row of the byte range at `address`; -1 if it is not retained or in memory."""
    row, end = np.int64(0), np.int64(len(ptrs))
    while row < end:  # a binary search: numba compiles numpy's for a second
        middle = (row + end) // 2
        if ptrs[middle] < address:
            row = middle + 1
        else:
            end = middle
    if row == len(ptrs) or ptrs[row] != address or places[row] < 0:
        return np.int64(-1)
    return row


@compiled()
def bytes_at(address: Any, data: Any, places: Any, ptrs: Any, sizes: Any) -> Any:
    """Return the byte range at `address` of the file; empty if it is not retained or in memory."""
    row = _row_at(address, places, ptrs)
    if row < 0:
        return data[:0]
    return data[places[row] : places[row] + sizes[row]]


@compiled()
def find_other_size(
    batch: Any, metadata: Any, data: Any, places: Any, ptrs: Any, sizes: Any
) -> Any:
    """Return the first sample of a batch whose JPEG states another size than `metadata`, else -1.

    The last four arguments are those of `bytes_at`.
    """
    for position in range(len(batch)):
        image = metadata[batch[position]]
        if image["mode"] == _JPEG:
            stored = bytes_at(image["data_ptr"], data, places, ptrs, sizes)
            if not states_size(stored, np.int64(image["height"]), np.int64(image["width"])):
                return np.int64(batch[position])
    return np.int64(-1)


@compiled()
def decode_share(
    batch: Any, destinations: Any, metadata: Any, state: Any, crops: Any, share: Any
) -> None:
    """Write the crops of a share of a batch `(B,)` to a destination `(B, h, w, 3)` per decoder.

    `metadata` is the column of the image field, `state` is `EpochMemory.state`, and `crops` are the
    parameters of each decoder's crop `(decoders, COLUMNS)`. Each thread has its own number `share`.
    """
    data, places, ptrs, sizes, counter, scratch, failures, copies = state[:8]
    indexes = state[8:]
    num_shares, boxes_bytes = len(failures), len(crops) * BOX_BYTES
    boxes = scratch[share, :boxes_bytes].view(np.int64).reshape((-1, 5))
    memory = scratch[share, aligned(boxes_bytes) :]
    first, last = share * len(batch) // num_shares, (share + 1) * len(batch) // num_shares
    for position in range(first, last):
        sample = batch[position]
        image = metadata[sample]
        height, width = np.int64(image["height"]), np.int64(image["width"])
        row = _row_at(image["data_ptr"], places, ptrs)
        stored = data[places[row] : places[row] + sizes[row]] if row >= 0 else data[:0]
        _choose_boxes(crops, counter, sample, height, width, boxes)
        if image["mode"] == _JPEG:
            index = _index_of(stored, row, indexes, copies[share])
            status = _crop_jpeg(stored, index, height, width, boxes, memory, destinations, position)
            if status == 0:
                _add_index(stored, row, height, width, memory, indexes)
        else:
            status = _crop_raw(stored, height, width, boxes, memory, destinations, position)
        if status != 0:
            failures[share, 0] = sample
            failures[share, 1] = status


@inlined
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


@compiled()
def _index_of(data: Any, row: Any, indexes: Any, copy: Any) -> Any:
    """Return the index of the JPEG in a row, in `copy`; empty if there is none.

    Another epoch of the same loader may replace the index at any moment.
    """
    memory, places, lengths, stored = indexes
    length = lengths[row] if row >= 0 else np.int64(0)
    if length <= 0 or length > copy.size:
        return copy[:0]
    copy_memory(copy.ctypes.data, memory.ctypes.data + places[row], length)
    index = copy[:length]
    if is_index_of(index, data):
        return index
    lengths[row] = stored[row] = UNKNOWN  # another image has taken its place
    return copy[:0]


@compiled()
def _add_index(data: Any, row: Any, height: Any, width: Any, scratch: Any, indexes: Any) -> None:
    """Make the index of the JPEG in a row, unless that was done before."""
    memory, places, lengths, _ = indexes
    if lengths[row] == UNKNOWN:
        room = memory[places[row] : places[row + 1]]
        size = index_jpeg(data, height, width, scratch, room)
        lengths[row] = size if size > 0 else NONE


@inlined
def _crop_jpeg(
    data: Any,
    index: Any,
    height: Any,
    width: Any,
    boxes: Any,
    scratch: Any,
    destinations: Any,
    position: Any,
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
    status = decode_crop(data, index, height, width, top, left, rows, columns, rest, pixels)
    if status == 0:
        _resize_boxes(_read_only(pixels), top, left, boxes, destinations, position, rest)
    return status


@compiled_intrinsic
def _read_only(_: Any, array: Any) -> Any:
    """Return an array as read-only, as raw images are, so that `_resize_boxes` compiles once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])  # type: ignore[no-untyped-call]

    return array.copy(readonly=True)(array), generate


@inlined
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
