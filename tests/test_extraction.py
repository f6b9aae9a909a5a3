"""`extract_features`: what it says, block by block, killed and continued, in several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dp4tl_ffcv import (
    Features,
    StaleArtifactError,
    build_model,
    class_means,
    evaluation_loader,
    extract_features,
    label_mapping,
    load_checkpoint,
    save_checkpoint,
)
from dp4tl_ffcv.extraction import _passes
from dp4tl_ffcv.scoring.features import blocks
from dp4tl_ffcv.utils import replace_head, sha256_of_file
from tests.extraction_process import (
    CLASSES,
    IDS,
    SAMPLES,
    digest,
    labels,
    loads,
    pixels,
    surrogate,
)

ROOT = Path(__file__).resolve().parents[1]
PROCESS = (sys.executable, str(ROOT / "tests/extraction_process.py"))


@pytest.fixture
def blocks_of_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 10)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def extract(out: Path, **options: Any) -> Features:
    arguments: dict[str, Any] = {
        "model": surrogate(),
        "load": loads([]),
        "indices": IDS,
        "out": out,
    }
    return extract_features(**{"logits": True} | arguments | options)


# What it says.


def test_features_are_rows_in_the_order_of_the_indices(photos: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", surrogate())
    model = load_checkpoint(tmp_path / "model.pt")
    indices = np.random.default_rng(0).permutation(120)[:50]

    def load(ids: Any) -> Any:
        return evaluation_loader(photos.path, batch_size=8, resolution=32, indices=ids)

    found = extract_features(
        model,
        load,
        indices,
        tmp_path / "out",
        logits=True,
        checkpoint=tmp_path / "model.pt",
        provenance={"resolution": 32},
    )
    assert found.logits is not None
    assert found.logits.shape == (50, CLASSES)
    assert found.features.shape == (50, 64)
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.labels, photos.labels[indices])
    for row in range(0, 50, 7):  # each alone: buffers that ffcv uses again must not show
        images, _ = next(iter(load(indices[row : row + 1])))
        with torch.inference_mode():
            logits, features = model.features(images)
        np.testing.assert_allclose(found.logits[row], logits[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.features[row], features[0], rtol=1e-4, atol=1e-4)
    assert found.provenance == {
        "arch": "resnet8_w16",
        "trained_on": None,
        "mean": list(model.channels[0]),
        "std": list(model.channels[1]),
        "checkpoint_sha256": sha256_of_file(tmp_path / "model.pt"),
        "resolution": 32,
        "amp": False,
    }


@pytest.mark.parametrize("rows", [10, 4096])
def test_predictions_mass_and_sums_are_those_of_logits_and_features(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", rows)
    found = extract(tmp_path / "out")
    model = surrogate().eval()
    with torch.inference_mode():
        logits, features = model.features(pixels()[IDS])
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-4)
    assert found.logits is not None
    assert found.predictions is not None
    assert found.predictions.tolist() == [row.tolist().index(row.max()) for row in found.logits]
    expected = label_mapping(found.logits)
    np.testing.assert_allclose(found.mass, expected.tie, rtol=1e-13)
    if rows == 4096:
        np.testing.assert_array_equal(found.mass, expected.tie)  # one block: to the bit
    assert found.labels.tolist() == labels()[IDS].tolist()
    assert found.counts is not None
    assert found.counts.tolist() == np.bincount(labels()).tolist()
    sums = np.zeros((4, 64))
    for row, label in zip(found.features, found.labels, strict=True):
        sums[label] += row  # in the order of rows
    np.testing.assert_array_equal(found.sums, sums)
    np.testing.assert_array_equal(
        found.class_means(6), class_means(found.features, found.labels, 6)
    )


def test_without_logits_all_else_is_the_same(tmp_path: Path) -> None:
    with_logits, without = extract(tmp_path / "a"), extract(tmp_path / "b", logits=False)
    assert without.logits is None
    assert not (tmp_path / "b" / "logits.npy").exists()
    assert without.num_outputs == CLASSES
    for name in ("features", "predictions", "mass", "sums", "counts", "labels", "indices"):
        np.testing.assert_array_equal(getattr(with_logits, name), getattr(without, name))


def test_an_encoder_without_a_classifier_has_features_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = surrogate()
    expected = extract(tmp_path / "a").features
    whole = model.features
    monkeypatch.setattr(model, "features", lambda images: (None, whole(images)[1]))
    found = extract(tmp_path / "b", model=model, logits=False)
    np.testing.assert_array_equal(found.features, expected)
    assert found.num_outputs is found.predictions is found.mass is found.logits is None
    assert found.sums is not None
    with pytest.raises(ValueError, match=r"^`logits` must be False for an encoder without"):
        extract(tmp_path / "c", model=model)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("numbers", [[-1, 2, 3], [10_000, 0, 1]])
def test_labels_that_are_no_classes_have_no_sums(numbers: list[int], tmp_path: Path) -> None:
    pair = (pixels()[:3], torch.tensor(numbers).reshape(3, 1))
    found = extract(tmp_path / "out", load=lambda ids: [(pair[0][: len(ids)], pair[1][: len(ids)])],
                    indices=[4, 5, 6])  # fmt: skip
    assert found.labels.tolist() == numbers
    assert found.sums is found.counts is None


def test_the_surrogate_is_not_changed_and_evaluates(tmp_path: Path) -> None:
    model = surrogate().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.network.insert(8, nn.Dropout(0.9))  # type: ignore[operator]  # a Sequential
    found = extract(tmp_path / "out", model=model)
    model.network.pop(8)  # type: ignore[operator]
    np.testing.assert_array_equal(found.features, extract(tmp_path / "other").features)
    assert not any(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_checkpoint_and_its_features_say_which_beton_the_weights_come_from(
    tmp_path: Path,
) -> None:
    model = build_model("resnet8_w16", 5)
    model.trained_on = "0123abcd"
    save_checkpoint(tmp_path / "model.pt", model)
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.trained_on == replace_head(loaded, 3).trained_on == "0123abcd"
    assert extract(tmp_path / "out", model=loaded).provenance["trained_on"] == "0123abcd"


def test_half_precision_is_rounded_single_precision(tmp_path: Path) -> None:
    single, half = extract(tmp_path / "a"), extract(tmp_path / "b", dtype="float16")
    assert half.features.dtype == np.float16
    np.testing.assert_array_equal(half.features, single.features.astype(np.float16))
    np.testing.assert_array_equal(half.mass, single.mass)


# Bad input.


class Scaled(nn.Module):
    """Multiplies what comes in."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.factor


