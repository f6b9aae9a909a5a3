"""Write a compacted beton whose images are shrunk, or stored as JPEG or raw pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..beton.format import LONGEST_SIDE
from ..beton.index import BetonIndex
from ..beton.manifest import Manifest
from ..errors import BetonError
from ..jpeg import turbojpeg
from ..jpeg.baseline import to_baseline
from ..kernels import resize_area
from ..validate import check_choice, check_int
from ..writing.build import DEFAULT_PAGE_SIZE, BuildPlan, build_beton, cannot_encode
from ..writing.encode import MARK, Encoded
from .copy_samples import check_free_space
from .plan import Retained, place
from .raw_budget import ImagePlan, choose_raw
from .source import SourceBeton

_JPG, _RAW = 0, 1  # modes of an image in the metadata
_QUALITY = 90  # of new JPEGs
_PROBES = 64  # images that are encoded to estimate the sizes of the others
_FORMAT = 1  # part of the key of unfinished files: increase it when their bytes change


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How the new beton stores images. See `compact`."""

    images: str = "keep"
    max_resolution: int | None = None
    raw_budget: int | None = None
    baseline: bool = False

    def __post_init__(self) -> None:
        check_choice("images", self.images, ("keep", "jpeg", "raw"))
        if self.max_resolution is not None:
            check_int("max_resolution", self.max_resolution, 1, LONGEST_SIDE)
        if self.raw_budget is not None and self.images != "keep":
            raise ValueError(f"`raw_budget` cannot be combined with images={self.images!r}.")


