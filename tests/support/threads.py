"""The number of threads that kernels use."""

import os

import pytest

from dp4tl_ffcv.kernels import threads


def use_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let kernels run with `count` threads, as on a machine of as many cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    monkeypatch.setattr(threads, "_MOST", count)