@pytest.mark.parametrize(
    ("factor", "dtype", "fails"),
    [(1e6, "float16", True), (1e6, "float32", False), (float("nan"), "float32", True)],
)
def test_features_that_are_not_finite_are_refused(
    factor: float, dtype: str, fails: bool, tmp_path: Path
) -> None:
    model = surrogate()
    model.network.insert(8, Scaled(factor))  # type: ignore[operator]  # before the head
    if not fails:
        assert np.isfinite(extract(tmp_path / "out", model=model, dtype=dtype).features).all()
        return
    message = rf"^`features` must be finite; got NaN or inf for sample {IDS[0]}\..*65504"
    with pytest.raises(ValueError, match=message):
        extract(tmp_path / "out", model=model, dtype=dtype)
    with pytest.raises(ValueError, match="must hold finished features"):
        Features.load(tmp_path / "out")


@pytest.mark.parametrize("change", [-1, 1, 5])
def test_more_or_fewer_samples_than_asked_for_are_refused(change: int, tmp_path: Path) -> None:
    load = loads([])

    def other(ids: Any) -> Any:
        yield from load(ids if len(ids) == 1 else np.arange(SAMPLES)[: 40 + change])

    message = r"^`load` must return the 40 samples .*; got \d+.*Load without drop_last"
    with pytest.raises(ValueError, match=message):
        extract(tmp_path / "out", load=other, indices=np.arange(40))


