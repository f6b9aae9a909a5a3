"""Images that tell which image a crop is from, and where, and the check of a peer's batches.

Red grows with the column, green with the row, and blue is a code of the image's id.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.job import Batch, Job

CODES, STEP = 32, 8  # levels of blue, far enough apart for JPEG
SHAPES = ((400, 300), (400, 267), (300, 400), (267, 400))  # width, height
NOISE = 4.0  # levels that JPEG and resizing change
# Shares of several hundred crops. Torchvision's crops of these shapes cover 0.41 on average: wide
# crops that do not fit are drawn again.
FLIPS, AREAS = (0.35, 0.65), (0.37, 0.455)
EDGE = 0.02  # of an image's side, for what resizing blurs at the edges


def shape_of(number: int) -> tuple[int, int]:
    return SHAPES[number % len(SHAPES)]


def code_of(number: int) -> int:
    return STEP * (number * 7 % CODES) + STEP // 2


def coded_image(number: int) -> NDArray[np.uint8]:
    """Return the RGB image of an id."""
    width, height = shape_of(number)
    image = np.empty((height, width, 3))
    image[..., 0] = 255 * (np.arange(width) + 0.5) / width
    image[..., 1] = (255 * (np.arange(height) + 0.5) / height)[:, None]
    image[..., 2] = code_of(number)
    return np.rint(image).astype(np.uint8)


def write_coded(job: Job, number: int) -> None:
    """Write the files and the beton of a job with the coded images 0 to `number` - 1."""
    import cv2

    from dp4tl_ffcv import image_fields, write_beton

    job.files.mkdir(parents=True)
    samples: list[tuple[bytes, int, int]] = []
    for each in range(number):
        quality = [cv2.IMWRITE_JPEG_QUALITY, 98]
        data = cv2.imencode(".jpg", coded_image(each)[..., ::-1], quality)[1].tobytes()
        (job.files / f"{each:06}.jpg").write_bytes(data)
        samples.append((data, 0, each))
    write_beton(job.beton, samples, image_fields(), seed=None, num_workers=0)


def check_epoch(job: Job, batches: Iterable[Batch]) -> None:
    """Raise RuntimeError unless the batches hold a crop of each retained image, as the job says."""
    found = [(as_pixels(images), as_ids(ids)) for images, ids in batches]
    check_ids(job, [ids for _, ids in found])
    sizes = {len(images) for images, _ in found[:-1]}
    if sizes - {job.batch_size}:
        raise RuntimeError(f"batches have {sizes} images, not {job.batch_size}")
    places = [
        place(image, number)
        for images, ids in found
        for image, number in zip(images, ids.tolist(), strict=True)
    ]
    areas = [abs(right - left) * (bottom - top) for left, top, right, bottom in places]
    flips = np.mean([right < left for left, _, right, _ in places])
    _check_range("share of flipped images", float(flips), FLIPS)
    _check_range("mean area of the crops", float(np.mean(areas)), AREAS)
    low, high = job.scale[0] - EDGE, job.scale[1] + EDGE
    for area, (left, top, right, bottom), number in zip(
        areas, places, np.concatenate([ids for _, ids in found]).tolist(), strict=True
    ):
        width, height = shape_of(number)
        ratio = abs(right - left) * width / ((bottom - top) * height)
        slack = 1.15  # small crops are a few pixels off
        bounds = job.ratio[0] / slack, job.ratio[1] * slack
        if not low <= area <= high or not bounds[0] <= ratio <= bounds[1]:
            raise RuntimeError(f"image {number}: a crop of area {area:.3f}, ratio {ratio:.2f}")


def place(image: NDArray[np.float32], number: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a crop of image `number`, as fractions of its sides.

    The left is greater than the right if the crop is flipped. RuntimeError if the pixels are not a
    crop of this image.
    """
    red, green, blue = np.moveaxis(image, -1, 0)
    if abs(float(blue.mean()) - code_of(number)) > STEP / 2 - 0.5 or blue.std() > NOISE:
        raise RuntimeError(f"a crop labelled as image {number} shows another image")
    left, right, off_x = _fit(red.mean(axis=0))
    top, bottom, off_y = _fit(green.mean(axis=1))
    varies = max(float(red.std(axis=0).max()), float(green.std(axis=1).max()))
    if max(off_x, off_y, varies) > NOISE or bottom < top:
        raise RuntimeError(f"the crop of image {number} is distorted")
    return left, top, right, bottom


def as_pixels(images: Any) -> NDArray[np.float32]:
    """Return a peer's images `(n, side, side, 3)`, from 0 to 255."""
    pixels = np.asarray(images)
    scale = 1 if pixels.dtype == np.uint8 else 255
    if pixels.shape[1] == 3:
        pixels = np.moveaxis(pixels, 1, -1)
    return scale * pixels.astype(np.float32)


def as_ids(ids: Any) -> NDArray[np.int64]:
    return np.asarray(ids, dtype=np.int64).reshape(-1).copy()  # loaders reuse their memory


def check_ids(job: Job, batches: list[NDArray[np.int64]]) -> None:
    """Raise RuntimeError unless the ids of an epoch are those of the job, once each."""
    found = np.sort(np.concatenate(batches))
    if not np.array_equal(found, job.ids):
        missing, strange = np.setdiff1d(job.ids, found), np.setdiff1d(found, job.ids)
        raise RuntimeError(
            f"an epoch of {len(found)} images lacks {len(missing)} of {len(job.ids)} retained "
            f"images, and has {len(strange)} that are not retained"
        )


def _fit(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return a line's values at both ends of an axis, from 0 to 1, and the largest deviation."""
    inner = values[2:-2]  # resizing blurs the ends
    at = np.arange(2, len(values) - 2) + 0.5
    slope, start = np.polyfit(at, inner, 1)
    deviation = float(np.abs(inner - (slope * at + start)).max())
    return start / 255, (start + slope * len(values)) / 255, deviation


def _check_range(name: str, value: float, bounds: tuple[float, float]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise RuntimeError(f"{name}: {value:.3f} is not within {bounds[0]:g} and {bounds[1]:g}")
