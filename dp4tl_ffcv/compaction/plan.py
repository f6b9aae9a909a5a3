"""A beton of some samples of another: which samples keep which bytes, and where these go.

Everything is planned in numpy over whole tables before the first byte is copied; there is no Python
object per sample.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import part_file, part_path
from ..beton import format
from ..beton.index import BetonIndex
from ..beton.manifest import Manifest, write_manifest
from ..beton.tables import FieldInfo
from ..errors import BetonError
from ..writing.journal import Journal
from .copy_ranges import SourceFile, check_free_space, copy_extents, naming_target
from .pointers import Pointer, find_pointers

_LARGEST_PAGE = 1 << 31
_BLOCK = 1 << 20  # rows of the allocation table that are looked at together


class SourceBeton:
    """A beton open for reading, with its tables, which must not change as long as it is read.

    Args:
        path: the beton.
        custom_fields: class of each field of a custom type, by name.
        fields: names of the fields that go into the new beton, in its own order; None for all.
    """

    def __init__(
        self,
        path: Path,
        custom_fields: Mapping[str, Any] | None = None,
        fields: Collection[str] | None = None,
    ) -> None:
        self.custom_fields = custom_fields or {}
        self.file = SourceFile(path)
        try:
            self.index = BetonIndex.open(path, custom_fields=self.custom_fields)
            self.file.check_unchanged()
            self.kept = _kept_fields(self.index, fields)
        except BaseException:
            self.file.close()
            raise

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the new beton's metadata, whose columns go by their names in this one."""
        whole = self.index.metadata.dtype
        return np.dtype([(field.column, whole[field.column]) for field in self.kept], align=True)

    def descriptors(self) -> NDArray[Any]:
        """Read the descriptors of the fields that are kept, which hold the fields' arguments."""
        num_bytes = len(self.index.fields) * format.FIELD.itemsize
        data = self.file.read(format.HEADER.itemsize, num_bytes)
        kept = [field in self.kept for field in self.index.fields]
        return np.frombuffer(data, dtype=format.FIELD)[kept]

    def table_bytes(self, num_samples: int) -> int:
        """Return the bytes of the new header, descriptors and metadata of so many samples."""
        fields = len(self.kept) * format.FIELD.itemsize
        return format.HEADER.itemsize + fields + num_samples * self.dtype.itemsize

    def __enter__(self) -> "SourceBeton":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _kept_fields(index: BetonIndex, names: Collection[str] | None) -> tuple[FieldInfo, ...]:
    if names is None:
        return index.fields
    wanted = {index.field(name).name for name in names}
    for field in index.fields:
        # The bytes of other kinds would have to be told from those of the fields that stay.
        if field.name not in wanted and field.kind not in ("int", "float"):
            raise ValueError(
                f"`fields` must leave out numbers alone; got {sorted(wanted)}, without "
                f"{field.name!r} of kind {field.kind}. Add it."
            )
    if not wanted:
        raise ValueError("`fields` must name at least one field; got none. Leave it out for all.")
    return tuple(field for field in index.fields if field.name in wanted)


