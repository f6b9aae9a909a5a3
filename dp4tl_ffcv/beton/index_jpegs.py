"""Index the JPEGs of a beton ahead of the first epoch."""

import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from ..jpeg.crop import jpeg_scratch_bytes
from ..jpeg.index_jpeg import index_jpeg
from ..jpeg.mcu_index import NONE
from ..jpeg.size import states_size
from ..parallel import map_ordered
from ..progress import track
from ..stored import open_file
from ..validate import resolve_num_workers
from .index import BetonIndex
from .jpeg_index import SMALLEST, JpegIndexes, copy_indexes, jpeg_images
from .jpeg_index_file import IndexFile

_GROUP = 4096  # images between two saves: a killed run loses no more
_TASK = 64  # images that a thread indexes at a time


def index_jpegs(
    beton: str | os.PathLike[str] | BetonIndex, *, num_workers: int | None = None
) -> dict[str, Any]:
    """Index the JPEGs of a beton, so that loaders decode only the data of each crop.

    The indexes are kept in a file `NAME.beton.jpegs` next to the beton or, if that cannot be
    written, in the user's cache folder. It takes about 1.4 % of the bytes of the beton. Loaders
    make missing indexes in their first epoch, which takes longer without the file. JPEGs that the
    file has already are skipped; repeat a killed run to continue it.

    Progressive JPEGs and those below 4 KiB get no index. Decoders read these as a whole.

    Memory: 100 bytes per image, and 6 MB for each 100 KB of an image.

    Args:
        beton: a beton, or its open index.
        num_workers: threads. None uses all cores, 0 the calling thread.

    Returns:
        `jpegs`: number of JPEGs; `indexed`: those with an index; `small`: those below 4 KiB;
        `other`: those that cannot have an index, such as progressive or damaged ones; `file`: path
        of the file, or None; `file_bytes`: its size.

    Raises:
        BetonError: the file is not a complete beton, or an image cannot be read.
        OSError: neither folder can be written.
    """
    num_workers = resolve_num_workers(num_workers, at_least=0)
    index = BetonIndex.of(beton)
    jpegs = _find_jpegs(index)
    large = jpegs[jpegs["size"] >= SMALLEST]
    file, made = None, 0
    if len(large):
        file = IndexFile(index)
        indexed = _read_known(file, large["ptr"])
        made = int((indexed > 0).sum())
        made += _index_all(index, file, large[indexed < 0], num_workers)
    path = file.path if file else None
    return {
        "beton": str(index.path),
        "jpegs": len(jpegs),
        "indexed": made,
        "small": len(jpegs) - len(large),
        "other": len(large) - made,
        "file": str(path) if path else None,
        "file_bytes": path.stat().st_size if path else 0,
    }


def index_written(
    beton: BetonIndex,
    num_workers: int | None,
    copied: tuple[BetonIndex, NDArray[np.uint64]] | None = None,
) -> None:
    """Index the JPEGs of a beton that was just written. Warn if that fails.

    Args:
        beton: the new beton.
        num_workers: as in `index_jpegs`.
        copied: source beton, and the byte offset in it of each row of `beton.allocations` `(R,)`,
            if images were copied. Their indexes are copied too.
    """
    try:
        if copied is not None:
            copy_indexes(*copied, beton)
        index_jpegs(beton, num_workers=num_workers)
    except (OSError, BetonError, MemoryError) as error:
        warnings.warn(
            f"{str(beton.path)!r} is complete, but its JPEGs are not indexed: {error}. Run "
            "`dp4tl index`, or let loaders index them in their first epoch.",
            RuntimeWarning,
            stacklevel=3,
        )


_JPEG = np.dtype([("ptr", "<u8"), ("size", "<i8"), ("height", "<i8"), ("width", "<i8")])


