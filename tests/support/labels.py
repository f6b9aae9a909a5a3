"""A beton of labels alone, with classes of every size, none included."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import IntField

from dp4tl_ffcv import BetonIndex, write_beton

COUNTS = [5, 1, 0, 9, 2, 2, 0, 7, 3, 1, 4, 0]  # samples of each class; the last is only named


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> BetonIndex:
    """34 samples of 12 named classes, of which three have none; field `other` counts by fives."""
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    path: Path = tmp_path_factory.mktemp("uneven") / "uneven.beton"
    samples = [(int(label), number // 5) for number, label in enumerate(labels)]
    names = [f"class {number}" for number in range(len(COUNTS))]
    fields = {"label": IntField(), "other": IntField()}
    return write_beton(path, samples, fields, class_names=names, seed=None)


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> BetonIndex:
    """100 samples of one class."""
    path: Path = tmp_path_factory.mktemp("hundred") / "hundred.beton"
    return write_beton(path, [(0,)] * 100, {"label": IntField()})


def write_labels(path: Path, labels: Sequence[int], names: Sequence[str] = ()) -> BetonIndex:
    """Write a beton that has only labels, and names for the classes."""
    rows = [(label,) for label in labels]
    return write_beton(path, rows, {"label": IntField()}, class_names=names, seed=None)