@dataclass(frozen=True, slots=True)
class Retained:
    """The samples of a new beton in its order, with the places that they have in the source."""

    metadata: NDArray[Any]
    """Records `(M,)`, a copy that may be changed."""
    extents: NDArray[Any]
    """Extents `(R,)` in the new order; `sample_id` counts in it, `ptr` is a place in the source."""
    starts: NDArray[np.int64]
    """Extents `starts[i]` to `starts[i + 1]` are those of sample i."""
    pointers: tuple[Pointer, ...]

    def with_columns(self, dtype: np.dtype[Any]) -> "Retained":
        """Return the same with the columns of `dtype` alone."""
        if dtype == self.metadata.dtype:
            return self
        metadata = np.zeros(len(self.metadata), dtype=dtype)
        for column in dtype.names or ():
            metadata[column] = self.metadata[column]
        return replace(self, metadata=metadata)

    def rooms(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes that each sample `(M,)` takes if its extents have `sizes` `(R,)`."""
        # ffcv finds an extent by its start: an empty one takes a byte, so that no two share one.
        ends = np.concatenate(([0], np.cumsum(np.maximum(sizes, 1))))
        return np.diff(ends[self.starts])


@dataclass(frozen=True, slots=True)
class Placement:
    """Where samples go, so that none crosses a page."""

    page_size: int
    places: NDArray[np.int64]
    """First byte of each sample `(M,)`."""
    table_at: int
    """Where the allocation table starts."""


def retain(index: BetonIndex, order: NDArray[np.int64]) -> Retained:
    """Collect the samples `order`, in that order.

    Cost: one pass over the allocation table, then O(retained log retained).

    Raises:
        BetonError: a sample's metadata points to bytes that are not the sample's own.
    """
    position = np.full(index.num_samples, -1, dtype=np.int64)
    position[order] = np.arange(len(order))
    table = index.allocations
    blocks = (table[at : at + _BLOCK] for at in range(0, len(table), _BLOCK))
    found = [block[position[block["sample_id"]] >= 0] for block in blocks]
    extents = np.concatenate([table[:0], *found])
    extents["sample_id"] = position[extents["sample_id"]]
    # Of extents at one place, the empty ones come first.
    extents = extents[np.lexsort((extents["size"], extents["ptr"], extents["sample_id"]))]
    counts = np.bincount(extents["sample_id"].astype(np.int64), minlength=len(order))
    starts = np.concatenate(([0], np.cumsum(counts)))
    # As plain bytes: of records, numpy leaves the padding as it finds it.
    records = index.metadata.view(np.dtype((np.void, index.metadata.dtype.itemsize)))
    metadata = records[order].view(index.metadata.dtype)
    pointers = tuple(find_pointers(index, metadata, extents, starts))
    return Retained(metadata, extents, starts, pointers)


def place(rooms: NDArray[np.int64], tables: int, page_size: int) -> Placement:
    """Place samples that take `rooms` bytes `(M,)` each, one behind the other.

    Args:
        rooms: bytes of each sample.
        tables: bytes in front of the samples.
        page_size: bytes per page, doubled until the largest sample fits.

    Raises:
        BetonError: no page can hold the largest sample.
    """
    largest = int(rooms.max(initial=0))
    while page_size < largest:
        page_size *= 2
    if page_size > _LARGEST_PAGE:
        raise BetonError(
            f"`source` must have samples of at most {_LARGEST_PAGE} bytes, the largest page; got "
            f"one of {largest}. Leave that sample out."
        )
    ends = np.cumsum(rooms)
    places = ends - rooms
    page = -(-tables // page_size) * page_size
    first = 0
    while largest and first < len(rooms):
        start = int(places[first])
        end = int(np.searchsorted(ends, start + page_size, side="right"))
        places[first:end] += page - start
        first, page = end, page + page_size
    return Placement(page_size, places, page)


def file_size(placement: Placement, num_extents: int) -> int:
    """Return the bytes of a beton of so many extents."""
    return placement.table_at + num_extents * format.ALLOCATION.itemsize


def copy_samples(
    source: SourceBeton,
    retained: Retained,
    target: Path,
    *,
    describe: Callable[[BetonIndex], Manifest],
    jobs: int,
) -> BetonIndex:
    """Write the beton `target` of the retained samples, with their bytes as they are.

    The pointers in `retained` are moved to their new places.

    Args:
        source: the beton that the samples are in.
        retained: the samples.
        target: the beton to write; its manifest goes beside it.
        describe: makes the manifest of the file's tables.
        jobs: threads that copy.

    Raises:
        BetonError: the source is truncated, or changes while it is read.
        ValueError: the file system of `target` has not enough room.
    """
    sizes = retained.extents["size"].astype(np.int64)
    tables = source.table_bytes(len(retained.metadata))
    placement = place(retained.rooms(sizes), tables, source.index.page_size)
    check_free_space(target, file_size(placement, len(sizes)))
    places = _extent_places(retained, sizes, placement)
    for pointer in retained.pointers:
        moved = pointer.rows >= 0
        pointer.of(retained.metadata)[moved] = places[pointer.rows[moved]]
    with part_file(target) as stream, naming_target(target):
        Journal(target).remove()  # of a run that made other images and was killed
        _write_tables(stream, source.descriptors(), retained, placement, places)
        copy_extents(
            source.file,
            stream.fileno(),
            retained.extents["ptr"].astype(np.int64),
            places,
            sizes,
            jobs=jobs,
            description=f"compact {target.name}",
        )
        source.file.check_unchanged()
        written = BetonIndex.open(part_path(target), custom_fields=source.custom_fields)
        os.fsync(stream.fileno())  # so that nothing takes time between the two names
        write_manifest(target, describe(written))
    written.path = target
    return written


def _write_tables(
    stream: IO[bytes],
    fields: NDArray[Any],
    retained: Retained,
    placement: Placement,
    places: NDArray[np.int64],
) -> None:
    """Write all but the samples' bytes into an empty file, and give it its size."""
    header = np.zeros(1, dtype=format.HEADER)
    header["version"], header["num_fields"] = format.VERSION, len(fields)
    header["page_size"], header["num_samples"] = placement.page_size, len(retained.metadata)
    header["alloc_table_ptr"] = placement.table_at
    allocations = retained.extents.copy()
    allocations["ptr"] = places
    stream.write(header.tobytes() + fields.tobytes())
    stream.write(retained.metadata.view(np.uint8).data)
    stream.truncate(placement.table_at)
    stream.seek(placement.table_at)
    stream.write(allocations.view(np.uint8).data)
    stream.flush()


def _extent_places(
    retained: Retained, sizes: NDArray[np.int64], placement: Placement
) -> NDArray[np.int64]:
    ends = np.concatenate(([0], np.cumsum(np.maximum(sizes, 1))))
    shifts = placement.places - ends[retained.starts[:-1]]
    places: NDArray[np.int64] = ends[:-1] + np.repeat(shifts, np.diff(retained.starts))
    return places
