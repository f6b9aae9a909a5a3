"""`extract_features`: values, errors, runs that are killed and continued, several processes."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dp4tl_ffcv import (
    Features,
    StaleArtifactError,
    build_model,
    class_means,
    evaluation_loader,
    extract_features,
    extraction,
    label_mapping,
    load_checkpoint,
    save_checkpoint,
)
from dp4tl_ffcv.scoring.features import blocks
from dp4tl_ffcv.scoring.surrogate import checkpoints
from dp4tl_ffcv.utils import Classifier, replace_head, sha256_of_file
from tests.conftest import Images
from tests.extraction_process import (
    CLASSES,
    IDS,
    SAMPLES,
    digest,
    fake_loader,
    labels,
    pixels,
    surrogate,
)

ROOT = Path(__file__).resolve().parents[1]
PROCESS = (sys.executable, str(ROOT / "tests/extraction_process.py"))
Extract = Callable[..., Features]


@pytest.fixture
def extract(photos: Images, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """Extract features of the fake loader's images."""

    def call(
        out: Path, loaded: list[int] | None = None, *, before: Any = int, numbers: Any = None,
        model: Any = None, beton: Any = photos.path, **options: Any,
    ) -> Features:  # fmt: skip
        loader = fake_loader([] if loaded is None else loaded, before, numbers)
        monkeypatch.setattr(extraction, "evaluation_loader", loader)
        defaults = {"indices": IDS, "logits": True, "batch_size": 5, "device": "cpu"}
        return extract_features(model or surrogate(), beton, out, **defaults | options)

    return call


def set_block_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks, extraction):
        monkeypatch.setattr(module, "BLOCK_ROWS", rows)


@pytest.fixture
def blocks_of_10(monkeypatch: pytest.MonkeyPatch) -> None:
    set_block_rows(10, monkeypatch)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Values.


