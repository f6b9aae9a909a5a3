"""Verify a whole beton and list every problem."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BetonError
from ...validate import resolve_num_workers
from ..index import BetonIndex
from ..manifest import Manifest, read_manifest
from ..tables import CustomFieldError, Tables, load_tables
from .allocations import check_allocations
from .fields import check_fields
from .images import check_images
from .problems import Problem, Problems


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of `verify`: counts and problems of a beton."""

    beton: Path
    file_bytes: int
    samples: int
    extents: int
    """Byte ranges in the allocation table."""
    decoded: int
    """Images that were read, and decoded unless raw, without a problem."""
    problems: tuple[Problem, ...]
    """The first 1000 problems."""
    num_problems: int
    """Number of all problems."""

    @property
    def is_sound(self) -> bool:
        """Whether no problem was found."""
        return self.num_problems == 0

    def summary(self) -> dict[str, Any]:
        """Return counts and problems as plain values for JSON."""
        return {
            "beton": str(self.beton),
            "file_bytes": self.file_bytes,
            "samples": self.samples,
            "extents": self.extents,
            "decoded": self.decoded,
            "problems": self.num_problems,
            "first_problems": [asdict(problem) for problem in self.problems],
        }


def verify(
    beton: BetonIndex | str | os.PathLike[str],
    *,
    decode: bool = False,
    num_workers: int | None = None,
    custom_fields: Mapping[str, Any] | None = None,
) -> Verification:
    """Check header, tables and manifest of a beton, and decode its images if asked for.

    `BetonIndex.open` rejects a file at the first problem that could make it misread a sample;
    `verify` lists all problems:

    * tables that are truncated or contradict each other
    * bytes of samples that leave the data, overlap, cross a page, or belong to no record
    * records that point to no bytes of their sample, or to bytes of the wrong size
    * negative labels
    * a manifest that was written for another file
    * with `decode`: images that TurboJPEG cannot decode without a warning

    Memory: a few times the tables, and one image per thread.

    Args:
        beton: path of a beton, or its open index. The file is read again either way.
        decode: read and decode every image. Without it, no sample is read.
        num_workers: threads that decode. None takes all cores, 0 the calling thread.
        custom_fields: ffcv field class of each custom field, as for `BetonIndex.open`.

    Returns:
        Counts, and the problems in the order of discovery.

    Raises:
        FileNotFoundError: there is no such file.
        BetonError: `custom_fields` lacks the class of a custom field.
        ValueError: `num_workers` is negative.
    """
    workers = resolve_num_workers(num_workers, at_least=0)
    if isinstance(beton, BetonIndex):
        custom_fields = custom_fields or beton.custom_fields
    path = beton.path if isinstance(beton, BetonIndex) else Path(beton)
    problems, counts = Problems(), (0, 0, 0)
    try:
        tables = load_tables(path, custom_fields or {})
    except CustomFieldError:
        raise
    except BetonError as error:
        problems.add("tables", None, str(error))
    else:
        for message in _manifest_problems(path, tables):
            problems.add("manifest", None, message)
        check_allocations(tables, problems)
        images = check_fields(tables, problems)
        decoded = check_images(path, images, workers, problems) if decode else 0
        counts = (len(tables.metadata), len(tables.allocations), decoded)
    size = path.stat().st_size
    return Verification(path, size, *counts, tuple(problems.kept), problems.count)


def _manifest_problems(path: Path, tables: Tables) -> Iterator[str]:
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        yield str(error)
        return
    if manifest is None:
        return
    if manifest.fingerprint not in ("", BetonIndex(path, tables).fingerprint):
        yield "it was written for another beton"
        return  # its content describes the other beton
    yield from _contradictions(manifest, tables)


def _contradictions(manifest: Manifest, tables: Tables) -> Iterator[str]:
    if manifest.num_samples != len(tables.metadata):
        yield f"it counts {manifest.num_samples} samples, the beton has {len(tables.metadata)}"
    fields = {field.name: field.kind for field in tables.fields}
    if manifest.fields != fields:
        yield f"it names the fields {manifest.fields}, the beton has {fields}"
    columns = {field.name: field.column for field in tables.fields if field.kind == "int"}
    column = columns.get(manifest.label_field)
    counts = np.array(manifest.class_counts, dtype=np.int64)
    if len(counts) and (column is None or not _counts_are(counts, tables.metadata[column])):
        yield f"its class counts are not those of the field {manifest.label_field!r}"
    names = len(manifest.class_names)
    if names and len(counts) and names != len(counts):
        yield f"it names {names} classes and counts {len(counts)}"


def _counts_are(counts: NDArray[np.int64], column: NDArray[Any]) -> bool:
    in_range = not len(column) or (column.min() >= 0 and column.max() < len(counts))
    return bool(
        in_range
        and np.array_equal(np.bincount(column.astype(np.int64), minlength=len(counts)), counts)
    )
