"""Store the images of a compacted beton in another way: shrunk, as JPEG, or as raw pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton.index import BetonIndex
from ..beton.manifest import Manifest
from ..errors import BetonError
from ..jpeg import turbojpeg
from ..kernels import resize_area
from ..writing.build import DEFAULT_PAGE_SIZE, BuildPlan, build_beton, cannot_encode
from ..writing.encode import MARK, Encoded
from .copy_ranges import check_free_space
from .plan import Retained, SourceBeton, file_size, place
from .raw_budget import ImagePlan, choose_raw

_JPG, _RAW = 0, 1  # modes of an image in the metadata
_QUALITY = 90  # of the JPEGs that are made
_PROBES = 64  # images that are encoded to learn what the others will take
_FORMAT = 1  # goes into the key of unfinished files: raise it when their bytes change


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How images are to be stored."""

    images: str = "keep"
    """`keep`, `jpeg` or `raw`."""
    max_resolution: int | None = None
    """Longer side in pixels above which images are shrunk."""
    raw_budget: int | None = None
    """Bytes of the file, up to which JPEGs are stored as raw pixels, if a page holds them."""


class Transcoder:
    """Encodes the retained samples with their images as the options want them.

    Args:
        source: the beton that the samples are in.
        retained: the samples.
        ids: their ids in the source.
        options: how images are to be stored.

    Raises:
        ValueError: there are no images, one cannot be decoded, or the budget is too small for any
            file.
        BetonError: no page can hold the largest sample.
    """

    def __init__(
        self,
        source: SourceBeton,
        retained: Retained,
        ids: NDArray[np.int64],
        options: ImageOptions,
    ) -> None:
        self._source, self._retained, self._ids = source, retained, ids
        self._fields = [
            _wanted(retained, field.column, options)
            for field in source.index.fields
            if field.kind == "rgb_image"
        ]
        if not self._fields and options != ImageOptions():
            raise ValueError(
                "`images`, `max_resolution` and `raw_budget` must be left out for a beton without "
                f"RGB images; got {options}. Leave them out."
            )
        if any(field.shrunk.any() for field in self._fields):
            # Compiled here, once, and not in every process.
            resize_area(np.zeros((2, 2, 3), dtype=np.uint8), (1, 1))
        self.sizes = self._expect_sizes()
        """Bytes of each extent `(R,)`; of JPEGs that are made, about."""
        self._page_size = source.index.page_size
        self.grows = False
        """Whether a page may turn out to need more bytes than `placed` says."""
        if any((field.made & ~field.raw).any() for field in self._fields):
            self._choose_pages()
        if options.raw_budget is not None:
            self._spend(options.raw_budget)

    @property
    def changes(self) -> bool:
        """Whether any image is not copied as it is."""
        return any(field.made.any() for field in self._fields)

    def key(self) -> str:
        """Return what tells the file that this makes from others."""
        digest = hashlib.sha256(f"{_FORMAT} {_QUALITY} {self._source.file.signature}".encode())
        digest.update(self._source.index.fingerprint.encode())
        digest.update(self._ids.data)
        digest.update(self._retained.metadata.view(np.uint8).data)
        for field in self._fields:
            digest.update(np.ascontiguousarray(field.sizes).data)
            digest.update(field.raw.view(np.uint8).data)
        return digest.hexdigest()

    def name_of(self, position: int) -> str:
        """Say which sample of the source lies at `position` in the new order."""
        return f"{self._source.file.path.name}, sample {self._ids[position]}"

    def encode(self, position: int) -> Encoded:
        """Read the sample at `position` in the new order, and make the images that change."""
        retained = self._retained
        first, end = retained.starts[position], retained.starts[position + 1]
        stored = [self._read(row) for row in range(first, end)]
        blobs = list(stored)
        row = retained.metadata[position : position + 1].copy()
        for field in self._fields:
            if field.made[position]:
                image, number = row[field.column], field.rows[position] - first
                blobs[number] = self._make(field, position, stored[number])
                image["mode"] = _RAW if field.raw[position] else _JPG
                image["height"], image["width"] = field.sizes[position]
        rooms = [max(1, blob.size) for blob in blobs]
        places = MARK + np.cumsum([0, *rooms], dtype=np.uint64)
        for pointer in retained.pointers:
            rows = pointer.rows[position]
            pointer.of(row)[0, rows >= 0] = places[rows[rows >= 0] - first]
        return Encoded(row, blobs)

    def _read(self, row: int | np.int64) -> NDArray[np.uint8]:
        extent = self._retained.extents[row]
        data = self._source.file.read(int(extent["ptr"]), int(extent["size"]))
        return np.frombuffer(data, dtype=np.uint8)

    def _make(self, field: ImagePlan, position: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the stored form of an image that changes, and is stored as `data` now."""
        stored = self._retained.metadata[field.column][position]
        size = (int(stored["height"]), int(stored["width"]))
        if field.was_raw[position]:
            pixels = data.reshape(*size, 3)
        else:
            # What is only unpacked must be what ffcv would have decoded, to the bit.
            pixels = turbojpeg.decode(data, fast=not field.shrunk[position])
        if pixels.shape[:2] != size:
            raise ValueError(f"an image of {pixels.shape[:2]}, where the metadata says {size}")
        if field.shrunk[position]:
            height, width = field.sizes[position].tolist()
            pixels = resize_area(pixels, (height, width))
        if field.raw[position]:
            return np.ascontiguousarray(pixels).reshape(-1)
        return np.frombuffer(turbojpeg.encode(pixels, quality=_QUALITY), dtype=np.uint8)

    def _expect_sizes(self) -> NDArray[np.int64]:
        sizes = self._retained.extents["size"].astype(np.int64)
        for field in self._fields:
            stored = sizes[field.rows]
            pixels = self._retained.metadata[field.column]
            area = pixels["height"].astype(np.int64) * pixels["width"]
            for was_raw in (False, True):
                made = np.flatnonzero(field.made & ~field.raw & (field.was_raw == was_raw))
                if not made.size:
                    continue
                # A JPEG that is shrunk loses bytes about as it loses pixels.
                likely = stored[made] * (field.pixel_bytes[made] / (3 * area[made]))
                chosen = np.unique(np.linspace(0, len(made) - 1, _PROBES).astype(np.int64))
                found = sum(self._probe(field, each) for each in made[chosen].tolist())
                sizes[field.rows[made]] = np.ceil(likely * (found / likely[chosen].sum()))
            sizes[field.rows[field.raw]] = field.pixel_bytes[field.raw]
        return sizes

    def _probe(self, field: ImagePlan, position: int) -> int:
        """Return the bytes of an image that changes."""
        data = self._read(field.rows[position])
        try:
            return self._make(field, position, data).size
        except BetonError:
            raise  # the file is at fault
        except ValueError as error:
            raise cannot_encode({"error": error, "name": self.name_of(position)}) from error

    def _choose_pages(self) -> None:
        """Choose pages that any JPEG which is made is sure to fit into, or pages that can grow.

        These hardly ever take what they may at most, which must not make all pages large.
        """
        most = self.sizes.copy()
        for field in self._fields:
            guessed = field.made & ~field.raw
            padded = (field.sizes[guessed] + 15) // 16 * 16  # TurboJPEG's own limit
            most[field.rows[guessed]] = 3 * padded.prod(axis=1) + 2048
        largest = int(self._retained.rooms(most).max(initial=0))
        self.grows = self.placed(self.sizes)[0] <= DEFAULT_PAGE_SIZE < largest
        self._page_size = DEFAULT_PAGE_SIZE if self.grows else self.placed(most)[0]

    def _spend(self, budget: int) -> None:
        """Store JPEGs as pixels within the budget, of samples that fit into a page as pixels."""
        chosen = choose_raw(
            budget, self._fields, self._ids, self._retained, self.sizes, self.placed
        )
        for field, samples in zip(self._fields, chosen, strict=True):
            field.raw[samples] = True
            self.sizes[field.rows[samples]] = field.pixel_bytes[samples]

    def placed(self, sizes: NDArray[np.int64]) -> tuple[int, int]:
        """Return page size and bytes of the file if the extents have `sizes` `(R,)`."""
        retained, tables = self._retained, self._source.table_bytes(len(self._ids))
        placement = place(retained.rooms(sizes), tables, self._page_size)
        return placement.page_size, file_size(placement, len(sizes))


def transcode_samples(
    source: SourceBeton,
    transcoder: Transcoder,
    num_samples: int,
    target: Path,
    *,
    describe: Callable[[BetonIndex], Manifest],
    jobs: int,
) -> BetonIndex:
    """Write the beton `target` of the samples that `transcoder` encodes, in parallel processes.

    What a killed run left is continued.

    Args:
        source: the beton that the samples are in.
        transcoder: makes the samples.
        num_samples: how many there are.
        target: the beton to write; its manifest goes beside it.
        describe: makes the manifest of the file's tables.
        jobs: processes that encode.

    Raises:
        BetonError: the source is truncated, or changes while it is read.
        ValueError: the file system of `target` has not enough room, or an image cannot be decoded.
        RuntimeError: a worker process died.
    """
    page_size, num_bytes = transcoder.placed(transcoder.sizes)
    check_free_space(target, num_bytes)

    def describe_unchanged(written: BetonIndex, skipped: tuple[dict[str, Any], ...]) -> Manifest:
        del skipped  # none: the first error ends it
        source.file.check_unchanged()
        return describe(written)

    plan = BuildPlan(
        descriptors=source.descriptors(),
        dtype=source.dtype,
        order=np.arange(num_samples),
        encode=transcoder.encode,
        key=transcoder.key(),
        describe=describe_unchanged,
        name_of=transcoder.name_of,
        custom_fields=source.custom_fields,
        page_size=None if transcoder.grows else page_size,
    )
    return build_beton(target, plan, jobs)


def _wanted(retained: Retained, column: str, options: ImageOptions) -> ImagePlan:
    images = retained.metadata[column]
    (rows,) = (
        pointer.rows[:, 0] for pointer in retained.pointers if pointer.path == (column, "data_ptr")
    )
    sizes = np.stack((images["height"], images["width"]), axis=1).astype(np.int64)
    longer = sizes.max(axis=1)
    shrunk = np.zeros(len(sizes), dtype=np.bool_)
    if options.max_resolution is not None:
        shrunk = longer > options.max_resolution
        smaller = np.rint(sizes * options.max_resolution / np.maximum(longer, 1)[:, None])
        sizes = np.where(shrunk[:, None], np.maximum(1, smaller).astype(np.int64), sizes)
    was_raw = images["mode"] == _RAW
    raw = was_raw.copy()
    if options.images != "keep":
        raw[:] = options.images == "raw"
    return ImagePlan(column, rows, sizes, shrunk, raw, was_raw)
