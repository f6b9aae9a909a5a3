"""Betons of a run: a source with the selection made for it, or the splits of a target."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, Selection
from dp4tl_ffcv.utils import check_class_names, sha256_of_file


@dataclass(frozen=True)
class Source:
    """The betons and the selection of a run."""

    index: BetonIndex
    """The training beton."""
    selection: Selection | None
    """The retained classes and samples. None keeps all samples."""
    val: BetonIndex | None
    """The validation beton."""

    @property
    def num_classes(self) -> int:
        """Number of retained classes."""
        return len(self.selection.classes) if self.selection else self.index.num_classes

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the retained samples, ascending."""
        return self.selection.indices if self.selection else np.arange(self.index.num_samples)

    @property
    def num_samples(self) -> int:
        """Number of retained samples, which make an epoch."""
        return len(self.selection) if self.selection else self.index.num_samples

    def fingerprints(self) -> dict[str, str]:
        """Return the identity of each file's content, by the setting that names the file."""
        found = {"train": self.index.fingerprint}
        if self.selection:
            found["selection"] = self.selection.digest()
        if self.val:
            found["val"] = self.val.fingerprint
        return found


def names_of(index: BetonIndex, classes: Iterable[int]) -> tuple[str, ...]:
    """Return the names of some classes, or none if the manifest does not name all of them."""
    names, ids = index.class_names(), list(classes)
    return tuple(names[each] for each in ids) if max(ids) < len(names) else ()


def open_source(train: Path, selection: Path | None, val: Path | None = None) -> Source:
    """Open the betons and the selection, and check that they belong together.

    Raises:
        StaleArtifactError: the selection was made for another beton, or a class of the validation
            beton has another name.
        ValueError: the validation beton belongs to another source.
    """
    index = BetonIndex.open(train)
    chosen = Selection.load(selection) if selection else None
    if chosen:
        chosen.check(index)
    val_index = BetonIndex.open(val) if val else None
    if val_index is not None and (
        val_index.num_classes > index.num_classes
        or (chosen is not None and not np.isin(chosen.classes, val_index.labels()).any())
    ):
        raise ValueError(
            f"`val`, {str(val)!r}, is not the validation split of `train`: it has more classes, or "
            "no sample of a retained class."
        )
    if val_index is not None:
        _check_names(index, val_index, "val")
    return Source(index, chosen, val_index)


def open_splits(**paths: Path) -> dict[str, BetonIndex]:
    """Open `train`, `val` and `test`, and check that they are three splits of one target.

    Raises:
        StaleArtifactError: a class has another name in another split.
        ValueError: two splits hold the same samples, or one has classes that `train` lacks.
    """
    splits = {name: BetonIndex.open(path) for name, path in paths.items()}
    num_classes = splits["train"].num_classes
    for (first, one), (second, other) in combinations(splits.items(), 2):
        # A fingerprint does not cover pixels. Hash files only if fingerprints match, which is rare.
        if one.fingerprint == other.fingerprint and (
            sha256_of_file(one.path) == sha256_of_file(other.path)
        ):
            raise ValueError(
                f"`{second}` holds the same samples as `{first}`. Split the target, or its "
                "training split."
            )
    for name in ("val", "test"):
        if splits[name].num_classes > num_classes:
            raise ValueError(
                f"`{name}` has {splits[name].num_classes} classes, but `train` has {num_classes}. "
                "Pass a split of the same target."
            )
        _check_names(splits["train"], splits[name], name)
    return splits


def _check_names(train: BetonIndex, other: BetonIndex, name: str) -> None:
    check_class_names(
        train.class_names(),
        other.class_names(),
        where="`train`",
        elsewhere=f"`{name}`",
        advice="Write all splits with the same order of classes.",
    )
