"""The launcher `slurm`: jobs that die, raise, cannot be read, or are left by a killed study."""

import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from train.components.study.launchers import LaunchError, slurm
from train.components.study.launchers.nodes import Outcome
from train.components.study.stages import Stage

submitit = pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
UncompletedJobError = submitit.core.utils.UncompletedJobError
FailedJobError = submitit.core.utils.FailedJobError


class Job:
    """A job with a given end. `done` first raises the errors of `looks`."""

    def __init__(self, end: Exception | Outcome, *looks: OSError) -> None:
        self._end, self._looks = end, list(looks)

    def done(self) -> bool:
        if self._looks:
            raise self._looks.pop()
        return True

    def result(self) -> Outcome:
        if isinstance(self._end, Exception):
            raise self._end
        return self._end


class Stuck(Job):
    """A job that `done` waits for, until it is cancelled."""

    def __init__(self) -> None:
        super().__init__(Outcome(error="cancelled"))
        self.asked, self.cancelled, self.ended = Event(), Event(), False

    def done(self) -> bool:
        self.asked.set()
        self.ended = self.cancelled.wait(5)
        return self.ended

    def cancel(self, *, check: bool) -> None:
        assert not check
        self.cancelled.set()


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[slurm.Slurm]:
    monkeypatch.setattr(slurm, "_LOOKS_EVERY", 0.01)
    monkeypatch.setattr(slurm, "_LOOKS", 3)
    with slurm.Slurm(tmp_path, 1, ("cluster=local", "timeout_min=1")) as made:
        yield made


def submitted(launcher: slurm.Slurm, job: Job, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(launcher._executor, "submit", lambda work: job)
    stage = Stage(kind="nothing", facts={}, root=Path("absent"))
    return launcher.submit(stage)


STALE = OSError(116, "stale file handle")


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (Job(UncompletedJobError("no output\n---\noom-kill\n")), BrokenExecutor, "^oom-kill$"),
        (Job(FailedJobError("----\nNo module named 'train'\n")), LaunchError, "run: No module"),
        (Job(Outcome(error="no space"), STALE, STALE), ValueError, "^no space$"),
        (Job(Outcome(error="no space"), *[STALE] * 3), LaunchError, "cannot be read.*stale"),
    ],
)
def test_the_end_of_a_job(
    job: Job,
    kind: type[Exception],
    words: str,
    launcher: slurm.Slurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(kind, match=words) as caught:
        submitted(launcher, job, monkeypatch).result(10)
    assert isinstance(caught.value, LaunchError) == (kind is LaunchError)


def test_jobs_on_this_machine_share_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    monkeypatch.setattr(slurm.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(slurm, "run_on_node", lambda *given, **_: threads.append(given[2]))
    for jobs in (None, 2):
        with slurm.Slurm(tmp_path, jobs, ("cluster=local", "timeout_min=1")) as made:
            made._executor.submit = lambda work: work() or Stuck()
            made.submit(Stage(kind="nothing", facts={}, root=Path("absent")))
    assert threads == [1, 4]


def test_a_stopped_study_cancels_its_jobs_at_once(
    launcher: slurm.Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Stuck()
    submitted(launcher, job, monkeypatch)
    assert job.asked.wait(5)
    launcher.__exit__(KeyboardInterrupt, None, None)
    assert job.ended  # by the cancellation


def test_jobs_of_a_killed_study_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "study" / "slurm"
    for path in (tools, folder):
        path.mkdir(parents=True)
    for name in ("srun", "scancel"):
        (tools / name).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.txt\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    for name in ("7_submitted.pkl", "7_0_result.pkl", "8_submitted.pkl"):  # 7 has ended
        (folder / name).touch()
    for _ in range(2):
        with slurm.Slurm(folder.parent, 1, ("timeout_min=1",)):
            assert (tmp_path / "scancel.txt").read_text() == "8\n"
