"""`dp4tl features`: its options, a second run, and several processes under torchrun."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import Features, build_model, save_checkpoint
from dp4tl_ffcv.cli import main
from tests.conftest import Images

ROOT = Path(__file__).resolve().parents[2]
PASS = ("--resolution", "32", "--batch-size", "16", "--num-workers", "2")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("surrogate") / "surrogate.pt"
    torch.manual_seed(0)
    save_checkpoint(path, build_model("resnet8_w16", 10))
    return path


@pytest.fixture
def run(
    photos: Images, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Extract the photos' features to the folder out, and return what is printed."""

    def call(*options: str, out: str = "out") -> dict[str, Any]:
        arguments = ["features", str(photos.path), "--model", str(checkpoint), *PASS]
        main([*arguments, "--out", str(tmp_path / out), *options, "--json"])
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


def test_options_choose_what_is_kept(run: Run, tmp_path: Path) -> None:
    run()
    plain = Features.load(tmp_path / "out")
    assert plain.logits is None
    assert plain.features.dtype == np.float32
    assert run("--logits", "--dtype", "float16", out="half")["classes"] == 10
    half = Features.load(tmp_path / "half")
    assert half.logits is not None
    np.testing.assert_array_equal(half.features, plain.features.astype(np.float16))
    np.testing.assert_array_equal(half.predictions, plain.predictions)
    assert run("--headless", out="bare")["classes"] is None
    bare = Features.load(tmp_path / "bare")
    np.testing.assert_array_equal(bare.features, plain.features)
    assert bare.predictions is bare.soft_votes is None


def test_a_second_run_takes_over_or_starts_over(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run()
    before = (tmp_path / "out" / "features.npy").stat()
    assert run() == first
    assert (tmp_path / "out" / "features.npy").stat() == before
    with pytest.raises(SystemExit) as caught:
        run("--crop-ratio", "1")
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "with another crop_ratio. Use another folder, or start over" in line
    assert "--restart" in line
    assert (tmp_path / "out" / "features.npy").stat() == before
    run("--crop-ratio", "1", "--restart")
    assert Features.load(tmp_path / "out").provenance["crop_ratio"] == 1


def test_processes_of_torchrun_share_the_work(
    run: Run, photos: Images, checkpoint: Path, tmp_path: Path
) -> None:
    run("--logits", out="alone")
    code = (
        "from dp4tl_ffcv import extraction; from dp4tl_ffcv.cli import main; "
        "from dp4tl_ffcv.scoring.features import blocks; "
        "extraction.BLOCK_ROWS = blocks.BLOCK_ROWS = 16; main()"
    )
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python")
    command = (*torchrun, "--nproc-per-node", "2", sys.executable, "-c", code, "features")
    inputs = (str(photos.path), "--model", str(checkpoint), *PASS[:4], "--logits")
    done = subprocess.run(
        [*command, *inputs, "--out", str(tmp_path / "shared"), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {  # once
        "out": str(tmp_path / "shared"), "samples": 120, "classes": 10, "features": 64,
    }  # fmt: skip
    alone, shared = Features.load(tmp_path / "alone"), Features.load(tmp_path / "shared")
    for name in ("labels", "indices", "counts", "predictions"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))
    for name in (
        "features",
        "logits",
        "sums",
        "soft_votes",
    ):  # other numbers of threads add otherwise
        np.testing.assert_allclose(
            getattr(alone, name), getattr(shared, name), rtol=1e-4, atol=1e-4
        )
    assert alone.provenance == shared.provenance
