"""Process groups: joined from torchrun's environment, and left without waiting after a failure."""

import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dp4tl_ffcv import distributed
from dp4tl_ffcv.distributed import process_group, rank, world_size


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start this process as rank 1 of 2; record what it calls in a stand-in for torch."""
    made: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    stand_in = SimpleNamespace(
        is_initialized=lambda: bool(made),
        init_process_group=lambda *_, **__: made.append("joined"),
        get_rank=lambda: 1,
        get_world_size=lambda: 2,
        destroy_process_group=lambda: made.append("left"),
    )
    monkeypatch.setattr(distributed, "distributed", stand_in)
    return made


def test_a_process_joins_once_and_leaves_at_the_end(calls: list[str]) -> None:
    with process_group(), process_group():
        assert (rank(), world_size()) == (1, 2)
        assert calls == ["joined"]
    assert calls == ["joined", "left"]


def test_a_process_that_fails_does_not_wait_for_the_others(calls: list[str]) -> None:
    with pytest.raises(InterruptedError), process_group():
        raise InterruptedError
    assert calls == ["joined"]


def test_a_process_leaves_after_gloos_threads_have_finished(calls: list[str]) -> None:
    working = threading.Event()

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("pt_gloo_runloop")
        working.set()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000)  # without Python's lock
        calls.append("released")

    with process_group():
        threading.Thread(target=work).start()
        working.wait()
    assert calls == ["joined", "released", "left"]


def test_more_processes_than_gpus_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="--nproc-per-node 2"), process_group():
        pass
