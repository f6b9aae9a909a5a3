"""Run the stages of a plan on a launcher: needs first, several at a time, each once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from typing import Any

from .launchers import Launcher, LaunchError
from .stages import Stage

_ATTEMPTS = 3  # of a stage whose process or node dies; recipes continue from their last state
_LOOKS_EVERY = 10.0  # seconds, for slots of machines that have joined a cluster


class Schedule:
    """Stages that wait, are ready or run. A step costs no more with more stages.

    Args:
        stages: needs come before the stages that use them.
        retry_failed: repeat the stages that failed in an earlier run.
    """

    def __init__(self, stages: Sequence[Stage], *, retry_failed: bool = False) -> None:
        self._stages = stages
        self._places = {stage.key: place for place, stage in enumerate(stages)}
        self._finished = {stage.key for stage in stages if stage.result() is not None}
        self._failed: dict[str, str] = {}
        for stage in [] if retry_failed else stages:
            if stage.key not in self._finished and (failure := stage.failure) is not None:
                self._failed[stage.key] = failure
        self._waiting = TopologicalSorter(
            {
                stage.key: [need.key for need in stage.needs.values()]
                for stage in stages
                if stage.key not in self._finished
            }
        )
        self._waiting.prepare()
        self._ready: list[int] = []  # places in the plan, as a heap
        self._running: dict[Future[dict[str, Any]], Stage] = {}
        self._deaths: Counter[str] = Counter()

    @property
    def num_finished(self) -> int:
        """Number of finished stages."""
        return len(self._finished)

    def run(self, launcher: Launcher) -> Iterator[tuple[Stage, str | None]]:
        """Run all stages whose needs succeed, and yield each when it ends, with its error.

        Raises:
            LaunchError: the launcher cannot run stages.
        """
        while self._start_ready(launcher):
            yield from self._wait()

    @property
    def errors(self) -> dict[str, str]:
        """Errors of the failed stages, and of those that need them, by their keys."""
        errors = dict(self._failed)
        for stage in self._stages:
            failed = [need for need in stage.needs.values() if need.key in errors]
            if failed and stage.key not in self._finished:
                errors.setdefault(stage.key, f"needs {failed[0].name}, which failed")
        return errors

    def _start_ready(self, launcher: Launcher) -> bool:
        """Start stages on free slots, in the order of the plan. Return whether any is running."""
        for place in self._newly_ready():
            heappush(self._ready, place)
        free = launcher.slots - len(self._running)
        while self._ready and free > 0:
            stage = self._stages[heappop(self._ready)]
            self._running[launcher.submit(stage)] = stage
            free -= 1
        return bool(self._running)

    def _newly_ready(self) -> Iterator[int]:
        while keys := self._waiting.get_ready():
            for key in keys:
                if key in self._finished:
                    self._waiting.done(key)
                elif key not in self._failed:
                    yield self._places[key]

    def _wait(self) -> list[tuple[Stage, str | None]]:
        """Wait until stages end, or for seconds, and return the ended ones with their errors."""
        ended = []
        for future in wait(self._running, _LOOKS_EVERY, FIRST_COMPLETED).done:
            stage = self._running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                self._deaths[stage.key] += 1
                if self._deaths[stage.key] < _ATTEMPTS:
                    heappush(self._ready, self._places[stage.key])
                    continue
            if error is None:
                self._finished.add(stage.key)
                self._waiting.done(stage.key)
            elif isinstance(error, Exception) and not isinstance(error, LaunchError):
                self._failed[stage.key] = _text(error)
                stage.set_failure(_text(error))
            else:  # no stage's own, as KeyboardInterrupt
                raise error
            ended.append((stage, None if error is None else _text(error)))
        return ended


def _text(error: BaseException) -> str:
    if isinstance(error, BrokenExecutor):
        why = f"; the last time: {error}" if str(error) else ""
        return f"its process was killed {_ATTEMPTS} times, perhaps because memory ran out{why}"
    return str(error) or type(error).__name__