def test_no_batches_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`load` must return the 1 samples"):
        extract(tmp_path / "out", load=lambda ids: [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("indices", [[], [[1]], [0.5], 3])
def test_what_names_no_samples_is_refused(indices: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`indices` must be sample ids \(n,\), n >= 1; got"):
        extract(tmp_path / "out", indices=indices)
    with pytest.raises(ValueError, match=r"^`dtype` must be float16 or float32; got 'float64'"):
        extract(tmp_path / "out", dtype="float64")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_something_elses_is_left_alone(kind: str, restart: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    thesis = out / "thesis.tex" if kind == "folder" else out
    thesis.write_text("precious")
    with pytest.raises(ValueError, match=r"^`out` must name a new folder, or one of features"):
        extract(out, restart=restart)
    assert thesis.read_text() == "precious"


# Passes.


@given(st.data())
def test_passes_begin_at_the_same_rows_of_every_block(data: Any) -> None:
    block = data.draw(st.integers(1, 9))
    count = data.draw(st.integers(1, 40))
    lengths = [min(block, count - start) for start in range(0, count, block)]
    size = data.draw(st.integers(1, 12))
    ends = [*range(size, count, size), count]
    if len(ends) > 1 and data.draw(st.booleans()):  # batches that get shorter on the way
        ends = sorted({*ends, data.draw(st.integers(size + 1, count))})
    buffer = torch.empty(max(size, count), dtype=torch.int64)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        start = 0
        for end in ends:
            buffer[: end - start] = torch.arange(start, end)
            yield buffer[: end - start], buffer[: end - start]
            buffer.fill_(-1)
            start = end

    first = ends[0]
    found = [(images.tolist(), numbers.tolist()) for images, numbers in _passes(batches(), lengths)]
    expected = [
        list(range(start, min(start + first, at + length)))
        for at, length in zip(range(0, count, block), lengths, strict=True)
        for start in range(at, at + length, first)
    ]
    assert found == [(each, each) for each in expected]


# Interrupted and continued.


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def interrupted(out: Path, after: int, **options: Any) -> list[int]:
    """Extract until `after` batches were loaded; return the ids."""
    loaded: list[int] = []

    def stop() -> None:
        if len(loaded) >= after * 4 + 1:  # one sample more is loaded for the shapes
            raise StoppedError

    with pytest.raises(StoppedError):
        extract(out, load=loads(loaded, before=stop), **options)
    return loaded


@pytest.mark.usefixtures("blocks_of_10")
@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 16, 100])
def test_a_continued_run_gives_the_same_bytes(batch_size: int, tmp_path: Path) -> None:
    whole = extract(tmp_path / "whole", load=loads([], batch_size))
    out = tmp_path / "out"
    interrupted(out, 9)
    header = json.loads((out / "header.json").read_text())
    assert header["finished"] is False
    done = np.load(out / "done.npy")
    assert done.tolist() == [True, True, True, False, False, False, False]
    # As another batch size would have left it, and with the middle block missing instead.
    for name in ("features", "logits"):
        np.load(out / f"{name}.npy", mmap_mode="r+")[:] = np.load(
            tmp_path / "whole" / f"{name}.npy"
        )
    np.load(out / "done.npy", mmap_mode="r+")[:] = [True, False, True, True, False, True, True]
    for name, value in (("labels", -7), ("predictions", -7), ("mass", np.nan)):
        rows = np.load(out / f"{name}.npy", mmap_mode="r+")
        complete = np.load(tmp_path / "whole" / f"{name}.npy")
        rows[:] = complete
        blocks = (slice(1, 2), slice(4, 5)) if name == "mass" else (slice(10, 20), slice(40, 50))
        for block in blocks:
            rows[block] = value
    for name in ("features", "logits"):
        rows = np.load(out / f"{name}.npy", mmap_mode="r+")
        rows[10:20] = rows[40:50] = np.nan
    loaded: list[int] = []
    found = extract(out, load=loads(loaded, batch_size))
    assert loaded == [*IDS[10:20], *IDS[40:50]]
    assert digest(found) == digest(whole)
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.usefixtures("blocks_of_10")
def test_what_was_computed_is_kept_and_what_is_finished_taken_over(tmp_path: Path) -> None:
    whole, out = extract(tmp_path / "whole"), tmp_path / "out"
    interrupted(out, 6)
    loaded: list[int] = []
    extract(out, load=loads(loaded))
    assert loaded == IDS[20:].tolist()
    assert content(out) == content(tmp_path / "whole")
    loaded.clear()
    assert digest(extract(out, load=loads(loaded))) == digest(whole)
    assert not loaded
    extract(out, load=loads(loaded), restart=True)
    assert loaded[1:] == IDS.tolist()


@pytest.mark.usefixtures("blocks_of_10")
def test_a_run_that_ends_before_the_sums_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = extract(tmp_path / "whole"), tmp_path / "out"

    def stop(*_: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "class_sums", stop)
        with pytest.raises(StoppedError):
            extract(out)
    loaded: list[int] = []
    assert digest(extract(out, load=loads(loaded))) == digest(whole)
    assert not loaded


CHANGES: dict[str, dict[str, Any]] = {
    "weights_sha256": {"model": surrogate(1)},
    "indices_sha256": {"indices": IDS[::-1]},
    "samples": {"indices": IDS[:-1]},
    "logits": {"logits": False},
    "dtype": {"dtype": "float16"},
    "resolution": {"provenance": {"resolution": 160}},
    "checkpoint_sha256": {"checkpoint": __file__},
}


@pytest.mark.usefixtures("blocks_of_10")
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", [*CHANGES, "block_rows"])
def test_another_request_does_not_continue(
    name: str, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if finished:
        extract(out)
    else:
        interrupted(out, 6)
    before = content(out)
    if name == "block_rows":
        monkeypatch.setattr(blocks, "BLOCK_ROWS", 20)
    options = CHANGES.get(name, {})
    with pytest.raises(StaleArtifactError, match=rf"^`out` must hold .* with another .*{name}"):
        extract(out, **options)
    assert content(out) == before
    again = extract(out, restart=True, **options)
    assert digest(again) == digest(extract(tmp_path / "fresh", **options))


def test_normalisation_is_part_of_the_weights(tmp_path: Path) -> None:
    extract(tmp_path / "out")
    model = surrogate()
    model.mean += 1
    with pytest.raises(StaleArtifactError, match="weights_sha256"):
        extract(tmp_path / "out", model=model)


def test_a_folder_that_a_user_saved_is_not_continued(tmp_path: Path) -> None:
    extract(tmp_path / "a").save(tmp_path / "b")
    with pytest.raises(StaleArtifactError, match="another block_rows"):
        extract(tmp_path / "b")


@pytest.mark.usefixtures("blocks_of_10")
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", ["features.npy", "done.npy", "mass.npy", "indices.npy"])
def test_a_folder_that_lacks_a_part_is_refused(name: str, cut: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(out, 6)
    if cut:
        os.truncate(out / name, 130)
    else:
        (out / name).unlink()
    with pytest.raises(ValueError, match=r"^`out` must be a whole folder .*Start over"):
        extract(out)
    assert digest(extract(out, restart=True)) == digest(extract(tmp_path / "fresh"))


@pytest.mark.usefixtures("blocks_of_10")
def test_what_has_no_header_counts_as_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(out, 6)
    (out / "header.json").unlink()
    assert digest(extract(out)) == digest(extract(tmp_path / "fresh"))


@pytest.mark.parametrize("restart", [False, True])
def test_two_runs_do_not_write_one_folder(restart: bool, tmp_path: Path) -> None:
    load = loads([])

    def load_and_start_another(ids: Any) -> Any:
        if len(ids) > 1:
            with pytest.raises(BlockingIOError, match=r"^`out` must be written by one run at a"):
                extract(tmp_path / "out", restart=restart)
        yield from load(ids)

    extract(tmp_path / "out", load=load_and_start_another)


def test_threads_do_not_change_a_bit_of_the_sums(tmp_path: Path) -> None:
    threads = numba.get_num_threads()
    sums = []
    for count in (1, 2):
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        sums.append((extract(tmp_path / str(count)).sums, count)[0])
    numba.set_num_threads(threads)
    np.testing.assert_array_equal(*sums)


# Real processes.


def start(out: Path, delay: float = 0.0, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*PROCESS, str(out), str(delay)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


def blocks_done(out: Path) -> int:
    try:
        return int(np.load(out / "done.npy").sum())
    except (OSError, ValueError, EOFError):  # not there yet
        return 0


def start_pair(out: Path, delay: float = 0.0) -> "list[subprocess.Popen[str]]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(out, delay, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in (0, 1)]


def kill_when(out: Path, blocks: int, *processes: "subprocess.Popen[str]") -> None:
    """Kill processes once so many blocks are done."""
    deadline = time.monotonic() + 300
    while blocks_done(out) < blocks:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
        assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process that nobody disturbs."""
    out = tmp_path_factory.mktemp("alone") / "out"
    found = result_of(start(out))
    assert found["loaded"] == [IDS[0], *IDS]
    assert found["digest"] == digest(Features.load(out))
    return out


def test_a_killed_process_is_continued_and_gives_the_same_bytes(
    alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill_when(out, 2, start(out, 0.2))
    assert not json.loads((out / "header.json").read_text())["finished"]
    done = np.load(out / "done.npy")
    assert 2 <= done.sum() < 7
    found = result_of(start(out))
    assert found["loaded"] == IDS[10 * done.sum() :].tolist()
    assert content(out) == content(alone)


def test_two_processes_share_the_work_and_agree_with_one(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = map(result_of, start_pair(out))
    assert first["loaded"] == [IDS[0], *IDS[:10], *IDS[20:30], *IDS[40:50], *IDS[60:]]
    assert second["loaded"] == [*IDS[10:20], *IDS[30:40], *IDS[50:60]]
    assert first["digest"] == second["digest"] == digest(Features.load(alone))
    assert content(out) == content(alone)


def test_two_killed_processes_are_continued_by_one(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_when(out, 3, *start_pair(out, 0.2))
    done = np.load(out / "done.npy")
    found = result_of(start(out))
    missing = [IDS[10 * block : 10 * block + 10] for block in np.flatnonzero(~done)]
    assert found["loaded"] == np.concatenate(missing).tolist()
    assert content(out) == content(alone)


def test_what_the_first_process_refuses_no_other_waits_for(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for found in map(result_of, start_pair(tmp_path)):
        assert found["error"].startswith("`out` must name a new folder, or one of features; got")
        assert not found["loaded"]


# A GPU.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_in_half_precision_unless_told_otherwise(tmp_path: Path) -> None:
    load = loads([])

    def load_to_gpu(ids: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((images.cuda(), numbers.cuda()) for images, numbers in load(ids))

    model = surrogate().cuda()
    on_cpu = extract(tmp_path / "cpu").features
    for amp, tolerance in ((True, 2e-2), (False, 2e-3)):
        found = extract(tmp_path / f"{amp}", model=model, load=load_to_gpu, amp=amp)
        assert found.provenance["amp"] is amp
        np.testing.assert_allclose(found.features, on_cpu, rtol=tolerance, atol=tolerance)
        with pytest.raises(StaleArtifactError, match="another amp"):
            extract(tmp_path / f"{amp}", model=model, load=load_to_gpu, amp=not amp)
