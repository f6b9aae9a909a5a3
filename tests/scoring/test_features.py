"""`Features`: the folder, the arrays, and the check that two have the same surrogate."""

import json
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_ffcv import Features, StaleArtifactError, class_means
from dp4tl_ffcv.atomic import atomic_folder
from dp4tl_ffcv.scoring.features import features as module
from dp4tl_ffcv.scoring.features.features import check_same_surrogate
from dp4tl_ffcv.utils import vote_matrix

SURROGATE = {
    "checkpoint_sha256": "ab" * 32, "arch": "resnet18", "resolution": 224, "crop_ratio": 0.875,
}  # fmt: skip
ARRAYS = (
    "features", "labels", "indices", "logits", "predictions", "confidences", "soft_votes", "sums",
    "counts",
)  # fmt: skip


def features_with(dtype: Any = np.float32, **provenance: Any) -> Features:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    features = rng.normal(size=(4, 2)).astype(dtype)
    return Features(
        logits=logits,
        features=features,
        labels=np.array([1, 0, 3, 1]),
        indices=np.array([5, 6, 7, 9]),
        predictions=logits.argmax(axis=1),
        confidences=rng.uniform(0.4, 1, 4),
        soft_votes=rng.random(3),
        sums=np.stack(
            [features[[1]].sum(0), features[[0, 3]].sum(0), [0, 0], features[2]], dtype=float
        ),
        counts=np.array([1, 2, 0, 1]),
        provenance=provenance,
    )


def bare(**changes: Any) -> Features:
    arrays: dict[str, Any] = {
        "features": np.ones((3, 2), np.float32),
        "labels": np.zeros(3, np.int64),
        "indices": np.arange(3),
    }
    return Features(**(arrays | changes))


# The folder.


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_come_back_from_their_folder(dtype: Any, tmp_path: Path) -> None:
    saved = features_with(dtype, **SURROGATE, beton_fingerprint="cd" * 32)
    saved.save(tmp_path / "deep" / "f")
    loaded = Features.load(tmp_path / "deep" / "f")
    for name in ARRAYS:
        before, after = getattr(saved, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert loaded.provenance == saved.provenance
    assert isinstance(loaded.features, np.memmap)
    assert (len(loaded), loaded.num_outputs) == (4, 3)


def test_missing_arrays_are_none(tmp_path: Path) -> None:
    bare().save(tmp_path / "f")
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "features.npy", "header.json", "indices.npy", "labels.npy",
    ]  # fmt: skip
    loaded = Features.load(tmp_path / "f")
    assert all(getattr(loaded, name) is None for name in ARRAYS[3:])
    assert loaded.num_outputs is None


