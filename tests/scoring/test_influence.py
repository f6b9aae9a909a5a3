"""Class influence against its definition, and class lists in every format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from dp4tl_ffcv.scoring import class_influence, class_list
from dp4tl_ffcv.scoring.methods.class_influence import class_influences

# Influences.


def influences_by_hand(outcomes: Any, included: Any) -> list[list[float]]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    runs = range(len(outcomes))
    return [
        [
            mean([float(outcomes[r][j]) for r in runs if included[r][c]])
            - mean([float(outcomes[r][j]) for r in runs if not included[r][c]])
            for j in range(len(outcomes[0]))
        ]
        for c in range(len(included[0]))
    ]


@given(st.integers(2, 9), st.integers(1, 5), st.integers(1, 4), st.data())
def test_influences_are_means_with_the_class_minus_means_without(
    runs: int, classes: int, images: int, data: st.DataObject
) -> None:
    def table(width: int, entries: Any) -> Any:
        rows = st.lists(entries, min_size=width, max_size=width)
        return np.array(data.draw(st.lists(rows, min_size=runs, max_size=runs)))

    included = table(classes, st.booleans())
    number = included.sum(axis=0)
    assume((number > 0).all() and (number < runs).all())
    outcomes = table(images, st.sampled_from([-3.5, 0.0, 0.25, 7.0]))
    expected = influences_by_hand(outcomes, included)
    np.testing.assert_allclose(class_influences(outcomes, included), expected, atol=1e-12)
    scores = class_influence(outcomes, included)
    np.testing.assert_allclose(scores.scores, np.mean(expected, axis=1), atol=1e-12)
    assert (scores.method, scores.unit) == ("class_influence", "class")
    assert scores.provenance == {"runs": runs, "outcomes": images}


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float16, np.float32, np.float64])
def test_outcomes_of_any_type_are_added_in_float64(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    included = rng.random((600, 7)) < 0.5
    outcomes = (100 * rng.random((600, 3)) * included[:, :1]).astype(dtype)
    influences = class_influences(outcomes, included)
    assert influences.dtype == np.float64
    np.testing.assert_allclose(influences, influences_by_hand(outcomes, included), rtol=1e-9)
    assert class_influence(outcomes, included).ranking()[0] == 0


def test_memory_maps_and_threads_do_not_change_the_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    included, outcomes = rng.random((900, 300)) < 0.5, rng.random((900, 400))
    np.save(tmp_path / "outcomes.npy", outcomes)
    stored = np.load(tmp_path / "outcomes.npy", mmap_mode="r")
    monkeypatch.setattr("dp4tl_ffcv.scoring.methods.class_influence._BLOCK_BYTES", 8 * 400 * 250)
    expected = influences_by_hand(outcomes[:, :2], included)
    found = []
    for threads, values in ((1, outcomes), (2, stored), (4, outcomes)):
        with threadpool_limits(threads, user_api="blas"):
            found.append(class_influences(values, included))
    np.testing.assert_allclose(found[0][:, :2], expected, atol=1e-12)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


HALF = np.array([[True], [False]])


@pytest.mark.parametrize("function", [class_influences, class_influence])
@pytest.mark.parametrize(
    ("outcomes", "included", "error", "message"),
    [
        ([[1.0], [2.0]], [[2], [0]], ValueError, "^`included` must hold true and false"),
        ([["a"], ["b"]], HALF, TypeError, "^`outcomes` must be numbers"),
        ([[1.0]], HALF, ValueError, r"must have shapes \(R, n\) and \(R, C\)"),
        ([1.0, 2.0], HALF, ValueError, r"must have shapes \(R, n\) and \(R, C\)"),
        (np.zeros((2, 0)), HALF, ValueError, "are empty: "),
        (np.zeros((2, 1)), np.zeros((2, 0), bool), ValueError, "are empty: "),
        (np.zeros((0, 1)), np.zeros((0, 1), bool), ValueError, "are empty: "),
        ([[1.0], [np.nan]], HALF, ValueError, "^`outcomes` hold NaN or inf"),
        ([[1.0], [-np.inf]], HALF, ValueError, "^`outcomes` hold NaN or inf"),
        ([[1.0, np.inf], [2.0, -np.inf]], HALF, ValueError, "^`outcomes` hold NaN or inf"),
        ([[1], [2]], np.ones((2, 1), bool), ValueError, "class 0 is in 2 of 2 runs"),
        ([[1], [2]], [[True, False], [False, False]], ValueError, "class 1 is in 0 of 2 runs"),
    ],
)
def test_bad_runs_are_rejected(
    function: Any, outcomes: Any, included: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(outcomes, included)


# Lists of classes.


def listed(path: Path, num_classes: int = 8, **options: Any) -> list[int]:
    """Return the ids of a list in their order."""
    scores = class_list(path, num_classes, **options)
    ids: list[int] = scores.ranking()[: scores.provenance["listed"]].tolist()
    return ids


@pytest.mark.parametrize(
    ("text", "column"),
    [
        *(
            (text, None)
            for text in (
                "3\n0\n7\n", "3 0 7", "3,0,7", "3, 0,\n7,\n", "\n3;0;7\r\n\r\n", "\ufeff3\n0\n7",
                "class\n3\n0\n7\n", "class id\n3\n0\n7\n",
            )
        ),
        ("class,score\n3,0.5\n0,0.25\n7,1\n", "class"),
        ("rank,class,score\n0,3,0.5\n1,0,0.25\n2,7,0.1\n", "class"),
        ("rank, class, score\n0, 3, 0.5\n1, 0, 0.25\n2, 7, 0.1\n", 1),
        ("0,0.5,3\n1,0.25,0\n2,0.1,7\n", 2),
        (",class\n0,3\n1,0\n2,7\n", "class"),  # as pandas writes
        ('id\tname\n"3"\tgreat\n0\ta\n7\tb', "id"),
        ('name;class\n"tench; Tinca";3\ngoldfish;0\nshark 12;7\n', "class"),
        ("class name\n3 tench\n0 goldfish\n7 shark\n", 0),
    ],
)  # fmt: skip
def test_text_in_every_format_is_read(tmp_path: Path, text: str, column: Any) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8", newline="")
    assert listed(path, column=column) == [3, 0, 7]
    if column is not None:
        with pytest.raises(ValueError, match="a table needs `column`"):
            class_list(path, 8)


@pytest.mark.parametrize("column", ["Class", "", "3", 2, -1])
def test_a_missing_column_is_reported(tmp_path: Path, column: Any) -> None:
    path = tmp_path / "list.csv"
    path.write_text("class,score\n3,0.5\n0,0.25\n")
    with pytest.raises(ValueError, match=r"no single column|have no column"):
        class_list(path, 8, column=column)
    np.save(tmp_path / "list.npy", np.array([3, 0]))
    with pytest.raises(ValueError, match=r"a \.npy file has no `column`"):
        class_list(tmp_path / "list.npy", 8, column=column)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, ">i4"])
def test_published_arrays_are_read(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "CIFAR10_keep.npy", np.array([7, 9, 8], dtype=dtype))
    (tmp_path / "CIFAR10_keep.npy").rename(tmp_path / "named_otherwise")
    assert listed(tmp_path / "named_otherwise", 10) == [7, 9, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold at least one class id"),
        (b"class\n", "must hold at least one class id"),
        (b"1\n2\n2\n", "must be distinct; got 2 more than once"),
        (b"1\n8\n", r"must lie in \[0, 8\)"),
        (b"-1", r"must lie in \[0, 8\)"),
        (b"1\n0.5\n", "0.5"),
        (b"n01440764\nn01443537\n", "n01443537"),
        (b"99999999999999999999", "is not a list of class ids"),
        (b"PK\x03\x04\xff\xfe", "is not a list of class ids"),
        (b"\x93NUMPY\x01\x00", "is not a list of class ids"),
    ],
)
def test_files_without_a_list_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "list"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        class_list(path, 8)
    assert str(caught.value).startswith(f"{str(path)!r} is not a list of class ids")


@pytest.mark.parametrize(
    "array",
    [np.array([1.0, 2.0]), np.array([[1], [2]]), np.array([1, None], object), np.array(["1"])],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_other_types_are_rejected_without_unpickling(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "list.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"is not a list of class ids"):
        class_list(tmp_path / "list.npy", 8)


@pytest.mark.parametrize(
    ("exclude", "values", "ranking"),
    [
        (False, [0, 1, 0, 1, 1, 0], [4, 1, 3, 0, 2, 5]),
        (True, [1, 0, 1, 0, 0, 1], [0, 2, 5, 3, 1, 4]),
    ],
)
def test_listed_classes_are_ranked_in_their_order_first_or_last(
    exclude: bool, values: list[int], ranking: list[int]
) -> None:
    scores = class_list([4, 1, 3], 6, exclude=exclude)
    assert scores.scores.tolist() == values
    assert scores.ranking().tolist() == ranking
    assert (scores.method, scores.unit) == ("class_list", "class")
    assert scores.provenance == {"listed": 3, "exclude": exclude}


@pytest.mark.parametrize(
    ("ids", "num_classes", "error", "message"),
    [
        ([0, 3], 3, ValueError, r"^`classes` must lie in \[0, 3\)"),
        ([1, 1], 3, ValueError, "^`classes` must be distinct; got 1 more than once"),
        ([], 3, ValueError, "^`classes` must hold at least one class id"),
        ([0.5], 3, TypeError, "^`classes` must be integers"),
        ([0], 0, ValueError, "^`beton` must be at least 1"),
    ],
)
def test_wrong_ids_are_rejected(
    ids: Any, num_classes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_list(ids, num_classes)
