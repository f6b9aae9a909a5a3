"""`dp4tl`: each verb's result, files and exit status, and one clear line for each bad input."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import FloatField, IntField

from dp4tl_ffcv import (
    Features,
    Scores,
    Selection,
    build_model,
    label_mapping,
    save_checkpoint,
    select,
    write_beton,
)
from dp4tl_ffcv.cli import main
from tests.conftest import CLASS_NAMES, Images

ROOT = Path(__file__).resolve().parents[2]
PASS = ("--resolution", "32", "--batch-size", "64", "--num-workers", "2")


@dataclass(frozen=True)
class Files:
    """What the verbs read."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        stem, _, suffix = name.rpartition("_")
        return self.folder / (f"{stem}.{suffix}" if stem else suffix)


@pytest.fixture(scope="module")
def files(photos: Images, other_photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Checkpoints of two architectures; features, scores and a selection of the photos."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = build_model("resnet8_w16", 10)
    save_checkpoint(folder / "surrogate.pt", model)
    save_checkpoint(folder / "wide.pt", build_model("resnet8_w32", 10))
    checkpoint = ("--model", str(folder / "surrogate.pt"))
    for name, images in (("source", photos), ("target", other_photos)):
        main(["features", str(images.path), *checkpoint, *PASS, "--out", f"{folder}/{name}"])
    target = Features.load(folder / "target")
    label_mapping(target.predictions, soft_votes=target.soft_votes).save(folder / "lm.npz")
    selection = select(Scores.load(folder / "lm.npz"), photos.index, keep=0.3)
    selection.save(folder / "selection.npz")
    return Files(folder)


# The verbs.


def test_inspect_says_what_a_beton_holds(run: Callable[..., Any], photos: Images) -> None:
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


def test_features_are_those_of_the_model(
    run: Callable[..., Any], files: Files, other_photos: Images, tmp_path: Path
) -> None:
    out = tmp_path / "target"
    checkpoint = ("--model", files.surrogate_pt, "--arch", "resnet8_w16")
    result = run("features", other_photos.path, *checkpoint, *PASS, "--logits", "--out", out)
    assert result == {"out": str(out), "samples": 40, "classes": 10, "features": 64}
    features = Features.load(out)
    assert features.logits.shape == (40, 10)
    assert features.labels.tolist() == other_photos.labels.tolist()
    assert features.provenance["beton_fingerprint"] == other_photos.index.fingerprint
    assert features.provenance["arch"] == "resnet8_w16"


@pytest.mark.parametrize("suffix", ["npy", "indices", "txt"])
def test_export_writes_the_retained_ids(
    suffix: str, run: Callable[..., Any], files: Files, tmp_path: Path
) -> None:
    out = tmp_path / f"ids.{suffix}"
    result = run("export", files.selection_npz, "--out", out)
    assert (result["out"], result["retained_samples"]) == (str(out), 36)
    read: dict[str, Callable[[Path], Any]] = {
        "npy": np.load,
        "indices": lambda path: torch.load(path, weights_only=True),
        "txt": lambda path: np.loadtxt(path, dtype=np.int64),
    }
    assert read[suffix](out).tolist() == Selection.load(files.selection_npz).indices.tolist()


# Bad input: one line that says what to do, and status 1.


@pytest.fixture
def bad_betons(unfinished: Path, truncated: Path, photos: Images, tmp_path: Path) -> Files:
    """Betons that cannot be read."""
    shutil.copy(truncated, tmp_path / "cut.beton")
    (tmp_path / "text.beton").write_text("Hello. This is no beton, but it is long. " * 100)
    (tmp_path / "empty.beton").touch()
    other = bytearray(photos.path.read_bytes())
    other[0] = 3
    (tmp_path / "newer.beton").write_bytes(other)
    return Files(tmp_path)


BAD_BETONS = {
    "unfinished": "write it again",
    "truncated": "copy it",
    "text": "write it again",
    "empty": "pass a file written by ffcv",
    "newer": "version 3",
    "nowhere": "check the path",
}


@pytest.mark.parametrize("name", BAD_BETONS)
@pytest.mark.parametrize("verb", ["inspect", "features", "random", "select"])
def test_a_beton_that_cannot_be_read_is_one_line(
    verb: str, name: str, fail: Callable[..., str], bad_betons: Files, files: Files
) -> None:
    beton, out = bad_betons.folder / f"{name}.beton", bad_betons.folder / "out.npz"
    arguments: dict[str, tuple[str | Path, ...]] = {
        "inspect": ("inspect", beton),
        "features": ("features", beton, "--model", files.surrogate_pt, "--out", out),
        "random": ("score", "random", "--beton", beton, "--out", out),
        "select": ("select", "--scores", files.lm_npz, "--beton", beton, "--keep=1", "--out", out),
    }
    line = fail(*arguments[verb])
    assert str(beton) in line
    assert BAD_BETONS[name] in line.lower()
    assert not out.exists()


@pytest.mark.parametrize("kind", ["missing", "not integers", "negative"])
@pytest.mark.parametrize("verb", ["features", "random", "select"])
def test_labels_that_are_no_class_ids_are_one_line(
    verb: str, kind: str, fail: Callable[..., str], files: Files, photos: Images, tmp_path: Path
) -> None:
    beton, out = tmp_path / "labels.beton", tmp_path / "out.npz"
    fields: dict[str, Any] = {"x": IntField(), "label": IntField()}
    if kind == "missing":
        fields = {"x": IntField(), "other": IntField()}
    elif kind == "not integers":
        fields["label"] = FloatField()
    samples = [(0, 1.5 if kind == "not integers" else number) for number in range(10)]
    if kind == "negative":
        fields = {"x": IntField(), "other": IntField()}
        samples = [(0, -1)] * 10
    write_beton(beton, samples, fields, label_field="x", seed=None)
    field = ("--label-field", "other") if kind == "negative" else ()
    scores = ("--scores", files.lm_npz, "--keep=1")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "features": ("features", beton, "--model", files.surrogate_pt, "--out", out),
        "random": ("score", "random", "--beton", beton, *field, "--out", out),
        "select": ("select", *scores, "--beton", beton, *field, "--out", out),
    }
    line = fail(*arguments[verb])
    assert "field" in line or "label" in line or "class id" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("--model", "wide.pt", "--arch", "resnet8_w16"), "pass another checkpoint"),
        (("--model", "lm.npz"), "state dict"),
        (("--model", "nowhere.pt"), "check the path"),
    ],
    ids=["architecture", "no checkpoint", "nowhere"],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(
    options: tuple[str, ...], advice: str, fail: Callable[..., str], files: Files, photos: Images
) -> None:
    given = [str(files.folder / part) if "." in part else part for part in options]
    line = fail("features", photos.path, *given, "--out", files.folder / "never.npz")
    assert advice in line.lower()
    assert not (files.folder / "never.npz").exists()