def test_saving_may_replace_the_folder_that_the_features_map(tmp_path: Path) -> None:
    features_with().save(tmp_path / "f")
    replace(Features.load(tmp_path / "f"), provenance={"mine": 1}, logits=None).save(tmp_path / "f")
    loaded = Features.load(tmp_path / "f")
    assert loaded.provenance == {"mine": 1}
    assert loaded.logits is None
    np.testing.assert_array_equal(loaded.features, features_with().features)
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_failed_save_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features_with(a=1).save(tmp_path / "f")

    def fail(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_header", fail)
        with pytest.raises(OSError, match="No space left"):
            features_with(a=2).save(tmp_path / "f")
    assert Features.load(tmp_path / "f").provenance == {"a": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


@pytest.mark.parametrize("step", ["write", "swap", "clean up"])
def test_the_next_save_removes_what_a_killed_one_left(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features_with(a=1).save(tmp_path / "f")

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        exchange = "dp4tl_ffcv.atomic._exchange"
        call = {"write": "numpy.save", "swap": exchange, "clean up": "shutil.rmtree"}
        monkeypatch.setattr(call[step], kill)
        features_with(a=2).save(tmp_path / "f")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert Features.load(tmp_path / "f").provenance == {"a": 1 + (step == "clean up")}
    assert len(list(tmp_path.iterdir())) == 2
    features_with(a=3).save(tmp_path / "f")
    assert Features.load(tmp_path / "f").provenance == {"a": 3}
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_folder_replaced_in_two_steps_is_restored_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features_with(a=1).save(tmp_path / "f")
    monkeypatch.setattr("dp4tl_ffcv.atomic._exchange", lambda *_: False)
    rename = Path.rename

    def kill_at_second(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    if not (child := os.fork()):
        monkeypatch.setattr("pathlib.Path.rename", kill_at_second)
        features_with(a=2).save(tmp_path / "f")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with pytest.raises(RuntimeError, match="fails"), atomic_folder(tmp_path / "f"):
        raise RuntimeError("this writer fails")
    assert Features.load(tmp_path / "f").provenance == {"a": 1}
    features_with(a=3).save(tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_one_process_at_a_time_saves_a_folder(tmp_path: Path) -> None:
    with (
        atomic_folder(tmp_path / "f"),
        pytest.raises(BlockingIOError, match=r"another process is writing.*f'"),
    ):
        bare().save(tmp_path / "f")
    bare().save(tmp_path / "f")
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_folder_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        bare().save(tmp_path / "f")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o750


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_files_are_not_replaced(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        (tmp_path / "f").write_text("precious")
    else:
        features_with().save(tmp_path / "f")
        (tmp_path / "f" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"exists and is not a features folder"):
        bare().save(tmp_path / "f")
    rest = tmp_path / "f" if kind == "file" else tmp_path / "f" / "thesis.tex"
    assert rest.read_text() == "precious"


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        Features.load(tmp_path / "none")


def save_objects(path: Path) -> None:
    np.save(path, np.array([{}] * 4), allow_pickle=True)


def rewrite_header(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CORRUPT = r"is not a features folder, or is corrupt"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("header.json", Path.unlink, CORRUPT),
        ("header.json", lambda path: os.truncate(path, 20), CORRUPT),
        ("labels.npy", Path.unlink, CORRUPT),
        ("features.npy", lambda path: os.truncate(path, 140), CORRUPT),
        ("indices.npy", lambda path: np.save(path, np.arange(3)), CORRUPT),
        ("labels.npy", save_objects, CORRUPT),
        ("header.json", rewrite_header(kind="scores"), CORRUPT),
        ("header.json", rewrite_header(finished=None), CORRUPT),
        ("header.json", rewrite_header(finished=1), CORRUPT),
        ("header.json", rewrite_header(format="1"), CORRUPT),
        ("header.json", rewrite_header(provenance=[]), CORRUPT),
        ("header.json", rewrite_header(provenance={"beton_classes": 1.5}), CORRUPT),
        ("header.json", rewrite_header(provenance={"class_names": [1, 2, 3]}), CORRUPT),
        ("header.json", rewrite_header(provenance={"class_names": ["a", "b"]}), CORRUPT),
        ("header.json", lambda path: path.write_text("[" * 100_000), CORRUPT),
        ("features.npy", lambda path: np.save(path, np.full((4, 2), "x")), CORRUPT),
        ("indices.npy", lambda path: np.save(path, np.array([5, -6, 7, 9])), CORRUPT),
        ("labels.npy", lambda path: np.save(path, np.array([1, 1, 3, 1])), CORRUPT),
        ("predictions.npy", lambda path: np.save(path, np.array([0, 1, 2, 3])), CORRUPT),
        ("class_sums.npy", lambda path: np.save(path, np.full((4, 2), np.nan)), CORRUPT),
        ("soft_votes.npy", lambda path: np.save(path, np.ones(3)), CORRUPT),
        ("header.json", rewrite_header(finished=False), r"was interrupted\. Run the same command"),
        ("header.json", rewrite_header(format=2), r"the features format 2, newer than 1\. Update"),
    ],
    ids=["no header", "cut header", "no labels", "cut features", "other rows", "objects", "kind",
         "unknown state", "int state", "text format", "list", "half a class",
         "numbers for names", "too few names", "deep", "text", "negative id", "other label",
         "no such class", "NaN sums", "flat votes", "unfinished", "newer"],
)  # fmt: skip
def test_a_damaged_folder_is_rejected(
    file: str, damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    features_with().save(tmp_path / "f")
    damage(tmp_path / "f" / file)
    with pytest.raises(ValueError, match=message):
        Features.load(tmp_path / "f")


# The arrays.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": np.ones((3, 2))}, TypeError, r"float16 or float32; got float64"),
        ({"features": [[1.0]]}, TypeError, r"got list"),
        ({"features": np.ones(3, np.float32)}, ValueError, r"shape \(n, D\).*got \(3,\)"),
        ({"features": np.ones((0, 2), np.float32)}, ValueError, r"got \(0, 2\)"),
        ({"labels": np.zeros(2, int)}, ValueError, r"^`labels` must have one entry .* 3 rows"),
        ({"labels": np.zeros(3)}, TypeError, r"^`labels` must be integers; got dtype float64"),
        ({"indices": np.zeros((3, 1), int)}, ValueError, r"^`indices` must have shape \(N,\)"),
        ({"predictions": np.zeros(4, int)}, ValueError, r"^`predictions` must have one entry"),
        ({"logits": np.ones((2, 5), np.float32)}, ValueError, r"^`logits` must have one entry"),
        ({"logits": np.ones((3, 5), np.float16)}, TypeError, r"^`logits` must be .*float32"),
        *(
            (
                {"logits": np.ones((3, 5), np.float32), "confidences": values},
                ValueError,
                r"^`confidences` must be numbers of float64 `\(n,\)` in \(0, 1\]",
            )
            for values in (np.zeros(3), np.full(3, 1.1), np.full(3, np.nan), np.ones((3, 1)))
        ),
        (
            {"logits": np.ones((3, 5), np.float32), "soft_votes": np.ones(4)},
            ValueError,
            r"^`soft_votes` must have shape \(5,\); got \(4,\)",
        ),
        ({"sums": np.ones((1, 2))}, ValueError, r"^`sums` and `counts` go together"),
        (
            {"sums": np.ones((1, 3)), "counts": np.ones(1, int)},
            ValueError,
            r"^`sums` must have shape \(1, 2\); got \(1, 3\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_rejected(
    changes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bare(**changes)


@pytest.mark.parametrize("name", ["features", "logits"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_not_saved(name: str, value: float, tmp_path: Path) -> None:
    given = features_with()
    getattr(given, name)[2, 1] = value
    with pytest.raises(
        ValueError, match=rf"^`{name}` must be finite; got NaN or inf for sample 7\."
    ):
        given.save(tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_arrays_and_tensors_become_features(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(6).reshape(3, 2).to(dtype).requires_grad_()
    made = Features.from_arrays(tensor, torch.tensor([2, 0, 1]), ids=[7, 5, 6])
    assert made.features.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert made.features.dtype == (np.float16 if dtype == torch.float16 else np.float32)
    assert (made.labels.tolist(), made.indices.tolist()) == ([2, 0, 1], [7, 5, 6])
    made.save(tmp_path / "f")
    assert Features.load(tmp_path / "f").summary() == {
        "samples": 3, "classes": None, "features": 2,
    }  # fmt: skip
    bare_made = Features.from_arrays([[1.0], [2.0]])
    assert (bare_made.labels.tolist(), bare_made.indices.tolist()) == ([-1, -1], [0, 1])


# Class means.


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 3))
def test_means_from_sums_are_means_of_the_features(seed: int, count: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 3)).astype(np.float32)
    labels = rng.integers(0, 5, count)
    classes = int(labels.max()) + 1
    sums, counts = np.zeros((classes, 3)), np.zeros(classes, dtype=np.int64)
    for row, label in zip(features, labels, strict=True):
        sums[label] += row
        counts[label] += 1
    known = bare(features=features, labels=labels, indices=labels, sums=sums, counts=counts)
    unknown = bare(features=features, labels=labels, indices=labels)
    expected = class_means(features, labels, classes + more)
    np.testing.assert_array_equal(known.class_means(classes + more), expected)
    np.testing.assert_array_equal(unknown.class_means(classes + more), expected)


def test_labels_beyond_the_number_of_classes_are_rejected() -> None:
    for given_features in (features_with(), replace(features_with(), sums=None, counts=None)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 3\); got values from 0 to 3"):
            given_features.class_means(3)


# The surrogate of two features.


def test_features_of_another_surrogate_or_crop_are_rejected() -> None:
    target = features_with(**SURROGATE, beton_fingerprint="ef" * 32)
    check_same_surrogate(target, features_with(**SURROGATE, beton_fingerprint="cd" * 32))
    changes = {"checkpoint_sha256": "00" * 32, "arch": "resnet50", "mean": 0.5, "std": 0.5,
               "resolution": None, "crop_ratio": 1.0}  # fmt: skip
    for name, value in changes.items():
        with pytest.raises(StaleArtifactError, match=rf"differ in {name}: {value} for the source"):
            check_same_surrogate(target, features_with(**{**SURROGATE, name: value}))


def test_votes_are_counted_by_target_class() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(-1, 4, 60), rng.integers(0, 7, 60)
    features = Features(
        features=np.ones((60, 2), np.float32),
        labels=labels,
        indices=np.arange(60),
        predictions=predictions,
        soft_votes=np.zeros(7),
    )
    expected = np.zeros((4, 7), np.int64)
    for target, source in zip(labels, predictions, strict=True):
        if target >= 0:
            expected[target, source] += 1
    np.testing.assert_array_equal(vote_matrix(features), expected)
    with pytest.raises(ValueError, match="No image has a label"):
        vote_matrix(replace(features, labels=np.full(60, -1)))
    with pytest.raises(ValueError, match="have no predictions"):
        vote_matrix(replace(features, predictions=None))
