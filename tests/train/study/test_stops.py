"""A study that is stopped by Ctrl-C or a signal leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dp4tl_ffcv import image_fields, write_beton
from tests.campaigns.chaos.processes import members
from train.components.study.launchers import stop_on_signals

FILE = """
source: source_{split}.beton
targets: {target: "target_{split}.beton"}
methods: {random: {unit: class}}
keeps: [0.5]
seeds: 2
images: {resolution: 16}
pretrain: {arch: resnet8_w16, epochs: 100000, batch_size: 8}
surrogates: {default: {}}
finetune: {linear_probe: {epochs: 1}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study whose first stages take hours."""
    folder = tmp_path_factory.mktemp("stops")
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    for name in ("source_train", "source_val", "target_train", "target_val", "target_test"):
        samples = [(image, n % 4, n) for n in range(8)]
        write_beton(folder / f"{name}.beton", samples, image_fields(mode="raw"), num_workers=0)
    (folder / "study.yaml").write_text(FILE)
    return folder / "study.yaml"


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGINT, "--jobs 2"),
        (signal.SIGHUP, "--jobs 1 --launcher slurm --slurm cluster=local timeout_min=9"),
    ],
)
def test_a_stopped_study_leaves_no_process(
    number: signal.Signals, flags: str, file: Path, tmp_path: Path
) -> None:
    if "slurm" in flags:
        pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    command = [sys.executable, "-m", "train.study", file, "--out", tmp_path, *flags.split()]
    before = signal.signal(number, signal.default_int_handler)  # `nohup` ignores it in all tests
    try:
        running = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(number, before)
    try:
        jobs = int(flags.split()[1])
        while running.poll() is None and len([*tmp_path.glob("pretrain/*/run/log.jsonl")]) < jobs:
            time.sleep(0.02)
        assert len(members(running.pid)) > jobs
        os.kill(running.pid, number)
        _, text = running.communicate(timeout=60)
        assert "stopped. Run it again" in text
        assert running.returncode == 130
        deadline = time.monotonic() + 60
        while left := members(running.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def test_signals_stop_a_block_once_unless_they_are_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup`
    handler = signal.getsignal(signal.SIGTERM)
    ended = False
    try:
        with suppress(KeyboardInterrupt), stop_on_signals():
            signal.raise_signal(signal.SIGHUP)
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                ended = True
        assert ended
        assert signal.getsignal(signal.SIGTERM) == handler
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
