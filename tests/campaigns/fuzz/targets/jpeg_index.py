"""The index of JPEGs: its file next to a beton, and an index in memory."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.libffcv import imdecode
from numpy.typing import NDArray

from dp4tl_ffcv import (
    PrunedLoader,
    RandomResizedCropRGBImageDecoder,
    image_fields,
    index_jpegs,
    write_beton,
)
from dp4tl_ffcv.beton.jpeg_index_file import index_path
from dp4tl_ffcv.jpeg.crop import DECODED, decode_crop, jpeg_scratch_bytes
from dp4tl_ffcv.jpeg.index_jpeg import index_jpeg
from dp4tl_ffcv.jpeg.mcu_index import LARGEST_SHARE, checksum, is_index_of
from tests.campaigns.fuzz import betons
from tests.campaigns.fuzz.mutate import mutated
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from tests.support.guards import fenced, guarded
from tests.support.images import jpeg, picture

BETON = "a.beton"
_BLOCK, _RECORDS = 72, 96  # bytes of the file's header, and of it and the first block's header
_RECORD = 24


class JpegIndexFiles(Target):
    """Two epochs of crops are equal to those without an index, whatever its file holds."""

    name = "file of JPEG indexes"

    def prepare(self, folder: Path) -> list[Sample]:
        images = [
            jpeg(picture(96, 80 + 16 * number, number), quality=95, subsampling=2 * (number % 2))
            for number in range(3)
        ]
        samples = [(image, number % 2, number) for number, image in enumerate(images)]
        path = folder / BETON
        write_beton(path, samples, image_fields(), num_workers=0, seed=None, jpeg_index=False)
        path.with_name(path.name + ".json").unlink()
        path.write_bytes(betons.dense(path))
        truth = epochs(path, jpeg_index=False)
        index_jpegs(path, num_workers=0)
        file = index_path(path)
        files = {BETON: path.read_bytes(), file.name: file.read_bytes()}
        spans = [(_BLOCK + at, 8) for at in (0, 8, 16)]
        spans += [(_RECORDS + at, 8) for at in range(0, 3 * _RECORD, 8)]
        return [Sample(files, file.name, spans, truth)]

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the file; in half of the cases, make its checksums fit again."""
        data = bytearray(mutated(rng, sample.data, sample.spans))
        if rng.random() < 0.5 and len(data) >= _RECORDS:
            count = min(int.from_bytes(data[_BLOCK : _BLOCK + 8], "little"), 3)
            table = data[_RECORDS : _RECORDS + count * _RECORD]
            fitting = int(checksum(np.frombuffer(bytes(table), np.uint8)))
            data[_BLOCK + 16 : _RECORDS] = fitting.to_bytes(8, "little", signed=True)
        return bytes(data)

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load two epochs. The second one uses the indexes that the first has made."""
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            found = epochs(folder / BETON)
        finally:  # where the indexes are kept if the file is not one of ours
            shutil.rmtree(folder / "cache", ignore_errors=True)
        for pixels, wanted in zip(found, sample.truth, strict=True):
            if not np.array_equal(pixels, wanted):
                raise FaultError("untouched value differs", "pixels with a damaged index file")
        return "equal"


def epochs(path: Path, **options: Any) -> list[NDArray[np.uint8]]:
    """Return the random crops of two epochs."""
    decoder = RandomResizedCropRGBImageDecoder((24, 24), scale=(0.1, 0.5))
    loader = PrunedLoader(
        path, 3, num_workers=1, order="sequential", cache="extents", drop_last=False, seed=5,
        pipelines={"image": [decoder], "label": None, "identifier": None}, **options,
    )  # fmt: skip
    return [np.array(pixels) for _ in range(2) for (pixels,) in loader]


class JpegIndexes(Target):
    """Crops with a damaged index in memory, next to pages that no access is allowed to."""

    name = "JPEG index in memory"

    def prepare(self, folder: Path) -> list[Sample]:
        samples = []
        for number in range(4):
            height, width = 96, 80 + 16 * number
            image = picture(height, width, number)
            data = jpeg(image, quality=95, subsampling=2 * (number % 2))
            source = np.frombuffer(bytearray(data), np.uint8)
            room = np.zeros(int(LARGEST_SHARE * len(data)) // 8 * 8, np.uint8)
            scratch = np.zeros(jpeg_scratch_bytes(height, width), np.uint8)
            length = index_jpeg(source, height, width, scratch, room)
            pixels = np.zeros((height, width, 3), np.uint8)
            imdecode(source, pixels, height, width, height, width)
            spans = [(0, 8), (8, 4), (12, 4), (16, 4), *((20 + at, 1) for at in range(4))]
            files = {"a.jpg": data, "index": room[:length].tobytes()}
            samples.append(Sample(files, "index", spans, pixels))
        return samples

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the index; in most cases, make its checksum fit again, as only a forger would."""
        data = mutated(rng, sample.data, sample.spans, donor.data)
        if len(data) < 24 or rng.random() < 0.2:
            return data
        image, rest = (np.frombuffer(each, np.uint8) for each in (sample.files["a.jpg"], data[8:]))
        fitting = int(checksum(image)) ^ int(checksum(rest))
        return fitting.to_bytes(8, "little", signed=True) + data[8:]

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Decode a box. Only a forged index may lead to other pixels."""
        height, width = sample.truth.shape[:2]
        source = fenced(np.frombuffer(sample.files["a.jpg"], np.uint8))
        index = np.frombuffer(bytearray(data), np.uint8)
        is_intact = data == sample.data
        if bool(is_index_of(index, source)) and not is_intact and data[:8] == sample.data[:8]:
            raise FaultError("accepted a damaged index", f"{len(data)} bytes")
        if not is_index_of(index, source):
            return "not used"
        top, left = int(rng.integers(height)), int(rng.integers(width))
        rows, columns = (
            int(rng.integers(1, height - top + 1)),
            int(rng.integers(1, width - left + 1)),
        )
        with (
            guarded(jpeg_scratch_bytes(height, width)) as scratch,
            guarded(3 * rows * columns) as out,
        ):
            pixels = out.reshape(rows, columns, 3)
            box = (top, left, rows, columns)
            status = decode_crop(source, index, height, width, *box, scratch, pixels)
            is_equal = np.array_equal(pixels, sample.truth[top : top + rows, left : left + columns])
        if status != DECODED:
            return "refused"
        if is_intact and not is_equal:
            raise FaultError("untouched value differs", f"box {box}")
        return "equal" if is_equal else "other pixels by a forged index"
