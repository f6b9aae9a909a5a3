"""Check a whole beton and list all that is wrong with it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BetonError
from ...jpeg import turbojpeg
from ...parallel import map_ordered
from ...progress import track
from ...validate import resolve_num_workers
from ..index import BetonIndex
from ..manifest import Manifest, read_manifest
from ..tables import CustomFieldError, Tables, load_tables
from .allocations import Problem, Problems, check_extents
from .fields import check_fields

_BATCH = 64  # images that a thread takes at a time


@dataclass(frozen=True, slots=True)
class Verification:
    """What a beton holds, and every problem that was found in it."""

    beton: Path
    file_bytes: int
    samples: int
    extents: int
    decoded: int
    """Images that were decoded, or read where they are stored raw, and are sound."""
    problems: tuple[Problem, ...]
    """The first 1000."""
    num_problems: int
    """How many there are in all."""

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
    """Check a whole beton: header, tables, manifest, and the images if asked for.

    Without `decode` no sample is read. What is looked for: tables that are cut or contradict each
    other; extents outside of the data, over each other or across a page; records without an extent
    of their own and extents without a record; sizes of images and arrays that are not those of
    their extents; negative labels; a manifest of another file. With `decode` every image is read
    and decoded as loaders do it; what only makes TurboJPEG warn is a problem too.

    Memory: the tables a few times over, and an image per thread.

    Args:
        beton: path of a beton, or its open index. The file is read again either way.
        decode: read and decode every image.
        num_workers: threads that decode; None takes one per core, 0 the calling thread.
        custom_fields: ffcv field class of each field of a custom type, as for `BetonIndex.open`.

    Returns:
        Counts, and the problems in the order in which they were found.

    Raises:
        FileNotFoundError: there is no such file.
        BetonError: `custom_fields` lacks the class of a custom field.
        ValueError: `num_workers` is negative.
    """
    workers = resolve_num_workers(num_workers, at_least=0)
    if isinstance(beton, BetonIndex):
        custom_fields = custom_fields or beton.custom_fields
    path = beton.path if isinstance(beton, BetonIndex) else Path(beton)
    problems = Problems()
    file_bytes = path.stat().st_size
    try:
        tables = load_tables(path, custom_fields or {})
    except CustomFieldError:
        raise
    except BetonError as error:
        problems.add(Problem("tables", None, str(error)))
        return Verification(path, file_bytes, 0, 0, 0, tuple(problems.kept), problems.count)
    _check_manifest(path, tables, problems)
    check_extents(tables, problems)
    images = check_fields(tables, problems)
    decoded = _decode_all(path, images, workers, problems) if decode else 0
    counts = (len(tables.metadata), len(tables.allocations), decoded)
    return Verification(path, file_bytes, *counts, tuple(problems.kept), problems.count)


def _check_manifest(path: Path, tables: Tables, problems: Problems) -> None:
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        problems.add(Problem("manifest", None, str(error)))
        return
    if manifest is None:
        return
    index = BetonIndex(path, tables)
    if manifest.fingerprint not in ("", index.fingerprint):
        message = (
            f"it was written for another beton: it names the fingerprint "
            f"{manifest.fingerprint[:16]}, this beton has {index.fingerprint[:16]}"
        )
        problems.add(Problem("manifest", None, message))
        return  # and so what it says need not be true of this one
    for message in _contradictions(manifest, tables):
        problems.add(Problem("manifest", None, message))


def _contradictions(manifest: Manifest, tables: Tables) -> Iterator[str]:
    if manifest.num_samples != len(tables.metadata):
        yield f"it counts {manifest.num_samples} samples, and there are {len(tables.metadata)}"
    fields = {part.name: part.kind for part in tables.fields}
    if manifest.fields != fields:
        yield f"it names the fields {manifest.fields}, and there are {fields}"
    columns = {part.name: part.column for part in tables.fields if part.kind == "int"}
    column = columns.get(manifest.label_field)
    counts = np.array(manifest.class_counts, dtype=np.int64)
    if len(counts) and (column is None or not _counts_are(counts, tables.metadata[column])):
        yield f"its counts of the classes are not those of {manifest.label_field!r}"
    names = len(manifest.class_names)
    if names and len(counts) and names != len(counts):
        yield f"it names {names} classes, and counts {len(counts)}"


def _counts_are(counts: NDArray[np.int64], column: NDArray[Any]) -> bool:
    in_range = not len(column) or (column.min() >= 0 and column.max() < len(counts))
    return bool(
        in_range
        and np.array_equal(np.bincount(column.astype(np.int64), minlength=len(counts)), counts)
    )


def _decode_all(path: Path, images: NDArray[Any], num_workers: int, problems: Problems) -> int:
    """Decode in the order of the file, and return how many images are sound."""
    images = images[np.argsort(images["ptr"], kind="stable")]
    batches = (images[at : at + _BATCH] for at in range(0, len(images), _BATCH))
    total, task, wrong = len(images), f"verify {path.name}", 0
    descriptor = os.open(path, os.O_RDONLY)

    def check(batch: NDArray[Any]) -> list[Problem]:
        return _faults(descriptor, batch)

    try:
        with map_ordered(check, batches, num_workers, threads=True) as found:
            for faults in track(found, total=total, description=task, unit="images", scale=_BATCH):
                wrong += len(faults)
                for fault in faults:
                    problems.add(fault)
    finally:
        os.close(descriptor)  # no thread reads from it any more
    return len(images) - wrong


def _faults(descriptor: int, images: NDArray[Any]) -> list[Problem]:
    """Read and decode images, and list at most one problem for each."""
    faults = []
    for sample_id, ptr, size, mode, height, width in images.tolist():
        try:
            data = os.pread(descriptor, size, ptr)
            if len(data) != size:
                message = f"the file ends {size - len(data)} bytes before its image does"
                faults.append(Problem("read", sample_id, message))
            elif mode == 0:
                _decode_jpeg(data, height, width)
        except OSError as error:
            faults.append(Problem("read", sample_id, f"its image cannot be read: {error}"))
        except MemoryError:
            message = f"its image cannot be read: no memory for {size} bytes"
            faults.append(Problem("read", sample_id, message))
        except turbojpeg.JpegError as error:
            faults.append(Problem("jpeg", sample_id, f"its JPEG cannot be decoded: {error}"))
    return faults


def _decode_jpeg(data: bytes, height: int, width: int) -> None:
    header = turbojpeg.read_header(data)
    if (header.height, header.width) != (height, width):
        raise turbojpeg.JpegError(
            f"it is {header.height} x {header.width} pixels, and its record says {height} x {width}"
        )
    try:
        turbojpeg.decode(data, fast=True)
    except MemoryError as error:  # a header of a few bytes may promise gigabytes of pixels
        raise turbojpeg.JpegError(f"no memory for {height} x {width} pixels") from error
