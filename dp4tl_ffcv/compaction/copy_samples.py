"""Write a compacted beton whose samples keep their bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..artifacts import part_file, part_path
from ..beton.format import header_bytes
from ..beton.index import BetonIndex
from ..beton.manifest import Manifest, write_manifest
from ..writing.journal import Journal
from .copy_ranges import check_free_space, copy_ranges
from .plan import Retained, place
from .source import SourceBeton


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
    placement = place(retained.rooms(sizes), tables, source.index.page_size)
    check_free_space(target, placement.file_size(len(sizes)))
    places = placement.extent_places(retained, sizes)
    for pointer in retained.pointers:
        moved = pointer.rows >= 0
        pointer.of(retained.metadata)[moved] = places[pointer.rows[moved]]
    with part_file(target) as stream:
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
        starts = retained.extents["ptr"].astype(np.int64)
        title = f"compact {target.name}"
        copy_ranges(source.file, stream.fileno(), (starts, places, sizes), num_threads, title)
        written = BetonIndex.open(part_path(target), custom_fields=source.custom_fields)
        # Flush the file before its manifest is renamed, so that its own rename follows at once.
        os.fsync(stream.fileno())
        write_manifest(target, describe(written))
    written.path = target
    return written
