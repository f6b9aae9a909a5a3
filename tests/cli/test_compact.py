"""`dp4tl compact`: its result, what every option does, and one clear line for bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex, Selection
from dp4tl_ffcv.cli import main
from tests.conftest import CLASS_NAMES, Images

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the verb, and return what it prints as JSON."""

    def call(*arguments: str | Path) -> Any:
        capsys.readouterr()
        main(["compact", *map(str, arguments), "--json"])
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the verb, which fails, and return its one line."""

    def call(*arguments: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["compact", *map(str, arguments)])
        assert caught.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        return line

    return call


@pytest.fixture
def selection(photos: Images, tmp_path: Path) -> Path:
    """Three classes of the photos."""
    path = tmp_path / "selection.npz"
    Selection.of_classes(photos.index, [2, 5, 9]).save(path)
    return path


def test_the_result_says_what_was_written(
    run: Run, photos: Images, selection: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.beton"
    result = run(photos.path, "--selection", selection, "--out", out)
    index = BetonIndex.open(out)
    ids = np.sort(index.column("identifier"))
    assert result["out"] == str(out)
    assert result["samples"] == len(ids) == 36
    assert result["sample_bytes"] == index.sample_bytes().sum()
    assert result["file_bytes"] == out.stat().st_size
    assert result["image_stored"] == {"jpg": 36, "raw": 0}
    assert result["bytes_per_second"] == pytest.approx(result["sample_bytes"] / result["seconds"])
    source = photos.index.column("identifier")[Selection.load(selection).indices]
    assert ids.tolist() == sorted(source)


def test_all_samples_are_copied_unless_told_otherwise(
    run: Run, photos: Images, tmp_path: Path
) -> None:
    assert run(photos.path, "--out", tmp_path / "out.beton")["samples"] == 120


def test_options_reach_the_library(
    run: Run, photos: Images, selection: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.beton"
    common = (photos.path, "--selection", selection, "--out", out, "--jobs", "2")
    run(*common, "--layout", "class", "--relabel")
    index = BetonIndex.open(out)
    assert index.labels().tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert index.manifest is not None
    assert index.manifest.class_names == tuple(CLASS_NAMES[c] for c in (2, 5, 9))
    run(*common)
    first = BetonIndex.open(out).column("identifier").tolist()
    run(*common, "--seed", "7")
    assert BetonIndex.open(out).column("identifier").tolist() != first
    result = run(*common, "--images", "raw", "--max-resolution", "32")
    index = BetonIndex.open(out)
    assert result["image_stored"] == {"jpg": 0, "raw": 36}
    assert index.column("image")["height"].max() == 32
    assert result["sample_bytes"] == 3 * sum(
        int(row["height"]) * int(row["width"]) for row in index.column("image")
    )


def test_fields_are_left_out(run: Run, photos: Images, tmp_path: Path) -> None:
    run(photos.path, "--out", tmp_path / "out.beton", "--fields", "image", "label")
    fields = BetonIndex.open(tmp_path / "out.beton").fields
    assert [field.name for field in fields] == ["image", "label"]


def test_a_budget_is_spent(run: Run, photos: Images, tmp_path: Path) -> None:
    result = run(photos.path, "--out", tmp_path / "out.beton", "--raw-budget", "20MiB")
    assert result["image_stored"] == {"jpg": 0, "raw": 120}


def test_bad_input_is_one_line(
    fail: Callable[..., str], photos: Images, other_photos: Images, selection: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out.beton")
    assert "`raw_budget` must be at least" in fail(photos.path, *out, "--raw-budget", "1MiB")
    assert "`out` must be another file" in fail(photos.path, "--out", photos.path)
    stale = fail(other_photos.path, "--selection", selection, *out)
    assert "`selection` must be made for this beton" in stale
    assert "there is no file" in fail(tmp_path / "nowhere.beton", *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selection.npz"]
