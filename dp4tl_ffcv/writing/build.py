"""Build a beton from samples that are encoded in parallel, and continue an unfinished one.

Workers encode batches of samples, and one process places the batches in order. The bytes of the
file depend only on the samples, their order and the page size.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import locked_part, publish
from ..beton.finish_manifest import finish_manifest
from ..beton.format import HEADER, header_bytes
from ..beton.index import BetonIndex
from ..beton.jpeg_index_file import remove_index
from ..beton.manifest import Manifest, new_manifest
from ..parallel import TASKS_PER_WORKER, map_ordered
from ..progress import track
from ..stored import read_at
from .encode import Batch, BatchEncoder, Encoded, Tasks
from .journal import Journal, WriteState
from .pages import PageWriter, move_pointers

DEFAULT_PAGE_SIZE = 1 << 23  # ffcv's own default
_PROBES = 4  # samples of an unfinished file that are compared before it is continued


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Description of a new beton for `build_beton`."""

    descriptors: NDArray[Any]
    """Field descriptors `(F,)`."""
    dtype: np.dtype[Any]
    """Record type of the metadata."""
    order: NDArray[np.int64]
    """Numbers of the samples `(N,)`, in the order of the file."""
    encode: Callable[[int], Encoded]
    """Encodes the sample with a given number. Called in worker processes."""
    key: str
    """Plans with the same key make the same file."""
    describe: Callable[[BetonIndex, tuple[dict[str, Any], ...]], Manifest]
    """Returns the manifest, given the index of the new file and the skipped samples."""
    name_of: Callable[[int], str]
    """Returns the name of a sample for messages and for the manifest."""
    check: Callable[[Batch], None] | None = None
    """Raises ValueError for invalid metadata."""
    custom_fields: Mapping[str, Any] = field(default_factory=dict)
    page_size: int | None = None
    """Bytes per page. None starts at 8 MiB and doubles it until the largest sample fits."""
    skip_errors: bool = False
    """Leave out samples that cannot be encoded, and list them in the manifest."""

    def row_at(self, sample_id: int) -> int:
        """Return the first byte of a sample's metadata in the file."""
        tables_at = HEADER.itemsize + self.descriptors.nbytes
        return tables_at + sample_id * self.dtype.itemsize


def build_beton(target: Path, plan: BuildPlan, num_workers: int) -> BetonIndex:
    """Write a beton and its manifest, atomically. Continue the file of a run that was killed.

    Memory: two batches per worker and one more, each of at most 16 encoded samples and about
    16 MiB but at least one sample; and the tables of the returned index.
    """
    journal = Journal(target)
    with locked_part(target) as stream:
        try:
            finish_manifest(target, plan.custom_fields)
            state = _resume(stream, journal, plan) or _start(stream, journal, plan)
            grows = plan.page_size is None
            with PageWriter(stream, journal, state, plan.row_at(0), grows=grows) as pages:
                _write_samples(pages, plan, num_workers, f"write {target.name}")
                index = _finish(stream, journal, pages, plan)
            os.fsync(stream.fileno())  # so that the renames below follow at once
            with new_manifest(target, plan.describe(index, pages.state.skipped)):
                journal.remove()  # the rename below releases the lock, and others may write then
                publish(stream, journal.part, target)
            remove_index(target)
        except BaseException as error:
            if journal.state.exists():
                error.add_note("What was written so far is kept: run it again to continue.")
            else:
                journal.remove()
                journal.part.unlink(missing_ok=True)
            raise
    index.path = target
    return index


