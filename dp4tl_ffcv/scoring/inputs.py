"""Inputs of scoring methods: features, their folders, arrays and tensors, and blocks of rows."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import StaleArtifactError
from ..validate import check_int, check_int_array
from .scores import Unit

if TYPE_CHECKING:
    from ..beton import BetonIndex
    from .clustering.clusters import Clusters
    from .features.features import Features

Path = str | os.PathLike[str]
FeaturesOrArray = Union["Features", Path, Any]
"""Features, the path of their folder, or anything that `as_array` takes."""

MOST_LABELS = 10_000
"""Labels above both this number and the number of samples are not classes."""
_BLOCK_BYTES = 1 << 25  # of float64 at a time: memory maps may exceed the memory

# Methods import the kernels inside functions: `dp4tl score --help` loads every method, and must not
# wait for numba.


def as_array(values: Any) -> NDArray[Any]:
    """Return a numpy array from an array-like or from a torch tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # unknown to numpy
            values = values.float()
    return np.asarray(values)


def features_or_none(values: FeaturesOrArray) -> "Features | None":
    """Return Features, loaded if `values` is a path; None if `values` is an array."""
    from .features.features import Features

    if isinstance(values, str | os.PathLike):
        return Features.load(values)
    return values if isinstance(values, Features) else None


def whole_source(values: FeaturesOrArray) -> tuple["Features | None", dict[str, Any]]:
    """Return a whole source's features, row i for sample id i, and the provenance of scores.

    Return (None, {}) for an array.
    """
    source = features_or_none(values)
    if source is None:
        return None, {}
    return in_order_of_ids(source), source_provenance(source)


def in_order_of_ids(source: "Features") -> "Features":
    """Return the features of a whole source with row i for sample id i."""
    every, order = np.arange(len(source)), np.argsort(source.indices, kind="stable")
    if np.array_equal(order, every) and np.array_equal(source.indices, every):
        return source
    if not np.array_equal(source.indices[order], every):
        raise ValueError(
            f"`source` must hold each sample id from 0 to {len(source) - 1} once; sample ids are "
            "missing or repeated. Extract the features of the whole source."
        )
    names = ("features", "labels", "indices", "logits", "predictions", "confidences")
    given = {name: getattr(source, name) for name in names}
    rows = {name: values[order] for name, values in given.items() if values is not None}
    return replace(source, **rows)


def target_and_source(
    target: FeaturesOrArray, source: FeaturesOrArray
) -> tuple[NDArray[Any], "Features | None", dict[str, Any]]:
    """Return the target's features `(n, D)`, the source's, and the provenance of scores of both.

    The source's are None if `source` is an array. Raise StaleArtifactError if the features come
    from different surrogates.
    """
    from .features.features import check_same_surrogate

    of_target, of_source = features_or_none(target), features_or_none(source)
    about: dict[str, Any] = {}
    if of_target is not None:
        about["target"] = of_target.described()
        target = of_target.features
        if of_source is not None:
            check_same_surrogate(of_target, of_source)
    if of_source is not None:
        about |= source_provenance(of_source)
    return as_array(target), of_source, about


def clustered(
    source: FeaturesOrArray, clusters: "Clusters | Path"
) -> tuple[NDArray[Any], "Clusters", dict[str, Any]]:
    """Return the features of a whole source, its clusters, and the provenance of scores of both."""
    from ..kernels.checks import as_features
    from .clustering.clusters import Clusters

    clusters = Clusters.of(clusters)
    features, made_of = whole_source(source)
    about = {"clusters": clusters.described(), **made_of}
    values = as_features(as_array(source if features is None else features.features), "source")
    shape = (len(clusters), clusters.centroids.shape[1])
    if values.shape != shape:
        raise ValueError(
            f"`clusters` were made from features of shape {shape}; `source` has shape "
            f"{values.shape}. Cluster `source`."
        )
    about |= check_one_source("clusters", (clusters.provenance, about))
    return values, clusters, about


def num_classes_of(source: "Features") -> int:
    """Return the source's number of classes, from its beton's manifest or from its labels."""
    largest = int(source.labels.max())
    if largest < 0:
        raise ValueError(
            "`source` has no labels, so it has no classes to score. Cluster its features and pass "
            "`clusters`."
        )
    count = max(int(source.provenance.get("beton_classes") or 0), largest + 1)
    if count > max(MOST_LABELS, len(source)):
        raise ValueError(
            f"`source` has {len(source)} samples, but {count} classes, so its labels are not class "
            "ids. Cluster its features and pass `clusters`."
        )
    return count


def logits_of(name: str, features: "Features") -> NDArray[np.float32]:
    """Return the logits of features; raise ValueError if there are none."""
    if features.logits is None:
        raise ValueError(
            f"`{name}` holds features without logits. Extract them with `dp4tl features --logits`, "
            "from a model with a classifier."
        )
    return features.logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions of a surrogate for the images of a target."""

    ids: NDArray[Any]
    """Predicted classes `(n,)`."""
    soft_votes: NDArray[np.float64] | None = None
    """Sum of the softmax outputs `(C,)`."""
    confidences: NDArray[np.float64] | None = None
    """Softmax output of the predicted class `(n,)`."""
    labels: NDArray[np.int64] | None = None
    """The images' labels in the target `(n,)`."""
    facts: Mapping[str, Any]
    """Arguments of `Scores` to record."""


