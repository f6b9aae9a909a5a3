"""Damaged JPEGs that this project indexes, and whose crops it decodes by these indexes."""

import os
import shutil
from pathlib import Path

import numpy as np

from dp4tl_ffcv import BetonError, image_fields, index_jpegs, write_beton
from tests.campaigns.fuzz import betons
from tests.campaigns.fuzz.betons import Plain
from tests.campaigns.fuzz.mutate import Span, mutated
from tests.campaigns.fuzz.target import FaultError, Sample, Target
from tests.campaigns.fuzz.targets.jpeg_index import BETON, epochs
from tests.support.images import jpeg, picture

_OPTIONS = (
    {"subsampling": 0}, {"subsampling": 2}, {"subsampling": 1},
    {"subsampling": 0, "optimize": True}, {"subsampling": 2, "restart_marker_blocks": 3},
)  # fmt: skip
_WIDTHS = (80, 96, 117)


class IndexedJpegs(Target):
    """A beton of large JPEGs, one of which is attacked, loaded with and without indexes.

    Crops that are decoded by an index must equal those of a loader that makes none.
    """

    name = "JPEG payload with an index"

    def prepare(self, folder: Path) -> list[Sample]:
        samples = []
        for number, options in enumerate(_OPTIONS):
            images = [
                jpeg(picture(88 + 8 * number, width, number), quality=95, **options)
                for width in _WIDTHS
            ]
            path = folder / f"{number}.beton"
            rows = [(image, 0, place) for place, image in enumerate(images)]
            write_beton(path, rows, image_fields(), num_workers=0, seed=None, jpeg_index=False)
            data = betons.dense(path)
            path.write_bytes(data)
            indexed = index_jpegs(path, num_workers=0)["indexed"]
            assert indexed or "restart_marker_blocks" in options  # those have none
            path.with_name(path.name + ".jpegs").unlink()
            samples.append(Sample({BETON: data}, BETON, truth=epochs(path, jpeg_index=False)))
        return samples

    def mutate(self, rng: np.random.Generator, sample: Sample, donor: Sample) -> bytes:
        """Mutate the header or the data of one image, and cut or pad it to its old size."""
        rows, others = Plain(sample.data).table, Plain(donor.data).table
        start, size = (int(rows[int(rng.integers(len(rows)))][each]) for each in ("ptr", "size"))
        first = int(others[0]["ptr"])
        image = sample.data[start : start + size]
        image = mutated(rng, image, _segments(image), donor.data[first : first + 2000])
        return sample.data[:start] + image[:size].ljust(size, b"\0") + sample.data[start + size :]

    def use(self, rng: np.random.Generator, folder: Path, sample: Sample, data: bytes) -> str:
        """Load two epochs without indexes, two that make them, and two that find them."""
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        path = folder / BETON
        plain = _pixels(path, jpeg_index=False)
        try:
            made = _pixels(path)
            for file in folder.glob("*.jpegs"):
                file.unlink()
            _index(path)
            found = _pixels(path)
        finally:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for file in folder.glob("*.jpegs"):
                file.unlink()
        for name, pixels in (("the indexes of its first epoch", made), ("index_jpegs", found)):
            if pixels is None:
                continue
            if plain is None:
                raise FaultError("damaged value returned", f"only with {name}")
            if not np.array_equal(pixels, plain):
                raise FaultError("touched value differs", f"with {name}")
        if plain is None or made is None or found is None:
            return "BetonError"
        return "equal" if np.array_equal(plain, sample.truth) else "as without an index"


def _pixels(path: Path, **options: bool) -> np.ndarray | None:
    try:
        return np.concatenate(epochs(path, **options))
    except BetonError:
        return None


def _index(path: Path) -> None:
    try:
        index_jpegs(path, num_workers=0)
    except BetonError:
        return


def _segments(image: bytes) -> list[Span]:
    """Return the numbers in the header of a JPEG: of frames, tables and scans."""
    spans, at = [], 2
    while at + 4 <= len(image) and image[at] == 0xFF and image[at + 1] != 0xDA:
        size = int.from_bytes(image[at + 2 : at + 4], "big")
        spans += [(at + 1, 1), (at + 2, 2)] + [
            (at + 4 + place, 1) for place in range(min(size, 40))
        ]
        at += 2 + size
    return spans + [(at + place, 1) for place in range(16)]