def _write_samples(pages: PageWriter, plan: BuildPlan, num_workers: int, title: str) -> None:
    left = plan.order[pages.state.done :]
    # One slot for each batch in the workers, and one for the batch that is being placed.
    num_slots = TASKS_PER_WORKER * num_workers + 1 if num_workers else 0
    encoder = BatchEncoder(plan.encode, plan.name_of, plan.dtype, num_slots)
    tasks = Tasks(left)
    # All workers must end in case of an error: they hold the lock of the file.
    with map_ordered(encoder, tasks, num_workers) as batches:
        tracked = track(
            batches, total=len(left), description=title, unit="samples", scale=Batch.__len__
        )
        for task, batch in enumerate(tracked):
            if batch.skipped and not plan.skip_errors:
                raise cannot_encode(batch.skipped[0])
            if plan.check:
                plan.check(batch)
            pages.place(batch, encoder.data_of(task, batch))
            tasks.adapt(batch)
    if not pages.state.placed:
        raise cannot_encode(pages.state.skipped[0])


def cannot_encode(skipped: Mapping[str, Any]) -> ValueError:
    """Return the error of a sample, given its entry in the manifest."""
    return ValueError(
        f"Cannot encode {skipped['name']}: {skipped['error']}. Fix this sample or leave it out."
    )


def _finish(stream: IO[bytes], journal: Journal, pages: PageWriter, plan: BuildPlan) -> BetonIndex:
    table_at, state = pages.finish(), pages.state
    header = header_bytes(len(plan.descriptors), state.page_size, state.placed, table_at)
    stream.seek(0)
    stream.write(header + plan.descriptors.tobytes())
    # Clear rows of a killed run that placed more samples than this one.
    stream.seek(plan.row_at(state.placed))
    stream.write(bytes((len(plan.order) - state.placed) * plan.dtype.itemsize))
    stream.flush()
    return BetonIndex.open(journal.part, custom_fields=plan.custom_fields)


def _start(stream: IO[bytes], journal: Journal, plan: BuildPlan) -> WriteState:
    journal.remove()
    stream.truncate(0)
    size = plan.page_size or DEFAULT_PAGE_SIZE
    tables = plan.row_at(len(plan.order))
    return WriteState(key=plan.key, page_size=size, position=-(-tables // size) * size)


def _resume(stream: IO[bytes], journal: Journal, plan: BuildPlan) -> WriteState | None:
    """Return the state of an unfinished file of the same plan, if sample probes agree with it."""
    state = journal.read()
    if state is None or state.key != plan.key or not state.placed:
        return None
    skipped = [each["sample"] for each in state.skipped]
    if skipped and not plan.skip_errors:
        return None
    if any(_encode_or_none(plan, number) for number in skipped):
        return None  # a skipped sample can be encoded now
    kept = plan.order[: state.done]
    kept = kept[~np.isin(kept, np.array(skipped, dtype=np.int64))]
    if len(kept) != state.placed:
        return None
    table = journal.read_table(state)
    probes = {int(place) for place in np.linspace(0, len(kept) - 1, _PROBES)}
    if all(_is_stored(stream, table, each, int(kept[each]), plan) for each in probes):
        return state
    return None


def _encode_or_none(plan: BuildPlan, number: int) -> Encoded | None:
    try:
        return plan.encode(number)
    except MemoryError:  # not a fault of the sample
        raise
    except Exception:  # datasets and codecs may raise any error
        return None


def _is_stored(
    stream: IO[bytes], table: NDArray[Any], sample_id: int, number: int, plan: BuildPlan
) -> bool:
    """Return whether the file holds the bytes and metadata of a sample."""
    encoded = _encode_or_none(plan, number)
    extents = table[table["sample_id"] == sample_id]
    if encoded is None or len(extents) != len(encoded.blobs):
        return False
    row = np.zeros(1, dtype=plan.dtype)
    row[0] = encoded.row[0]
    places = extents["ptr"].astype(np.int64)
    if len(extents):
        room = sum(max(1, blob.size) for blob in encoded.blobs)
        move_pointers(row, places[:1], np.array([room]))
    expected = [(plan.row_at(sample_id), row.tobytes())]
    expected += [(place, x.tobytes()) for place, x in zip(places, encoded.blobs, strict=True)]
    handle = stream.fileno()
    return all(read_at(handle, len(data), place) == data for place, data in expected)