def predictions_of(target: FeaturesOrArray) -> Predictions:
    """Return the predictions of features or logits; any other array holds the predictions."""
    from .features.reductions import softmax_sums

    features, facts, labels = features_or_none(target), dict[str, Any](), None
    if features is not None:
        facts, labels = target_facts(features), features.labels
        if features.predictions is not None and features.soft_votes is not None:
            confidences = features.confidences
            if confidences is None and features.logits is not None:  # of an earlier version
                confidences = softmax_sums(features.logits)[1]
            return Predictions(
                ids=features.predictions,
                soft_votes=features.soft_votes,
                confidences=confidences,
                labels=labels,
                facts=facts,
            )
        target = logits_of("target", features)
    array = as_array(target)
    if array.ndim != 2:
        return Predictions(ids=array, facts=facts)
    if array.dtype.kind != "f" or not array.size:
        raise ValueError(
            f"`target` must be float logits (n, C) with n >= 1; got shape {array.shape} of "
            f"{array.dtype}. Pass the surrogate's outputs."
        )
    check_finite("target", array, None if features is None else features.indices)
    votes, confidences = softmax_sums(array)
    # argmax returns the first of equal maxima on every machine.
    ids = array.argmax(axis=1)
    return Predictions(
        ids=ids, soft_votes=votes, confidences=confidences, labels=labels, facts=facts
    )


def target_facts(target: "Features") -> dict[str, Any]:
    """Return the class names and the provenance of scores of a target's outputs."""
    return {"class_names": target.class_names, "provenance": {"target": target.described()}}


def count_in(
    beton: "int | Path | BetonIndex", unit: Unit, label_field: str
) -> tuple[int, dict[str, str]]:
    """Return the number of classes or samples of a beton, and the provenance to record.

    If `beton` is an int, it is the number.
    """
    from ..beton import BetonIndex

    if not isinstance(beton, str | os.PathLike | BetonIndex):
        return check_int("beton", beton, 1), {}
    index = BetonIndex.of(beton)
    count = index.num_samples if unit == "sample" else len(index.class_counts(label_field))
    return count, {"source_fingerprint": index.fingerprint}


def check_soft_votes(name: str, votes: Any) -> NDArray[np.float64]:
    """Return soft votes `(C,)` as float64; raise ValueError if they cannot be softmax sums."""
    array = as_array(votes)
    if array.ndim != 1 or not array.size or array.dtype.kind != "f":
        raise ValueError(
            f"`{name}` must be float soft votes (C,), one sum of softmax outputs per class; got "
            f"shape {array.shape} of {array.dtype}."
        )
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"`{name}` must be finite and not negative. Sum softmax outputs.")
    return array.astype(np.float64)


def source_provenance(source: "Features") -> dict[str, Any]:
    """Return the provenance of scores: the source's own, and its beton's fingerprint."""
    about = source.described()
    return {"source": about, "source_fingerprint": about.get("beton_fingerprint")}


def check_one_source(name: str, provenances: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the fingerprint that all provenances share, as an entry of a provenance.

    Raise StaleArtifactError if two differ. Results of arrays record no fingerprint and fit every
    source.
    """
    found = {provenance.get("source_fingerprint") for provenance in provenances} - {None}
    if len(found) > 1:
        raise StaleArtifactError(
            f"`{name}` were made for different sources. Make all of them from one beton."
        )
    return {"source_fingerprint": str(found.pop())} if found else {}


def labelled(
    name: str, values: Any, labels: Any, num_classes: int | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return values `(N, D)` and labels `(N,)` in `[0, num_classes)`; by default, D classes."""
    from ..kernels.checks import as_features

    rows = as_features(as_array(values), name)
    count = rows.shape[1] if num_classes is None else check_int("num_classes", num_classes, 1)
    if not len(rows):
        raise ValueError(f"`{name}` must have at least one row; got none. Check the source.")
    ids = check_int_array("labels", as_array(labels), below=count)
    if len(ids) != len(rows):
        raise ValueError(
            f"`labels` must have one entry per row of `{name}`; got {len(ids)} labels and "
            f"{len(rows)} rows."
        )
    return rows, ids


def distances(
    values: NDArray[Any], centres: NDArray[Any], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `||values[n] - centres[places[n]]||_2` for each n, in float64."""
    found = np.empty(len(values), dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in blocks(values):
            gaps = values[rows].astype(np.float64)
            gaps -= centres[places[rows]]
            np.square(gaps, out=gaps)
            found[rows] = np.sqrt(gaps.sum(axis=1))  # the order of addition is fixed
    if not np.isfinite(found).all():
        check_finite("source", values)
        raise ValueError("`source` holds values whose squares overflow. Check the encoder.")
    return found


def check_finite(name: str, values: NDArray[Any], indices: NDArray[np.int64] | None = None) -> None:
    """Raise ValueError if a row of `values` `(n, D)` has NaN or inf.

    The message names the sample id in `indices` `(n,)`, by default the number of the row.
    """
    for rows in blocks(values):
        wrong = np.flatnonzero(~np.isfinite(values[rows]).all(axis=1))
        if wrong.size:
            row = rows.start + int(wrong[0])
            raise ValueError(
                f"`{name}` must be finite; got NaN or inf for sample "
                f"{row if indices is None else indices[row]}. Check the encoder; the largest "
                "float16 is 65504."
            )


def blocks(values: NDArray[Any], most_bytes: int | None = None) -> Iterator[slice]:
    """Yield slices of rows that take at most so many bytes as float64."""
    step = max(1, (most_bytes or _BLOCK_BYTES) // (8 * values.shape[1]))
    for start in range(0, len(values), step):
        yield slice(start, start + step)
