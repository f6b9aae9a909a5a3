"""Read images from a column of parquet files, by groups of rows and with bounded memory.

Parquet can only decompress whole groups of rows, often 100 or 1,000 images. In a fully random
order, a group would be decompressed for each image. So samples are shuffled within windows: a
window is a few groups, drawn at random from all files, and a process holds one window in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv.utils import LazyImages, requires

from .common import check_class_id
from .files import PathsInside

WINDOW = 64 << 20  # bytes of the groups in a window; a larger group is a window of its own
_BATCH = 16  # rows that are decoded at a time
# Repeated values take no space in a file, but memory. Files of images hardly shrink by compression.
_FREE_ROWS, _BYTES_PER_ROW, _EXPANSION = 1 << 20, 8, 16


class ParquetImages(LazyImages):
    """Samples (image, label, row) of a split. An image is its file's bytes or path.

    `groups` (G, 4) has a row per group. Its columns: file, group in the file, first row in the
    split, bytes of all columns. A process keeps `held` groups.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        groups: NDArray[np.int64],
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        inside: PathsInside,
        held: int = 1,
    ) -> None:
        super().__init__(self._read, labels, rows, self._name_of)
        self.files, self.column, self.groups, self.held = files, column, groups, held
        self._inside = inside
        self._images_of = lru_cache(held)(self._read_group)

    @classmethod
    def of(cls, root: Path, files: Sequence[Path], column: str, label_column: str) -> ParquetImages:
        """List the groups and read the labels of files, which are in one folder below `root`."""
        groups: list[tuple[int, ...]] = []
        parts: list[NDArray[Any]] = []
        first = 0
        where = f"{label_column} of {files[0].parent}"
        for number, path in enumerate(files):
            with open_parquet(path) as parquet:
                stored, rows = path.stat().st_size, parquet.metadata.num_rows
                if rows > _FREE_ROWS + stored // _BYTES_PER_ROW:
                    raise ValueError(f"it states {rows} rows in a file of {stored} bytes")
                for group in range(parquet.num_row_groups):
                    # Not the size of the column: pyarrow aborts if its statistics are damaged.
                    about = parquet.metadata.row_group(group)
                    size = about.total_byte_size
                    if not 0 <= size <= _EXPANSION * stored + WINDOW:
                        raise ValueError(
                            f"it states {size} bytes for its row group {group}, in a file of "
                            f"{stored} bytes"
                        )
                    groups.append((number, group, first, size))
                    first += about.num_rows
                read = parquet.read([label_column], use_threads=False)[0]
                if first != sum(map(len, parts)) + len(read):
                    raise ValueError("its row groups have other numbers of rows than it states")
            parts.append(_class_ids(where, read))
        # Negative labels mark a split without labels, which --splits may leave out.
        check_class_id(where, max(int(part.max(initial=0)) for part in parts), first)
        labels = np.concatenate([part.astype(np.int64) for part in parts])
        table = np.array(groups, dtype=np.int64).reshape(-1, 4)
        inside = PathsInside(root, files[0].parent)
        return cls(files, column, table, labels, np.arange(len(labels)), inside)

    def shuffled(self, seed: int) -> ParquetImages:
        """Return the samples in random order within windows of randomly chosen groups."""
        rng = np.random.default_rng(seed)
        ends = np.append(self.groups[1:, 2], len(self))
        windows: list[list[NDArray[np.int64]]] = []
        left = 0
        for number in rng.permutation(len(self.groups)).tolist():
            _, _, first, size = self.groups[number].tolist()
            if size > left or not windows:
                windows.append([])
                left = WINDOW
            windows[-1].append(np.arange(first, ends[number]))
            left -= size
        order = np.concatenate([rng.permutation(np.concatenate(rows)) for rows in windows])
        held = max(map(len, windows))
        labels = self.labels[order]
        return ParquetImages(
            self.files, self.column, self.groups, labels, order, self._inside, held
        )

    def _read(self, position: int) -> Any:
        row = int(self.identifiers[position])
        number = self._group_of(row)
        value = self._images_of(number)[row - int(self.groups[number, 2])].as_py()
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes") or (path and self._path(path))
        if not value or not isinstance(value, bytes | Path):
            raise ValueError(f"Column {self.column!r} has no image in {self.name(position)}.")
        return value

    def _path(self, given: str) -> Path:
        try:
            return self._inside.path(given)
        except ValueError as error:
            raise ValueError(f"the image {given!r} {error}") from error

    def _name_of(self, position: int) -> str:
        """Return `FILE:ROW`. Rows are counted through all files of the split."""
        row = int(self.identifiers[position])
        return f"{self._file_of(row)}:{row}"

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self.groups[:, 2], row, side="right")) - 1

    def _file_of(self, row: int) -> Path:
        return self.files[int(self.groups[self._group_of(row), 0])]

    def _read_group(self, number: int) -> Any:
        from pyarrow import chunked_array

        file, group, _, size = self.groups[number].tolist()
        parts, left = [], 2 * size + WINDOW  # more than honest images need
        with open_parquet(self.files[file]) as parquet:
            for batch in parquet.iter_batches(_BATCH, [group], [self.column], use_threads=False):
                parts.append(batch.column(0))
                left -= parts[-1].nbytes
                if left < 0:
                    raise ValueError(
                        f"its row group {group} is larger than the {size:,} bytes that the file "
                        "states"
                    )
            return chunked_array(parts)


def _class_ids(where: str, column: Any) -> NDArray[Any]:
    from pyarrow import types

    if types.is_integer(column.type) and not column.null_count:
        ids: NDArray[Any] = column.to_numpy()
        return ids
    values = (each.as_py() for each in column)
    odd = next((value for value in values if type(value) is not int), column.type)
    raise ValueError(f"`{where}` must hold class ids; got {odd!r}. Name another --label-column.")


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file. Raise ValueError if it is damaged or pyarrow is not installed."""
    with requires("pyarrow", "reading parquet"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(path) as parquet:
            yield parquet
    except (ValueError, OSError, ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file cannot be read
        raise ValueError(
            f"{path} is damaged or not parquet ({error}). Download it again."
        ) from error
