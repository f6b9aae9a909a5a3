"""Verify a whole beton and list every problem."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BetonError
from ...validate import resolve_num_workers
from ..descriptors import CustomFieldError
from ..index import BetonIndex, class_limit
from ..manifest import read_manifest
from ..tables import load_tables
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
    """Images that were read without a problem, and decoded unless they are raw."""
    problems: tuple[Problem, ...]
    """The first 1000 problems."""
    num_problems: int
    """Number of all problems."""

    @property
    def is_sound(self) -> bool:
        """Whether no problem was found."""
        return self.num_problems == 0

    def raise_for_problems(self) -> None:
        """Raise BetonError if any problem was found."""
        if not self.is_sound:
            raise BetonError(
                f"{self.beton} is damaged: {self.num_problems} problems. Copy the file again from "
                "an intact one, or write it again."
            )

    def summary(self) -> dict[str, Any]:
        """Return counts and problems as JSON-able values."""
        return {
            "beton": str(self.beton),
            "file_bytes": self.file_bytes,
            "samples": self.samples,
            "byte_ranges": self.extents,
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
    """Check the header, tables and manifest of a beton, and optionally decode its images.

    `BetonIndex.open` raises an error for the first problem that could make it misread a sample;
    `verify` lists all problems:

    * tables that are truncated or contradict each other
    * bytes of samples outside of the data, overlapping, across a page boundary, or without a record
    * records that point to no bytes of their sample, or to bytes of the wrong size
    * labels that are no class ids
    * a manifest that was written for another file
    * with `decode`: images that TurboJPEG cannot decode without a warning

    Memory: a few times the tables, and one image per thread.

    Args:
        beton: path of a beton, or its open index. The file is read again either way.
        decode: read and decode every image. Otherwise no sample is read.
        num_workers: threads that decode. None uses all cores, 0 the calling thread.
        custom_fields: class of each custom field, as for `BetonIndex.open`.

    Returns:
        Counts, and the problems in the order of discovery.

    Raises:
        OSError: the file does not exist, cannot be read, or is a folder or device.
        BetonError: `custom_fields` lacks the class of a custom field.
    """
    workers = resolve_num_workers(num_workers, at_least=0)
    if isinstance(beton, BetonIndex):
        custom_fields, beton = custom_fields or beton.custom_fields, beton.path
    path = Path(beton)
    problems, counts = Problems(), (0, 0, 0)
    try:
        tables = load_tables(path, custom_fields or {})
    except CustomFieldError:
        raise
    except BetonError as error:
        problems.add("tables", None, str(error))
    else:
        index = BetonIndex(path, tables)
        for message in _manifest_problems(index):
            problems.add("manifest", None, message)
        check_allocations(tables, problems)
        images = check_fields(tables, _class_limit(index), problems)
        decoded = check_images(path, images, workers, problems) if decode else 0
        counts = (len(tables.metadata), len(tables.allocations), decoded)
    size = path.stat().st_size
    return Verification(path, size, *counts, tuple(problems.kept), problems.count)


def _class_limit(index: BetonIndex) -> int:
    try:
        return index.class_limit()
    except ValueError:  # of the manifest
        return class_limit(len(index))


def _manifest_problems(index: BetonIndex) -> Iterator[str]:
    try:
        manifest = index.manifest
        if manifest is None and read_manifest(index.path) is not None:
            yield "it was written for another beton"
    except ValueError as error:
        yield str(error)
        return
    if manifest is None:
        return
    if manifest.num_samples != len(index):
        yield f"it counts {manifest.num_samples} samples, the beton has {len(index)}"
    fields = {field.name: field.kind for field in index.fields}
    if manifest.fields != fields:
        yield f"it names the fields {manifest.fields}, the beton has {fields}"
    counts, names = list(manifest.class_counts), len(manifest.class_names)
    try:
        labels = index.labels(manifest.label_field)
    except BetonError:
        labels = None  # no class ids
    if counts and (labels is None or np.bincount(labels, minlength=len(counts)).tolist() != counts):
        yield f"its class counts differ from those of the field {manifest.label_field!r}"
    if names and counts and names != len(counts):
        yield f"it names {names} classes and counts {len(counts)}"
