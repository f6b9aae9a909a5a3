"""`RemapLabel` on labels of every kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import IntField
from ffcv.fields.basics import IntDecoder
from ffcv.transforms import Squeeze, ToTensor
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import PrunedLoader, RemapLabel, write_beton

LABELS = [0, 3, 1, 2, 5, 4, 9]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numbers") / "numbers.beton"
    write_beton(
        path,
        [(label, -label) for label in LABELS],
        {"label": IntField(), "n": IntField()},
        seed=None,
    )
    return path


def remapped(path: Path, field: str, label_map: Any) -> list[int]:
    steps = [IntDecoder(), RemapLabel(label_map), ToTensor(), Squeeze(1)]
    loader = PrunedLoader(
        path, 3, pipelines={"label": None, "n": None, field: steps}, drop_last=False
    )
    batches = [batch.clone() for (batch,) in loader]
    assert {batch.dtype for batch in batches} == {torch.int64}
    return torch.cat(batches).tolist()


@pytest.mark.parametrize(
    ("field", "label_map", "expected"),
    [
        ("label", np.array([2, -1, 0, 1], dtype=np.int32), [2, 1, -1, 0, -1, -1, -1]),
        ("label", range(10, 20), [10, 13, 11, 12, 15, 14, 19]),
        ("n", [7, 8, 9], [7, -1, -1, -1, -1, -1, -1]),
    ],
    ids=["pruned classes", "all classes", "negative labels"],
)
def test_labels_are_looked_up_in_the_label_map(
    field: str, label_map: Any, expected: list[int], numbers: Path
) -> None:
    assert remapped(numbers, field, label_map) == expected


@given(st.data())
def test_the_compiled_function_is_a_bounds_checked_lookup(data: st.DataObject) -> None:
    table = data.draw(st.lists(st.integers(-1, 50), min_size=1, max_size=20))
    labels = data.draw(st.lists(st.integers(-5, 30), max_size=20))
    remap: Callable[..., Any] = RemapLabel(table).generate_code()
    source = np.array(labels, dtype=np.int64).reshape(-1, 1)
    destination = np.full((25, 1), 99, dtype=np.int64)
    result = remap(source, destination)
    expected = [table[label] if 0 <= label < len(table) else -1 for label in labels]
    assert result.shape == (len(labels), 1)
    assert result.reshape(-1).tolist() == expected
    assert (destination[len(labels) :] == 99).all()


def test_the_label_map_is_copied() -> None:
    table = np.array([1, 0])
    operation = RemapLabel(table)
    table[:] = 9
    assert operation.label_map.tolist() == [1, 0]


@pytest.mark.parametrize("label_map", [[], [[0, 1]], 3], ids=str)
def test_a_label_map_of_another_shape_is_rejected(label_map: Any) -> None:
    with pytest.raises(ValueError, match=r"^`label_map` must have shape \(C,\), C >= 1; got"):
        RemapLabel(label_map)