def test_scores_of_another_beton_are_one_line(
    fail: Callable[..., str], files: Files, photos: Images, other_photos: Images, tmp_path: Path
) -> None:
    inputs = ("--target", str(files.target), "--source", str(files.source))
    main(["score", "feature-mapping", *inputs, "--out", str(tmp_path / "fm.npz")])
    arguments = ("--scores", tmp_path / "fm.npz", "--keep", "0.5", "--out", tmp_path / "out.npz")
    line = fail("select", *arguments, "--beton", other_photos.path)
    assert "`scores` was made for another beton" in line


def test_features_of_another_surrogate_are_one_line(
    fail: Callable[..., str], files: Files, photos: Images, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    checkpoint = ("--model", str(files.wide_pt))
    main(["features", str(photos.path), *checkpoint, *PASS, "--out", str(source)])
    inputs = ("--target", files.target, "--source", source)
    line = fail("score", "feature-mapping", *inputs, "--out", tmp_path / "fm.npz")
    assert "differ in checkpoint_sha256" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "label-mapping", "--target", "lm.npz", "--out", "never.npz"),
        ("score", "label-mapping", "--target", "surrogate.pt", "--out", "never.npz"),
        ("export", "lm.npz", "--out", "never.npy"),
        ("export", "nowhere.npz", "--out", "never.npy"),
        ("export", "selection.npz", "--out", "never.csv"),
        ("score", "label-mapping", "--target", "target/", "--out", "never.csv"),
    ],
    ids=["another kind", "no artifact", "scores", "nowhere", "suffix", "suffix of scores"],
)
def test_files_that_are_not_what_they_should_be_are_one_line(
    arguments: tuple[str, ...], fail: Callable[..., str], files: Files
) -> None:
    line = fail(
        *(str(files.folder / part) if set(part) & set("./") else part for part in arguments)
    )
    assert str(files.folder) in line
    assert not list(files.folder.glob("never*"))


def test_a_real_process_leaves_with_the_status_and_the_line(tmp_path: Path) -> None:
    code = "from dp4tl_ffcv.cli import main; main()"
    command = [sys.executable, "-c", code, "inspect", str(tmp_path / "nowhere.beton")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
