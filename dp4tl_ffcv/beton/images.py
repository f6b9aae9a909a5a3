"""Read single images of a beton."""

import os

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from ..jpeg import turbojpeg
from ..stored import open_file
from ..validate import check_int
from .format import IMAGE_MODES
from .index import BetonIndex


def read_image(
    beton: BetonIndex | str | os.PathLike[str], sample_id: int, field: str = "image"
) -> NDArray[np.uint8]:
    """Return the RGB pixels `(H, W, 3)` of the image of one sample.

    Raises:
        BetonError: the field holds no RGB images, or the image cannot be decoded.
        ValueError: `sample_id` is out of range.
        OSError: the file cannot be read.
    """
    index = BetonIndex.of(beton)
    check_int("sample_id", sample_id, 0, len(index) - 1)
    kind = index.field(field).kind
    if kind != "rgb_image":
        raise BetonError(f"The field {field!r} holds no RGB images; its kind is {kind}.")
    record = index.column(field)[sample_id]
    size = (int(record["height"]), int(record["width"]))
    extents = index.extents([sample_id])
    sizes = extents["size"][extents["ptr"] == record["data_ptr"]]
    try:
        with open_file(index.path) as stream:
            stream.seek(int(record["data_ptr"]))
            # An empty byte range may start at the same byte.
            data = stream.read(int(sizes.max()))
        if IMAGE_MODES[int(record["mode"])] == "raw":
            return np.frombuffer(data, dtype=np.uint8).reshape((*size, 3))
        pixels = turbojpeg.decode(data)
        if pixels.shape[:2] != size:
            raise ValueError(f"it is {pixels.shape[:2]} pixels, and its record says {size}")
        return pixels
    except (ValueError, KeyError) as error:
        raise BetonError(
            f"The image of sample {sample_id} in {str(index.path)!r} is corrupt: {error}. "
            "Copy or write the beton again."
        ) from error
