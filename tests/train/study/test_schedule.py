"""The order in which stages run, failures, and stages that are finished."""

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from train.components.study.schedule import Schedule
from train.components.study.stages import Stage, with_needs


class Threads:
    """Runs stages in threads: each only records that it ran."""

    def __init__(self, slots: int, **broken: Exception | list[Exception]) -> None:
        self.slots, self._broken, self._lock = slots, broken, Lock()
        self._pool = ThreadPoolExecutor(slots)
        self.ran: list[str] = []
        self.most = self._running = 0

    def submit(self, stage: Stage) -> Future[dict[str, Any]]:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        return self._pool.submit(self._run, stage)

    def _run(self, stage: Stage) -> dict[str, Any]:
        name = stage.facts["name"]
        try:
            assert all(need.result() for need in stage.needs.values())
            errors = self._broken.get(name, [])
            if isinstance(errors, Exception):
                raise errors
            if errors:
                raise errors.pop()
            folder = stage.run_folder
            folder.start(resume=True)
            self.ran.append(name)
            return folder.finish({})
        finally:
            with self._lock:
                self._running -= 1


def chain(root: Path, name: str, *needs: Stage) -> Stage:
    roles = {f"need {number}": need for number, need in enumerate(needs)}
    return Stage(kind="work", facts={"name": name}, needs=roles, root=root)


@pytest.fixture
def stages(tmp_path: Path) -> list[Stage]:
    """Two roots, two stages on the first one, and a last one that needs all."""
    first, second = chain(tmp_path, "first"), chain(tmp_path, "second")
    left, right = chain(tmp_path, "left", first), chain(tmp_path, "right", first)
    return with_needs([chain(tmp_path, "last", left, right, second)])


def run(stages: list[Stage], launcher: Threads, **options: bool) -> dict[str, str]:
    schedule = Schedule(stages, **options)
    left = [stage for stage in stages if stage.result() is None]
    assert schedule.num_finished == len(stages) - len(left)
    ended = list(schedule.run(launcher))
    errors = schedule.errors
    names = {stage.key: stage.facts["name"] for stage in stages}
    assert {stage.facts["name"] for stage, error in ended if error is None} == set(launcher.ran)
    return {names[key]: error for key, error in errors.items()}


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_needs_run_first_and_each_stage_once(stages: list[Stage], slots: int) -> None:
    launcher = Threads(slots)
    assert run(stages, launcher) == {}
    assert sorted(launcher.ran) == ["first", "last", "left", "right", "second"]
    assert launcher.most <= slots
    again = Threads(slots)
    assert run(stages, again) == {}
    assert again.ran == []


def test_a_failure_stops_only_what_needs_it_and_is_kept(stages: list[Stage]) -> None:
    launcher = Threads(2, left=ValueError("no memory on the GPU"))
    errors = run(stages, launcher)
    assert errors["left"] == "no memory on the GPU"
    assert "which failed" in errors["last"]
    assert sorted(launcher.ran) == ["first", "right", "second"]
    again = Threads(2)
    assert run(stages, again).keys() == {"left", "last"}
    assert again.ran == []
    retried = Threads(2)
    assert run(stages, retried, retry_failed=True) == {}
    assert sorted(retried.ran) == ["last", "left"]


def test_a_killed_stage_runs_again_but_not_for_ever(stages: list[Stage]) -> None:
    killed = BrokenProcessPool("killed")
    launcher = Threads(2, first=[killed, killed])
    assert run(stages, launcher) == {}
    assert launcher.ran.count("first") == 1


def test_a_stage_that_is_always_killed_fails(stages: list[Stage]) -> None:
    errors = run(stages, Threads(2, first=BrokenProcessPool("killed")))
    assert "killed 3 times" in errors["first"]
    assert errors.keys() == {"first", "left", "right", "last"}
