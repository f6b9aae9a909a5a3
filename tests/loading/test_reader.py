"""ffcv's Reader on our tables: the same fields and metadata, and no bytes for empty values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField
from ffcv.writer import DatasetWriter

from dp4tl_ffcv import BetonIndex, PrunedLoader

NUM_SAMPLES = 12


def blob(number: int) -> Any:
    return np.full(5 * (number % 3), number, dtype=np.uint8)  # every third is empty


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton by ffcv's writer, which gives empty bytes the address of what follows them."""
    path = tmp_path_factory.mktemp("blobs") / "blobs.beton"
    fields = {"first": BytesField(), "second": BytesField(), "number": IntField()}
    samples = [(blob(number), blob(number + 1), number) for number in range(NUM_SAMPLES)]
    DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=1).from_indexed_dataset(samples)
    return path


def test_empty_bytes_are_not_what_follows_them(blobs: Path) -> None:
    index = BetonIndex.open(blobs)
    addresses, owners = index.column("first")["ptr"], index.column("second")["ptr"]
    assert np.isin(addresses[::3], owners).any()  # otherwise the test shows nothing
    loader = PrunedLoader(blobs, 4)
    np.testing.assert_array_equal(loader.reader.alloc_table, index.allocations)
    read = loader.memory_manager.compile_reader()
    with loader.memory_manager.schedule_epoch([np.arange(NUM_SAMPLES)]) as memory:
        memory.start_batch(0)
        for number in range(NUM_SAMPLES):
            for column, expected in (("f0", blob(number)), ("f1", blob(number + 1))):
                address = loader.reader.metadata[column]["ptr"][number]
                np.testing.assert_array_equal(read(address, memory.state), expected)