class Transcoder:
    """Encodes the retained samples, whose ids are `ids`, and stores their images by `options`."""

    def __init__(
        self,
        source: SourceBeton,
        retained: Retained,
        ids: NDArray[np.int64],
        options: ImageOptions,
    ) -> None:
        self.source, self.ids = source, ids
        self._retained = retained
        self._fields = [
            _plan_images(retained, field.column, options)
            for field in source.index.fields
            if field.kind == "rgb_image"
        ]
        if not self._fields and options != ImageOptions():
            raise ValueError(
                f"{str(source.file.path)!r} has no RGB images. Leave out `images`, "
                "`max_resolution`, `raw_budget` and `baseline`."
            )
        if any(field.shrunk.any() for field in self._fields):
            # Compile it once here, not in every worker process.
            resize_area(np.zeros((2, 2, 3), dtype=np.uint8), (1, 1))
        self.sizes = self._estimate_sizes()
        """Bytes of each extent `(R,)`, estimated for new JPEGs."""
        self._page_size = source.page_size
        self._grows = False  # whether pages may have to grow while samples are written
        if any((field.changed & ~field.raw).any() for field in self._fields):
            self._choose_pages()
        if options.raw_budget is not None:
            chosen = choose_raw(
                options.raw_budget, self._fields, ids, retained, self.sizes, self.placed
            )
            for field, samples in zip(self._fields, chosen, strict=True):
                field.raw[samples] = True
                self.sizes[field.rows[samples]] = field.pixel_bytes[samples]
        self._changed = [field.changed for field in self._fields]

    @property
    def changes(self) -> bool:
        """Whether the new beton stores any image in another way than the source."""
        return any(changed.any() for changed in self._changed)

    def write(
        self, target: Path, describe: Callable[[BetonIndex], Manifest], num_workers: int
    ) -> BetonIndex:
        """Write the beton `target`, and the manifest that `describe` returns for its index.

        The unfinished file of a killed run is continued.
        """
        page_size, num_bytes = self.placed(self.sizes)
        check_free_space(target, num_bytes)
        plan = BuildPlan(
            descriptors=self.source.descriptors(),
            dtype=self.source.dtype,
            order=np.arange(len(self.ids)),
            encode=self.encode,
            key=self._key(),
            describe=lambda written, _: describe(written),
            name_of=self.name_of,
            custom_fields=self.source.custom_fields,
            page_size=None if self._grows else page_size,
        )
        return build_beton(target, plan, num_workers)

    def _key(self) -> str:
        digest = hashlib.sha256(f"{_FORMAT} {_QUALITY} {self.source.file.identity}".encode())
        digest.update(self.source.index.fingerprint.encode())
        digest.update(self.ids.data)
        digest.update(self._retained.metadata.view(np.uint8).data)
        for field in self._fields:
            digest.update(np.ascontiguousarray(field.sizes).data)
            digest.update(field.raw.view(np.uint8).data)
        return digest.hexdigest()

    def name_of(self, position: int) -> str:
        """Return the name of the sample at `position` in the new order, for messages."""
        return f"{self.source.file.path.name}, sample {self.ids[position]}"

    def encode(self, position: int) -> Encoded:
        """Return the sample at `position` in the new order, with its new images."""
        retained = self._retained
        first, end = retained.starts[position], retained.starts[position + 1]
        stored = [self._read(row) for row in range(first, end)]
        blobs = list(stored)
        row = retained.metadata[position : position + 1].copy()
        for field, changed in zip(self._fields, self._changed, strict=True):
            if changed[position]:
                image, number = row[field.column], field.rows[position] - first
                blobs[number] = self._transcode(field, position, stored[number])
                image["mode"] = _RAW if field.raw[position] else _JPG
                image["height"], image["width"] = field.sizes[position]
        rooms = [max(1, blob.size) for blob in blobs]
        places = MARK + np.cumsum([0, *rooms], dtype=np.uint64)
        for pointer in retained.pointers:
            rows = pointer.rows[position]
            pointer.of(row)[0, rows >= 0] = places[rows[rows >= 0] - first]
        return Encoded(row, blobs)

    def placed(self, sizes: NDArray[np.int64]) -> tuple[int, int]:
        """Return the page size and the file size if the extents have `sizes` `(R,)`."""
        tables = self.source.table_bytes(len(self.ids))
        placement = place(self._retained.rooms(sizes), tables, self._page_size)
        return placement.page_size, placement.file_size(len(sizes))

    def _read(self, row: int | np.int64) -> NDArray[np.uint8]:
        extent = self._retained.extents[row]
        data = self.source.file.read_at(int(extent["ptr"]), int(extent["size"]))
        return np.frombuffer(data, dtype=np.uint8)

    def _transcode(
        self, field: ImagePlan, position: int, data: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Return the new stored bytes of an image, given those in the source."""
        stored = self._retained.metadata[field.column][position]
        size = (int(stored["height"]), int(stored["width"]))
        if not (field.shrunk[position] or field.raw[position] or field.was_raw[position]):
            return np.frombuffer(to_baseline(bytes(data)), dtype=np.uint8)
        if field.was_raw[position]:
            pixels = data.reshape(*size, 3)
        else:
            # At full size the pixels must be exactly those that ffcv decodes.
            pixels = turbojpeg.decode(data, fast=not field.shrunk[position])
        if pixels.shape[:2] != size:
            raise ValueError(f"the image is {pixels.shape[:2]}, but the metadata says {size}")
        if field.shrunk[position]:
            height, width = field.sizes[position].tolist()
            pixels = resize_area(pixels, (height, width))
        if field.raw[position]:
            return np.ascontiguousarray(pixels).reshape(-1)
        return np.frombuffer(turbojpeg.encode(pixels, quality=_QUALITY), dtype=np.uint8)

    def _estimate_sizes(self) -> NDArray[np.int64]:
        sizes = self._retained.extents["size"].astype(np.int64)
        for field in self._fields:
            stored = sizes[field.rows]
            pixels = self._retained.metadata[field.column]
            area = pixels["height"].astype(np.int64) * pixels["width"]
            for was_raw in (False, True):
                new = np.flatnonzero(field.changed & ~field.raw & (field.was_raw == was_raw))
                if not new.size:
                    continue
                # Shrinking a JPEG saves bytes about in proportion to its pixels.
                likely = stored[new] * (field.pixel_bytes[new] / (3 * area[new]))
                chosen = np.unique(np.linspace(0, len(new) - 1, _PROBES).astype(np.int64))
                found = sum(self._probe(field, each) for each in new[chosen].tolist())
                sizes[field.rows[new]] = np.ceil(likely * (found / likely[chosen].sum()))
            sizes[field.rows[field.raw]] = field.pixel_bytes[field.raw]
        return sizes

    def _probe(self, field: ImagePlan, position: int) -> int:
        """Encode an image and return its number of bytes."""
        data = self._read(field.rows[position])
        try:
            return self._transcode(field, position, data).size
        except BetonError:
            raise  # the file is damaged, not the image
        except ValueError as error:
            raise cannot_encode({"error": error, "name": self.name_of(position)}) from error

    def _choose_pages(self) -> None:
        """Choose pages that hold any new JPEG, or pages that can grow.

        Pages grow where a JPEG of the largest possible size would not fit the default page: real
        JPEGs are far smaller.
        """
        most = self.sizes.copy()
        for field in self._fields:
            estimated = field.changed & ~field.raw
            padded = (field.sizes[estimated] + 15) // 16 * 16
            most[field.rows[estimated]] = 3 * padded.prod(axis=1) + 2048  # TurboJPEG's own limit
        largest = int(self._retained.rooms(most).max(initial=0))
        self._grows = self.placed(self.sizes)[0] <= DEFAULT_PAGE_SIZE < largest
        self._page_size = DEFAULT_PAGE_SIZE if self._grows else self.placed(most)[0]


def _plan_images(retained: Retained, column: str, options: ImageOptions) -> ImagePlan:
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
    return ImagePlan(column, rows, sizes, shrunk, raw, was_raw, options.baseline)
