"""Helpers of the compaction tests."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import BytesField, IntField
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.writing.fields import ImageField
from tests.support.betons import read_with_ffcv, write_ours

ROOT = Path(__file__).resolve().parents[2]
NOTE_AND_LABEL = {"note": BytesField(), "label": IntField()}


def sha256(data: Any) -> str:
    """Return a digest, because pytest takes minutes to show the difference of megabytes."""
    return hashlib.sha256(data).hexdigest()


def stored_at(index: BetonIndex, data: bytes, sample_id: int, pointer: Any) -> bytes:
    """Return the bytes of a sample that start at `pointer`.

    In files of ffcv's writer, empty bytes may start there too.
    """
    extents = index.extents([sample_id])
    size = extents["size"][extents["ptr"] == pointer].max()
    return data[int(pointer) : int(pointer) + int(size)]


def read_images(path: Path, os_cache: bool, key: str = "label") -> dict[int, tuple[int, str]]:
    """Return label and digest of the pixels that ffcv's Loader yields, by the field `key`."""
    return {
        int(row[key][0]): (int(row["label"][0]), sha256(row["image"].tobytes()))
        for row in read_with_ffcv(path, os_cache)
    }


def paint(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a smooth image with grain that is stronger for higher numbers."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack((rows, columns, rows + columns + number), axis=-1) % 200
    grain = rng.normal(size=smooth.shape) * (number % 7) * 6
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def jpegs(path: Path, contents: list[bytes], **options: Any) -> Path:
    """Write a beton of JPEGs. The label of each is its position."""
    samples = [(content, number) for number, content in enumerate(contents)]
    return write_ours(path, samples, {"image": ImageField(), "label": IntField()}, **options)


def expected_places(rooms: list[int], tables: int, page_size: int) -> tuple[list[int], int]:
    """Place samples one at a time; return their places, and the end of the last page."""
    position = -(-tables // page_size) * page_size
    places = []
    for room in rooms:
        page_end = (position // page_size + 1) * page_size
        if position + room > page_end:
            position = page_end
        places.append(position)
        position += room
    return places, -(-position // page_size) * page_size
