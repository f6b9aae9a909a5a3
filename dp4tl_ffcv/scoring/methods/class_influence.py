"""Class influence: target accuracy gained when a class is included in pretraining."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...stored import map_array, sha256_of_file
from ..inputs import as_array, blocks
from ..scores import Scores
from . import Method

_BLOCK_BYTES = 1 << 26  # of float64 outcomes at a time


def class_influence(outcomes: Any, included: Any) -> Scores:
    """Score source classes by their mean influence on the target images.

    `s[c] = mean_j I[c, j]`, with I as in `class_influences`.

    Args:
        outcomes: .npy file, runs x target images: how well each training run did on each image, for
            example 1 for a correct prediction and 0 otherwise. In Python also an array `(R, n)`.
        included: .npy file, runs x source classes: whether each training run included each class in
            pretraining. In Python also an array `(R, C)`.

    >>> class_influence([[0.9], [0.5], [0.8]], [[True, False], [False, True], [True, True]]).scores
    array([ 0.35, -0.25])
    """
    given = {"outcomes": outcomes, "included": included}
    paths = {name: path for name, path in given.items() if isinstance(path, str | os.PathLike)}
    values, masks = _runs(outcomes, included)
    with np.errstate(over="ignore", invalid="ignore"):  # class_influences checks the result
        # The mean over images and the difference over runs may change places.
        of_runs = values.mean(axis=1, keepdims=True, dtype=np.float64)
    return Scores(
        scores=class_influences(of_runs, masks)[:, 0],
        method="class_influence",
        provenance={
            "runs": len(values),
            "outcomes": values.shape[1],
            **{f"{name}_sha256": sha256_of_file(path) for name, path in paths.items()},
        },
    )


def class_influences(outcomes: Any, included: Any) -> NDArray[np.float64]:
    """Return the influence of each source class on each target image.

    `I[c, j] = mean_{r: included[r, c]} o[r, j] - mean_{r: not included[r, c]} o[r, j]`, with o the
    outcomes of runs r. Each run was pretrained on some of the classes, for example a random half,
    and finetuned on the target. (Jain et al. 2023, arXiv 2207.05739.)

    Args:
        outcomes: how well each run did on each target image `(R, n)`, higher is better: the logit
            or margin of the image's class, or whether the prediction is correct. An array of bool,
            int or float, or a .npy file; memory maps are read block by block.
        included: whether each run was pretrained on each class `(R, C)`: bool, or 1 and 0.

    Returns:
        Influences `(C, n)`, in float64; the same bits for any number of threads.
    """
    from ...kernels.threads import one_blas_thread

    values, masks = _runs(outcomes, included)
    sums = np.zeros((masks.shape[1], values.shape[1]), dtype=np.float64)
    total = np.zeros(values.shape[1], dtype=np.float64)
    with one_blas_thread():
        for rows in blocks(values, _BLOCK_BYTES):
            block = values[rows].astype(np.float64)
            if not np.isfinite(block).all():
                raise ValueError("`outcomes` hold NaN or inf. Leave out the runs that failed.")
            sums += masks[rows].T.astype(np.float64) @ block
            total += block.sum(axis=0)
    number = masks.sum(axis=0)[:, None]
    influences: NDArray[np.float64] = sums / number - (total - sums) / (len(masks) - number)
    return influences


def _runs(outcomes: Any, included: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    values, masks = _loaded("outcomes", outcomes), _loaded("included", included)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"`outcomes` must be numbers; got dtype {values.dtype}.")
    if values.ndim != 2 or masks.ndim != 2 or len(values) != len(masks):
        raise ValueError(
            f"`outcomes` and `included` must have shapes (R, n) and (R, C); got {values.shape} and "
            f"{masks.shape}. Pass one row of each per run."
        )
    if not values.size or not masks.size:
        raise ValueError(f"`outcomes` and `included` are empty: {values.shape} and {masks.shape}.")
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError("`included` must hold true and false, or 1 and 0; got other values.")
    masks = masks.astype(np.bool_)
    number = masks.sum(axis=0)
    unknown = np.flatnonzero((number == 0) | (number == len(masks)))
    if unknown.size:
        raise ValueError(
            f"class {unknown[0]} is in {number[unknown[0]]} of {len(masks)} runs, so there "
            "is nothing to compare. Add runs, or leave out the class."
        )
    return values, masks


def _loaded(name: str, values: Any) -> NDArray[Any]:
    if not isinstance(values, str | os.PathLike):
        return as_array(values)
    try:
        return map_array(values)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be an array of numbers in a .npy file; got {str(values)!r}. Write it "
            "with numpy.save."
        ) from error


METHOD = Method(
    function=class_influence,
    flags={"outcomes": Path, "included": Path},
    units=("class",),
    reference="[Jain et al. 2023](https://arxiv.org/abs/2207.05739)",
)
