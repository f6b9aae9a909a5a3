"""Make a beton of samples that are encoded in parallel, and continue one that was left unfinished.

The bytes of the file depend on the samples, their order and the page size alone: workers encode
batches, and one process places them in order.
"""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import locked_part, publish
from ..beton import format
from ..beton.index import BetonIndex
from ..beton.manifest import Manifest, write_manifest
from ..parallel import TASKS_PER_WORKER, map_ordered
from ..progress import track
from .encode import SLOT_BYTES, Batch, BatchEncoder, Encoded, Slots, Tasks
from .pages import Journal, PagedPart, Progress, move_pointers

DEFAULT_PAGE_SIZE = 1 << 23  # ffcv's own default
PROBES = 4  # samples of an unfinished file that are looked at before it is continued


def _admit(rows: NDArray[Any]) -> None:
    """Find no fault with any metadata."""
    del rows


def unencodable(skipped: Mapping[str, Any]) -> Exception:
    """Return the error that tells of a sample which cannot be encoded."""
    number, name = skipped["sample"], skipped["name"]
    named = "" if name == str(number) else f" ({name})"
    return ValueError(
        f"`samples` must be encodable; got {skipped['error']} in sample {number}{named}. "
        "Mend or leave out that sample."
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What goes into a beton."""

    descriptors: NDArray[Any]
    """Of the fields `(F,)`, of dtype `layout.FIELD`."""
    dtype: np.dtype[Any]
    """Of the metadata."""
    order: NDArray[np.int64]
    """Numbers of the samples `(N,)`, as they follow in the file."""
    encode: Callable[[int], Encoded]
    """Makes a sample of its number; called in worker processes."""
    key: str
    """Two recipes of one key make the same file."""
    describe: Callable[[BetonIndex, tuple[dict[str, Any], ...]], Manifest]
    """Makes the manifest of the file's tables and of the skipped samples."""
    check: Callable[[NDArray[Any]], None] = _admit
    """Raises ValueError for metadata that must not be written."""
    failure: Callable[[Mapping[str, Any]], Exception] = unencodable
    """Makes the error of a sample that cannot be encoded: its `sample`, `name` and `error`."""
    name_of: Callable[[int], str] = str
    """What a sample is called in messages."""
    custom_fields: Mapping[str, Any] = field(default_factory=dict)

    def row_at(self, sample_id: int) -> int:
        """Return where in the file the metadata of a sample lies."""
        tables_at = format.HEADER.itemsize + self.descriptors.nbytes
        return tables_at + sample_id * self.dtype.itemsize


def assemble(
    target: Path,
    recipe: Recipe,
    *,
    page_size: int | None,
    num_workers: int,
    on_error: Literal["raise", "skip"],
) -> BetonIndex:
    """Write a beton and its manifest, atomically, continuing what a killed run left.

    Memory: two batches per worker and one, each of 16 encoded samples or 16 MiB, whichever is less,
    but at least one sample; and the tables of the index that is returned.

    Args:
        target: the beton.
        recipe: what goes into it.
        page_size: bytes; None takes 8 MiB and doubles it until the largest sample fits.
        num_workers: processes that encode; 0 encodes in this one.
        on_error: raise the first sample's error, or leave such samples out and list them.

    Raises:
        ValueError: a sample cannot be encoded or does not fit, or none is left.
        RuntimeError: a worker process died.
        OSError: the disk is full or failed.
    """
    journal = Journal(target)
    with locked_part(target) as stream:
        try:
            progress = _continued(stream, journal, recipe, on_error)
            progress = progress or _from_start(stream, journal, recipe, page_size)
            grows = page_size is None
            with PagedPart(stream, journal, progress, recipe.row_at(0), grows=grows) as pages:
                _place_all(pages, recipe, num_workers, on_error, f"write {target.name}")
                index = _finish(stream, journal.part, pages, recipe)
            os.fsync(stream.fileno())  # so that nothing takes time between the two names
            write_manifest(target, recipe.describe(index, pages.progress.skipped))
            journal.remove()  # not after the file has its name, when another process may write
            publish(stream, journal.part, target)
        except BaseException as error:
            _leave(journal, error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(error, target) from error
            raise
    index.path = target
    return index


def _place_all(
    pages: PagedPart,
    recipe: Recipe,
    num_workers: int,
    on_error: Literal["raise", "skip"],
    title: str,
) -> None:
    left = recipe.order[pages.progress.done :]
    # Besides the batches under way there is the one that is placed.
    slots = Slots(TASKS_PER_WORKER * num_workers + 1 if num_workers else 0, SLOT_BYTES)
    encoder = BatchEncoder(recipe.encode, recipe.name_of, recipe.dtype, on_error == "raise", slots)
    tasks = Tasks(left)
    # Workers that outlive a failure would keep the lock of the file.
    with map_ordered(encoder, tasks, num_workers) as batches:
        watched = track(
            batches, total=len(left), description=title, unit="samples", scale=Batch.__len__
        )
        for task, batch in enumerate(watched):
            if batch.skipped and on_error == "raise":
                raise recipe.failure(batch.skipped[0])
            recipe.check(batch.rows)
            lost = {each["sample"] for each in batch.skipped}
            kept = [number for number in tasks.taken() if number not in lost]
            pages.place(batch, encoder.data_of(task, batch), kept)
            tasks.adapt(batch)
    if not pages.progress.placed:
        raise recipe.failure(pages.progress.skipped[0])


def _finish(stream: IO[bytes], part: Path, pages: PagedPart, recipe: Recipe) -> BetonIndex:
    table_at = pages.finish()
    header = np.zeros(1, dtype=format.HEADER)
    header["version"], header["num_fields"] = format.VERSION, len(recipe.descriptors)
    header["page_size"] = pages.progress.page_size
    header["num_samples"] = pages.progress.placed
    header["alloc_table_ptr"] = table_at
    stream.seek(0)
    stream.write(header.tobytes() + recipe.descriptors.tobytes())
    stream.flush()
    return BetonIndex.open(part, custom_fields=recipe.custom_fields)


def _from_start(
    stream: IO[bytes], journal: Journal, recipe: Recipe, page_size: int | None
) -> Progress:
    journal.remove()
    stream.truncate(0)
    size = page_size or DEFAULT_PAGE_SIZE
    tables = recipe.row_at(len(recipe.order))
    return Progress(key=recipe.key, page_size=size, position=-(-tables // size) * size)


def _continued(
    stream: IO[bytes], journal: Journal, recipe: Recipe, on_error: Literal["raise", "skip"]
) -> Progress | None:
    """Return how far an unfinished file of this recipe came, after a look at some samples of it."""
    progress = journal.read()
    if progress is None or progress.key != recipe.key or not progress.placed:
        return None
    skipped = [each["sample"] for each in progress.skipped]
    if skipped and (on_error == "raise" or any(_is_mended(each, recipe) for each in skipped)):
        return None
    lost = np.array(skipped, dtype=np.int64)
    kept = recipe.order[: progress.done]
    kept = kept[~np.isin(kept, lost)]
    if len(kept) != progress.placed:
        return None
    with journal.table.open("rb") as table:
        data = table.read(progress.extents * format.ALLOCATION.itemsize)
    table_rows = np.frombuffer(data, dtype=format.ALLOCATION)
    for sample_id in {int(place) for place in np.linspace(0, len(kept) - 1, PROBES)}:
        if not _is_stored(stream, table_rows, sample_id, int(kept[sample_id]), recipe):
            return None
    return progress


def _is_mended(number: int, recipe: Recipe) -> bool:
    try:
        recipe.encode(number)
    except Exception:  # as before
        return False
    return True


def _is_stored(
    stream: IO[bytes], table: NDArray[Any], sample_id: int, number: int, recipe: Recipe
) -> bool:
    try:
        encoded = recipe.encode(number)
    except Exception:  # the sample is not what it was
        return False
    # Rows ascend by sample.
    first = np.searchsorted(table["sample_id"], sample_id)
    extents = table[first : first + len(encoded.blobs)]
    if extents["sample_id"].tolist() != [sample_id] * len(encoded.blobs):
        return False
    row = np.zeros(1, dtype=recipe.dtype)
    row[0] = encoded.row[0]
    if len(extents):
        room = sum(max(1, blob.size) for blob in encoded.blobs)
        move_pointers(row, extents["ptr"][:1].astype(np.int64), np.array([room]))
    stored = [(recipe.row_at(sample_id), row.tobytes())]
    for extent, blob in zip(extents, encoded.blobs, strict=True):
        stored.append((int(extent["ptr"]), blob.tobytes()))
    return all(_has(stream, place, data) for place, data in stored)


def _has(stream: IO[bytes], place: int, data: bytes) -> bool:
    stream.seek(place)
    return stream.read(len(data)) == data


def _full(error: OSError, target: Path) -> OSError:
    full = OSError(
        error.errno,
        f"`path` must have room; the disk of {str(target)!r} is full. Free some space.",
    )
    for note in getattr(error, "__notes__", ()):
        full.add_note(note)
    return full


def _leave(journal: Journal, error: BaseException) -> None:
    """After a failure: keep what can be continued, delete what cannot."""
    if journal.written():
        error.add_note("What is written so far is kept: run it again to continue.")
        return
    journal.remove()
    journal.part.unlink(missing_ok=True)
