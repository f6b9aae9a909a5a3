"""Votes of feature mapping, against the published loop and against bare matrix products."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

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
from dp4tl_ffcv import feature_mapping
from dp4tl_ffcv.kernels import nearest_mean

FIGURES = ("fm_assign", "fm_assign_roofline")
BLOCK_ROWS = 1024  # rows of a product that one thread computes at a time

Matrix = NDArray[np.float32]


def measure(bench: Bench) -> list[Row]:
    scale = bench.scale
    features, means = targets_and_means(scale.targets, CLASSES, COLUMNS)
    single, part = means.astype(np.float32), features[: scale.looped]
    products = np.empty((scale.targets, CLASSES), dtype=np.float32)
    tensors = torch.from_numpy(part), torch.from_numpy(single)
    sides: Sides = {
        "ours": lambda: feature_mapping(features, means).scores,
        "loop": lambda: loop_nearest(*tensors),
        **{way: partial(take, features, single, products) for way, take in PRODUCTS.items()},
    }
    nearest, *_ = nearest_mean(features, means)
    for way in PRODUCTS:
        products[:] = np.nan
        sides[way]()
        check_nearest(features, means, nearest, nearest_by_product(products, single))
    times = alternate_timed(sides, scale.rounds)
    for votes, looped in zip(times["ours"].results, times["loop"].results, strict=True):
        check_same("the votes", votes, np.bincount(nearest, minlength=CLASSES))
        check_nearest(part, means, nearest[: scale.looped], looped)
    ours = times["ours"].seconds
    loop = [second.times(scale.targets / scale.looped) for second in times["loop"].seconds]
    best = min(PRODUCTS, key=lambda way: median(wall for wall, _ in times[way].seconds))
    seconds = times[best].seconds
    params = {
        "targets": scale.targets,
        "classes": CLASSES,
        "columns": COLUMNS,
        "threads": CORES,
        "ours_includes": "votes, soft votes (tie-break), near ties in float64",
        "bounded_by": "the matrix product",
    }
    operations = 2 * scale.targets * CLASSES * COLUMNS
    return [
        compare(
            "fm_assign", "s", ours, loop, "published loop", **params,
            other_images=scale.looped, how=f"loop: {scale.looped} images, extrapolated",
        ),
        compare(
            "fm_assign_roofline", "s", ours, seconds, best, **params,
            other_flop_per_s=operations / median(wall for wall, _ in seconds),
            how="against the fastest bare float32 product",
        ),
    ]  # fmt: skip


def targets_and_means(
    targets: int, classes: int, columns: int, seed: int = 0
) -> tuple[Matrix, NDArray[np.float64]]:
    """Return features and class means, not negative, as pooled activations are."""
    rng = np.random.default_rng(seed)
    means = rng.gamma(2.0, 0.2, (classes, columns))
    features = means[rng.integers(classes, size=targets)].astype(np.float32)
    features *= 0.5 + rng.random((targets, columns), dtype=np.float32)
    return features, means


def loop_nearest(features: Tensor, means: Tensor) -> NDArray[np.int64]:
    """Find nearest means as the published loop does, without its fault.

    The authors' `fm_selection_for_imagenet.py` stores each distance under the image instead of
    the class, and overwrites it a thousand times.
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
        list(pool.map(multiply, range(0, len(features), BLOCK_ROWS)))


PRODUCTS: dict[str, Callable[[Matrix, Matrix, Matrix], None]] = {
    "numpy.matmul": _numpy_product,
    "torch.matmul": _torch_product,
    f"numpy.matmul, {BLOCK_ROWS} rows a thread": _blocked_product,
}
"""Matrix products into existing memory, by name."""


def nearest_by_product(products: Matrix, means: Matrix) -> NDArray[np.int64]:
    """Return the nearest means that the products give, in their precision."""
    squares = np.einsum("cd,cd->c", means, means)
    return np.argmin(squares - 2 * products, axis=1)


def check_nearest(
    features: Matrix,
    means: NDArray[np.float64],
    ours: NDArray[np.int64],
    other: NDArray[np.int64],
) -> None:
    """Raise RuntimeError unless both agree, except for ties in single precision."""
    apart = np.flatnonzero(ours != other)
    rows = features[apart].astype(np.float64)
    mine, its = (np.linalg.norm(rows - means[labels[apart]], axis=1) for labels in (ours, other))
    if np.any(mine > its) or np.any(its - mine > 1e-3 * its):
        raise RuntimeError(f"the nearest means of {len(apart)} samples differ")
