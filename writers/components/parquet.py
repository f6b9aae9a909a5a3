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
from .files import path_inside

WINDOW = 64 << 20  # bytes of images in a window; a larger group is a window of its own


class ParquetImages(LazyImages):
    """Samples (image, label, row) of a split. An image is its file's bytes or path.

    `groups` (G, 4) has a row per group. Its columns: file, group in the file, first row in the
    split, image bytes. A process keeps `held` groups.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        groups: NDArray[np.int64],
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        held: int = 1,
    ) -> None:
        super().__init__(self._read, labels, rows, self._name_of)
        self.files, self.column, self.groups, self.held = files, column, groups, held
        self._images_of = lru_cache(held)(self._read_group)

    @classmethod
    def of(cls, files: Sequence[Path], column: str, label_column: str) -> ParquetImages:
        """List the groups and read the labels of files."""
        groups, labels, first = [], [], 0
        for number, path in enumerate(files):
            with open_parquet(path) as parquet:
                for group in range(parquet.num_row_groups):
                    about = parquet.metadata.row_group(group)
                    chunks = map(about.column, range(about.num_columns))
                    size = sum(
                        chunk.total_uncompressed_size
                        for chunk in chunks
                        if chunk.path_in_schema.partition(".")[0] == column
                    )
                    groups.append((number, group, first, size))
                    first += about.num_rows
                labels += parquet.read([label_column], use_threads=False)[0].to_pylist()
        where = f"{label_column} of {files[0].parent}"
        if odd := [label for label in labels if not isinstance(label, int)]:
            raise ValueError(
                f"`{where}` must hold class ids; got {odd[0]!r}. Name another --label-column."
            )
        # Negative labels mark a split without labels, which --splits may leave out.
        check_class_id(where, max(labels, default=0), len(labels))
        table = np.array(groups, dtype=np.int64).reshape(-1, 4)
        return cls(files, column, table, np.array(labels, dtype=np.int64), np.arange(len(labels)))

    def shuffled(self, seed: int) -> ParquetImages:
        """Return the samples in random order within windows of randomly chosen groups."""
        rng = np.random.default_rng(seed)
        ends = np.append(self.groups[1:, 2], len(self))
        windows: list[list[NDArray[np.int64]]] = []
        left = 0
        for number in rng.permutation(len(self.groups)).tolist():
            _, _, first, size = self.groups[number].tolist()
            if size > left:
                windows.append([])
                left = WINDOW
            windows[-1].append(np.arange(first, ends[number]))
            left -= size
        order = np.concatenate([rng.permutation(np.concatenate(rows)) for rows in windows])
        held = max(map(len, windows))
        return ParquetImages(self.files, self.column, self.groups, self.labels[order], order, held)

    def _read(self, position: int) -> Any:
        row = int(self.identifiers[position])
        number = self._group_of(row)
        value = self._images_of(number)[row - int(self.groups[number, 2])].as_py()
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes") or (path and path_inside(self._file_of(row).parent, path))
        if not value or not isinstance(value, bytes | Path):
            raise ValueError(f"Column {self.column!r} has no image in {self.name(position)}.")
        return value

    def _name_of(self, position: int) -> str:
        """Return `FILE:ROW`. Rows are counted through all files of the split."""
        row = int(self.identifiers[position])
        return f"{self._file_of(row)}:{row}"

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self.groups[:, 2], row, side="right")) - 1

    def _file_of(self, row: int) -> Path:
        return self.files[int(self.groups[self._group_of(row), 0])]

    def _read_group(self, number: int) -> Any:
        file, group = self.groups[number, :2].tolist()
        with open_parquet(self.files[file]) as parquet:
            return parquet.read_row_group(group, [self.column], use_threads=False)[0]


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
