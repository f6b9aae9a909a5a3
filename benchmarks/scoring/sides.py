"""What the scoring benchmark compares with, its data, and checks that results are the same."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dp4tl_ffcv.artifacts import atomic_open

CORES = len(os.sched_getaffinity(0))
PAUSE = 0.02  # seconds in which threads that wait for work in a loop of their own go to sleep

BLOCK_ROWS = 1024  # of a product by blocks
FILE_ROWS = 1 << 16  # written at a time

Matrix = NDArray[np.float32]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


# -- data ------------------------------------------------------------------------------------------
def targets_and_means(
    targets: int, classes: int, columns: int, seed: int = 0
) -> tuple[Matrix, NDArray[np.float64]]:
    """Return features as pooled activations are: not negative, around the means of classes."""
    rng = np.random.default_rng(seed)
    means = rng.gamma(2.0, 0.2, (classes, columns))
    features = means[rng.integers(classes, size=targets)].astype(np.float32)
    features *= 0.5 + rng.random((targets, columns), dtype=np.float32)
    return features, means


def features_file(samples: int, columns: int, folder: Path) -> Path:
    """Return a `.npy` file of float16 features in `folder`, written before or now."""
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
    """Map the file anew."""
    features: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return features


# -- nearest means ---------------------------------------------------------------------------------
def loop_nearest(features: Tensor, means: Tensor) -> NDArray[np.int64]:
    """What the published loop does for each image, less its fault.

    A distance is stored under the class; the authors' `fm_selection_for_imagenet.py` stores it
    under the image, and overwrites it a thousand times.
    """
    nearest = []
    for image in features:
        distances = torch.zeros(len(means))
        for label in range(len(means)):
            distances[label] = torch.norm(image - means[label], p=2)
        nearest.append(int(distances.argmin()))
    return np.array(nearest, dtype=np.int64)


def _numpy_product(features: Matrix, means: Matrix, products: Matrix) -> None:
    np.matmul(features, means.T, out=products)


def _torch_product(features: Matrix, means: Matrix, products: Matrix) -> None:
    others = torch.from_numpy(features), torch.from_numpy(means).T
    torch.matmul(*others, out=torch.from_numpy(products))


def _blocked_product(features: Matrix, means: Matrix, products: Matrix) -> None:
    def multiply(start: int) -> None:
        rows = slice(start, start + BLOCK_ROWS)
        np.matmul(features[rows], means.T, out=products[rows])

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(CORES) as pool:
        for _ in pool.map(multiply, range(0, len(features), BLOCK_ROWS)):
            pass


PRODUCTS: dict[str, Callable[[Matrix, Matrix, Matrix], None]] = {
    "numpy.matmul": _numpy_product,
    "torch.matmul": _torch_product,
    f"numpy.matmul, {BLOCK_ROWS} rows a thread": _blocked_product,
}
"""Ways to take a matrix product into memory that is there, by name."""


def nearest_by_product(products: Matrix, means: Matrix) -> NDArray[np.int64]:
    """Return the nearest means that the products say, in their precision."""
    squares = np.einsum("cd,cd->c", means, means)
    parts = [
        np.argmin(squares - 2 * products[at : at + BLOCK_ROWS], axis=1)
        for at in range(0, len(products), BLOCK_ROWS)
    ]
    return np.concatenate(parts).astype(np.int64)


def check_nearest(
    features: Matrix,
    means: NDArray[np.float64],
    ours: NDArray[np.int64],
    other: NDArray[np.int64],
) -> None:
    """Raise RuntimeError unless both agree, but for ties within the other's single precision."""
    apart = np.flatnonzero(ours != other)
    rows = features[apart].astype(np.float64)
    mine, its = (np.linalg.norm(rows - means[labels[apart]], axis=1) for labels in (ours, other))
    if np.any(mine > its) or np.any(its - mine > 1e-3 * its):
        raise RuntimeError(
            f"the nearest means of {len(apart)} samples must be the same; they differ"
        )


# -- classes ---------------------------------------------------------------------------------------
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
"""Ways to read all of a memory map, by name."""


def torch_members(labels: Tensor, classes: Tensor) -> NDArray[np.int64]:
    """Return the samples of the classes, ascending."""
    members: NDArray[np.int64] = torch.isin(labels, classes).nonzero()[:, 0].numpy()
    return members


def check_same(name: str, ours: Any, other: Any, rtol: float = 0.0) -> None:
    """Raise RuntimeError unless both arrays are the same, or within a relative tolerance."""
    same = np.array_equal(ours, other)
    if not same and (not rtol or not np.allclose(ours, other, rtol=rtol, atol=0.0)):
        raise RuntimeError(f"{name} of both sides must be the same; they differ")


# -- gradients -------------------------------------------------------------------------------------
def loop_gradient_norms(model: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Return the norm of each image's gradient, by a backward pass of its own."""
    norms = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        loss = F.cross_entropy(model(image[None]), label[None])
        loss.backward()  # type: ignore[no-untyped-call]
        squares = [
            value.grad.square().sum() for value in model.parameters() if value.grad is not None
        ]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    return np.array(norms)
