"""Opening a beton compares records with byte ranges, because ffcv's decoders trust both."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex, verify
from dp4tl_ffcv.beton import format
from tests.support.betons import Parts, damage, every_field, every_sample, write_ours, write_stock

# Fields with byte ranges.
KINDS = {
    "photo": "rgb_image",
    "pixels": "rgb_image",
    "blob": "bytes",
    "info": "json",
    "vector": "ndarray",
    "tensor": "torch_tensor",
}


@pytest.fixture(scope="module", params=["ffcv", "write_beton"])
def known_bytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A beton of every kind of field except custom ones."""
    path = tmp_path_factory.mktemp("known") / "known.beton"
    fields = dict(list(every_field().items())[:-2])
    samples = [sample[:-2] for sample in every_sample()]
    write = write_stock if request.param == "ffcv" else write_ours
    return write(path, samples, fields).read_bytes()


@pytest.fixture
def known(known_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "known.beton"
    path.write_bytes(known_bytes)
    return path


def column(parts: Parts, field: str) -> NDArray[Any]:
    """Return a view of the metadata of a field; the first two have no byte ranges."""
    records: NDArray[Any] = parts.metadata[f"f{2 + list(KINDS).index(field)}"]
    return records


def places(parts: Parts, field: str) -> NDArray[np.uint64]:
    """Return a view of the first bytes of a field's values."""
    (found,) = format.pointers(column(parts, field), KINDS[field])
    return found


def row_of(parts: Parts, field: str, sample_id: int) -> int:
    """Return the row of the allocation table with the bytes of a value."""
    found = parts.table["ptr"] == places(parts, field)[sample_id]
    return int(np.flatnonzero(found & (parts.table["size"] > 0))[0])


def refused(path: Path, found: str) -> None:
    message = f"{re.escape(repr(str(path)))} is truncated or corrupt: {found}"
    with pytest.raises(BetonError, match=message):
        BetonIndex.open(path)
    assert not verify(path).is_sound


@pytest.mark.parametrize("by", [-1, 1, 1000])
@pytest.mark.parametrize("field", [*KINDS][1:])
def test_bytes_of_another_size_than_the_record_says_are_refused(
    field: str, by: int, known: Path
) -> None:
    with damage(known) as parts:
        row = row_of(parts, field, 9)
        size = int(parts.table["size"][row])
        parts.table["size"][row] = size + by
        if by > 0:  # move them to the end of the file, where they overlap no others
            end = int(parts.header["alloc_table_ptr"]) - size - by
            parts.table["ptr"][row] = places(parts, field)[9] = end
    refused(known, f"the field '{field}' of sample 9 has {size + by} bytes instead of {size}")


@pytest.mark.parametrize("field", ["blob", "info"])
@pytest.mark.parametrize("size", [0, 1, 1 << 40, 2**64 - 1])
def test_a_record_of_another_size_than_its_bytes_is_refused(
    field: str, size: int, known: Path
) -> None:
    with damage(known) as parts:
        column(parts, field)["size"][8] = size
    refused(known, f"the field '{field}' of sample 8 (has|points to) ")


def test_empty_bytes_of_a_record_that_says_otherwise_are_refused(tmp_path: Path) -> None:
    samples = [(np.ones(size, dtype=np.uint8),) for size in (4, 0, 3)]
    path = write_stock(tmp_path / "a.beton", samples, {"blob": BytesField()})
    assert BetonIndex.open(path).column("blob")["size"].tolist() == [4, 0, 3]
    with damage(path) as parts:
        parts.metadata["f0"]["size"][1] = 3  # as many as the next one, which starts there
    refused(path, "the field 'blob' of sample 1 points to bytes of another sample")


@pytest.mark.parametrize(
    ("field", "sample_id", "other", "other_id", "found"),
    [
        ("pixels", 3, "pixels", 4, "another sample"),
        ("photo", 3, "pixels", 4, "another sample"),
        ("vector", 0, "vector", 23, "another sample"),
        ("info", 3, "blob", 3, "another field"),
    ],
)
def test_bytes_that_two_values_share_are_refused(
    field: str, sample_id: int, other: str, other_id: int, found: str, known: Path
) -> None:
    with damage(known) as parts:
        column(parts, field)[sample_id] = column(parts, other)[other_id]
    refused(known, f"the field '{field}' of sample {sample_id} points to bytes of {found}")


def test_overlapping_bytes_are_refused_by_the_names_of_both_samples(known: Path) -> None:
    with damage(known) as parts:
        first, second = row_of(parts, "photo", 4), row_of(parts, "photo", 5)
        if parts.table["ptr"][first] > parts.table["ptr"][second]:
            first, second = second, first
        parts.table["size"][first] = parts.table["ptr"][second] - parts.table["ptr"][first] + 1
    refused(known, "bytes of sample [0-9]+ and bytes of sample [0-9]+ overlap")


def test_many_ranges_that_claim_the_rest_of_the_file_are_refused(tiny: Path) -> None:
    """Reading each of them would take the size of the file many times."""
    with damage(tiny) as parts:
        parts.table["size"] = np.uint64(parts.header["alloc_table_ptr"]) - parts.table["ptr"]
    refused(tiny, "bytes of sample 0 and bytes of sample 1 overlap")


@pytest.mark.parametrize("mode", [2, 255])
def test_an_unknown_image_mode_is_named(mode: int, tiny: Path) -> None:
    with damage(tiny) as parts:
        parts.metadata["f0"]["mode"][3] = mode
    message = (
        rf"tiny\.beton' stores the image of sample 3 .*as mode {mode}, which ffcv does not read"
    )
    with pytest.raises(BetonError, match=message):
        BetonIndex.open(tiny)
    assert [problem.kind for problem in verify(tiny).problems] == ["image"]
