"""Write betons: the one place that does.

Samples are encoded by ffcv's own field classes in a thread pool and placed in order by one thread,
so that the bytes of the file depend on the samples alone, and an error in a sample is an error of
the call (ffcv's writer then waits for ever and leaves a file that opens as if it were valid).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.types import TYPE_ID_HANDLER
from numpy.typing import NDArray

from ..artifacts import atomic_open
from ..kernels import class_histogram
from ..progress import track
from . import layout
from .index import BetonIndex
from .manifest import Manifest, write_manifest

__all__ = ["image_fields", "write_beton"]

MIN_PAGE_SIZE = 1 << 21  # ffcv refuses smaller pages
DEFAULT_PAGE_SIZE = 1 << 23  # ffcv's own default

_TYPE_IDS: dict[Any, int] = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
# Until a sample has a place its pointers count from this number, drawn at random, by which they
# are told from what else a field may keep in 64 bits.
_MARK = 0x6D1F_83A9_50C7_E42B


@dataclass(frozen=True, slots=True)
class _Encoded:
    """One sample before it has a place: pointers count from `_MARK`, its first extent."""

    row: NDArray[Any]
    blobs: list[NDArray[np.uint8]]


def image_fields(
    *, mode: str = "jpg", jpeg_quality: int = 90, max_resolution: int | None = None
) -> dict[str, Any]:
    """Return the fields that every writer of this project uses: image, label, identifier.

    Args:
        mode: `jpg` or `raw`.
        jpeg_quality: 1 to 100, for `jpg`.
        max_resolution: longer side in pixels above which images are shrunk; None keeps them.
    """
    if mode not in layout.IMAGE_MODES.values():
        raise ValueError(f"`mode` must be jpg or raw; got {mode!r}. Choose one.")
    image = RGBImageField(write_mode=mode, jpeg_quality=jpeg_quality, max_resolution=max_resolution)
    return {"image": image, "label": IntField(), "identifier": IntField()}


def write_beton(
    path: str | os.PathLike[str],
    samples: Sequence[tuple[Any, ...]],
    fields: Mapping[str, Any],
    *,
    class_names: Sequence[str] = (),
    label_field: str = "label",
    written_by: Mapping[str, Any] | None = None,
    page_size: int = DEFAULT_PAGE_SIZE,
    num_workers: int | None = None,
) -> BetonIndex:
    """Write `samples` to a beton and its manifest, atomically; stock ffcv reads the file.

    Memory: the tables, one page, and four encoded samples per worker.

    Args:
        path: the beton; its manifest goes to the same name with `.json` appended.
        samples: indexable; each item is a tuple with one value per field.
        fields: ffcv field objects by name, at most 16 ASCII characters each.
        class_names: name of each class id; empty when there are none.
        label_field: the integer field that holds class ids, counted in the manifest.
        written_by: the writer's arguments, kept in the manifest.
        page_size: bytes, a power of two, at least 2 MiB; a sample must fit into one page.
        num_workers: encoding threads; None takes one per core.

    Returns:
        The index of the finished file.

    Raises:
        ValueError: no samples, a bad name or page size, a sample that cannot be encoded or does
            not fit into a page, or a label without a class name.
    """
    target = Path(path)
    dtype = _check_arguments(samples, fields, label_field, page_size)
    metadata = np.zeros(len(samples), dtype=dtype)
    encoded = _encode_all(samples, fields, dtype, num_workers or os.cpu_count() or 1)
    watched = track(encoded, total=len(samples), description=f"write {target.name}", unit="samples")
    with atomic_open(target) as stream:
        header = np.zeros(1, dtype=layout.HEADER)
        header["version"], header["num_fields"] = layout.VERSION, len(fields)
        header["page_size"], header["num_samples"] = page_size, len(samples)
        tables = layout.HEADER.itemsize + len(fields) * layout.FIELD.itemsize + metadata.nbytes
        pages = _PageWriter(stream, -(-tables // page_size) * page_size, page_size)
        for sample_id, sample in enumerate(watched):
            metadata[sample_id] = pages.place(sample_id, sample)[0]
        header["alloc_table_ptr"] = pages.finish()
        stream.write(np.array(pages.allocations, dtype=layout.ALLOCATION).tobytes())
        stream.seek(0)
        stream.write(header.tobytes() + _descriptors(fields).tobytes() + metadata.tobytes())
        counts = _check_labels(metadata, fields, label_field, class_names)
    index = BetonIndex.open(target, custom_fields=_custom_classes(fields))
    manifest = Manifest(
        fields={field.name: field.kind for field in index.fields},
        num_samples=index.num_samples,
        class_names=tuple(class_names),
        class_counts=tuple(counts.tolist()),
        written_by=dict(written_by or {}),
        fingerprint=index.fingerprint,
    )
    write_manifest(target, manifest)
    return index


class _PageWriter:
    """Appends samples to pages; a sample never crosses a page, as ffcv's page cache needs."""

    def __init__(self, stream: IO[bytes], start: int, page_size: int) -> None:
        self._stream = stream
        self._page_size = page_size
        self._position = start
        self.allocations: list[tuple[int, int, int]] = []

    def place(self, sample_id: int, sample: _Encoded) -> NDArray[Any]:
        """Write the extents of a sample and return its metadata row with final pointers."""
        size = sum(_room(blob) for blob in sample.blobs)
        if size > self._page_size:
            raise ValueError(
                f"`page_size` must hold the largest sample; got {self._page_size}, and sample "
                f"{sample_id} takes {size} bytes. Pass a larger power of two."
            )
        left = self._page_size - self._position % self._page_size
        if size > left:
            self._position += left
        _move_pointers(sample.row, self._position, size)
        self._stream.seek(self._position)
        for blob in sample.blobs:
            self._stream.write(blob.data if blob.size else b"\0")
            self.allocations.append((sample_id, self._position, blob.size))
            self._position += _room(blob)
        return sample.row

    def finish(self) -> int:
        """Fill up the last page and return where the file ends."""
        self._position = -(-self._position // self._page_size) * self._page_size
        self._stream.truncate(self._position)
        self._stream.seek(self._position)
        return self._position


def _encode_all(
    samples: Sequence[tuple[Any, ...]],
    fields: Mapping[str, Any],
    dtype: np.dtype[Any],
    num_workers: int,
) -> Iterator[_Encoded]:
    """Encode in parallel, yield in order, and hold at most a few samples per worker."""

    def encode(sample_id: int) -> _Encoded:
        try:
            return _encode(samples[sample_id], fields, dtype)
        except Exception as error:
            raise ValueError(
                f"`samples` must be encodable; got {error} in sample {sample_id}. "
                "Mend or leave out that sample."
            ) from error

    with ThreadPoolExecutor(num_workers) as pool:
        ids = iter(range(len(samples)))
        waiting: list[Future[_Encoded]] = [
            pool.submit(encode, i) for i in islice(ids, 4 * num_workers)
        ]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting.extend(pool.submit(encode, i) for i in islice(ids, 1))
        finally:
            for future in waiting:
                future.cancel()


def _encode(sample: tuple[Any, ...], fields: Mapping[str, Any], dtype: np.dtype[Any]) -> _Encoded:
    if len(sample) != len(fields):
        raise ValueError(f"{len(sample)} values for {len(fields)} fields")
    row = np.zeros(1, dtype=dtype)
    blobs: list[NDArray[np.uint8]] = []
    for column, field, value in zip(dtype.names or (), fields.values(), sample, strict=True):
        field.encode(row[column], value, _allocator(blobs))
    return _Encoded(row, blobs)


def _allocator(blobs: list[NDArray[np.uint8]]) -> Callable[[int], tuple[int, NDArray[np.uint8]]]:
    def malloc(size: int) -> tuple[int, NDArray[np.uint8]]:
        pointer = _MARK + sum(_room(blob) for blob in blobs)
        blobs.append(np.empty(size, dtype=np.uint8))
        return pointer, blobs[-1]

    return malloc


def _room(blob: NDArray[np.uint8]) -> int:
    """Bytes that a blob takes: ffcv finds an extent by its start, so no two may share one."""
    return max(1, blob.size)


def _move_pointers(row: NDArray[Any], base: int, room: int) -> None:
    for column in row.dtype.names or ():
        values = row[column]
        for part in [values[name] for name in values.dtype.names or ()] or [values]:
            if part.dtype == np.uint64:
                pointers = (part >= _MARK) & (part <= _MARK + room)
                part[pointers] += np.uint64(base)
                part[pointers] -= np.uint64(_MARK)


def _descriptors(fields: Mapping[str, Any]) -> NDArray[Any]:
    table = np.zeros(len(fields), dtype=layout.FIELD)
    for row, (name, field) in zip(table, fields.items(), strict=True):
        row["type_id"] = _TYPE_IDS.get(type(field), layout.CUSTOM_TYPE)
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
        row["arguments"] = np.frombuffer(field.to_binary().tobytes(), dtype=np.uint8)
    return table


def _custom_classes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: type(field) for name, field in fields.items() if type(field) not in _TYPE_IDS}


