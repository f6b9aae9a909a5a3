"""Pictures, JPEGs and betons of images."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv import BetonIndex, image_fields, write_beton


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw waves of all colours with some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    steps = rng.uniform(0.02, 0.3, (3, 2))
    waves = [np.sin(rows * down + columns * right) for down, right in steps]
    noise = rng.normal(0, 6, (height, width, 3))
    return np.clip(127.5 + 100 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def as_file(image: Any, kind: str = "JPEG", **options: Any) -> bytes:
    """Encode an array or a Pillow image with Pillow."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Any, **options: Any) -> bytes:
    """Encode an array or a Pillow image as a JPEG with Pillow."""
    return as_file(image, **options)


def write_images(
    path: Path, images: Sequence[Any], labels: Any = None, *, mode: str = "raw", **options: Any
) -> BetonIndex:
    """Write a beton with fields image, label (0 unless given) and identifier (the sample number).

    Images are stored in their order, raw or as JPEGs. `options` are `write_beton`'s.
    """
    labels = [0] * len(images) if labels is None else labels
    samples = [
        (image, int(label), number)
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    fields = image_fields(mode=mode, jpeg_quality=95)
    return write_beton(path, samples, fields, **{"seed": None, **options})
