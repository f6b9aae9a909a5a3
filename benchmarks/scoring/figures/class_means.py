"""Class means of features in a memory map, against reading every byte of the map."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

import dp4tl_ffcv
from benchmarks.harness.bench import CORES
from benchmarks.harness.rows import Row, compare
from benchmarks.scoring.bench import (
    CLASSES,
    COLUMNS,
    Bench,
    Sides,
    alternate_timed,
    check_same,
)
from dp4tl_ffcv.utils import atomic_open

FILE_ROWS = 1 << 16  # written at a time


def measure(bench: Bench) -> list[Row]:
    path, labels = features_file(bench.scale.samples, COLUMNS, bench.data), bench.labels()
    size = open_features(path).nbytes
    sides: Sides = {"ours": lambda: dp4tl_ffcv.class_means(open_features(path), labels, CLASSES)}
    for way, read in READERS.items():
        sides[way] = partial(lambda read: read(open_features(path)), read)
    times = alternate_timed(sides, bench.scale.rounds)
    counts = np.bincount(labels, minlength=CLASSES)
    features = open_features(path)
    for column in (0, COLUMNS - 1):
        sums = np.bincount(labels, features[:, column].astype(np.float64), minlength=CLASSES)
        for means in times["ours"].results:
            check_same("the means", means[:, column], sums / counts)
    totals = [times[way].results for way in READERS]
    check_same("the bytes read", totals[0], totals[1])
    rates = {way: [second.rate(size) for second in side.seconds] for way, side in times.items()}
    params = {
        "samples": bench.scale.samples,
        "columns": COLUMNS,
        "dtype": "float16",
        "threads": CORES,
        "file_bytes": size,
        "pages": "in memory, mapped again in every round",
        "bounded_by": "reading rows that lie apart, and widening them to float64",
    }
    ours = rates["ours"]
    return [compare("class_means", "bytes/s", ours, rates[way], way, **params) for way in READERS]


def features_file(samples: int, columns: int, folder: Path) -> Path:
    """Return a `.npy` file of float16 features in `folder`; write it if it is missing."""
    path = folder / f"features_{samples}_{columns}_f16.npy"
    if not path.exists():
        rng = np.random.default_rng(samples)
        header = {"descr": "<f2", "fortran_order": False, "shape": (samples, columns)}
        with atomic_open(path) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, samples, FILE_ROWS):
                rows = min(FILE_ROWS, samples - start)
                block = rng.standard_normal((rows, columns), dtype=np.float32)
                stream.write(np.maximum(block, 0).astype(np.float16).tobytes())
    return path


def open_features(path: Path) -> NDArray[np.float16]:
    features: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return features


def _numpy_reader(features: NDArray[np.float16]) -> int:
    return int(np.asarray(features).reshape(-1).view(np.uint64).sum())


@njit(nogil=True, parallel=True)
def _add_up(words: Any, sums: Any) -> None:
    for part in prange(sums.size):
        total = np.uint64(0)
        for at in range(part * words.size // sums.size, (part + 1) * words.size // sums.size):
            total += words[at]
        sums[part] = total


def _threaded_reader(features: NDArray[np.float16]) -> int:
    sums = np.empty(CORES, dtype=np.uint64)
    _add_up(np.asarray(features).reshape(-1).view(np.uint64), sums)
    return int(sums.sum())


READERS: dict[str, Callable[[NDArray[np.float16]], int]] = {
    "numpy.sum of the map as uint64": _numpy_reader,
    "sum of the map as uint64 by all threads": _threaded_reader,
}
"""Functions that read all of a memory map, by name."""
