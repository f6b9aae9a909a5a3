"""What an encoder says about the samples of a beton: pooled features and logits, as a folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts import write_json
from ...errors import StaleArtifactError
from ...validate import check_int
from ...version import __version__
from ..methods.feature_mapping import class_means

_KIND = "features"
_FORMAT_VERSION = 1
HEADER = "header.json"
# Array -> its file. A folder lacks the file of what it does not hold.
FILES = {
    "features": "features.npy",
    "labels": "labels.npy",
    "indices": "indices.npy",
    "logits": "logits.npy",
    "predictions": "predictions.npy",
    "mass": "mass.npy",
    "sums": "class_sums.npy",
    "counts": "class_counts.npy",
}
DONE = "done.npy"
_REQUIRED = ("features", "labels", "indices")
_BLOCK_BYTES = 1 << 26  # looked at at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """An encoder's outputs on n samples, row by row; arrays may be memory maps.

    Features of any encoder, self-supervised ones included, enter by this class: build it from
    arrays, `save` it, and pass the folder wherever `dp4tl` asks for features.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or the arrays differ in their number of rows.
    """

    features: NDArray[Any]
    """`(n, D)` of float16 or float32: the input of the classifier's last layer, or whatever an
    encoder calls its feature; not normalised."""
    labels: NDArray[np.int64]
    """`(n,)`, the samples' own labels: source classes for a source, target classes for a target."""
    indices: NDArray[np.int64]
    """`(n,)`, sample ids in the beton."""
    logits: NDArray[np.float32] | None = None
    """`(n, C)`, over the classes that the surrogate was trained on."""
    predictions: NDArray[np.int64] | None = None
    """`(n,)`, the class of the largest logit, the first of equals."""
    mass: NDArray[np.float64] | None = None
    """`(C,)`, `mass[c] = sum_n softmax(logits[n])_c`: label mapping's tie key."""
    sums: NDArray[np.float64] | None = None
    """`(L, D)`, the features' sums of each label, accumulated in float64 in the order of rows."""
    counts: NDArray[np.int64] | None = None
    """`(L,)`, the samples of each label."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Surrogate checkpoint and beton."""

    def __post_init__(self) -> None:
        rows = len(_check_matrix("features", self.features, (np.float16, np.float32)))
        for name in ("labels", "indices", "predictions"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, _check_ids(name, values, rows))
        if self.logits is not None and len(_check_matrix("logits", self.logits)) != rows:
            raise _other_rows("logits", len(self.logits), rows)
        if (self.sums is None) != (self.counts is None):
            raise ValueError("`sums` and `counts` must come together; got one. Pass both or none.")
        _check_shape("mass", self.mass, (self.num_outputs,))
        if self.counts is not None:
            _check_shape("sums", self.sums, (len(self.counts), self.features.shape[1]))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_outputs(self) -> int | None:
        """C, the classes that the surrogate was trained on; None if it says nothing of classes."""
        if self.logits is not None:
            return int(self.logits.shape[1])
        return None if self.mass is None else len(self.mass)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of samples, classes and features."""
        return {
            "samples": len(self),
            "classes": self.num_outputs,
            "features": self.features.shape[1],
        }

    def class_means(self, num_classes: int) -> NDArray[np.float64]:
        """Return the mean feature of each label, as the function `class_means` does.

        Costs no pass over the features where their sums are known (`dp4tl features` keeps them).

        Args:
            num_classes: rows of the result `(num_classes, D)`; NaN for classes without samples.

        Raises:
            ValueError: a label is out of range, or a feature is not finite.
        """
        if self.sums is None or self.counts is None or len(self.counts) > num_classes:
            return class_means(self.features, self.labels, num_classes)
        means = np.full((check_int("num_classes", num_classes, 1), self.features.shape[1]), np.nan)
        present = np.flatnonzero(self.counts)
        means[present] = self.sums[present] / self.counts[present, None]
        return means

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to the folder `path`, in place of features that are there.

        A killed or failing writer leaves the old folder, or none.

        Raises:
            ValueError: a feature or a logit is not finite, or `path` is something else's.
        """
        target = Path(path)
        if target.exists() and not is_features_folder(target):
            raise ValueError(
                f"`path` must be a new folder, or one of features; got {str(path)!r}. "
                "Name another folder."
            )
        for name in ("features", "logits"):
            if (values := getattr(self, name)) is not None:
                check_finite(name, values, self.indices)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            part.chmod(0o777 & ~_umask())
            for name, file in FILES.items():
                if (values := getattr(self, name)) is not None:
                    np.save(part / file, values[None] if name == "mass" else values)
            write_header(part, finished=True, provenance=self.provenance)
            # Last, so that these arrays may be maps of the folder that is replaced.
            remove_folder(target)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Features":
        """Map a folder of features into memory; its large arrays are read where they are used.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder holds no features, or unfinished ones.
        """
        folder, header = Path(path), read_header(path)
        if not header["finished"]:
            raise ValueError(
                f"`path` must hold finished features; got {str(path)!r}, which was interrupted. "
                "Run the same command again: it continues."
            )
        try:
            arrays = {
                name: np.load(folder / file, mmap_mode="r", allow_pickle=False)
                for name, file in FILES.items()
                if name in _REQUIRED or (folder / file).exists()
            }
            if "mass" in arrays:
                arrays["mass"] = sum_in_order(arrays["mass"])
            return cls(provenance=header["provenance"], **arrays)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise _not_features(path) from error


