"""A selection: retained classes and samples of one beton, saved with where it came from."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..artifacts import check_fingerprint, load_artifact, save_artifact
from ..beton import BetonIndex
from ..beton.index import check_indices
from ..kernels import class_members

_KIND = "selection"
_ARRAYS = ("classes", "indices", "label_map")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Retained classes and samples of a beton.

    Build one with `select`, `Selection.of_classes` or `Selection.of_indices`.
    """

    classes: NDArray[np.int64]
    """Retained class ids `(K,)`, ascending."""
    indices: NDArray[np.int64]
    """Retained sample ids `(M,)`, ascending."""
    label_map: NDArray[np.int64]
    """New label of each source class `(C,)`: 0 to K - 1 in ascending order, -1 for pruned ones."""
    fingerprint: str
    """Fingerprint of the beton that `indices` count in."""
    label_field: str = "label"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Scores, rule and arguments that led here."""

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            values = np.array(getattr(self, name), dtype=np.int64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if not self.indices.size:
            raise ValueError(
                "`indices` must retain at least one sample; got none. Keep more, or check that "
                "the beton holds the selected classes."
            )

    @classmethod
    def of_classes(
        cls,
        index: BetonIndex,
        classes: ArrayLike,
        *,
        num_classes: int | None = None,
        label_field: str = "label",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Selection":
        """Retain every sample of `classes`.

        Args:
            index: the beton.
            classes: class ids `(K,)`, in any order, without repeats.
            num_classes: C; None takes it from the beton.
            label_field: field of the class ids.
            provenance: kept with the selection.

        Raises:
            ValueError: a class id is out of range or repeated, or no sample is retained.
        """
        labels = index.labels(label_field)
        count = max(num_classes or 0, len(index.class_counts(label_field)))
        ids = np.sort(np.asarray(classes))
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or len(np.unique(ids)) != len(ids):
            raise ValueError(
                f"`classes` must be distinct integers of shape (K,); got {ids.dtype} of shape "
                f"{ids.shape}. Name each class once."
            )
        if ids.size and (ids[0] < 0 or ids[-1] >= count):
            raise ValueError(
                f"`classes` must lie in [0, {count}); got values from {ids[0]} to {ids[-1]}. "
                "Check which source the classes were scored for."
            )
        label_map = _number(ids, count)
        retained = class_members(labels, label_map >= 0)
        return cls(
            classes=ids,
            indices=retained,
            label_map=label_map,
            fingerprint=index.fingerprint,
            label_field=label_field,
            provenance=provenance or {},
        )

    @classmethod
    def of_indices(
        cls,
        index: BetonIndex,
        indices: ArrayLike,
        *,
        label_field: str = "label",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Selection":
        """Retain the samples `indices` `(M,)`, in any order; repeats count once.

        Raises:
            TypeError: the indices are not integers.
            ValueError: an index is out of range, or there is none.
        """
        ids = np.unique(check_indices(indices, index.num_samples))
        labels = index.labels(label_field)
        classes = np.unique(labels[ids])
        return cls(
            classes=classes,
            indices=ids,
            label_map=_number(classes, len(index.class_counts(label_field))),
            fingerprint=index.fingerprint,
            label_field=label_field,
            provenance=provenance or {},
        )

    def digest(self) -> str:
        """Return a SHA-256, as hex digits, of what is retained and of which beton."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for name in _ARRAYS:
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()

    def check(self, index: BetonIndex) -> None:
        """Raise StaleArtifactError unless made for this beton."""
        check_fingerprint("selection", self.fingerprint, index.fingerprint, index.path)

    def transfer(self, index: BetonIndex) -> "Selection":
        """Retain the same classes of another beton of the same source, its validation split say.

        Raises:
            ValueError: that beton has classes this selection knows nothing of, or none of these.
        """
        num_classes = len(index.class_counts(self.label_field))
        if num_classes > len(self.label_map):
            raise ValueError(
                f"`index` must have at most {len(self.label_map)} classes; got "
                f"{num_classes}. Pass a split of the same source."
            )
        return Selection.of_classes(
            index,
            self.classes,
            num_classes=len(self.label_map),
            label_field=self.label_field,
            provenance={**self.provenance, "transferred_from": self.fingerprint},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to `path` (`.npz`), atomically."""
        header = {
            "fingerprint": self.fingerprint,
            "label_field": self.label_field,
            "provenance": dict(self.provenance),
        }
        save_artifact(path, _KIND, {name: getattr(self, name) for name in _ARRAYS}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Selection":
        """Read a selection that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no selection.
        """
        arrays, header = load_artifact(path, _KIND, _ARRAYS)
        return cls(
            classes=arrays["classes"],
            indices=arrays["indices"],
            label_map=arrays["label_map"],
            fingerprint=header["fingerprint"],
            label_field=header["label_field"],
            provenance=header["provenance"],
        )

    @classmethod
    def of(cls, selection: "Selection | str | os.PathLike[str]") -> "Selection":
        """Return `selection` itself, or load it if it is a path."""
        return selection if isinstance(selection, Selection) else cls.load(selection)

    def summary(self, beton: BetonIndex | str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return what is retained as JSON-able values.

        Args:
            beton: the beton of the selection, which adds its size, bytes and class names.
        """
        result: dict[str, Any] = {
            "retained_classes": len(self.classes),
            "of_classes": len(self.label_map),
            "retained_samples": len(self),
            "classes": self.classes.tolist(),
        }
        if beton is not None:
            index = BetonIndex.of(beton)
            names = index.class_names(self.label_field)
            result |= {
                "of_samples": len(index),
                "retained_bytes": int(index.sample_bytes()[self.indices].sum()),
                "classes": [names[c] if names else int(c) for c in self.classes],
            }
        if "clusters" in self.provenance and "retained" in self.provenance["clusters"]:
            result["pseudo_classes"] = self.provenance["clusters"]["retained"]
        return result

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"Selection({len(self.classes)} of {len(self.label_map)} classes, "
            f"{len(self.indices)} samples)"
        )


def _number(classes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the new label of each of `count` classes: 0 on for `classes` in order, -1 else."""
    label_map = np.full(count, -1, dtype=np.int64)
    label_map[classes] = np.arange(len(classes))
    return label_map
