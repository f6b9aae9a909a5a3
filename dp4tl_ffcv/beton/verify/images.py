"""Decode every image of a beton as the loaders do, and list the corrupt ones."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...jpeg import turbojpeg
from ...parallel import map_ordered
from ...progress import track
from ...stored import open_file
from .problems import Problem, Problems

_BATCH = 64  # images that a thread decodes at a time


def check_images(
    path: Path, images: NDArray[np.int64], num_workers: int, problems: Problems
) -> int:
    """Read and decode `images`, which `check_fields` returned. Return how many have no problem."""
    images = images[np.argsort(images[:, 1], kind="stable")]  # in the order of the file
    batches = (images[at : at + _BATCH] for at in range(0, len(images), _BATCH))
    total, title, num_bad = len(images), f"verify {path.name}", 0
    with open_file(path) as stream:
        file = stream.fileno()

        def check(batch: NDArray[np.int64]) -> list[Problem]:
            return [problem for image in batch.tolist() if (problem := _problem_of(file, *image))]

        with map_ordered(check, batches, num_workers, threads=True) as results:
            for found in track(
                results, total=total, description=title, unit="images", scale=_BATCH
            ):
                num_bad += len(found)
                for problem in found:
                    problems.add(problem.kind, problem.sample_id, problem.message)
    return len(images) - num_bad


def _problem_of(
    file: int, sample_id: int, ptr: int, size: int, mode: int, height: int, width: int
) -> Problem | None:
    try:
        data = os.pread(file, size, ptr)
        if len(data) != size:
            message = f"the file ends {size - len(data)} bytes before the end of its image"
            return Problem("read", sample_id, message)
        if mode == 0:
            _decode_jpeg(data, height, width)
    except OSError as error:
        return Problem("read", sample_id, f"its image cannot be read: {error}")
    except MemoryError:
        return Problem("read", sample_id, f"its image cannot be read: no memory for {size} bytes")
    except turbojpeg.JpegError as error:
        return Problem("jpeg", sample_id, f"its JPEG cannot be decoded: {error}")
    return None


def _decode_jpeg(data: bytes, height: int, width: int) -> None:
    header = turbojpeg.read_header(data)
    if (header.height, header.width) != (height, width):
        raise turbojpeg.JpegError(
            f"it is {header.height} x {header.width} pixels, and its record says {height} x {width}"
        )
    try:
        turbojpeg.decode(data, fast=True)
    except MemoryError as error:  # a header of a few bytes may promise gigabytes of pixels
        raise turbojpeg.JpegError(f"no memory for {height} x {width} pixels") from error
