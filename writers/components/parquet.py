"""Read images from a column of parquet files, by groups of rows and with bounded memory.

Parquet can only decompress whole groups of rows, often 100 or 1,000 images. In a fully random
order, a group would be decompressed for each image. So samples are shuffled within windows: a
window is a few groups, drawn at random from all files, and a process holds one window in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv.utils import requires
from dp4tl_ffcv.validate import check_int

from .common import MAX_CLASS_ID

WINDOW = 64 << 20  # bytes of images in a window; a larger group is a window alone

Image = bytes | Path


@dataclass(frozen=True)
class ParquetImages(Sequence[tuple[Image, int, int]]):
    """Samples (image, label, identifier) of a split. An image is its file's bytes or path."""

    files: tuple[Path, ...]
    column: str
    """Column of images: {bytes, path}, or bytes."""
    groups: NDArray[np.int64]
    """(G, 4): number of the file, number in the file, first row in the split, bytes of images."""
    labels: NDArray[np.int64]
    """Class id of each sample."""
    identifiers: NDArray[np.int64]
    """Row of each sample in the split."""
    held: int = 1
    """Number of groups that a process keeps."""
    _cache: OrderedDict[int, Any] = field(default_factory=OrderedDict, compare=False, repr=False)

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
        check_int(where, max(labels, default=0), at_most=MAX_CLASS_ID)
        return cls(
            files=tuple(files),
            column=column,
            groups=np.array(groups, dtype=np.int64).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            identifiers=np.arange(len(labels), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.identifiers)

    def __getitem__(self, position: int) -> tuple[Image, int, int]:  # type: ignore[override]  # one at a time
        row = int(self.identifiers[position])
        number = self._group_of(row)
        value = self._read(number)[row - int(self.groups[number, 2])].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes") or (path and self._file_of(row).parent / path)
        if not value:
            raise ValueError(f"Column {self.column!r} has no image in {self.name(position)}.")
        return value, int(self.labels[position]), row

    def name(self, position: int) -> str:
        """Return `FILE:ROW`. Rows are counted through all files of the split."""
        row = int(self.identifiers[position])
        return f"{self._file_of(row)}:{row}"

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
        return replace(
            self,
            labels=self.labels[order],
            identifiers=self.identifiers[order],
            held=max(map(len, windows)),
            _cache=OrderedDict(),
        )

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self.groups[:, 2], row, side="right")) - 1

    def _file_of(self, row: int) -> Path:
        return self.files[int(self.groups[self._group_of(row), 0])]

    def _read(self, number: int) -> Any:
        """Return the images of a group, and keep the most recent groups."""
        if number not in self._cache:
            while len(self._cache) >= self.held:
                self._cache.popitem(last=False)
            file, group = self.groups[number, :2].tolist()
            with open_parquet(self.files[file]) as parquet:
                table = parquet.read_row_group(group, [self.column], use_threads=False)
            self._cache[number] = table[0]
        self._cache.move_to_end(number)
        return self._cache[number]


def open_parquet(path: Path) -> Any:
    """Open a parquet file.

    Raises:
        ValueError: the file is damaged or not parquet, or pyarrow is not installed.
    """
    with requires("pyarrow", "reading parquet"):
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    try:
        return ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(
            f"{path} is damaged or not parquet ({error}). Download it again."
        ) from error
