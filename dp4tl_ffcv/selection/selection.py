"""A selection: the retained classes and samples of a beton, and its file."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..artifacts import Artifact
from ..beton import BetonIndex
from ..kernels import class_members
from ..validate import check_class_names, check_fingerprint, check_int_array

Beton = BetonIndex | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection(Artifact):
    """Retained classes and samples of a beton.

    Made by `select`, `Selection.of_classes` or `Selection.of_indices`.
    """

    KIND = "selection"
    ARRAYS: ClassVar = dict.fromkeys(("classes", "indices", "label_map"), (np.int64, 1))
    FACTS: ClassVar = {
        "fingerprint": str,
        "label_field": str,
        "class_names": list[str],
        "provenance": dict[str, Any],
    }
    OPTIONAL = ("class_names",)

    classes: NDArray[np.int64]
    """Retained class ids `(K,)`, ascending."""
    indices: NDArray[np.int64]
    """Retained sample ids `(M,)`, ascending."""
    label_map: NDArray[np.int64]
    """New label of each source class `(C,)`: 0 to K - 1 in ascending order, -1 if pruned."""
    fingerprint: str
    """Fingerprint of the beton that the sample ids belong to."""
    label_field: str = "label"
    class_names: tuple[str, ...] = ()
    """Names of the source's classes, as far as the beton's manifest has them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Scores, rule and arguments that led to the selection."""
    index: BetonIndex | None = field(default=None, repr=False)
    """The open beton; None if the selection was loaded from its file."""

    def __post_init__(self) -> None:
        self._freeze(**{n: np.array(getattr(self, n), dtype=np.int64) for n in self.ARRAYS})
        if not self.indices.size:
            raise ValueError(
                "the selection retains no sample. Keep more, or check that the beton holds the "
                "selected classes."
            )
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for name, count in (("classes", len(self.label_map)), ("indices", None)):
            values = getattr(self, name)
            if values.ndim != 1 or not _ascends(values):
                raise ValueError(f"`{name}` must be ascending ids from 0 on, each once.")
            if count is not None and values.size and values[-1] >= count:
                raise ValueError(f"`{name}` must be below {count}; got {values[-1]}.")
        if not np.array_equal(self.label_map, _number(self.classes, len(self.label_map))):
            raise ValueError("`label_map` must number `classes` from 0 on, and hold -1 elsewhere.")

    @classmethod
    def of_classes(
        cls,
        beton: Beton,
        classes: ArrayLike,
        *,
        num_classes: int | None = None,
        label_field: str = "label",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Selection":
        """Retain every sample of `classes`.

        Args:
            beton: the source.
            classes: class ids `(K,)`, in any order, without repeats.
            num_classes: number of classes C. Default: the beton's.
            label_field: field of the class ids.
            provenance: facts to record with the selection.
        """
        index = BetonIndex.of(beton)
        labels = index.labels(label_field)
        count = max(num_classes or 0, num_classes_of(index, labels, label_field))
        ids = np.sort(check_int_array("classes", classes, below=count, distinct=True))
        label_map = _number(ids, count)
        return cls(
            classes=ids,
            indices=class_members(labels, label_map >= 0),
            label_map=label_map,
            fingerprint=index.fingerprint,
            label_field=label_field,
            class_names=index.class_names(label_field),
            provenance=provenance or {},
            index=index,
        )

    @classmethod
    def of_indices(
        cls,
        beton: Beton,
        indices: ArrayLike,
        *,
        num_classes: int | None = None,
        label_field: str = "label",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Selection":
        """Retain the samples `indices` `(M,)`, given in any order; repeats count once.

        The other arguments are those of `of_classes`. If the beton has no field `label`, the
        selection has no classes.
        """
        index = BetonIndex.of(beton)
        retained = np.zeros(index.num_samples, dtype=np.bool_)
        retained[index.check_ids("indices", indices)] = True
        ids = np.flatnonzero(retained)
        if label_field == "label" and not any(field.name == "label" for field in index.fields):
            classes = label_map = np.empty(0, dtype=np.int64)
        else:
            labels = index.labels(label_field)
            count = max(num_classes or 0, num_classes_of(index, labels, label_field))
            classes = np.flatnonzero(np.bincount(labels[ids], minlength=count))
            label_map = _number(classes, count)
        return cls(
            classes=classes,
            indices=ids,
            label_map=label_map,
            fingerprint=index.fingerprint,
            label_field=label_field,
            class_names=index.class_names(label_field),
            provenance=provenance or {},
            index=index,
        )

    def digest(self) -> str:
        """Return a SHA-256, as hex digits, of the retained classes and samples and the beton."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for name in self.ARRAYS:
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()

    def check(self, beton: Beton) -> None:
        """Raise StaleArtifactError unless the selection was made for this beton."""
        index = BetonIndex.of(beton)
        check_fingerprint("selection", self.fingerprint, index.fingerprint, index.path)
        # Raw images of one size, sorted by class, give equal fingerprints to different datasets.
        self._check_names(index, "Select again.")
        if self.indices[-1] >= index.num_samples:
            raise ValueError(
                f"the selection retains sample {self.indices[-1]}, but {str(index.path)!r} has "
                f"{index.num_samples} samples. Select again."
            )

    def transfer(self, beton: Beton) -> "Selection":
        """Retain the same classes of another beton of the source, such as its validation split.

        Raises:
            StaleArtifactError: a class of the other beton has another name.
            ValueError: the other beton has more classes.
        """
        index = BetonIndex.of(beton)
        self._check_names(
            index, "Use a split of the same source, written with the same order of classes."
        )
        count = num_classes_of(index, index.labels(self.label_field), self.label_field)
        if count > len(self.label_map):
            raise ValueError(
                f"the beton has {count} classes, but the selection's source has "
                f"{len(self.label_map)}. Use a split of the same source."
            )
        return Selection.of_classes(
            index,
            self.classes,
            num_classes=len(self.label_map),
            label_field=self.label_field,
            provenance={**self.provenance, "transferred_from": self.fingerprint},
        )

    def _check_names(self, index: BetonIndex, advice: str) -> None:
        check_class_names(
            self.class_names,
            index.class_names(self.label_field),
            where="the selection's source",
            elsewhere=repr(str(index.path)),
            advice=advice,
        )

    def summary(self, beton: Beton | None = None) -> dict[str, Any]:
        """Return the retained classes and the numbers of classes and samples, JSON-able.

        Args:
            beton: the selection's beton. If given, sizes and class names are added.
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
                "classes": [names[c] if c < len(names) else int(c) for c in self.classes],
            }
        if "automatic" in self.provenance:
            result["keep"] = self.provenance["keep"]
            result["automatic"] = self.provenance["automatic"]
        if "retained" in self.provenance.get("clusters", {}):
            result["pseudo_classes"] = self.provenance["clusters"]["retained"]
        return result

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"Selection({len(self.classes)} of {len(self.label_map)} classes, "
            f"{len(self.indices)} samples)"
        )


def num_classes_of(index: BetonIndex, labels: NDArray[np.int64], label_field: str) -> int:
    """Return the number of classes, given the labels: as many as are named, or as occur."""
    return max(int(labels.max(initial=-1)) + 1, len(index.class_names(label_field)))


def _ascends(ids: NDArray[np.int64]) -> bool:
    return not ids.size or bool(ids[0] >= 0 and (ids[1:] > ids[:-1]).all())


def _number(classes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the new label of each of `count` classes: its place in `classes`, or -1."""
    label_map = np.full(count, -1, dtype=np.int64)
    label_map[classes] = np.arange(len(classes))
    return label_map
