"""Label mapping (LM): how many target images the surrogate predicts as each source class."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels import class_histogram
from ...validate import check_int
from ..scores import Scores

# Rows turned into float64 at a time. Extraction keeps one mass for each block of as many rows, so
# that their sum has the bits of the mass of all logits.
BLOCK_ROWS = 4096


def label_mapping(
    predictions: ArrayLike,
    num_classes: int | None = None,
    *,
    mass: ArrayLike | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score source classes by label mapping, `s[c] = sum_n 1[argmax_k h(t_n)_k = c]`.

    The tie key is the soft form, `sum_n softmax(h(t_n))_c`: it ranks classes that no image was
    predicted as, too, by what evidence there is. (arXiv 2310.08782; definition as in the authors'
    code, whose ties are arbitrary.)

    The classes are those that the surrogate was trained on, in its order. Nothing here ties them to
    a beton: one with the same classes is for the caller to select from, be it the surrogate's own
    or another file of that source.

    Args:
        predictions: logits h `(n, C)` of the surrogate on the target images, or predicted source
            class ids `(n,)`.
        num_classes: C; needed with class ids unless `mass` says it, checked with logits.
        mass: `(C,)`, the tie key that goes with class ids, such as `Features.mass`; without it
            their ties fall to the lower id.
        provenance: kept with the scores.

    Raises:
        TypeError: class ids are not integers.
        ValueError: a shape or a value is wrong, or `num_classes` is missing.

    >>> label_mapping([2, 0, 2], num_classes=4).scores
    array([1., 0., 2., 0.])
    """
    array = np.asarray(predictions)
    tie = None if mass is None else _check_mass(mass)
    if array.ndim == 2:
        if tie is not None:
            raise ValueError(
                "`mass` must be left out with logits, which say it; got both. Pass class ids."
            )
        logits = _check_logits("predictions", array)
        num_classes = _check_count(num_classes, logits.shape[1], "columns of the logits")
        # numpy's argmax takes the first of equal maxima on every machine.
        ids, tie = logits.argmax(axis=1), softmax_mass(logits)
    elif tie is not None:
        ids, num_classes = array, _check_count(num_classes, len(tie), "entries of `mass`")
    elif num_classes is None:
        raise ValueError(
            f"`num_classes` must be given with class ids of shape {array.shape}; got None. "
            "Pass the number of source classes, or logits (n, C)."
        )
    else:
        ids, tie = array, np.zeros(check_int("num_classes", num_classes, 1), dtype=np.float64)
    counts = class_histogram(ids, num_classes)
    if not ids.size:
        raise ValueError(
            "`predictions` must be of at least one image; got none. Check the target dataset."
        )
    return Scores(
        scores=counts.astype(np.float64), tie=tie, method="lm", provenance=provenance or {}
    )


def soft_label_mapping(values: ArrayLike, *, provenance: Mapping[str, Any] | None = None) -> Scores:
    """Score source classes by soft label mapping, `s[c] = sum_n softmax(h(t_n))_c`.

    Args:
        values: logits h `(n, C)` of the surrogate on the target images, or their softmax mass
            `(C,)`, such as `Features.mass`.
        provenance: kept with the scores.

    Raises:
        ValueError: a shape or a value is wrong.

    >>> soft_label_mapping([0.5, 2.5, 0.0]).ranking()
    array([1, 0, 2])
    """
    array = np.asarray(values)
    if array.ndim == 2:
        mass = softmax_mass(_check_logits("values", array))
    else:
        mass = _check_mass(array, "values")
    return Scores(
        scores=mass, tie=np.zeros(len(mass)), method="soft_lm", provenance=provenance or {}
    )


def softmax_mass(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return `mass[c] = sum_n softmax(logits[n])_c` `(C,)` in float64, in one order of addition."""
    mass = np.zeros(logits.shape[1], dtype=np.float64)
    for start in range(0, len(logits), BLOCK_ROWS):
        block = logits[start : start + BLOCK_ROWS].astype(np.float64)
        with np.errstate(over="ignore"):  # where a class is out of the question
            block -= block.max(axis=1, keepdims=True)
        np.exp(block, out=block)
        block /= block.sum(axis=1, keepdims=True)
        mass += block.sum(axis=0)
    return mass


def _check_logits(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "f" or not array.size:
        raise ValueError(
            f"`{name}` must be float logits (n, C) with n >= 1; got shape {array.shape} of "
            f"{array.dtype}. Pass the surrogate's outputs."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite; got NaN or inf. Check the surrogate's outputs.")
    return array


def _check_mass(mass: ArrayLike, name: str = "mass") -> NDArray[np.float64]:
    array = np.asarray(mass)
    if array.ndim != 1 or not array.size or array.dtype.kind != "f":
        raise ValueError(
            f"`{name}` must be float softmax mass (C,); got shape {array.shape} of {array.dtype}. "
            "Pass one sum per source class."
        )
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(
            f"`{name}` must be finite and not negative; got another value. Sum softmax outputs."
        )
    return array.astype(np.float64)


def _check_count(num_classes: int | None, found: int, where: str) -> int:
    if num_classes is not None and num_classes != found:
        raise ValueError(
            f"`num_classes` must equal the {where}, {found}; got {num_classes}. "
            "Leave it out, or check the surrogate."
        )
    return found
