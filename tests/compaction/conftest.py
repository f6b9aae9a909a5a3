"""Betons that several compaction tests copy from."""

from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, RGBImageField

from tests.compaction.support import NOTE_AND_LABEL, paint
from tests.support.betons import write_ours, write_stock

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="session")
def jpeg_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 JPEGs of many sizes, with a note each: one page, or two of their pixels."""
    samples = [
        (np.full(number % 4, number, dtype=np.uint8), number, paint(number, 130 + number, 200))
        for number in range(36)
    ]
    image = RGBImageField(write_mode="jpg", jpeg_quality=95)
    path = tmp_path_factory.mktemp("jpegs") / "source.beton"
    return write_stock(path, samples, {**NOTE_AND_LABEL, "image": image}, 2, chunk=5)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """40 samples of bytes in 4 named classes of 10."""
    rng = np.random.default_rng(3)
    samples = [
        (rng.integers(0, 256, 30_000 + 999 * i, dtype=np.uint8), i % 4, i) for i in range(40)
    ]
    fields = {"blob": BytesField(), "label": IntField(), "identifier": IntField()}
    return write_ours(tmp_path / "blobs.beton", samples, fields, class_names=NAMES)
