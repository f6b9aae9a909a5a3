"""A model's features and logits for the samples of a beton, in a folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...atomic import atomic_folder, part_path, write_json
from ...errors import StaleArtifactError
from ...stored import check_entries, map_array, read_json
from ...validate import check_int, check_int_array
from ...version import __version__
from ..inputs import as_array, check_finite
from .reductions import class_means, means_from_sums

_KIND = "features"
_FORMAT_VERSION = 1
HEADER = "header.json"
# File of each array. Arrays that are None have no file.
FILES = {
    "features": "features.npy",
    "labels": "labels.npy",
    "indices": "indices.npy",
    "logits": "logits.npy",
    "predictions": "predictions.npy",
    "confidences": "confidences.npy",
    "soft_votes": "soft_votes.npy",
    "sums": "class_sums.npy",
    "counts": "class_counts.npy",
}
DONE = "done.npy"
# Types of entries of the header, and of facts in its provenance, that are read.
_ENTRIES = {
    "kind": str,
    "format": int,
    "finished": bool,
    "provenance": dict[str, Any],
    "request": dict[str, Any],
    "files": list[str],
}
_OPTIONAL = ("request", "files")  # only unfinished folders need them
_PROVENANCE = {
    "beton_fingerprint": str | None,
    "beton_classes": int | None,
    "trained_on": str | None,
    "class_names": list[str],
}
_REQUIRED = ("features", "labels", "indices")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A model's outputs for n samples, one row each; arrays may be memory maps.

    To use your own encoder, call `Features.from_arrays(features, labels).save(folder)` and pass the
    folder wherever `dp4tl` asks for features.
    """

    features: NDArray[Any]
    """Features `(n, D)` of float16 or float32, not normalised: the inputs of the classifier's last
    layer, or an encoder's outputs."""
    labels: NDArray[np.int64]
    """The samples' labels in the beton `(n,)`; -1 for a sample without a label."""
    indices: NDArray[np.int64]
    """Sample ids in the beton `(n,)`."""
    logits: NDArray[np.float32] | None = None
    """Logits over the surrogate's classes `(n, C)`."""
    predictions: NDArray[np.int64] | None = None
    """Class of the largest logit `(n,)`; on a tie, the lowest."""
    confidences: NDArray[np.float64] | None = None
    """Softmax output of the predicted class `(n,)`."""
    soft_votes: NDArray[np.float64] | None = None
    """Sum over samples of `softmax(logits[n])` `(C,)`: the tie-break scores of label mapping."""
    sums: NDArray[np.float64] | None = None
    """Sum of the features of each label `(L, D)`, in float64, in the order of rows."""
    counts: NDArray[np.int64] | None = None
    """Number of samples of each label `(L,)`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the features came from: surrogate checkpoint and beton."""

    def __post_init__(self) -> None:
        _check_matrix("features", self.features, (np.float16, np.float32))
        if self.logits is not None:
            _check_matrix("logits", self.logits, (np.float32,))
        for name in ("labels", "indices", "predictions"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_int_array(name, values))
        for name in ("labels", "indices", "predictions", "confidences", "logits"):
            if (values := getattr(self, name)) is not None and len(values) != len(self):
                raise ValueError(
                    f"`{name}` must have one entry for each of the {len(self)} rows of `features`; "
                    f"got {len(values)}."
                )
        if (self.sums is None) != (self.counts is None):
            raise ValueError("`sums` and `counts` go together. Pass both or neither.")
        if self.indices.min() < 0:
            raise ValueError(f"`indices` must not be negative; got {self.indices.min()}.")
        if self.num_outputs is not None:
            self._check_outputs(self.num_outputs)
        if self.sums is not None and self.counts is not None:
            _check_shape("sums", self.sums, (len(self.counts), self.features.shape[1]))
            self._check_sums(self.sums, self.counts)

    def _check_outputs(self, count: int) -> None:
        _check_shape("soft_votes", self.soft_votes, (count,))
        if self.predictions is not None:
            check_int_array("predictions", self.predictions, below=count)
        if self.confidences is not None:
            _check_confidences(self.confidences)
        if self.class_names and len(self.class_names) != count:
            raise ValueError(
                f"`class_names` in `provenance` must name each of the {count} outputs; got "
                f"{len(self.class_names)} names."
            )

    def _check_sums(self, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        # A class with NaN as its mean would count as a class without samples.
        if sums.dtype != np.float64 or not np.isfinite(sums).all():
            raise ValueError("`sums` must be finite numbers of float64.")
        labels = check_int_array("labels", self.labels, below=len(counts))
        if not np.array_equal(np.bincount(labels, minlength=len(counts)), counts):
            raise ValueError("`counts` must be the number of samples of each label.")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_outputs(self) -> int | None:
        """Number of the surrogate's classes C; None without a classifier."""
        if self.logits is not None:
            return int(self.logits.shape[1])
        return None if self.soft_votes is None else len(self.soft_votes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the surrogate's classes, in order `(C,)`; empty if they are unknown."""
        return tuple(self.provenance.get("class_names", ()))

    def described(self) -> dict[str, Any]:
        """Return the provenance that scores record about these features, without class names."""
        return {name: fact for name, fact in self.provenance.items() if name != "class_names"}

    @classmethod
    def from_arrays(cls, features: Any, labels: Any = None, ids: Any = None) -> "Features":
        """Return features from your own encoder's numpy arrays or torch tensors.

        Args:
            features: `(n, D)`; other types than float16 are converted to float32.
            labels: class ids `(n,)`; None if the samples have no labels.
            ids: sample ids `(n,)` in the beton; None if row i is sample i.
        """
        values = as_array(features)
        if values.dtype != np.float16:
            values = values.astype(np.float32, copy=False)
        rows = len(values)
        return cls(
            features=values,
            labels=np.full(rows, -1) if labels is None else as_array(labels),
            indices=np.arange(rows) if ids is None else as_array(ids),
        )

    def class_means(self, num_classes: int) -> NDArray[np.float64]:
        """Return the mean feature of each class `(num_classes, D)`, like `reductions.class_means`.

        Features from `dp4tl features` hold the sums, so the means need no pass over the features.
        """
        if self.sums is None or self.counts is None or len(self.counts) > num_classes:
            return class_means(self.features, self.labels, num_classes)
        means = np.full((check_int("num_classes", num_classes, 1), self.features.shape[1]), np.nan)
        means[: len(self.counts)] = means_from_sums(self.sums, self.counts)
        return means

    def summary(self) -> dict[str, Any]:
        """Return the numbers of samples, classes and features, as JSON-able values."""
        return {
            "samples": len(self),
            "classes": self.num_outputs,
            "features": int(self.features.shape[1]),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the features to the folder `path`; replace features that are there.

        If writing fails or is killed, the old folder remains, see `atomic_folder`.
        """
        target = Path(path)
        check_replaceable("path", target)
        for name in ("features", "logits"):
            if (values := getattr(self, name)) is not None:
                check_finite(name, values, self.indices)
        with atomic_folder(target) as part:
            for name, file in FILES.items():
                if (values := getattr(self, name)) is not None:
                    with (part / file).open("wb") as stream:
                        np.save(stream, values[None] if name == "soft_votes" else values)
                        stream.flush()
                        os.fsync(stream.fileno())
            write_header(part, finished=True, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Features":
        """Map a folder of features into memory; arrays are read when they are used."""
        folder, header = Path(path), read_header(path)
        if not header["finished"]:
            raise ValueError(
                f"extraction into {str(path)!r} was interrupted. Run the same command again to "
                "continue it."
            )
        try:
            arrays: dict[str, Any] = {}
            for name, file in FILES.items():
                if name in _REQUIRED or (folder / file).exists():
                    try:
                        arrays[name] = map_array(folder / file)
                    except ValueError as error:
                        raise ValueError(f"{file}: {error}") from error
            if "soft_votes" in arrays:
                stored = arrays["soft_votes"]
                if stored.dtype != np.float64 or stored.ndim != 2:
                    raise ValueError(f"soft_votes.npy: {stored.dtype} of shape {stored.shape}")
                # Added from the first block to the last: numpy's sum has another order.
                arrays["soft_votes"] = sum(stored, np.zeros(stored.shape[1:]))
            return cls(provenance=header["provenance"], **arrays)
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise _not_features(path, error) from error


def check_same_surrogate(target: Features, source: Features) -> None:
    """Raise StaleArtifactError unless both have the same surrogate and crops."""
    for name in ("checkpoint_sha256", "arch", "mean", "std", "resolution", "crop_ratio"):
        one, other = target.provenance.get(name), source.provenance.get(name)
        if one != other:
            raise StaleArtifactError(
                f"the features of source and target differ in {name}: {other} for the source, "
                f"{one} for the target. Extract both with the same surrogate and options."
            )


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a folder of features, finished or not."""
    Path(path).stat()  # a missing folder is not a damaged one
    try:
        header = check_entries(read_json(Path(path) / HEADER), _ENTRIES, optional=_OPTIONAL)
        check_entries(header["provenance"], _PROVENANCE, optional=_PROVENANCE)
        if header["kind"] != _KIND:
            raise ValueError(f"it is a {header['kind']} file")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise _not_features(path, error) from error
    if header["format"] > _FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has the features format {header['format']}, newer than "
            f"{_FORMAT_VERSION}. Update dp4tl_ffcv."
        )
    return header


def write_header(path: Path, *, finished: bool, provenance: Mapping[str, Any], **more: Any) -> None:
    """Write the header of a folder of features, atomically."""
    known = {"kind": _KIND, "format": _FORMAT_VERSION, "tool": f"dp4tl_ffcv {__version__}"}
    value = {**known, "finished": finished, "provenance": dict(provenance), **more}
    write_json(path / HEADER, value)


def check_replaceable(name: str, path: Path) -> None:
    """Raise ValueError if `path` exists and holds anything other than features."""
    if not path.exists():
        return
    ours = {HEADER, DONE, *FILES.values()}
    if not path.is_dir() or not all(
        entry.name in ours or entry.name == part_path(Path(HEADER)).name for entry in path.iterdir()
    ):
        raise ValueError(
            f"`{name}` {str(path)!r} exists and is not a features folder. Use another folder."
        )


def empty_folder(path: Path) -> None:
    """Delete the files of a features folder, the header first: a kill leaves no valid folder."""
    (path / HEADER).unlink(missing_ok=True)
    for file in path.iterdir():
        file.unlink()


def _check_matrix(name: str, values: NDArray[Any], dtypes: tuple[type, ...]) -> None:
    allowed = " or ".join(np.dtype(dtype).name for dtype in dtypes)
    if not isinstance(values, np.ndarray) or values.dtype not in dtypes:
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"`{name}` must be an array of {allowed}; got {found}. Convert it first.")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"`{name}` must have shape (n, D) with n, D >= 1; got {values.shape}.")


def _check_confidences(values: NDArray[np.float64]) -> None:
    in_range = values.dtype == np.float64 and ((values > 0) & (values <= 1)).all()
    if values.ndim != 1 or not in_range:
        raise ValueError("`confidences` must be numbers of float64 `(n,)` in (0, 1].")


def _check_shape(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    if values is not None and np.shape(values) != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {np.shape(values)}.")


def _not_features(path: str | os.PathLike[str], error: Exception) -> ValueError:
    why = f"{HEADER} is missing" if isinstance(error, OSError) else str(error).removesuffix(".")
    return ValueError(
        f"{str(path)!r} is not a features folder, or is corrupt ({why}). Make it with `dp4tl "
        "features`."
    )
