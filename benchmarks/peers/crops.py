"""Crops for peers that leave decoding and cropping to the user."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.job import Job

ATTEMPTS = 10


def draw_crop(
    job: Job, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width as `torchvision.transforms.RandomResizedCrop` does."""
    low, high = np.log(job.ratio)
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*job.scale)
        ratio = np.exp(rng.uniform(low, high))
        wide, tall = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            return int(top), int(left), tall, wide
    ratio = min(max(width / height, job.ratio[0]), job.ratio[1])
    wide, tall = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def crop_and_resize(job: Job, image: NDArray[np.uint8], rng: np.random.Generator) -> Any:
    """Return a crop of an image `(height, width, 3)`, resized by area and flipped half the time."""
    top, left, tall, wide = draw_crop(job, *image.shape[:2], rng)
    crop = image[top : top + tall, left : left + wide]
    shrinks = tall > job.side and wide > job.side
    resized = cv2.resize(
        crop, (job.side, job.side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return cv2.flip(resized, 1) if rng.random() < 0.5 else resized


def read_rgb(path: str) -> Any:
    return cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
