"""`write_beton` stores a value as it is, or names the sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import (
    BytesField,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    TorchTensorField,
)
from ffcv.fields.base import Field

from dp4tl_ffcv import BetonIndex, write_beton
from tests.support.betons import write_ours

VECTOR = NDArrayField(np.dtype("<f4"), (2, 3))
TENSOR = TorchTensorField(torch.int16, (4,))
ONES = np.ones((2, 3), dtype=np.float32)


def shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Field) else f"{value!s:.30}"


def write(path: Path, field: Any, value: Any) -> BetonIndex:
    return BetonIndex.open(write_ours(path / "a.beton", [(value,)], {"x": field}))


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        *(
            (IntField(), value, 3)
            for value in (3, 3.0, np.int8(3), np.uint64(3), np.float16(3), torch.tensor(3.0))
        ),
        (IntField(), np.array(3), 3),
        (IntField(), True, 1),
        (IntField(), np.False_, 0),
        (IntField(), torch.tensor(True), 1),
        (IntField(), -(2**63), -(2**63)),
        (IntField(), 2**63 - 1, 2**63 - 1),
        (FloatField(), 0.1, 0.1),
        (FloatField(), np.float32(0.1), float(np.float32(0.1))),
        (FloatField(), torch.tensor(0.5), 0.5),
        (FloatField(), -3, -3.0),
        (FloatField(), 2**60, 2.0**60),
        (FloatField(), float("inf"), float("inf")),
    ],
    ids=shown,
)
def test_numbers_that_a_field_holds_are_stored(
    field: Any, value: Any, stored: float, tmp_path: Path
) -> None:
    assert write(tmp_path, field, value).column("x").tolist() == [stored]


def test_nan_is_a_float(tmp_path: Path) -> None:
    assert np.isnan(write(tmp_path, FloatField(), np.float32("nan")).column("x")).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *(
            (IntField(), value, r"an integer field cannot hold 1\.7")
            for value in (1.7, np.float64(1.7), np.array(1.7), torch.tensor(1.7).double())
        ),
        *(
            (IntField(), value, "an integer field cannot hold")
            for value in (float("nan"), np.float32("-inf"))
        ),
        *(
            (IntField(), value, "an integer field has 64 bits, too few for")
            for value in (2**63, np.uint64(2**63), -(2**63) - 1, 1e19, 10**400)
        ),
        *(
            (IntField(), value, "an integer field holds numbers, not ")
            for value in ("3", b"3", None, 3 + 0j, [3], np.str_("3"), np.array([3]), ONES)
        ),
        *(
            (FloatField(), value, "a float field holds numbers, not ")
            for value in ("0.5", b"1", None, 1 + 2j, np.complex64(1), [0.5], torch.ones(2))
        ),
        *(
            (FloatField(), value, "a float field has 64 bits, too few for")
            for value in (2**53 + 1, np.int64(2**53 + 1), 10**400)
        ),
        *(
            (BytesField(), value, r"a bytes field holds uint8 arrays \(N,\), not ")
            for value in (b"abc", "abc", [1, 2], np.array([1.7, 300.0]), np.ones((2, 2), np.uint8))
        ),
        (JSONField(), {"loss": float("nan")}, "Out of range float values are not JSON"),
        *(
            (VECTOR, value, r"the field holds float32 arrays of shape \(2, 3\), not ")
            for value in (
                np.ones((3, 2), dtype=np.float32),
                np.ones((2, 3), dtype=np.int32),
                np.ones((2, 3), dtype=">f4"),
                np.ones((1,), dtype=np.uint8),
            )
        ),
        (VECTOR, ONES.tolist(), "an array field holds numpy arrays, not list"),
        (VECTOR, torch.ones((2, 3)), "an array field holds numpy arrays, not torch.float32 of sh"),
        (TENSOR, torch.ones(4), r"the field holds int16 arrays of shape \(4,\), not torch.float32"),
        (
            TENSOR,
            torch.ones((2, 2), dtype=torch.int16),
            r"the field .*, not torch.int16 of shape \(2, 2\)",
        ),
        (TENSOR, np.ones(4, dtype=np.int16), "a tensor field holds torch tensors, not int16"),
    ],
    ids=shown,
)
def test_a_value_that_a_field_would_change_is_refused(
    field: Any, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"Cannot encode sample 0: (TypeError: )?{message}"):
        write(tmp_path, field, value)
    assert list(tmp_path.iterdir()) == []


class Doubled(IntField):  # type: ignore[misc]  # ffcv is untyped
    """A field of a user, who decides what it stores."""

    def encode(self, destination: Any, field: Any, malloc: Any) -> None:
        destination[0] = 2 * len(field)


def test_the_field_of_a_user_gets_any_value(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "a.beton", [("abc",)], {"x": Doubled()})
    assert BetonIndex.open(path, custom_fields={"x": Doubled}).column("x").tolist() == [6]


@pytest.mark.parametrize(
    "field",
    [
        NDArrayField(np.dtype("<f4"), ()),
        NDArrayField(np.dtype("<f4"), (3, 0)),
        NDArrayField(np.dtype("O"), (3,)),
        NDArrayField(np.dtype([("a", "<f4"), ("b", "<i4")]), (3,)),
        NDArrayField(np.dtype(">f4"), (3,)),
        NDArrayField(np.dtype("S4"), (3,)),
        NDArrayField(np.dtype("M8[ns]"), (3,)),
        TorchTensorField(torch.float32, ()),
    ],
    ids=["no dimension", "empty", "objects", "records", "order", "text", "times", "tensor"],
)
def test_arrays_that_ffcv_cannot_read_are_refused(field: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^ffcv cannot read arrays of .*Give the field 'x' ano"):
        write_beton(tmp_path / "a.beton", [(np.float32(0),)], {"x": field}, label_field="")
    assert list(tmp_path.iterdir()) == []


# Class ids.


@pytest.mark.parametrize("label", [10**8, 10**12, -1, 1 << 20, 2**63 - 1])
def test_a_label_that_is_no_class_id_is_refused_at_its_sample(label: int, tmp_path: Path) -> None:
    samples = [(0,), (1,), (label,), (2,)]
    message = rf"Cannot encode sample 2: the class id {label} is not in \[0, 1048576\)"
    with pytest.raises(ValueError, match=message):
        write_beton(tmp_path / "a.beton", samples, {"label": IntField()}, num_workers=0)
    assert list(tmp_path.iterdir()) == []
    other = write_beton(
        tmp_path / "b.beton", samples, {"label": IntField()}, label_field="", num_workers=0
    )
    assert sorted(other.column("label").tolist()) == sorted([0, 1, 2, label])


def test_a_few_samples_of_a_dataset_with_many_classes_are_written(tmp_path: Path) -> None:
    samples = [(21_841,), (7,)]
    index = write_beton(tmp_path / "a.beton", samples, {"label": IntField()}, num_workers=0)
    assert index.num_classes == 21_842