def test_rows_follow_the_indices(photos: Images, tmp_path: Path) -> None:
    model = surrogate()
    model.trained_on, model.class_names = "0123abcd", [f"class {c}" for c in range(CLASSES)]
    save_checkpoint(tmp_path / "model.pt", model)
    model = load_checkpoint(tmp_path / "model.pt").eval()
    indices = np.random.default_rng(0).permutation(120)[:50]
    found = extract_features(
        tmp_path / "model.pt",
        photos.index,
        tmp_path / "out",
        indices=indices,
        batch_size=8,
        resolution=32,
        logits=True,
        device="cpu",
    )
    assert found.logits is not None
    assert (found.logits.shape, found.features.shape) == ((50, CLASSES), (50, 64))
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.labels, photos.labels[indices])
    for row in range(0, 50, 7):  # one at a time, unlike batches in buffers that ffcv reuses
        (images, _), = evaluation_loader(
            photos.path, batch_size=1, resolution=32, indices=indices[row : row + 1]
        )  # fmt: skip
        with torch.inference_mode():
            logits, features = model.features(images)
        np.testing.assert_allclose(found.logits[row], logits[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.features[row], features[0], rtol=1e-4, atol=1e-4)
    assert found.provenance == {
        "arch": "resnet8_w16",
        "trained_on": "0123abcd",
        "class_names": [f"class {c}" for c in range(CLASSES)],
        "mean": list(model.channels[0]),
        "std": list(model.channels[1]),
        "amp": False,
        "checkpoint_sha256": sha256_of_file(tmp_path / "model.pt"),
        "beton_fingerprint": photos.index.fingerprint,
        "beton_classes": 10,
        "resolution": 32,
        "crop_ratio": 224 / 256,
    }


@pytest.mark.parametrize("rows", [10, 4096])
def test_predictions_soft_votes_and_sums_come_from_logits_and_features(
    rows: int, extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block_rows(rows, monkeypatch)
    found = extract(tmp_path / "out")
    with torch.inference_mode():
        logits, features = surrogate().eval().features(pixels()[IDS])
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-4)
    assert found.logits is not None
    assert found.predictions is not None
    assert found.predictions.tolist() == [row.tolist().index(row.max()) for row in found.logits]
    expected = label_mapping(found.logits)
    np.testing.assert_allclose(found.soft_votes, expected.tie_break, rtol=1e-13)
    softmax = np.exp(found.logits) / np.exp(found.logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.confidences, softmax.max(axis=1), rtol=1e-5)
    if rows == 4096:  # one block: the same bits
        np.testing.assert_array_equal(found.soft_votes, expected.tie_break)
    assert found.labels.tolist() == labels()[IDS].tolist()
    assert found.counts is not None
    assert found.counts.tolist() == np.bincount(labels()).tolist()
    sums = np.zeros((4, 64))
    for row, label in zip(found.features, found.labels, strict=True):
        sums[label] += row  # in the order of rows
    np.testing.assert_array_equal(found.sums, sums)
    means = class_means(found.features, found.labels, 6)
    np.testing.assert_array_equal(found.class_means(6), means)


def test_logits_and_dtype_change_nothing_else(extract: Extract, tmp_path: Path) -> None:
    whole = extract(tmp_path / "a")
    found = extract(tmp_path / "b", logits=False, dtype="float16")
    assert found.logits is None
    assert not (tmp_path / "b" / "logits.npy").exists()
    assert found.num_outputs == CLASSES
    assert found.features.dtype == np.float16
    np.testing.assert_array_equal(found.features, whole.features.astype(np.float16))
    for name in ("predictions", "soft_votes", "counts", "labels", "indices"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(found, name))


def test_contrast_is_stretched_image_by_image(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faded = pixels() // 4 + 100
    faded[0] = 50  # an image of one value
    monkeypatch.setattr("tests.extraction_process.pixels", lambda: faded)
    found = extract(tmp_path / "out", stretch_contrast=True)
    values = faded.numpy().astype(np.float64)
    low, high = (bound(values, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
    stretched = 255 * (values - low) / np.where(high > low, high - low, 1)
    assert stretched[1:].min(axis=(1, 2, 3)).tolist() == [0.0] * (SAMPLES - 1)
    with torch.inference_mode():
        expected, _ = surrogate().eval().features(torch.from_numpy(stretched).float())
    np.testing.assert_allclose(found.logits, expected.numpy()[IDS], rtol=1e-4, atol=1e-4)
    assert found.provenance["stretch_contrast"] is True
    plain = extract(tmp_path / "plain")
    assert "stretch_contrast" not in plain.provenance  # as in folders of earlier versions
    assert not np.allclose(found.logits, plain.logits, atol=0.01)
    with pytest.raises(StaleArtifactError, match="another stretch_contrast"):
        extract(tmp_path / "out")


def test_an_encoder_has_only_features(extract: Extract, tmp_path: Path) -> None:
    model = surrogate()
    model.class_names = [str(c) for c in range(CLASSES)]
    encoder = replace_head(model, None)
    found = extract(tmp_path / "b", model=encoder, logits=False)
    np.testing.assert_array_equal(found.features, extract(tmp_path / "a").features)
    assert found.class_names == ()
    assert found.num_outputs is found.predictions is found.soft_votes is found.logits is None
    assert found.sums is not None
    with pytest.raises(ValueError, match=r"^`logits` cannot be kept: the model has no classifier"):
        extract(tmp_path / "c", model=encoder)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("numbers", [[-1, 2, 3], [10_000, 0, 1]])
def test_negative_and_huge_labels_have_no_sums(
    numbers: list[int], extract: Extract, tmp_path: Path
) -> None:
    found = extract(tmp_path / "out", numbers=torch.tensor(numbers), indices=[0, 1, 2])
    assert found.labels.tolist() == numbers
    assert found.sums is found.counts is None


def test_the_model_is_evaluated_and_left_unchanged(extract: Extract, tmp_path: Path) -> None:
    model = surrogate().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.network.insert(8, nn.Dropout(0.9))  # type: ignore[operator]  # a Sequential
    found = extract(tmp_path / "out", model=model)
    model.network.pop(8)  # type: ignore[operator]
    np.testing.assert_array_equal(found.features, extract(tmp_path / "other").features)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pretrained_model_is_named_in_the_provenance(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("resnet18", 1000)
    monkeypatch.setattr(checkpoints, "pretrained_model", lambda name: (model, f"weights of {name}"))
    found = extract(tmp_path / "out", model="torchvision:resnet18", indices=[0, 1])
    assert found.provenance["weights"] == "weights of torchvision:resnet18"
    same = extract(tmp_path / "same", model=model, indices=[0, 1])
    np.testing.assert_array_equal(found.features, same.features)


# Errors.


def fail(*_: Any, **__: Any) -> None:
    raise OSError("no route to host")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": []}, "`indices` is empty; pass at least one"),
        ({"indices": [[1]]}, r"`indices` must have shape \(N,\)"),
        ({"indices": [0.5]}, "`indices` must be integers"),
        ({"indices": [120]}, r"`indices` must lie in \[0, 120\)"),
        ({"dtype": "float64"}, "`dtype` must be one of float16, float32; got 'float64'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"arch": "resnet18"}, "`arch` is for a checkpoint file"),
        ({"model": "vit_b_16", "headless": True}, "`headless` is for a checkpoint file"),
        ({"model": "resnet8_w16"}, "no pretrained weights of 'resnet8_w16'"),
        (
            {"model": "resnet18"},
            "'resnet18': no route to host. Without a network, put .*resnet18-f37072fd.pth into",
        ),
        (
            {"model": "resnet19"},
            "^'resnet19' is neither a checkpoint, a run folder nor the name of a",
        ),
    ],
)
def test_wrong_arguments_leave_no_folder(
    options: dict[str, Any], message: str, extract: Extract, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises((ValueError, TypeError), match=message):
        extract(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_an_error_that_names_the_file(extract: Extract, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            extract(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path(raised.value.filename).parent == tmp_path / "out"
    assert len(extract(tmp_path / "out").features) == SAMPLES


@pytest.mark.parametrize(
    ("bias", "dtype", "fails"),
    [(1e6, "float16", True), (1e6, "float32", False), (float("nan"), "float32", True)],
)
def test_features_must_be_finite(
    bias: float, dtype: str, fails: bool, extract: Extract, tmp_path: Path
) -> None:
    model = surrogate()
    model.network.insert(8, nn.BatchNorm1d(64))  # type: ignore[operator]  # before the head
    nn.init.constant_(model.network[8].bias, bias)  # type: ignore[index]
    if not fails:
        assert np.isfinite(extract(tmp_path / "out", model=model, dtype=dtype).features).all()
        return
    with pytest.raises(ValueError, match=rf"`features`.*sample {IDS[0]}\b.*65504"):
        extract(tmp_path / "out", model=model, dtype=dtype)
    with pytest.raises(ValueError, match="was interrupted"):
        Features.load(tmp_path / "out")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_files_are_left_alone(
    kind: str, restart: bool, extract: Extract, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    thesis = out / "thesis.tex" if kind == "folder" else out
    thesis.write_text("precious")
    with pytest.raises(ValueError, match="`out`"):
        extract(out, restart=restart)
    assert thesis.read_text() == "precious"


# Interrupted and continued.


class StoppedError(Exception):
    """An error that ends a run."""


def stop(*_: Any) -> None:
    raise StoppedError


def interrupt(extract: Extract, out: Path, blocks_left: int = 4) -> None:
    """Extract until `blocks_left` blocks are left. The first sample is loaded twice, for shapes."""
    loaded: list[int] = []
    most = SAMPLES - 10 * blocks_left
    with pytest.raises(StoppedError):
        extract(out, loaded, before=lambda: stop() if len(loaded) > most else None)


@pytest.mark.usefixtures("blocks_of_10")
@pytest.mark.parametrize("batch_size", [3, 5, 100])
def test_a_continued_run_gives_the_same_bytes(
    batch_size: int, extract: Extract, tmp_path: Path
) -> None:
    extract(tmp_path / "whole", batch_size=batch_size)
    out = tmp_path / "out"
    interrupt(extract, out)
    assert json.loads((out / "header.json").read_text())["finished"] is False
    done = np.load(out / "done.npy", mmap_mode="r+")
    assert done.tolist() == [True, True, True, False, False, False, False]
    # Replace the rows by those of this batch size, and take out two blocks in the middle.
    for name in ("features", "logits", "labels", "predictions", "confidences", "soft_votes"):
        rows = np.load(out / f"{name}.npy", mmap_mode="r+")
        rows[:] = np.load(tmp_path / "whole" / f"{name}.npy")
        scale = 1 if name == "soft_votes" else 10
        rows[scale : 2 * scale] = rows[4 * scale : 5 * scale] = 77
    done[:] = [True, False, True, True, False, True, True]
    loaded: list[int] = []
    extract(out, loaded, batch_size=batch_size)
    assert loaded == [*IDS[10:20], *IDS[40:50]]
    assert content(out) == content(tmp_path / "whole")


def test_a_finished_folder_is_loaded_unless_restarted(extract: Extract, tmp_path: Path) -> None:
    whole = extract(tmp_path / "out")
    loaded: list[int] = []
    assert digest(extract(tmp_path / "out", loaded)) == digest(whole)
    assert not loaded
    extract(tmp_path / "out", loaded, restart=True)
    assert loaded[1:] == IDS.tolist()
    whole.save(tmp_path / "by_hand")
    with pytest.raises(StaleArtifactError, match="block_rows"):
        extract(tmp_path / "by_hand")


@pytest.mark.usefixtures("blocks_of_10")
def test_a_run_killed_before_the_sums_finishes(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = extract(tmp_path / "whole"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "class_sums", stop)
        with pytest.raises(StoppedError):
            extract(out)
    loaded: list[int] = []
    assert digest(extract(out, loaded)) == digest(whole)
    assert not loaded


def checkpoint(folder: Path, _: Images) -> dict[str, Any]:
    save_checkpoint(folder / "model.pt", surrogate())
    return {"model": folder / "model.pt"}


# Options that request other features, by the entry of the header that differs.
CHANGES: dict[str, Callable[[Path, Images], dict[str, Any]]] = {
    "weights_sha256": lambda *_: {"model": surrogate(1)},
    "mean": lambda *_: {
        "model": Classifier(surrogate().network, "resnet8_w16", CLASSES, (0.4, 0.4, 0.4))
    },
    "checkpoint_sha256": checkpoint,
    "beton_fingerprint": lambda _, other: {"beton": other.path, "indices": IDS[IDS < 40]},
    "indices_sha256": lambda *_: {"indices": IDS[::-1]},
    "samples": lambda *_: {"indices": IDS[:-1]},
    "logits": lambda *_: {"logits": False},
    "dtype": lambda *_: {"dtype": "float16"},
    "resolution": lambda *_: {"resolution": 160},
    "block_rows": lambda *_: {},
}


@pytest.mark.usefixtures("blocks_of_10")
@pytest.mark.parametrize("name", CHANGES)
def test_another_request_does_not_continue(
    name: str, extract: Extract, other_photos: Images, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, options = tmp_path / "out", CHANGES[name](tmp_path, other_photos)
    if name in ("dtype", "mean"):  # a finished folder
        extract(out)
    else:
        interrupt(extract, out)
    before = content(out)
    if name == "block_rows":
        set_block_rows(20, monkeypatch)
    with pytest.raises(StaleArtifactError, match=name):
        extract(out, **options)
    assert content(out) == before
    again = extract(out, restart=True, **options)
    assert digest(again) == digest(extract(tmp_path / "fresh", **options))


@pytest.mark.usefixtures("blocks_of_10")
def test_an_incomplete_folder_is_not_continued(extract: Extract, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(extract, out)
    for name in ("features.npy", "done.npy", "soft_votes.npy", "indices.npy"):
        whole = (out / name).read_bytes()
        for spoil in (lambda path: os.truncate(path, 130), Path.unlink):
            spoil(out / name)
            with pytest.raises(ValueError, match=r"cannot be continued.*--restart"):
                extract(out)
            (out / name).write_bytes(whole)
    (out / name).unlink()
    fresh = digest(extract(tmp_path / "fresh"))
    assert digest(extract(out, restart=True)) == fresh
    (out / "header.json").unlink()
    assert digest(extract(out)) == fresh


def test_two_runs_cannot_write_the_same_folder(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.atomic._PATIENCE", 0.1)
    loaded: list[int] = []

    def start_another() -> None:
        for restart in (False, True):  # before the first one has made the folder's files, and after
            with pytest.raises(BlockingIOError, match="another process is writing"):
                extract(tmp_path / "out", restart=restart)

    extract(tmp_path / "out", loaded, before=start_another)


def test_a_file_system_without_locks_takes_features(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digest(extract(tmp_path / "locked"))

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    assert digest(extract(tmp_path / "out")) == expected


def test_a_run_that_fails_before_its_first_batch_leaves_no_folder(
    extract: Extract, tmp_path: Path
) -> None:
    def fail() -> None:
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        extract(tmp_path / "out", before=fail)
    assert not (tmp_path / "out").exists()


# Processes.


def start_pair(beton: Path, delay: float, *outs: Path) -> list[subprocess.Popen[str]]:
    """Start two processes that share an extraction to each of `outs`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [*PROCESS, str(beton), str(delay), *map(str, outs)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": rank, "LOCAL_RANK": rank, **shared},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


def blocks_done(out: Path) -> int:
    try:
        return int(np.load(out / "done.npy").sum())
    except (OSError, ValueError, EOFError):  # not written yet
        return 0


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the processes do: others add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("blocks_of_10", "one_thread")
def test_one_process_continues_two_killed_ones(
    extract: Extract, photos: Images, tmp_path: Path
) -> None:
    out, loaded = tmp_path / "out", list[int]()
    running = start_pair(photos.path, 0.2, out)
    deadline = time.monotonic() + 300
    while blocks_done(out) < 3:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
    for process in running:
        process.kill()
    for process in running:
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert not json.loads((out / "header.json").read_text())["finished"]
    missing = [IDS[10 * b : 10 * b + 10] for b in np.flatnonzero(~np.load(out / "done.npy"))]
    extract(out, loaded)
    assert loaded == np.concatenate(missing).tolist()
    extract(tmp_path / "alone")
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.usefixtures("blocks_of_10", "one_thread")
def test_two_processes_share_the_work_and_the_errors_of_rank_0(
    extract: Extract, photos: Images, tmp_path: Path
) -> None:
    foreign, out = tmp_path / "foreign", tmp_path / "out"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    results = []
    for process in start_pair(photos.path, 0, foreign, out):
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        results.append([json.loads(line) for line in output.splitlines()])
    for failed, _ in results:
        assert failed["error"].startswith("`out`")
        assert not failed["loaded"]
    first, second = (found for _, found in results)
    assert first["loaded"] == [IDS[0], *IDS[:10], *IDS[20:30], *IDS[40:50], *IDS[60:]]
    assert second["loaded"] == [*IDS[10:20], *IDS[30:40], *IDS[50:60]]
    alone = extract(tmp_path / "alone")
    assert first["digest"] == second["digest"] == digest(alone)
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_in_mixed_precision_unless_amp_is_off(
    extract: Extract, tmp_path: Path
) -> None:
    on_cpu = extract(tmp_path / "cpu").features
    for amp, tolerance in ((True, 2e-2), (False, 2e-3)):
        found = extract(tmp_path / f"{amp}", device="cuda", amp=amp)
        assert found.provenance["amp"] is amp
        np.testing.assert_allclose(found.features, on_cpu, rtol=tolerance, atol=tolerance)
        with pytest.raises(StaleArtifactError, match="amp"):
            extract(tmp_path / f"{amp}", device="cuda", amp=not amp)
