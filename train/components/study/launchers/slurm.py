"""Run the stages of a study as jobs of Slurm, by submitit."""

import math
import os
from collections import Counter
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

from dp4tl_ffcv.utils import requires

from ..stages import Stage
from . import LaunchError, parameters_of
from .nodes import Outcome, mark, run_on_node, settle

_JOBS = 64  # in Slurm's queue
_LOOKS_EVERY = 1.0  # seconds
_LOOKS = 90  # at a job whose files cannot be read


class Slurm:
    """Slurm, with one job for each stage. A job that times out or is preempted is queued again.

    All nodes must see this environment, the study's folder and the betons under the same paths.
    The logs of the jobs are in the folder `slurm` of the study.

    Args:
        root: folder of the study.
        jobs: jobs in the queue at a time. None: 64.
        parameters: parameters of submitit as NAME=VALUE, such as `slurm_partition=gpu`,
            `gpus_per_node=1` and `timeout_min=240`, which is required. `cluster=local` runs the
            jobs on this machine, by default one for each core.

    Raises:
        ValueError: submitit is not installed, there is no Slurm, or a parameter is wrong.
    """

    def __init__(self, root: Path, jobs: int | None, parameters: tuple[str, ...]) -> None:
        given = parameters_of("slurm", parameters)
        cluster = given.pop("cluster", "slurm")
        if "timeout_min" not in given:
            raise ValueError(
                "`slurm` needs timeout_min=MINUTES, the time limit of a job. A stage that takes "
                "longer is queued again and continues."
            )
        with requires("submitit", "the launcher slurm"):
            import submitit
        self._submitit: Any = submitit
        try:
            self._executor: Any = submitit.AutoExecutor(root / "slurm", cluster=cluster)
            self._executor.update_parameters(**given)
        except RuntimeError as error:
            raise LaunchError(
                "there is no Slurm on this machine: srun is missing. Start the study where you "
                "submit jobs, or pass `slurm` cluster=local to try it here."
            ) from error
        except (NameError, ValueError, AssertionError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"submitit refuses a parameter of `slurm`: {why}") from error
        cores = len(os.sched_getaffinity(0))
        is_local = cluster == "local"
        self.slots = jobs or (cores if is_local else _JOBS)
        # Slurm gives each job cores of its own; jobs on this machine share its cores.
        self._threads = max(1, cores // self.slots) if is_local else None
        self._cancel_left(root / "slurm", cluster)
        self._mark = mark(root)
        self._jobs: dict[Any, tuple[Stage, Future[dict[str, Any]]]] = {}
        self._unread: Counter[Any] = Counter()  # errors of the file system, by job
        self._stop = Event()
        self._watcher = Thread(target=self._watch, name="slurm", daemon=True)
        self._watcher.start()

    def submit(self, stage: Stage) -> Future[dict[str, Any]]:
        """Queue a job."""
        try:
            job = self._executor.submit(_Work(stage, self._mark, self._threads))
        except self._submitit.core.utils.FailedJobError as error:
            raise LaunchError(f"Slurm refuses a job: {_last_line(error)}") from error
        future: Future[dict[str, Any]] = Future()
        self._jobs[job] = stage, future
        return future

    def _cancel_left(self, folder: Path, cluster: str) -> None:
        """Cancel the jobs of a study that was killed, whose stages are queued again now."""
        kind = self._submitit.SlurmJob if cluster == "slurm" else self._submitit.LocalJob
        for submitted in folder.glob("*_submitted.pkl"):
            job = kind(folder, submitted.name.partition("_")[0])
            if not job.paths.result_pickle.exists():
                job.cancel(check=False)
                submitted.unlink()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOKS_EVERY):
            for job in list(self._jobs):
                self._look(job)

    def _look(self, job: Any) -> None:
        """Give the future of a job that has ended its result or error."""
        stage, future = self._jobs[job]
        failed = self._submitit.core.utils
        try:
            if not job.done():
                return
            settle(future, stage, job.result())
        except OSError as error:
            self._unread[job] += 1
            if self._unread[job] < _LOOKS:
                return
            future.set_exception(LaunchError(f"the result of a job cannot be read: {error}"))
        except Exception as error:
            # A job that raises did not reach its stage, whose errors are part of the outcome.
            raised = isinstance(error, failed.FailedJobError)
            died = isinstance(error, failed.UncompletedJobError) and not raised
            text = _last_line(error)
            future.set_exception(
                BrokenExecutor(text) if died else LaunchError(f"a job of Slurm cannot run: {text}")
            )
        del self._jobs[job]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for job in list(self._jobs):  # of a study that is stopped
            job.cancel(check=False)
        self._watcher.join()


class _Work:
    """A stage as submitit wants it: after `checkpoint`, a stopped job is queued again."""

    def __init__(self, stage: Stage, mark: str, threads: int | None) -> None:
        self._stage, self._mark, self._threads = stage, mark, threads

    def __call__(self) -> Outcome:
        # A cancelled job may still hold the lock of the stage's folder.
        return run_on_node(self._stage, self._mark, self._threads, patience=math.inf)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _last_line(error: Exception) -> str:
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip("- ")]
    return lines[-1] if lines else type(error).__name__
