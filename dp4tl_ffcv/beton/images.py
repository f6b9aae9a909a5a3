"""Read single images of a beton, for contact sheets and checks; loaders decode by themselves."""

import io
import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BetonError
from . import format
from .index import BetonIndex, check_indices


def read_image(
    beton: BetonIndex | str | os.PathLike[str], sample_id: int, field: str = "image"
) -> NDArray[np.uint8]:
    """Read and decode one image.

    Args:
        beton: path of a beton, or its open index.
        sample_id: which sample.
        field: an RGB image field.

    Returns:
        Pixels `(H, W, 3)`, RGB.

    Raises:
        BetonError: the field holds no RGB images, or the stored bytes cannot be decoded.
        ValueError: `sample_id` is out of range.
    """
    index = BetonIndex.of(beton)
    check_indices([sample_id], index.num_samples)
    found = index.field(field)
    if found.kind != "rgb_image":
        raise BetonError(
            f"`field` must hold RGB images; got {field!r} of kind {found.kind}. Name another field."
        )
    record = index.metadata[found.column][sample_id]
    extents = index.extents([sample_id])
    sizes = extents["size"][extents["ptr"] == record["data_ptr"]]
    if not sizes.size:
        raise BetonError(
            f"`sample_id` must have an extent; got {sample_id}, whose image has none in "
            f"{str(index.path)!r}. The file is damaged: write it again."
        )
    with index.path.open("rb") as stream:
        stream.seek(int(record["data_ptr"]))
        data = stream.read(int(sizes.max()))  # an empty extent may start at the same byte
    height, width = int(record["height"]), int(record["width"])
    try:
        if format.IMAGE_MODES[int(record["mode"])] == "raw":
            return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError, KeyError) as error:
        raise BetonError(
            f"`sample_id` must be a readable image; got sample {sample_id} of "
            f"{str(index.path)!r}, which cannot be decoded. Write the beton again."
        ) from error
