"""Pictures and JPEGs of them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw waves of all colours with some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    steps = rng.uniform(0.02, 0.3, (3, 2))
    waves = [np.sin(rows * down + columns * right) for down, right in steps]
    noise = rng.normal(0, 6, (height, width, 3))
    return np.clip(127.5 + 100 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def jpeg(image: Any, **options: Any) -> bytes:
    """Encode an array or a Pillow image with Pillow."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()
