"""Label mapping (LM): how many target images the surrogate predicts as each source class."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..kernels import class_histogram
from ..kernels.checks import as_num_classes
from .scores import Scores

__all__ = ["label_mapping"]

_BLOCK_ROWS = 4096  # rows turned into float64 at a time


def label_mapping(
    predictions: ArrayLike,
    num_classes: int | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score source classes by label mapping, `s[c] = sum_n 1[argmax_k h(t_n)_k = c]`.

    The tie key is the soft form, `sum_n softmax(h(t_n))_c`: it ranks classes that no image was
    predicted as, too, by what evidence there is. (arXiv 2310.08782; definition as in the authors'
    code, whose ties are arbitrary.)

    Args:
        predictions: logits h `(n, C)` of the surrogate on the target images, or predicted source
            class ids `(n,)`; these carry no evidence for a tie key, and ties fall to the lower id.
        num_classes: C; needed with class ids, checked with logits.
        provenance: kept with the scores.

    Raises:
        TypeError: class ids are not integers.
        ValueError: a shape or a value is wrong, or `num_classes` is missing.

    >>> label_mapping([2, 0, 2], num_classes=4).scores
    array([1., 0., 2., 0.])
    """
    array = np.asarray(predictions)
    if array.ndim == 2:
        logits = _check_logits(array, num_classes)
        num_classes = logits.shape[1]
        # numpy's argmax takes the first of equal maxima on every machine.
        ids, mass = logits.argmax(axis=1), _softmax_mass(logits)
    elif num_classes is None:
        raise ValueError(
            f"`num_classes` must be given with class ids of shape {array.shape}; got None. "
            "Pass the number of source classes, or logits (n, C)."
        )
    else:
        ids, mass = array, np.zeros(as_num_classes(num_classes), dtype=np.float64)
    counts = class_histogram(ids, num_classes)
    if not ids.size:
        raise ValueError(
            "`predictions` must be of at least one image; got none. Check the target dataset."
        )
    return Scores(
        scores=counts.astype(np.float64), tie=mass, method="lm", provenance=provenance or {}
    )


def _check_logits(array: NDArray[Any], num_classes: int | None) -> NDArray[Any]:
    if array.dtype.kind != "f" or not array.size:
        raise ValueError(
            f"`predictions` must be float logits (n, C) with n >= 1; got shape {array.shape} of "
            f"{array.dtype}. Pass the surrogate's outputs."
        )
    if num_classes is not None and array.shape[1] != num_classes:
        raise ValueError(
            f"`num_classes` must equal the columns of the logits, {array.shape[1]}; got "
            f"{num_classes}. Leave it out, or check the surrogate."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            "`predictions` must be finite; got NaN or inf. Check the surrogate's outputs."
        )
    return array


def _softmax_mass(logits: NDArray[Any]) -> NDArray[np.float64]:
    mass = np.zeros(logits.shape[1], dtype=np.float64)
    for start in range(0, len(logits), _BLOCK_ROWS):
        block = logits[start : start + _BLOCK_ROWS].astype(np.float64)
        weights = np.exp(block - block.max(axis=1, keepdims=True))
        mass += (weights / weights.sum(axis=1, keepdims=True)).sum(axis=0)
    return mass