def check_finite(name: str, values: NDArray[Any], indices: NDArray[np.int64]) -> None:
    """Raise ValueError, naming the first such sample, if a row holds NaN or inf."""
    step = max(1, _BLOCK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        wrong = np.flatnonzero(~np.isfinite(values[start : start + step]).all(axis=1))
        if wrong.size:
            raise ValueError(
                f"`{name}` must be finite; got NaN or inf for sample {indices[start + wrong[0]]}. "
                "Check the encoder; float16 ends at 65504."
            )


def check_same_surrogate(target: Features, source: Features) -> None:
    """Raise StaleArtifactError unless both were computed by the same surrogate, in the same way."""
    for name in ("checkpoint_sha256", "arch", "mean", "std", "resolution", "crop_ratio"):
        one, other = target.provenance.get(name), source.provenance.get(name)
        if one != other:
            raise StaleArtifactError(
                f"`source` must come from the target's surrogate; got {name} {other} for the "
                f"source and {one} for the target. Extract both features alike."
            )


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a folder of features, finished or not.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no features, or some of a newer format.
    """
    try:
        header = json.loads((Path(path) / HEADER).read_bytes())
        kind, version, _ = header["kind"], header["format"], header["provenance"]
        finished = header["finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not os.path.lexists(path):
            raise FileNotFoundError(2, "No such file or directory", str(path)) from error
        raise _not_features(path) from error
    if kind != _KIND or not isinstance(finished, bool):
        raise _not_features(path)
    if version > _FORMAT_VERSION:
        raise ValueError(
            f"`path` must have format <= {_FORMAT_VERSION}; got {version} in {str(path)!r}. "
            "Update dp4tl_ffcv."
        )
    return dict(header)


def write_header(path: Path, *, finished: bool, provenance: Mapping[str, Any], **more: Any) -> None:
    """Write the header of a folder of features, atomically."""
    known = {"kind": _KIND, "format": _FORMAT_VERSION, "tool": f"dp4tl_ffcv {__version__}"}
    value = {**known, "finished": finished, "provenance": dict(provenance), **more}
    write_json(path / HEADER, value)


def is_features_folder(path: Path) -> bool:
    """Say whether a folder holds nothing but what this module and extraction write."""
    ours = {HEADER, DONE, *FILES.values()}
    return path.is_dir() and all(
        entry.name in ours or entry.name.startswith(f".{HEADER}.") for entry in path.iterdir()
    )


def remove_folder(path: Path) -> None:
    """Delete a folder of features, the header first: what a kill leaves counts as nothing."""
    if path.exists():
        (path / HEADER).unlink(missing_ok=True)
        shutil.rmtree(path)


def sum_in_order(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add rows up from first to last, in one order on every machine."""
    total = np.zeros(blocks.shape[1:], dtype=np.float64)
    for block in blocks:
        total += block
    return total


def _check_matrix(
    name: str, values: NDArray[Any], dtypes: tuple[type, ...] = (np.float32,)
) -> NDArray[Any]:
    allowed = " or ".join(np.dtype(dtype).name for dtype in dtypes)
    if not isinstance(values, np.ndarray) or values.dtype not in dtypes:
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"`{name}` must be an array of {allowed}; got {found}. Convert it first.")
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"`{name}` must have shape (n, D) with n, D >= 1; got {values.shape}. "
            "Pass one row per sample."
        )
    return values


def _check_ids(name: str, values: Any, rows: int) -> NDArray[np.int64]:
    array: NDArray[Any] = np.asanyarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` must be integers; got dtype {array.dtype}. Convert them to int64."
        )
    if array.shape != (rows,):
        raise _other_rows(name, array.shape, rows)
    ids: NDArray[np.int64] = array.astype(np.int64, copy=False)
    return ids


def _check_shape(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    if values is not None and np.shape(values) != shape:
        raise ValueError(
            f"`{name}` must have shape {shape}; got {np.shape(values)}. Check what it comes from."
        )


def _other_rows(name: str, found: Any, rows: int) -> ValueError:
    return ValueError(
        f"`{name}` must have one entry for each of the {rows} rows of `features`; got {found}. "
        "Take them from the same samples."
    )


def _not_features(path: str | os.PathLike[str]) -> ValueError:
    return ValueError(
        f"`path` must be a features folder written by dp4tl; got {str(path)!r}. "
        "It may be damaged or come from another program: make it again with `dp4tl features`."
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
