"""Checkpoint files that ask for more time or memory than their size allows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dp4tl_ffcv import CheckpointError, load_checkpoint
from tests.support.bombs import BOMBS, HEADERS, legacy, write_bombs, zipped
from tests.support.models import make

_LOAD = """
import resource, sys
from dp4tl_ffcv import CheckpointError, build_model, load_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for path in sys.stdin.read().splitlines():
    before = peak()
    try:
        load_checkpoint(path, arch="resnet8_w16")
    except CheckpointError as error:
        outcome = "damaged" if "it is damaged" in str(error) else error
        print(outcome, "large" if peak() > before + 64 else "")
"""


def test_bombs_are_refused_without_taking_time_or_memory(tmp_path: Path) -> None:
    files = [str(path) for path in write_bombs(tmp_path)]
    loaded = subprocess.run(
        [sys.executable, "-c", _LOAD],
        input="\n".join(files), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    outcomes = [line.strip() for line in loaded.stdout.splitlines()]
    assert outcomes == ["damaged"] * (len(BOMBS) + len(HEADERS)), loaded.stderr


@pytest.mark.parametrize("form", [zipped, legacy])
def test_the_frame_of_a_bomb_is_readable(form, tmp_path: Path) -> None:
    """Otherwise the test above could pass because of a broken file."""
    (tmp_path / "a.pt").write_bytes(form(b"\x80\x02}X\x01\x00\x00\x00aK\x01s."))
    assert torch.load(tmp_path / "a.pt", weights_only=True) == {"a": 1}
    with pytest.raises(CheckpointError, match="it is not a state dict"):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
    with pytest.raises(CheckpointError, match="a folder, but not that of a finished run"):
        load_checkpoint(tmp_path, arch="resnet8_w16")


def test_no_memory_is_taken_for_a_recorded_architecture_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    values = {
        "arch": "vit_h_14", "num_classes": 5, "mean": [0.5] * 3, "std": [0.5] * 3,
        "network": model.network.state_dict(),
    }  # fmt: skip
    torch.save(values, tmp_path / "a.pt")
    devices = []
    original = torch.nn.Linear.__init__

    def record(self, *args, **options) -> None:
        original(self, *args, **options)
        devices.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", record)
    with pytest.raises(CheckpointError, match="do not fit vit_h_14"):
        load_checkpoint(tmp_path / "a.pt")
    assert set(devices) == {"meta"}
