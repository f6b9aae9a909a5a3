"""A model's features and logits for the samples of a beton, in a folder."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ...artifacts import write_json
from ...errors import StaleArtifactError
from ...validate import check_int, check_int_array
from ...version import __version__
from ..inputs import as_array, blocks
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
    "soft_votes": "soft_votes.npy",
    "sums": "class_sums.npy",
    "counts": "class_counts.npy",
}
DONE = "done.npy"
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
        for name in ("labels", "indices", "predictions", "logits"):
            if (values := getattr(self, name)) is not None and len(values) != len(self):
                raise ValueError(
                    f"`{name}` must have one entry for each of the {len(self)} rows of `features`; "
                    f"got {len(values)}."
                )
        if (self.sums is None) != (self.counts is None):
            raise ValueError("`sums` and `counts` go together. Pass both or neither.")
        _check_shape("soft_votes", self.soft_votes, (self.num_outputs,))
        if self.counts is not None:
            _check_shape("sums", self.sums, (len(self.counts), self.features.shape[1]))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_outputs(self) -> int | None:
        """Number of the surrogate's classes C; None without a classifier."""
        if self.logits is not None:
            return int(self.logits.shape[1])
        return None if self.soft_votes is None else len(self.soft_votes)

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

        If writing fails or is killed, the old folder remains, or no folder.
        """
        target = Path(path)
        check_replaceable("path", target)
        for name in ("features", "logits"):
            if (values := getattr(self, name)) is not None:
                check_finite(name, values, self.indices)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid4().hex}.part")
        try:
            part.mkdir()
            for name, file in FILES.items():
                if (values := getattr(self, name)) is not None:
                    np.save(part / file, values[None] if name == "soft_votes" else values)
            write_header(part, finished=True, provenance=self.provenance)
            # Last, because these arrays may be memory maps of the old folder.
            remove_folder(target)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

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
            arrays = {
                name: np.load(folder / file, mmap_mode="r", allow_pickle=False)
                for name, file in FILES.items()
                if name in _REQUIRED or (folder / file).exists()
            }
            if "soft_votes" in arrays:
                stored = arrays["soft_votes"]
                # Added from the first block to the last: numpy's sum has another order.
                arrays["soft_votes"] = sum(stored, np.zeros(stored.shape[1:]))
            return cls(provenance=header["provenance"], **arrays)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise _not_features(path) from error


def check_finite(name: str, values: NDArray[Any], indices: NDArray[np.int64]) -> None:
    """Raise ValueError if a sample has NaN or inf; the message names the first such sample."""
    for rows in blocks(values):
        wrong = np.flatnonzero(~np.isfinite(values[rows]).all(axis=1))
        if wrong.size:
            raise ValueError(
                f"`{name}` hold NaN or inf for sample {indices[rows][wrong[0]]}. Check the "
                "encoder; the largest float16 is 65504."
            )


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
        header = dict(json.loads((Path(path) / HEADER).read_bytes()))
        is_newer = header["format"] > _FORMAT_VERSION
        known = header["kind"], type(header["finished"]), type(header["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_features(path) from error
    if known != (_KIND, bool, dict):
        raise _not_features(path)
    if is_newer:
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
        entry.name in ours or entry.name.startswith(f".{HEADER}.") for entry in path.iterdir()
    ):
        raise ValueError(
            f"`{name}` {str(path)!r} exists and is not a features folder. Use another folder."
        )


def remove_folder(path: Path) -> None:
    """Delete a features folder, the header first, so that a kill leaves no valid folder."""
    if path.exists():
        (path / HEADER).unlink(missing_ok=True)
        shutil.rmtree(path)


def _check_matrix(name: str, values: NDArray[Any], dtypes: tuple[type, ...]) -> None:
    allowed = " or ".join(np.dtype(dtype).name for dtype in dtypes)
    if not isinstance(values, np.ndarray) or values.dtype not in dtypes:
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"`{name}` must be an array of {allowed}; got {found}. Convert it first.")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"`{name}` must have shape (n, D) with n, D >= 1; got {values.shape}.")


def _check_shape(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    if values is not None and np.shape(values) != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {np.shape(values)}.")


def _not_features(path: str | os.PathLike[str]) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not a features folder, or is corrupt. Make it with `dp4tl features`."
    )
