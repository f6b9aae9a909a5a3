"""`dp4tl features`: its options, a second run, and the output of several processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import Features, build_model, save_checkpoint
from dp4tl_ffcv.cli import main
from dp4tl_ffcv.loading import loader
from dp4tl_ffcv.loading.reading.reading_threads import STALLED_AFTER
from tests.conftest import Images

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


def test_the_loader_waits_as_long_as_the_command_says(
    run: Run, photos: Images, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float | None] = []
    choose = loader.choose_timeout
    monkeypatch.setattr(
        loader, "choose_timeout", lambda given: found.append(given) or choose(given)
    )
    run("--timeout", "77")
    grand = ["score", "grand", "--beton", str(photos.path), "--models", str(checkpoint), *PASS]
    run(out="default")
    assert set(found) == {77.0, STALLED_AFTER}
    main([*grand, "--timeout", "None", "--out", str(tmp_path / "grand.npz")])
    assert found[-1] is None


def test_options_choose_what_is_kept(run: Run, tmp_path: Path) -> None:
    assert run("--logits", "--dtype", "float16", out="half")["classes"] == 10
    half = Features.load(tmp_path / "half")
    assert half.logits is not None
    assert half.features.dtype == np.float16
    assert run("--headless", out="bare")["classes"] is None
    bare = Features.load(tmp_path / "bare")
    np.testing.assert_array_equal(half.features, bare.features.astype(np.float16))
    assert bare.logits is bare.predictions is bare.soft_votes is None


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


def test_only_rank_0_prints(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(json.JSONDecodeError):
        run()
    assert capsys.readouterr().out == ""
