"""What a beton says about its samples, read with numpy and without decoding any of them."""

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BetonError
from .manifest import Manifest, read_manifest
from .summary import summarise
from .tables import BLOCK, FieldInfo, Tables, read_tables


class BetonIndex:
    """Header, metadata and allocation table of a beton. The samples stay on disk.

    Use `BetonIndex.open(path)`. `len(index)` is the number of samples.
    """

    def __init__(
        self, path: Path, tables: Tables, custom_fields: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.header = tables.header
        self.fields = tables.fields
        self.metadata = tables.metadata
        """One record per sample `(N,)`, read-only."""
        self.custom_fields = custom_fields or {}
        self._allocations: NDArray[Any] | None = tables.allocations
        for table in (tables.metadata, tables.allocations):
            table.setflags(write=False)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, custom_fields: Mapping[str, Any] | None = None
    ) -> "BetonIndex":
        """Read and check the tables of a beton.

        Cost: one read of the metadata and of the allocation table, O(samples) in numpy.

        Args:
            path: the beton.
            custom_fields: ffcv field class of each custom field, by name, as for
                `ffcv.loader.Loader`. The file does not say what a custom field stores per sample.

        Raises:
            FileNotFoundError: there is no such file.
            BetonError: the file is not a beton of version 2, is unfinished or truncated, or its
                tables contradict each other.
        """
        return cls(Path(path), read_tables(Path(path), custom_fields or {}), custom_fields)

    @classmethod
    def of(
        cls,
        beton: "BetonIndex | str | os.PathLike[str]",
        custom_fields: Mapping[str, Any] | None = None,
    ) -> "BetonIndex":
        """Return `beton` if it is an open index; open the file if it is a path."""
        if isinstance(beton, BetonIndex):
            return beton
        return cls.open(beton, custom_fields=custom_fields)

    @property
    def allocations(self) -> NDArray[Any]:
        """One record per byte range: `sample_id`, `ptr` (byte offset), `size` (bytes).

        Raises:
            BetonError: the table was released and the file has been replaced since.
        """
        if self._allocations is None:
            again = BetonIndex.open(self.path, custom_fields=self.custom_fields)
            if again.header != self.header or again.metadata.tobytes() != self.metadata.tobytes():
                raise BetonError(
                    f"{str(self.path)!r} was replaced by another beton after it was opened. "
                    "Open it again."
                )
            self._allocations = again.allocations
        return self._allocations

    def release_allocations(self) -> None:
        """Free the allocation table, 24 bytes per row. The next use reads it again."""
        self._allocations = None

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self.metadata)

    @cached_property
    def num_classes(self) -> int:
        """Number of classes C of the field `label`.

        C is the largest label + 1, or the number of class names in the manifest if that is larger.
        For another field, use `len(index.class_counts(field))`.
        """
        return len(self.class_counts())

    @property
    def page_size(self) -> int:
        """Bytes per page, a power of two."""
        return int(self.header["page_size"])

    def field(self, name: str) -> FieldInfo:
        """Return the field called `name`, or raise a BetonError that lists the fields."""
        for field in self.fields:
            if field.name == name:
                return field
        names = ", ".join(field.name for field in self.fields)
        raise BetonError(f"{str(self.path)!r} has no field {name!r}. Its fields are {names}.")

    def column(self, name: str) -> NDArray[Any]:
        """Return the metadata column `(N,)` of the field called `name`."""
        values: NDArray[Any] = self.metadata[self.field(name).column]
        return values

    def labels(self, field: str = "label") -> NDArray[np.int64]:
        """Return the class id of every sample `(N,)`.

        Raises:
            BetonError: there is no such field, it does not hold integers, or one is negative.
        """
        found = self.field(field)
        if found.kind != "int":
            raise BetonError(
                f"The field {field!r} of {str(self.path)!r} holds no class ids; its kind is "
                f"{found.kind}. Name an integer field."
            )
        labels = np.ascontiguousarray(self.metadata[found.column], dtype=np.int64)
        if labels.size and labels.min() < 0:
            raise BetonError(
                f"The field {field!r} of {str(self.path)!r} holds the negative class id "
                f"{labels.min()}. Write the beton with class ids from 0."
            )
        return labels

    def class_names(self, field: str = "label") -> tuple[str, ...]:
        """Return the name of each class id of a field; empty when the manifest has no names."""
        manifest = self.manifest
        named = manifest is not None and manifest.label_field == field
        return manifest.class_names if manifest and named else ()

    def class_counts(self, field: str = "label") -> NDArray[np.int64]:
        """Return the number of samples of each class `(C,)`."""
        return np.bincount(self.labels(field), minlength=len(self.class_names(field)))

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest next to the file, or None if there is none or it describes another file."""
        manifest = read_manifest(self.path)
        if manifest and manifest.fingerprint not in ("", self.fingerprint):
            return None  # left over from a beton that was replaced since
        return manifest

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of header, fields, metadata and allocation table, as hexadecimal digits.

        It changes with any label, size or place of a sample. No sample is read for it.
        """
        digest = hashlib.sha256()
        digest.update(self.header.tobytes())
        for field in self.fields:
            digest.update(f"{field.name}:{field.type_id};".encode())
        for table in (self.metadata, self.allocations):  # without copying either
            digest.update(np.ascontiguousarray(table).view(np.uint8).data)
        return digest.hexdigest()

    def sample_bytes(self) -> NDArray[np.int64]:
        """Return the stored bytes of each sample `(N,)`."""
        owners = self.allocations["sample_id"].astype(np.int64)
        totals = np.zeros(len(self), dtype=np.int64)
        np.add.at(totals, owners, self.allocations["size"].astype(np.int64))
        return totals

    def extents(self, indices: ArrayLike) -> NDArray[Any]:
        """Return the byte ranges of the samples `indices`, sample after sample in that order.

        A sample has one byte range per field of variable length, or none.

        Cost: one pass over the allocation table, then O(retained).

        Returns:
            Records `sample_id`, `ptr` (byte offset), `size` (bytes); of one sample, in the order
            of the allocation table.

        Raises:
            TypeError: the indices are not integers.
            ValueError: an index is out of range.
        """
        ids = check_indices(indices, len(self))
        retained = np.zeros(len(self), dtype=np.bool_)
        retained[ids] = True
        table = self.allocations
        blocks = (table[at : at + BLOCK] for at in range(0, len(table), BLOCK))
        found = [block[retained[block["sample_id"]]] for block in blocks]
        rows = np.concatenate([table[:0], *found])
        owners = rows["sample_id"].astype(np.int64)
        if (owners[1:] < owners[:-1]).any():
            order = np.argsort(owners, kind="stable")
            rows, owners = rows[order], owners[order]
        if (ids[1:] > ids[:-1]).all():
            return rows
        counts = np.bincount(owners, minlength=len(self))
        starts = (np.cumsum(counts) - counts)[ids]
        counts = counts[ids]
        shifts = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        ordered: NDArray[Any] = rows[np.arange(len(shifts)) + shifts]
        return ordered

    @cached_property
    def page_table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Samples of each page, as arrays `pages`, `starts` and `samples`.

        Page `pages[i]` holds `samples[starts[i]:starts[i + 1]]`. Pages ascend.
        """
        numbers = (self.allocations["ptr"] // np.uint64(self.page_size)).astype(np.int64)
        order = np.lexsort((self.allocations["ptr"], numbers))
        pages, starts = np.unique(numbers[order], return_index=True)
        samples = self.allocations["sample_id"][order].astype(np.int64)
        return pages, np.append(starts, len(order)), samples

    def summary(self, label_field: str = "label") -> dict[str, Any]:
        """Return what the beton contains, as JSON-able values: sizes, fields, images, classes.

        Raises:
            BetonError: a `label_field` other than the default does not exist or has no class ids.
        """
        return summarise(self, label_field)

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name}: {field.kind}" for field in self.fields)
        return f"BetonIndex({str(self.path)!r}, num_samples={len(self)}, fields=({fields}))"


def check_indices(indices: ArrayLike, num_samples: int) -> NDArray[np.int64]:
    """Return `indices` as int64 sample ids `(M,)`, or raise TypeError or ValueError."""
    array = np.asarray(indices)
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        hint = " For a mask, pass np.flatnonzero(mask)." if array.dtype.kind == "b" else ""
        raise TypeError(f"`indices` must be integers; got dtype {array.dtype}.{hint}")
    if array.ndim != 1:
        raise ValueError(f"`indices` must have shape (M,); got {array.shape}.")
    if array.size and (array.min() < 0 or array.max() >= num_samples):
        raise ValueError(
            f"`indices` must lie in [0, {num_samples}); got values from {array.min()} to "
            f"{array.max()}. Check which beton they were made for."
        )
    return np.ascontiguousarray(array, dtype=np.int64)