def _find_jpegs(index: BetonIndex) -> NDArray[Any]:
    """Return the JPEGs of all image fields, by their place in the file."""
    parts = [np.empty(0, dtype=_JPEG)]
    for field in index.fields:
        if field.kind == "rgb_image":
            images = index.column(field.name)[jpeg_images(index, field.name)]
            part = np.zeros(len(images), dtype=_JPEG)
            part["ptr"] = images["data_ptr"]
            part["height"], part["width"] = images["height"], images["width"]
            parts.append(part)
    jpegs = np.concatenate(parts)
    jpegs = jpegs[np.unique(jpegs["ptr"], return_index=True)[1]]
    if len(jpegs):
        table = index.allocations
        # Of several byte ranges at one place, the largest comes last.
        table = table[np.lexsort((table["size"], table["ptr"]))]
        rows = np.searchsorted(table["ptr"], jpegs["ptr"], side="right") - 1
        jpegs["size"] = table["size"][rows]
    return jpegs


def _read_known(file: IndexFile, ptrs: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the bytes of the index that the file has of each JPEG `(N,)`, -1 if it has none."""
    known = np.full(len(ptrs), -1, dtype=np.int64)
    for block in file.new_blocks():
        rows = np.searchsorted(ptrs, block.records["ptr"])
        rows[rows == len(ptrs)] = 0
        new = (ptrs[rows] == block.records["ptr"]) & (known[rows] < 0)
        known[rows[new]] = block.records["num_bytes"][new]
    return known


def _index_all(index: BetonIndex, file: IndexFile, jpegs: NDArray[Any], num_workers: int) -> int:
    """Index JPEGs and save the indexes; return how many have one."""
    made, title = 0, f"index {index.path.name}"
    with open_file(index.path) as stream:
        indexer = _Indexer(index, stream.fileno())
        with map_ordered(indexer, _tasks(file, jpegs), num_workers, threads=True) as done:
            for task in track(
                done, total=len(jpegs), description=title, unit="images", scale=_TASK
            ):
                if task.is_last:
                    task.indexes.save()
                    made += int((task.indexes.lengths > 0).sum())
    return made


@dataclass(frozen=True)
class _Task:
    """Some rows of a group of JPEGs."""

    jpegs: NDArray[Any]
    indexes: JpegIndexes
    first: int

    @property
    def end(self) -> int:
        return min(self.first + _TASK, len(self.jpegs))

    @property
    def is_last(self) -> bool:
        """Whether the tasks up to this one index the whole group."""
        return self.end == len(self.jpegs)


def _tasks(file: IndexFile, jpegs: NDArray[Any]) -> Iterator[_Task]:
    for at in range(0, len(jpegs), _GROUP):
        group = jpegs[at : at + _GROUP]
        ptrs, sizes = (np.ascontiguousarray(group[name]) for name in ("ptr", "size"))
        indexes = JpegIndexes(file, ptrs, sizes, np.ones(len(group), dtype=np.bool_))
        for first in range(0, len(group), _TASK):
            yield _Task(group, indexes, first)


class _Indexer(threading.local):
    """Indexes the JPEGs of a task. Each thread has its own memory."""

    def __init__(self, index: BetonIndex, file: int) -> None:
        self._index, self._file = index, file
        self._data = self._scratch = np.empty(0, dtype=np.uint8)

    def __call__(self, task: _Task) -> _Task:
        indexes = task.indexes
        for row in range(task.first, task.end):
            ptr, size, height, width = task.jpegs[row].item()
            data = self._read(ptr, size)
            room = indexes.data[indexes.places[row] : indexes.places[row + 1]]
            indexes.lengths[row] = NONE
            if states_size(data, height, width):  # else the memory may be many times too large
                self._scratch = _at_least(self._scratch, jpeg_scratch_bytes(height, width))
                indexes.lengths[row] = index_jpeg(data, height, width, self._scratch, room) or NONE
        return task

    def _read(self, ptr: int, size: int) -> NDArray[np.uint8]:
        self._data = _at_least(self._data, size)
        data, done, problem = self._data[:size], 0, "the file ends before it"
        try:
            while done < size and (found := os.preadv(self._file, [data[done:].data], ptr + done)):
                done += found
        except OSError as error:
            problem = error.strerror or "an error"
        if done < size:
            table = self._index.allocations
            sample = table["sample_id"][np.argmax(table["ptr"] == ptr)]
            raise BetonError(
                f"cannot read sample {sample} of {str(self._index.path)!r}: {problem}. Check the "
                "disk, or copy the file again."
            )
        return data


def _at_least(memory: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return memory if memory.size >= size else np.empty(size, dtype=np.uint8)
