"""The index of a beton: its tables, read with numpy. Samples are neither read nor decoded."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..atomic import part_path
from ..errors import BetonError
from ..stored import identity_of, open_file, read_at
from ..validate import check_int_array
from .descriptors import FieldInfo
from .format import IMAGE_MODES
from .manifest import Manifest, load_manifest, manifest_path, read_manifest
from .ranges import BLOCK, check_ranges
from .tables import Tables, load_tables

_PROBES, _PROBE = 16, 4096  # byte ranges, and bytes of each, that `content` covers
_MOST_CLASSES = 1 << 20  # that any beton may have, such as a few samples of a dataset with many


class BetonIndex:
    """Header, metadata and allocation table of a beton.

    Use `BetonIndex.open(path)`. `len(index)` is the number of samples.
    """

    def __init__(
        self,
        path: Path,
        tables: Tables,
        custom_fields: Mapping[str, Any] | None = None,
        identity: tuple[int, ...] = (),
    ) -> None:
        self.path = path
        self.identity = identity
        """`identity_of` the file when it was opened; empty if unknown."""
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
        """Read and check the tables of a beton, in O(samples).

        Args:
            path: the beton.
            custom_fields: class of each custom field by name, as for `ffcv.loader.Loader`. The
                file does not describe the metadata of custom fields.

        Raises:
            OSError: the file does not exist, cannot be read, or is a folder or device.
            BetonError: the file is not a beton of version 2, is unfinished or truncated, or its
                tables contradict each other.
        """
        path = Path(path)
        identity = identity_of(path)  # first: a file that is replaced meanwhile does not match
        tables = load_tables(path, custom_fields or {})
        check_ranges(tables, path)
        return cls(path, tables, custom_fields, identity)

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
        """One record per byte range: `sample_id`, `ptr` (byte offset), `size` (bytes)."""
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
        """Free the allocation table, 24 bytes per row. The next access reads it again."""
        self._allocations = None

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self.metadata)

    @cached_property
    def num_classes(self) -> int:
        """Number of classes C: the largest label + 1, or the number of class names if larger.

        For a label field other than `label`, use `len(index.class_counts(label_field))`.
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

    def labels(self, label_field: str = "label") -> NDArray[np.int64]:
        """Return the class id of every sample `(N,)`.

        Class ids lie in [0, `class_limit(label_field)`), so that arrays over classes are not much
        larger than the tables.

        Raises:
            BetonError: the field does not exist, or does not hold class ids.
        """
        found = self.field(label_field)
        if found.kind != "int":
            raise BetonError(
                f"The field {label_field!r} of {str(self.path)!r} holds no class ids; its kind is "
                f"{found.kind}. Name an integer field."
            )
        labels = np.ascontiguousarray(self.metadata[found.column], dtype=np.int64)
        if labels.size and labels.min() < 0:
            raise BetonError(
                f"The field {label_field!r} of {str(self.path)!r} holds the negative class id "
                f"{labels.min()}. Write the beton with class ids from 0."
            )
        largest = labels.max(initial=0)
        if largest >= class_limit(0) and largest >= (limit := self.class_limit(label_field)):
            raise BetonError(
                f"The field {label_field!r} of {str(self.path)!r} holds the value {largest}, too "
                f"large for a class id: with {len(self)} samples, class ids are below {limit}. "
                "Name the field of the class ids, or write the beton with classes numbered from 0."
            )
        return labels

    def class_limit(self, label_field: str = "label") -> int:
        """Return the exclusive bound of this beton's class ids, 2**20 or more."""
        return class_limit(len(self), len(self.class_names(label_field)))

    def class_names(self, label_field: str = "label") -> tuple[str, ...]:
        """Return the name of each class id. Empty without a manifest that names them."""
        manifest = self.manifest
        return manifest.class_names if manifest and manifest.label_field == label_field else ()

    def class_counts(self, label_field: str = "label") -> NDArray[np.int64]:
        """Return the number of samples of each class `(C,)`."""
        return np.bincount(self.labels(label_field), minlength=len(self.class_names(label_field)))

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest next to the file, or None if it is missing or describes another file."""
        if (manifest := read_manifest(self.path)) and self.is_described_by(manifest):
            return manifest
        with suppress(OSError, ValueError):  # an unfinished one is usually missing, or half a file
            unfinished = load_manifest(part_path(manifest_path(self.path)))
            if self.is_described_by(unfinished):
                return unfinished
        return None

    def is_described_by(self, manifest: Manifest) -> bool:
        """Return whether a manifest was written for this beton."""
        is_like = manifest.fingerprint in ("", self.fingerprint)
        return is_like and manifest.content in ("", self.content)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of header, fields, metadata and allocation table, as hexadecimal digits."""
        digest = hashlib.sha256()
        digest.update(self.header.tobytes())
        for field in self.fields:
            digest.update(f"{field.name}:{field.type_id};".encode())
        for table in (self.metadata, self.allocations):
            digest.update(np.ascontiguousarray(table).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def content(self) -> str:
        """SHA-256 of the first 4 KiB of 16 byte ranges of samples, as hexadecimal digits."""
        digest, last = hashlib.sha256(), len(self.allocations) - 1
        with open_file(self.path) as stream:
            for row in np.linspace(0, last, _PROBES).astype(np.int64) if last >= 0 else ():
                size, start = (int(self.allocations[name][row]) for name in ("size", "ptr"))
                digest.update(read_at(stream.fileno(), min(size, _PROBE), start))
        return digest.hexdigest()

    def sample_bytes(self) -> NDArray[np.int64]:
        """Return the stored bytes of each sample `(N,)`."""
        owners = self.allocations["sample_id"].astype(np.int64)
        totals = np.zeros(len(self), dtype=np.int64)
        np.add.at(totals, owners, self.allocations["size"].astype(np.int64))
        return totals

    def check_ids(self, name: str, ids: ArrayLike) -> NDArray[np.int64]:
        """Return sample ids `(M,)` as int64, or raise TypeError or ValueError."""
        hint = f" Check whether they were made for {str(self.path)!r}."
        return check_int_array(name, ids, below=len(self), hint=hint)

    def extents(self, indices: ArrayLike) -> NDArray[Any]:
        """Return the rows of `allocations` of the samples `indices`, in the order of `indices`.

        A sample has one byte range for each field of variable length. Its rows keep the order of
        the allocation table.

        Cost: one pass over the allocation table, then O(retained).

        Raises:
            TypeError: the indices are not integers.
            ValueError: an index is out of range.
        """
        ids = self.check_ids("indices", indices)
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
        """Arrays `pages` (ascending), `starts` and `samples`.

        Page `pages[i]` holds the samples `samples[starts[i]:starts[i + 1]]`.
        """
        numbers = (self.allocations["ptr"] // np.uint64(self.page_size)).astype(np.int64)
        order = np.lexsort((self.allocations["ptr"], numbers))
        pages, starts = np.unique(numbers[order], return_index=True)
        samples = self.allocations["sample_id"][order].astype(np.int64)
        return pages, np.append(starts, len(order)), samples

    def summary(self, label_field: str = "label") -> dict[str, Any]:
        """Return the sizes, fields, images and classes of the beton as JSON-able values."""
        result: dict[str, Any] = {
            "beton": str(self.path),
            "fingerprint": self.fingerprint,
            "samples": len(self),
            "file_bytes": self.path.stat().st_size,
            "sample_bytes": int(self.sample_bytes().sum()),
            "page_bytes": self.page_size,
            "fields": {field.name: field.kind for field in self.fields},
        }
        for field in self.fields:
            if field.kind == "rgb_image" and len(self):
                images = self.column(field.name)
                jpg, raw = (int((images["mode"] == mode).sum()) for mode in IMAGE_MODES)
                result[f"{field.name}_stored"] = {"jpg": jpg, "raw": raw}
                for side in ("width", "height"):
                    sides = images[side]
                    result[f"{field.name}_{side}"] = [int(sides.min()), int(sides.max())]
        if label_field != "label" or "label" in result["fields"]:
            counts = self.class_counts(label_field)
            result["classes"] = len(counts)
            result["classes_without_samples"] = int((counts == 0).sum())
            result["samples_per_class"] = {
                "min": int(counts.min(initial=len(self))),
                "median": float(np.median(counts)) if len(counts) else 0.0,
                "max": int(counts.max(initial=0)),
            }
        if self.manifest:
            result["class_names"] = list(self.manifest.class_names)
            result["written_by"] = self.manifest.written_by
        return result

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name}: {field.kind}" for field in self.fields)
        return f"BetonIndex({str(self.path)!r}, num_samples={len(self)}, fields=({fields}))"


def class_limit(num_samples: int, num_names: int = 0) -> int:
    """Return the exclusive bound of class ids: 2**20, or more for more samples or names."""
    return max(_MOST_CLASSES, num_samples, num_names)