def _check_arguments(
    samples: Sequence[tuple[Any, ...]], fields: Mapping[str, Any], label_field: str, page_size: int
) -> np.dtype[Any]:
    if not len(samples):
        raise ValueError("`samples` must hold at least one sample; got none. Check the dataset.")
    if not fields:
        raise ValueError("`fields` must hold at least one field; got none. Name what to write.")
    for name in fields:
        if not name.isascii() or not 1 <= len(name) <= 16 or "\0" in name:
            raise ValueError(
                f"`fields` must have names of 1 to 16 ASCII characters; got {name!r}. Rename it."
            )
    if label_field in fields and type(fields[label_field]) is not IntField:
        raise ValueError(
            f"`label_field` must be an IntField; got {label_field!r}, a "
            f"{type(fields[label_field]).__name__}. Name the field that holds the class ids."
        )
    if page_size < MIN_PAGE_SIZE or page_size >= 1 << 32 or page_size & (page_size - 1):
        raise ValueError(
            f"`page_size` must be a power of two from 2 MiB to 2 GiB; got {page_size}. "
            f"Pass {DEFAULT_PAGE_SIZE} or a multiple by two."
        )
    return layout.metadata_dtype([field.metadata_type for field in fields.values()])


def _check_labels(
    metadata: NDArray[Any],
    fields: Mapping[str, Any],
    label_field: str,
    class_names: Sequence[str],
) -> NDArray[np.int64]:
    if label_field not in fields:
        return np.zeros(0, dtype=np.int64)
    labels = metadata[f"f{list(fields).index(label_field)}"]
    if labels.min() < 0:
        raise ValueError(
            f"`{label_field}` must hold class ids >= 0; got {labels.min()}. "
            "Number the classes from 0."
        )
    if class_names and labels.max() >= len(class_names):
        raise ValueError(
            f"`class_names` must name every class; got {len(class_names)} names and the label "
            f"{labels.max()}. Add the missing names."
        )
    return class_histogram(labels, len(class_names) or int(labels.max()) + 1)
