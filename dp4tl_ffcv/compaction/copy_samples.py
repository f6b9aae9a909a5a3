"""Write a compacted beton whose samples keep their bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import locked_part, part_path, publish, write_all
from ..beton.finish_manifest import finish_manifest
from ..beton.format import header_bytes
from ..beton.index import BetonIndex
from ..beton.jpeg_index_file import remove_index
from ..beton.manifest import Manifest, new_manifest
from ..parallel import map_ordered
from ..progress import track
from ..writing.journal import Journal
from .plan import Retained, place
from .source import SourceBeton, SourceFile

_BUFFER = 1 << 19  # bytes written at a time, while they are still in the CPU's cache
_TASK = 1 << 23  # bytes per task of a thread

Ranges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # starts, places, sizes


def copy_samples(
    source: SourceBeton,
    retained: Retained,
    target: Path,
    describe: Callable[[BetonIndex], Manifest],
    num_threads: int,
) -> BetonIndex:
    """Write the beton `target`, and the manifest that `describe` returns for its index.

    The pointers in `retained` are changed to places in the new file.
    """
    sizes = retained.extents["size"].astype(np.int64)
    tables = source.table_bytes(len(retained.metadata))
    placement = place(retained.rooms(sizes), tables, source.page_size)
    check_free_space(target, placement.file_size(len(sizes)))
    places = placement.extent_places(retained, sizes)
    for pointer in retained.pointers:
        moved = pointer.rows >= 0
        pointer.of(retained.metadata)[moved] = places[pointer.rows[moved]]
    with locked_part(target) as stream:
        try:
            finish_manifest(target, source.custom_fields)
            stream.truncate(0)
            Journal(target).remove()  # a killed run with other options may have left one
            fields, count = source.descriptors(), len(retained.metadata)
            stream.write(header_bytes(len(fields), placement.page_size, count, placement.table_at))
            stream.write(fields.tobytes())
            stream.write(retained.metadata.view(np.uint8).data)
            stream.truncate(placement.table_at)
            allocations = retained.extents.copy()
            allocations["ptr"] = places
            stream.seek(placement.table_at)
            stream.write(allocations.view(np.uint8).data)
            stream.flush()
            ranges = retained.extents["ptr"].astype(np.int64), places, sizes
            title = f"compact {target.name}"
            copy_ranges(source.file, stream.fileno(), ranges, num_threads, title)
            index = BetonIndex.open(part_path(target), custom_fields=source.custom_fields)
            os.fsync(stream.fileno())  # so that the renames below follow at once
            with new_manifest(target, describe(index)):
                publish(stream, part_path(target), target)
            remove_index(target)
        except BaseException:
            part_path(target).unlink(missing_ok=True)
            raise
    index.path = target
    return index


def check_free_space(target: Path, num_bytes: int) -> None:
    """Raise ValueError unless the disk has room for `target`.

    The unfinished file of a killed run counts as free space, because it is overwritten.
    """
    folder = next(folder for folder in target.absolute().parents if folder.is_dir())
    system = os.statvfs(folder)
    part = part_path(target)
    unfinished = part.stat().st_blocks * 512 if part.exists() else 0
    free = system.f_bavail * system.f_frsize + unfinished
    if free < num_bytes:
        raise ValueError(
            f"no space left: {target.name} needs {num_bytes} bytes, and {str(folder)!r} has {free} "
            "free. Free space there, write elsewhere, or retain less."
        )


def copy_ranges(
    source: SourceFile, target: int, ranges: Ranges, num_threads: int, description: str
) -> None:
    """Copy `sizes[i]` bytes from `starts[i]` of a file to `places[i]` of another, for every i.

    `target` is a file descriptor. Places ascend, and the ranges do not overlap in the target. Short
    gaps between them are filled with zeros.
    """
    starts, places, sizes = ranges
    tasks = np.split(np.arange(len(places)), np.flatnonzero(np.diff(places // _TASK)) + 1)

    def copy(rows: NDArray[np.int64]) -> None:
        """Collect the ranges `rows` in a buffer, and write it whenever it is full."""
        buffer, base, filled = memoryview(bytearray(_BUFFER)), -_BUFFER, 0  # bytes from `base` on
        columns = (starts[rows], places[rows], sizes[rows])
        for start, to, size in zip(*(column.tolist() for column in columns), strict=True):
            while size:
                at = to - base
                if at >= _BUFFER:
                    write_all(target, buffer[:filled], base)
                    base, at, filled = to, 0, 0
                part = buffer[at : at + size]
                source.read_into(part, start)
                buffer[filled:at] = bytes(at - filled)
                filled = at + len(part)
                start, to, size = start + len(part), to + len(part), size - len(part)
        write_all(target, buffer[:filled], base)

    total = -(-int(sizes.sum()) >> 20)
    with map_ordered(copy, tasks, num_threads, threads=True) as copied:
        for _ in track(copied, total=total, description=description, unit="MiB", scale=_TASK >> 20):
            pass
