"""`dp4tl compact`: every option reaches the library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex, Selection
from tests.conftest import CLASS_NAMES, Images

Run = Callable[..., Any]


@pytest.fixture
def selection(photos: Images, tmp_path: Path) -> Path:
    """Three classes of the photos."""
    path = tmp_path / "selection.npz"
    Selection.of_classes(photos.index, [2, 5, 9]).save(path)
    return path


def test_the_options_reach_the_library(
    run: Run, photos: Images, selection: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.beton"
    common = ("compact", photos.path, "--selection", selection, "--out", out, "--num-workers", "2")
    result = run(*common, "--layout", "class", "--relabel")
    index = BetonIndex.open(out)
    assert result == {"out": str(out), **index.summary()}
    assert index.labels().tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert index.manifest is not None
    assert index.manifest.class_names == tuple(CLASS_NAMES[c] for c in (2, 5, 9))
    run(*common)
    first = BetonIndex.open(out).column("identifier")
    source = photos.index.column("identifier")[Selection.load(selection).indices]
    assert sorted(first) == sorted(source)
    run(*common, "--seed", "7")
    assert BetonIndex.open(out).column("identifier").tolist() != first.tolist()
    result = run(*common, "--images", "raw", "--max-resolution", "32")
    index = BetonIndex.open(out)
    assert result["image_stored"] == {"jpg": 0, "raw": 36}
    assert index.column("image")["height"].max() == 32
    images = index.column("image")
    pixels = images["height"].astype(np.int64) * images["width"]
    assert result["sample_bytes"] == 3 * pixels.sum()


def test_all_samples_and_some_fields(run: Run, photos: Images, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out.beton")
    result = run(
        "compact", photos.path, *out, "--raw-budget", "20MiB", "--fields", "image", "label"
    )
    assert result["samples"] == 120
    assert result["image_stored"] == {"jpg": 0, "raw": 120}
    assert list(result["fields"]) == ["image", "label"]


def test_bad_input_is_one_line(
    fail: Callable[..., str], photos: Images, other_photos: Images, selection: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out.beton")
    for words, says in (
        ((photos.path, *out, "--raw-budget", "1MiB"), "`raw_budget`"),
        ((photos.path, "--out", photos.path), "`out`"),
        ((other_photos.path, "--selection", selection, *out), "`selection`"),
        ((tmp_path / "nowhere.beton", *out), "nowhere.beton"),
    ):
        assert says in fail("compact", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selection.npz"]
