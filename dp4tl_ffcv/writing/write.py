"""Write betons from samples: the one place that does.

Samples are encoded by the fields' own classes in worker processes and placed in order by one, so
that the bytes of the file depend on the samples alone, and an error in a sample is an error of the
call (ffcv's writer then waits for ever and leaves a file that opens as if it were valid).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ffcv.fields import IntField
from ffcv.types import TYPE_ID_HANDLER
from numpy.typing import NDArray

from ..beton import format
from ..beton.index import BetonIndex
from ..beton.manifest import Manifest
from ..kernels import class_histogram
from ..validate import resolve_num_workers
from .build import DEFAULT_PAGE_SIZE, Recipe, assemble
from .encode import Allocator, Encoded
from .fields import ImageField

MIN_PAGE_SIZE = 1 << 21  # ffcv refuses smaller pages
MOST_CLASSES = 1 << 24  # each takes memory wherever classes are counted
_FORMAT = 1  # goes into the key of unfinished files: raise it when their bytes change

_TYPE_IDS: dict[Any, int] = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
_TYPE_IDS[ImageField] = 2  # stock ffcv reads what it writes as an RGBImageField


def image_fields(
    *,
    mode: str = "jpg",
    jpeg_quality: int = 90,
    max_resolution: int | None = None,
    short_side: int | None = None,
    decode_check: bool = False,
) -> dict[str, Any]:
    """Return the fields that every writer of this project uses: image, label, identifier.

    Args:
        mode: `jpg` or `raw`.
        jpeg_quality: 1 to 100, of JPEGs that are made.
        max_resolution: longer side in pixels above which images are shrunk; None keeps them.
        short_side: shorter side in pixels above which images are shrunk; None keeps them.
        decode_check: decode JPEGs that are kept as they are, too.
    """
    image = ImageField(mode, jpeg_quality, max_resolution, short_side, decode_check)
    return {"image": image, "label": IntField(), "identifier": IntField()}


def write_beton(
    path: str | os.PathLike[str],
    samples: Sequence[tuple[Any, ...]],
    fields: Mapping[str, Any],
    *,
    class_names: Sequence[str] = (),
    label_field: str = "label",
    written_by: Mapping[str, Any] | None = None,
    seed: int | None = 0,
    page_size: int | None = None,
    num_workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> BetonIndex:
    """Write `samples` to a beton and its manifest, atomically; stock ffcv reads the file.

    A run that was killed or failed leaves `.NAME.part` and its journal beside `path` once it has
    written 128 MiB or for 5 s, and the same call continues it: the file then has the bytes that it
    would have had. Whether the call is the same is told by its arguments, the number of samples and
    a look at four that were written.

    Memory: 32 encoded samples per worker, and 24 bytes per extent and the metadata per sample.

    Args:
        path: the beton; its manifest goes to the same name with `.json` appended.
        samples: indexable; each item is a tuple with one value per field. A method `name(i)`, if
            there is one, says what an item is called in messages.
        fields: ffcv field objects by name, at most 16 ASCII characters each, or `image_fields`.
        class_names: name of each class id; empty when there are none.
        label_field: the integer field that holds class ids, counted in the manifest.
        written_by: the writer's arguments, kept in the manifest.
        seed: of the random order in which the samples are stored; None stores them in theirs.
        page_size: bytes, a power of two, at least 2 MiB; a sample must fit into one page. None
            takes 8 MiB and doubles it until the largest sample fits.
        num_workers: processes that encode, forked from this one; None takes one per core, 0
            encodes in this process.
        on_error: `raise` the first error of a sample, or `skip` such samples: they are listed in
            the manifest.

    Returns:
        The index of the finished file.

    Raises:
        ValueError: no samples, a bad name or page size, a sample that cannot be encoded or does
            not fit into a page, or a label without a class name.
        RuntimeError: a worker process died.
        BlockingIOError: another process writes to `path`.
    """
    dtype = _check_arguments(samples, fields, label_field, page_size)
    if seed is not None and (isinstance(seed, bool) or seed < 0):
        raise ValueError(f"`seed` must be at least 0, or None; got {seed!r}. Pass another.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` must be raise or skip; got {on_error!r}. Choose one.")
    labels = _Labels(label_field, tuple(fields), tuple(class_names))
    order = np.arange(len(samples), dtype=np.int64)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)

    def describe(index: BetonIndex, skipped: tuple[dict[str, Any], ...]) -> Manifest:
        return Manifest(
            fields={field.name: field.kind for field in index.fields},
            num_samples=index.num_samples,
            class_names=labels.class_names,
            class_counts=tuple(labels.count(index.metadata).tolist()),
            label_field=label_field,
            written_by=dict(written_by or {}),
            skipped=skipped,
            fingerprint=index.fingerprint,
        )

    name_of = getattr(samples, "name", None)
    recipe = Recipe(
        descriptors=_descriptors(fields),
        dtype=dtype,
        order=order,
        encode=_Encoder(samples, fields, dtype),
        key=_key(fields, labels, written_by or {}, len(samples), seed, page_size),
        describe=describe,
        check=labels.check,
        name_of=name_of if callable(name_of) else str,
        custom_fields=_custom_classes(fields),
    )
    workers = resolve_num_workers(num_workers, at_least=0)
    return assemble(Path(path), recipe, page_size=page_size, num_workers=workers, on_error=on_error)


@dataclass(frozen=True)
class _Encoder:
    """Encodes a sample with the fields."""

    samples: Sequence[tuple[Any, ...]]
    fields: Mapping[str, Any]
    dtype: np.dtype[Any]

    def __call__(self, number: int) -> Encoded:
        sample = self.samples[number]
        if len(sample) != len(self.fields):
            raise ValueError(f"{len(sample)} values for {len(self.fields)} fields")
        row = np.zeros(1, dtype=self.dtype)
        malloc = Allocator()
        columns = self.dtype.names or ()
        for column, field, value in zip(columns, self.fields.values(), sample, strict=True):
            field.encode(row[column], value, malloc)
        return Encoded(row, malloc.blobs)


@dataclass(frozen=True)
class _Labels:
    """The class ids among the metadata."""

    field: str
    fields: tuple[str, ...]
    class_names: tuple[str, ...]

    def check(self, rows: NDArray[Any]) -> None:
        """Raise ValueError for a label below 0 or without a name."""
        labels = self._of(rows)
        if not labels.size:
            return
        if labels.min() < 0:
            raise ValueError(
                f"`{self.field}` must hold class ids >= 0; got {labels.min()}. "
                "Number the classes from 0."
            )
        if labels.max() >= MOST_CLASSES:
            raise ValueError(
                f"`{self.field}` must hold class ids below {MOST_CLASSES}; got {labels.max()}. "
                "Number the classes from 0 on."
            )
        if self.class_names and labels.max() >= len(self.class_names):
            raise ValueError(
                f"`class_names` must name every class; got {len(self.class_names)} names and the "
                f"label {labels.max()}. Add the missing names."
            )

    def count(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Count the samples of each class."""
        labels = self._of(rows)
        if not labels.size:
            return labels
        return class_histogram(labels, len(self.class_names) or int(labels.max()) + 1)

    def _of(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        if self.field not in self.fields:
            return np.zeros(0, dtype=np.int64)
        labels: NDArray[np.int64] = rows[f"f{self.fields.index(self.field)}"]
        return labels


def _key(
    fields: Mapping[str, Any],
    labels: _Labels,
    written_by: Mapping[str, Any],
    num_samples: int,
    seed: int | None,
    page_size: int | None,
) -> str:
    """Return a digest of all that the file's bytes depend on, but for the samples themselves."""
    kinds = {name: [type(field).__qualname__, vars(field)] for name, field in fields.items()}
    parts = [_FORMAT, kinds, labels.field, labels.class_names, written_by, num_samples, seed]
    text = json.dumps([*parts, page_size], default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _descriptors(fields: Mapping[str, Any]) -> NDArray[Any]:
    table = np.zeros(len(fields), dtype=format.FIELD)
    for row, (name, field) in zip(table, fields.items(), strict=True):
        row["type_id"] = _TYPE_IDS.get(type(field), format.CUSTOM_TYPE)
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
        row["arguments"] = np.frombuffer(field.to_binary().tobytes(), dtype=np.uint8)
    return table


def _custom_classes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: type(field) for name, field in fields.items() if type(field) not in _TYPE_IDS}


def _check_arguments(
    samples: Sequence[tuple[Any, ...]],
    fields: Mapping[str, Any],
    label_field: str,
    page_size: int | None,
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
    if page_size is not None and (
        page_size < MIN_PAGE_SIZE or page_size >= 1 << 32 or page_size & (page_size - 1)
    ):
        raise ValueError(
            f"`page_size` must be a power of two from 2 MiB to 2 GiB; got {page_size}. "
            f"Pass {DEFAULT_PAGE_SIZE} or a multiple by two."
        )
    return format.metadata_dtype([field.metadata_type for field in fields.values()])
