"""Read everything a beton says about its samples, with numpy alone and without decoding one."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BetonError
from ..kernels import class_histogram
from . import layout
from .manifest import Manifest, read_manifest

__all__ = ["BetonIndex", "FieldInfo"]


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field of a beton."""

    name: str
    kind: str
    type_id: int
    column: str
    """Name of its column in the metadata table: `f0`, `f1`, ..."""


class BetonIndex:
    """Header, metadata and allocation table of a beton; the samples stay on disk.

    Args:
        path: the beton.
        header: its header record.
        fields: its fields, in the order of the file.
        metadata: one record per sample.
        allocations: one record per extent: sample, byte offset, bytes.

    Use `BetonIndex.open`; the constructor takes parts that were checked already.
    """

    def __init__(
        self,
        path: Path,
        header: Any,
        fields: tuple[FieldInfo, ...],
        metadata: NDArray[Any],
        allocations: NDArray[Any],
    ) -> None:
        self.path = path
        self.header = header
        self.fields = fields
        self.metadata = metadata
        self.allocations = allocations
        for table in (metadata, allocations):
            table.setflags(write=False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        custom_fields: Mapping[str, Any] | None = None,
    ) -> "BetonIndex":
        """Read and check the tables of a beton.

        Cost: one read of the metadata and of the allocation table, O(samples) in numpy.

        Args:
            path: the beton.
            custom_fields: ffcv field class of each field of a custom type, by name, as for
                `ffcv.loader.Loader`: the file does not say what such a field keeps per sample.

        Raises:
            FileNotFoundError: there is no such file.
            BetonError: the file is not a finished beton of version 2, is truncated, or its tables
                point outside of it.
        """
        path = Path(path)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header = _read_header(stream, path, size)
            descriptors = _read(stream, layout.FIELD, int(header["num_fields"]), path)
            fields, columns = _describe_fields(descriptors, custom_fields or {}, path)
            dtype = layout.metadata_dtype(columns)
            num_samples, table_at = int(header["num_samples"]), int(header["alloc_table_ptr"])
            tables_end = stream.tell() + num_samples * dtype.itemsize
            if tables_end > table_at:
                raise _damaged(path, f"metadata of {num_samples} samples overlaps other tables")
            metadata = _read(stream, dtype, num_samples, path)
            stream.seek(table_at)
            rows = (size - table_at) // layout.ALLOCATION.itemsize
            allocations = _read(stream, layout.ALLOCATION, rows, path)
        _check_allocations(allocations, num_samples, tables_end, table_at, path)
        _check_pointers(fields, metadata, allocations, path)
        return cls(path, header, fields, metadata, allocations)

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self.metadata)

    @property
    def page_size(self) -> int:
        """Bytes per page, a power of two."""
        return int(self.header["page_size"])

    def field(self, name: str) -> FieldInfo:
        """Return the field called `name`, or raise BetonError that lists the fields there are."""
        for field in self.fields:
            if field.name == name:
                return field
        names = ", ".join(field.name for field in self.fields)
        raise BetonError(
            f"`field` must be one of {names}; got {name!r} for {str(self.path)!r}. "
            "Name a field of this beton."
        )

    def column(self, name: str) -> NDArray[Any]:
        """Return the metadata column `(N,)` of the field called `name`."""
        values: NDArray[Any] = self.metadata[self.field(name).column]
        return values

    def labels(self, field: str = "label") -> NDArray[np.int64]:
        """Return the class id of every sample `(N,)`, from the metadata table.

        Raises:
            BetonError: there is no such field, it does not hold integers, or one is negative.
        """
        found = self.field(field)
        if found.kind != "int":
            raise BetonError(
                f"`{field}` must be an integer field; got kind {found.kind} in "
                f"{str(self.path)!r}. Name the field that holds the class ids."
            )
        labels = np.ascontiguousarray(self.metadata[found.column], dtype=np.int64)
        if labels.size and labels.min() < 0:
            raise BetonError(
                f"`{field}` must hold class ids >= 0; got {labels.min()} in {str(self.path)!r}. "
                "Write the beton with one id per class."
            )
        return labels

    def num_classes(self, field: str = "label") -> int:
        """Return C: the number of class names in the manifest, or the largest label + 1."""
        labels = self.labels(field)
        largest = int(labels.max()) + 1 if labels.size else 0
        named = len(self.manifest.class_names) if self.manifest else 0
        return max(largest, named)

    def class_counts(self, field: str = "label") -> NDArray[np.int64]:
        """Count the samples of each class `(C,)`."""
        return class_histogram(self.labels(field), max(1, self.num_classes(field)))

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest beside the file, if there is one and it describes this file."""
        manifest = read_manifest(self.path)
        if manifest and manifest.fingerprint not in ("", self.fingerprint):
            return None  # left over from a beton that was replaced since
        return manifest

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of header, field descriptors, metadata and allocation table, as hex digits.

        It changes with any label, size or place of any sample, and costs no read of the samples.
        """
        digest = hashlib.sha256()
        digest.update(self.header.tobytes())
        for field in self.fields:
            digest.update(f"{field.name}:{field.type_id};".encode())
        digest.update(self.metadata.tobytes())
        digest.update(self.allocations.tobytes())
        return digest.hexdigest()

    @cached_property
    def _by_sample(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Allocation rows sorted by sample, and where each sample's rows start (CSR)."""
        owners = self.allocations["sample_id"].astype(np.int64)
        rows = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[rows], np.arange(self.num_samples + 1))
        return rows, starts

    def sample_bytes(self) -> NDArray[np.int64]:
        """Return the bytes of the extents of each sample `(N,)`."""
        owners = self.allocations["sample_id"].astype(np.int64)
        totals = np.zeros(self.num_samples, dtype=np.int64)
        np.add.at(totals, owners, self.allocations["size"].astype(np.int64))
        return totals

    def extents(self, indices: ArrayLike) -> NDArray[Any]:
        """Return the extents of the samples `indices`, in that order: `sample_id, ptr, size`.

        A sample has one extent per field of variable length, or none.

        Raises:
            TypeError: the indices are not integers.
            ValueError: an index is out of range.
        """
        ids = check_indices(indices, self.num_samples)
        rows, starts = self._by_sample
        lengths = starts[ids + 1] - starts[ids]
        offsets = np.repeat(starts[ids] - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
        return self.allocations[rows[np.arange(lengths.sum()) + offsets]]

    @cached_property
    def page_table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Which samples lie on which page, as CSR.

        Page p = `pages[i]` (bytes `p * page_size` on) holds `samples[starts[i]:starts[i + 1]]`.

        Returns:
            pages `(P,)` ascending, starts `(P + 1,)`, samples `(rows,)`.
        """
        numbers = (self.allocations["ptr"] // np.uint64(self.page_size)).astype(np.int64)
        order = np.lexsort((self.allocations["ptr"], numbers))
        pages, starts = np.unique(numbers[order], return_index=True)
        samples = self.allocations["sample_id"][order].astype(np.int64)
        return pages, np.append(starts, len(order)), samples

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name}: {field.kind}" for field in self.fields)
        return f"BetonIndex({str(self.path)!r}, num_samples={self.num_samples}, fields=({fields}))"


def check_indices(indices: ArrayLike, num_samples: int) -> NDArray[np.int64]:
    """Return `indices` as int64 `(M,)` sample ids, or raise TypeError or ValueError."""
    array = np.asarray(indices)
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        hint = "Use np.flatnonzero(mask)." if array.dtype.kind == "b" else "Pass sample ids."
        raise TypeError(f"`indices` must be integers; got dtype {array.dtype}. {hint}")
    if array.ndim != 1:
        raise ValueError(f"`indices` must have shape (M,); got {array.shape}. Flatten them.")
    if array.size and (array.min() < 0 or array.max() >= num_samples):
        raise ValueError(
            f"`indices` must lie in [0, {num_samples}); got values from {array.min()} to "
            f"{array.max()}. Check which beton they were made for."
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _read_header(stream: Any, path: Path, size: int) -> Any:
    if size < layout.HEADER.itemsize:
        raise _foreign(path, f"a file of {size} bytes")
    header = _read(stream, layout.HEADER, 1, path)[0]
    if header["version"] != layout.VERSION:
        raise BetonError(
            f"`path` must be a beton of version {layout.VERSION}; got version "
            f"{header['version']} in {str(path)!r}. It is no beton, or FFCV changed its format: "
            "write it again with this tool or ffcv 1.0.2."
        )
    page_size = int(header["page_size"])
    if not header["num_fields"] or page_size == 0 or page_size & (page_size - 1):
        raise _foreign(path, f"{header['num_fields']} fields and a page size of {page_size}")
    table_at = int(header["alloc_table_ptr"])
    if table_at == 0:
        raise BetonError(
            f"`path` must be a finished beton; got {str(path)!r}, whose writer was stopped before "
            "the end. Write it again."
        )
    if table_at > size or (size - table_at) % layout.ALLOCATION.itemsize:
        raise BetonError(
            f"`path` must be a whole beton; got {size} bytes in {str(path)!r}, whose allocation "
            f"table starts at byte {table_at}. The file is truncated or damaged: copy it again."
        )
    return header


def _read(stream: Any, dtype: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    data = stream.read(dtype.itemsize * count)
    if len(data) != dtype.itemsize * count:
        raise _damaged(path, "the file ends inside a table")
    return np.frombuffer(data, dtype=dtype)


def _describe_fields(
    descriptors: NDArray[Any], custom: Mapping[str, Any], path: Path
) -> tuple[tuple[FieldInfo, ...], list[np.dtype[Any]]]:
    fields, columns = [], []
    for position, descriptor in enumerate(descriptors):
        type_id = int(descriptor["type_id"])
        try:
            name = descriptor["name"].tobytes().split(b"\0")[0].decode("ascii")
            kind = layout.FIELD_KINDS[type_id]
        except (UnicodeDecodeError, KeyError) as error:
            raise _foreign(path, f"a field of type {type_id}") from error
        if name in custom:
            columns.append(custom[name].from_binary(descriptor["arguments"]).metadata_type)
        elif type_id == layout.CUSTOM_TYPE:
            raise BetonError(
                f"`custom_fields` must name the class of the custom field {name!r} of "
                f"{str(path)!r}; got {sorted(custom)}. Pass the field class it was written with."
            )
        else:
            columns.append(layout.FIELD_METADATA[type_id])
        fields.append(FieldInfo(name, kind, type_id, f"f{position}"))
    return tuple(fields), columns


def _check_allocations(
    table: NDArray[Any], num_samples: int, data_start: int, data_end: int, path: Path
) -> None:
    if not table.size:
        return
    if table["sample_id"].max() >= num_samples:
        raise _damaged(path, f"an extent of sample {table['sample_id'].max()} of {num_samples}")
    # Sizes are compared first, so that `ptr + size` cannot wrap around.
    span = np.uint64(data_end - data_start)
    outside = (
        (table["size"] > span)
        | (table["ptr"] < np.uint64(data_start))
        | (table["ptr"] > np.uint64(data_end) - np.minimum(table["size"], span))
    )
    outside &= table["size"] > 0  # ffcv gives empty bytes at the very start a place at byte 0
    if outside.any():
        first = table[int(np.argmax(outside))]
        raise _damaged(path, f"sample {first['sample_id']} lies outside of the data region")


def _check_pointers(
    fields: tuple[FieldInfo, ...], metadata: NDArray[Any], allocations: NDArray[Any], path: Path
) -> None:
    # A table that was cut between two rows looks whole, but lacks the extents of some samples.
    starts = np.append(np.sort(allocations["ptr"]), np.iinfo(np.uint64).max)
    for field in fields:
        column = metadata[field.column]
        for values in layout.pointers(column, field.kind):
            wanted = np.sort(values)  # sorted, they are found ten times as fast
            lost = wanted[starts[np.searchsorted(starts, wanted)] != wanted]
            if field.kind == "custom":
                lost = lost[lost != 0]  # such a field may mean by it that a sample has no bytes
            if lost.size:
                sample_id = int(np.argmax(values == lost[0]))
                raise _damaged(path, f"sample {sample_id} has no extent for {field.name!r}")


def _damaged(path: Path, found: str) -> BetonError:
    return BetonError(
        f"`path` must be a whole beton; got {str(path)!r}: {found}. "
        "The file is truncated or damaged: copy or write it again."
    )


def _foreign(path: Path, found: str) -> BetonError:
    return BetonError(
        f"`path` must be a beton; got {str(path)!r} with {found}. Pass a file written by ffcv."
    )
