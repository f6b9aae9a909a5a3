"""Run the stages of a plan on a launcher: needs first, several at a time, each once."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from .stages import Stage

_ATTEMPTS = 3  # of a stage whose process is killed; recipes continue from their last state


class Launcher(Protocol):
    """Starts stages in other processes."""

    slots: int
    """Stages at a time."""

    def submit(self, stage: Stage) -> Future[dict[str, Any]]:
        """Start `run_stage(stage)`. The future gets its result or its exception."""
        ...


def run_stages(
    stages: Sequence[Stage],
    launcher: Launcher,
    *,
    retry_failed: bool = False,
    tell: Callable[[Stage, str | None], None],
) -> dict[str, str]:
    """Run all stages whose needs succeed, and return the errors of the failed ones by their keys.

    Args:
        stages: needs come before the stages that use them.
        launcher: starts the stages.
        retry_failed: repeat the stages that failed in an earlier call.
        tell: is called with each stage that ends, and its error.
    """
    schedule = _Schedule(stages, launcher, retry_failed)
    while schedule.start_ready():
        for stage, error in schedule.wait():
            tell(stage, error)
    return schedule.errors


class _Schedule:
    def __init__(self, stages: Sequence[Stage], launcher: Launcher, retry_failed: bool) -> None:
        self._launcher = launcher
        self._waiting = [stage for stage in stages if stage.result() is None]
        unfinished = {stage.key for stage in self._waiting}
        self._done = {stage.key for stage in stages if stage.key not in unfinished}
        self._running: dict[Future[dict[str, Any]], Stage] = {}
        self._attempts: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        for stage in [] if retry_failed else list(self._waiting):
            if (failure := stage.failure) is not None:
                self.errors[stage.key] = failure

    def start_ready(self) -> bool:
        """Start stages on free slots, in the order of the plan. Return whether any is running."""
        for stage in list(self._waiting):
            if stage.key in self.errors or self._blocked(stage):
                self._waiting.remove(stage)
            elif len(self._running) == self._launcher.slots:
                break
            elif all(need.key in self._done for need in stage.needs.values()):
                self._waiting.remove(stage)
                self._attempts[stage.key] = self._attempts.get(stage.key, 0) + 1
                self._running[self._launcher.submit(stage)] = stage
        return bool(self._running)

    def _blocked(self, stage: Stage) -> bool:
        failed = [need for need in stage.needs.values() if need.key in self.errors]
        if failed:
            self.errors[stage.key] = f"needs {failed[0].folder}, which failed"
        return bool(failed)

    def wait(self) -> list[tuple[Stage, str | None]]:
        """Wait until stages end, and return them with their errors."""
        ended = []
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            stage = self._running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool) and self._attempts[stage.key] < _ATTEMPTS:
                self._waiting.insert(0, stage)
                continue
            if error is None:
                self._done.add(stage.key)
            elif isinstance(error, Exception):
                self.errors[stage.key] = _text(error)
                stage.set_failure(_text(error))
            else:  # KeyboardInterrupt
                raise error
            ended.append((stage, None if error is None else _text(error)))
        return ended


def _text(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return f"its process was killed {_ATTEMPTS} times, perhaps because memory ran out"
    return str(error) or type(error).__name__
