"""Read everything a beton says about its samples, with numpy alone and without decoding one."""

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BetonError
from ..kernels import class_histogram
from .manifest import Manifest, read_manifest
from .tables import FieldInfo, read_tables


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
        self._allocations: NDArray[Any] | None = allocations
        self._custom_fields: Mapping[str, Any] = {}
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
        read = read_tables(Path(path), custom_fields or {})
        index = cls(Path(path), read.header, read.fields, read.metadata, read.allocations)
        index._custom_fields = custom_fields or {}
        return index

    @property
    def allocations(self) -> NDArray[Any]:
        """One record per extent: `sample_id`, `ptr` (byte offset), `size` (bytes).

        Raises:
            BetonError: they were released, and the file has been replaced since.
        """
        if self._allocations is None:
            read = read_tables(self.path, self._custom_fields)
            if read.header != self.header or read.metadata.tobytes() != self.metadata.tobytes():
                raise BetonError(
                    f"`path` must stay the beton that was opened; got another in {str(self.path)!r}"
                    ". Open it again."
                )
            read.allocations.setflags(write=False)
            self._allocations = read.allocations
        return self._allocations

    def release_allocations(self) -> None:
        """Free the allocation table, 24 bytes per extent; it is read again when asked for."""
        self._allocations = None

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

    def num_classes(self, field: str = "label", labels: NDArray[np.int64] | None = None) -> int:
        """Return C: the number of class names in the manifest, or the largest label + 1.

        `labels` are those of the field, for who has read them; reading them is most of the work.
        """
        labels = self.labels(field) if labels is None else labels
        largest = int(labels.max()) + 1 if labels.size else 0
        return max(largest, len(self.class_names(field)))

    def class_names(self, field: str = "label") -> tuple[str, ...]:
        """Return the name of each class id of a field, or none when the manifest has none."""
        manifest = self.manifest
        named = manifest is not None and manifest.label_field == field
        return manifest.class_names if manifest and named else ()

    def class_counts(self, field: str = "label") -> NDArray[np.int64]:
        """Count the samples of each class `(C,)`."""
        labels = self.labels(field)
        return class_histogram(labels, max(1, self.num_classes(field, labels)))

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
        for table in (self.metadata, self.allocations):  # without a copy of either
            digest.update(np.ascontiguousarray(table).view(np.uint8).data)
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
