"""Opening a beton checks the descriptors of its fields, which ffcv's `from_binary` trusts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import IntField, NDArrayField, TorchTensorField
from ffcv.fields.ndarray import NDArrayArgsType

from dp4tl_ffcv import BetonError, BetonIndex, verify
from dp4tl_ffcv.beton.format import CUSTOM_TYPE
from tests.support.betons import OpaqueField, damage, write_ours

FIRST_TYPE = NDArrayArgsType.itemsize


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    samples = [(number, np.full((2, 3), number, dtype=np.float32)) for number in range(4)]
    fields = {"label": IntField(), "vector": NDArrayField(np.dtype("<f4"), (2, 3))}
    return write_ours(tmp_path / "arrays.beton", samples, fields)


def set_arrays(path: Path, shape: list[int], text: bytes, length: int | None = None) -> None:
    """Change shape and type of the arrays in a beton."""
    with damage(path) as parts:
        arguments = parts.descriptors["arguments"][1]
        arguments[:] = 0
        header = arguments[:FIRST_TYPE].view(NDArrayArgsType)
        header["shape"][0][: len(shape)] = shape
        header["type_length"] = len(text) if length is None else length
        arguments[FIRST_TYPE : FIRST_TYPE + len(text)] = np.frombuffer(text, dtype=np.uint8)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BetonError, match=message) as error:
        BetonIndex.open(path)
    assert verify(path).problems[0].message == str(error.value)


FLOATS = b'[["", "<f4"]]'


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (b'[["", "|u\xb4"]]', None),
        (b'[["", ', None),
        (b'[["", "|zz"]]', None),
        (b'[["", "|u3"]]', None),
        (b'[["", 4]]', None),
        (b'[["a", "<f4"], ["b", "<f4"]]', None),
        (b'[["", "f4,f4"]]', None),
        (b'[["", "(9999999,9999999)f8"]]', None),
        (b'[["", "|V99999999999999999999"]]', None),
        (b"[" * 700, None),
        (b"{}", None),
        (b"", None),
        (FLOATS, 3),
        (FLOATS, 2**64 - 1),
        (FLOATS, 0),
    ],
    ids=str,
)
def test_an_array_type_that_cannot_be_read_is_refused(
    text: bytes, length: int | None, arrays: Path
) -> None:
    set_arrays(arrays, [2, 3], text, length)
    refused(arrays, r"arrays\.beton' is .*the type of the arrays in its field 'vector' is unknown")


@pytest.mark.parametrize(
    ("shape", "text", "message"),
    [
        ([], FLOATS, r"'vector' holds arrays of type float32 and shape \(\)"),
        ([3, 0, 2], FLOATS, r"'vector' holds arrays of type float32 and shape \(3, 0, 2\)"),
        ([1], b'[["", "|S0"]]', r"'vector' holds arrays of type \|S0 and shape \(1,\)"),
        ([3], b'[["", "|O"]]', r"'vector' holds arrays of type object"),
        ([3, 2], b'[["", ">f4"]]', r"'vector' holds arrays of type >f4"),
        ([3, 2], b'[["", "|S4"]]', r"'vector' holds arrays of type \|S4"),
        (
            [1 << 40],
            FLOATS,
            "arrays of its field 'vector' have [0-9]+ bytes, more than the",
        ),
        ([1 << 63] * 32, FLOATS, "'vector' have [0-9]+ bytes, more than the file"),
    ],
    ids=["none", "zero", "empty type", "objects", "big-endian", "text", "2^40", "2^2016"],
)
def test_arrays_without_values_or_larger_than_the_file_are_refused(
    shape: list[int], text: bytes, message: str, arrays: Path
) -> None:
    set_arrays(arrays, shape, text)
    refused(arrays, message)


def test_a_shape_that_contradicts_the_stored_bytes_is_refused(arrays: Path) -> None:
    set_arrays(arrays, [2, 4], FLOATS)
    with pytest.raises(BetonError, match="'vector' of sample 0 has 24 bytes instead of 32"):
        BetonIndex.open(arrays)


@pytest.mark.parametrize(
    ("field", "value", "size"),
    [
        (NDArrayField(np.dtype("<f8"), (3, 1, 2)), np.zeros((3, 1, 2)), 48),
        (NDArrayField(np.dtype("|b1"), (5,)), np.zeros(5, dtype=np.bool_), 5),
        (TorchTensorField(torch.int16, (2, 2)), torch.zeros((2, 2), dtype=torch.int16), 8),
    ],
    ids=["float64", "bool", "torch"],
)
def test_the_size_of_arrays_is_known(field: Any, value: Any, size: int, tmp_path: Path) -> None:
    path = write_ours(tmp_path / "a.beton", [(1, value)], {"label": IntField(), "x": field})
    label, arrays = BetonIndex.open(path).fields
    assert (label.value_bytes, arrays.value_bytes) == (None, size)


@pytest.mark.parametrize(
    "name",
    [b"", b"na\xefve", b"a\x1b[31mred", b"two\nlines", b"\x7f", b"label", b"x\0\xff"],
    ids=str,
)
def test_a_field_name_that_cannot_be_shown_or_found_is_refused(name: bytes, arrays: Path) -> None:
    with damage(arrays) as parts:
        parts.descriptors["name"][1] = 0
        parts.descriptors["name"][1, : len(name)] = np.frombuffer(name, dtype=np.uint8)
    refused(arrays, r"the name of its field 1 is b|it has two fields called 'label'")


def test_more_fields_than_the_file_can_hold_are_refused(arrays: Path) -> None:
    with damage(arrays) as parts:
        parts.header["num_fields"] = 65535
    refused(arrays, "the descriptors of 65535 fields overlap other tables")


class Unreadable(OpaqueField):
    @classmethod
    def from_binary(cls, binary: Any) -> Any:
        raise KeyError("arguments")


class Numbers(OpaqueField):
    metadata_type = np.dtype([("a", "<i4"), ("b", "<i4")])  # as many bytes as an integer

    def encode(self, destination: Any, value: Any, malloc: Any) -> None:
        raise NotImplementedError


class Objects(Numbers):
    metadata_type = np.dtype("O")


def test_the_class_of_a_custom_field_decides_what_its_records_mean(arrays: Path) -> None:
    index = BetonIndex.open(arrays, custom_fields={"vector": Numbers})
    assert index.column("vector").dtype == Numbers.metadata_type
    assert [field.is_custom for field in index.fields] == [False, True]
    with pytest.raises(BetonError, match=r"arguments of the field 'vector' in .*: KeyError"):
        BetonIndex.open(arrays, custom_fields={"vector": Unreadable})
    with pytest.raises(ValueError, match="custom field 'vector' must have a fixed size"):
        BetonIndex.open(arrays, custom_fields={"vector": Objects})


def test_a_custom_field_is_custom_whatever_its_records_are(arrays: Path) -> None:
    with damage(arrays) as parts:
        parts.descriptors["type_id"][1] = CUSTOM_TYPE
    for dtype in ("<f8", "<i8", "V8"):
        numbers = type("Other", (Numbers,), {"metadata_type": np.dtype(dtype)})
        index = BetonIndex.open(arrays, custom_fields={"vector": numbers})
        assert [field.is_custom for field in index.fields] == [False, True]


def test_a_beton_without_samples_promises_no_memory(arrays: Path) -> None:
    with damage(arrays) as parts:
        parts.header["num_samples"] = 0
    set_arrays(arrays, [1 << 30], FLOATS)
    refused(arrays, "'vector' have 4294967296 bytes, more than the file")
