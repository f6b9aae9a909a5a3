"""Process groups: joined from torchrun's environment, and left without waiting after a failure."""

import hashlib
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dp4tl_ffcv import distributed
from dp4tl_ffcv.distributed import on_rank_zero, process_group, rank, world_size


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


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:4: Connection reset by peer",
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:43914",
        "[gloo/transport/tcp/pair.cc:81] writev [127.0.0.1]:1: Broken pipe",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exit",
    ],
    ids=["reset", "closed", "pipe", "nccl"],
)
def test_the_loss_of_another_rank_is_reported_by_its_name(
    message: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConnectionError, match="rank 1 of 2 lost the"), process_group():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="no memory"), process_group():
        raise RuntimeError("no memory")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match=r"\[gloo|nccl"), process_group():
        raise RuntimeError(message)


@pytest.mark.parametrize("failure", [None, RuntimeError("no room")])
def test_every_rank_gets_the_result_or_the_error_of_rank_0(
    failure: Exception | None, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def action() -> int:
        if failure is not None:
            raise failure
        return 3

    calls.append("joined")
    torch_stand_in: Any = distributed.distributed
    sent: list[Any] = []
    monkeypatch.setattr(torch_stand_in, "get_rank", lambda: 0)
    torch_stand_in.broadcast_object_list = lambda values, **_: sent.extend(values)
    with nullcontext() if failure is None else pytest.raises(RuntimeError, match="no room"):
        assert on_rank_zero(action) == 3
    monkeypatch.setattr(torch_stand_in, "get_rank", lambda: 1)
    torch_stand_in.broadcast_object_list = lambda values, **_: values.__setitem__(slice(None), sent)
    with nullcontext() if failure is None else pytest.raises(ValueError, match="no room"):
        assert on_rank_zero(lambda: pytest.fail("only rank 0 acts")) == 3


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
