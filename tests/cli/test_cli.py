"""`inspect` and `export`, exit statuses, and one clear line for each bad input."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import FloatField

from dp4tl_ffcv import Selection, build_model, label_mapping, save_checkpoint, write_beton
from tests.conftest import CLASS_NAMES, Images


@pytest.fixture(scope="module")
def files(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, scores and a selection of the photos, and bad betons."""
    folder = tmp_path_factory.mktemp("cli")
    save_checkpoint(folder / "surrogate.pt", build_model("resnet8_w16", 10))
    label_mapping(np.arange(10), num_classes=10).save(folder / "lm.npz")
    Selection.of_classes(photos.index, [2, 5, 9]).save(folder / "selection.npz")
    shutil.copy(photos.path, folder / "photos.beton")
    data = photos.path.read_bytes()
    (folder / "truncated.beton").write_bytes(data[: len(data) // 2])
    (folder / "unfinished.beton").write_bytes(data[:16] + bytes(8) + data[24:])
    return folder


def test_inspect_shows_what_a_beton_contains(run: Callable[..., Any], photos: Images) -> None:
    result = run("inspect", photos.path)
    assert result["fingerprint"] == photos.index.fingerprint
    assert result["samples"] == 120
    assert result["file_bytes"] == photos.path.stat().st_size
    assert result["fields"] == {"image": "rgb_image", "label": "int", "identifier": "int"}
    assert result["image_stored"] == {"jpg": 120, "raw": 0}
    heights = [image.shape[0] for image in photos.images]
    assert result["image_height"] == [min(heights), max(heights)]
    assert result["classes"] == 10
    assert result["classes_without_samples"] == 0
    assert result["samples_per_class"] == {"min": 12, "median": 12.0, "max": 12}
    assert result["class_names"] == CLASS_NAMES


def test_inspect_describes_a_beton_without_labels(run: Callable[..., Any], tmp_path: Path) -> None:
    write_beton(tmp_path / "bare.beton", [(0.5,), (1.5,)], {"value": FloatField()}, seed=None)
    result = run("inspect", tmp_path / "bare.beton")
    assert result["samples"] == 2
    assert "classes" not in result


READERS: dict[str, Callable[[Path], Any]] = {
    "npy": np.load,
    "indices": lambda path: torch.load(path, weights_only=True),
    "txt": lambda path: np.loadtxt(path, dtype=np.int64),
}


@pytest.mark.parametrize("suffix", READERS)
def test_export_writes_the_retained_ids(
    suffix: str, run: Callable[..., Any], files: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"ids.{suffix}"
    result = run("export", files / "selection.npz", "--out", out)
    assert (result["out"], result["retained_samples"]) == (str(out), 36)
    expected = Selection.load(files / "selection.npz").indices.tolist()
    assert READERS[suffix](out).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("inspect unfinished.beton", "Write it again"),
        ("inspect nowhere.beton", "no file"),
        ("verify nowhere.beton --num-workers 0", "no file"),
        ("verify photos.beton --num-workers -1", "--num-workers"),
        ("cluster lm.npz --num-clusters 3 --out OUT.npz", "lm.npz"),
        ("compact photos.beton --raw-budget 1KiB --out OUT.beton", "--raw-budget"),
        ("compact photos.beton --out photos.beton", "--out"),
        ("features truncated.beton --model surrogate.pt --out OUT", "truncated"),
        ("features photos.beton --model lm.npz --out OUT", "lm.npz"),
        ("features photos.beton --model surrogate.pt --arch resnet8_w32 --out OUT", "resnet8_w32"),
        ("score label-mapping --target lm.npz --out OUT.npz", "lm.npz"),
        ("score random --beton photos.beton --out OUT.csv", "OUT.csv"),
        ("export lm.npz --out OUT.npy", "lm.npz"),
        ("export selection.npz --out OUT.csv", "OUT.csv"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str,
    says: str,
    fail: Callable[..., str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    assert says in fail(*arguments.split())
    assert not list(files.glob("OUT*"))
