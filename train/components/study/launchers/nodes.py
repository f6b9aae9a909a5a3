"""Stages that run on other machines, which must share the study's folder with this one."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

from ..stages import Stage
from ..work import run_stage
from . import LaunchError

# Seconds. A network file system may show a new file to other machines a minute later, and may keep
# the locks of a dead machine as long.
_PATIENCE = 90.0
_TRIES_EVERY = 0.5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a stage on a node: a result or an error."""

    result: dict[str, Any] | None = None
    error: str | None = None
    """Error of the stage."""
    unseen: str | None = None
    """A folder that the node does not share."""
    node: str = field(default_factory=socket.gethostname)


def mark(root: Path) -> str:
    """Make a new mark, an empty file, in the study's folder. Return its name.

    A node that finds it shares the folder: a folder at the same path on a disk of the node has no
    such mark. The name is new each time, since a network file system may remember an older file.
    """
    for old in root.glob("launched-*"):
        old.unlink(missing_ok=True)
    name = f"launched-{uuid4().hex}"
    (root / name).touch()
    return name


def run_on_node(
    stage: Stage, mark: str, threads: int | None = None, *, patience: float | None = None
) -> Outcome:
    """Run a stage on a node. Errors are part of the outcome.

    The mark and the results of the stage's needs may show up late.

    Args:
        stage: the needs must be finished.
        mark: the name that `mark` returned.
        threads: threads of torch and of the loaders. None uses all cores.
        patience: seconds to wait for the lock of the stage's folder, which a dead node may hold for
            a while. None: 90.
    """
    if not _appears(lambda: (stage.root / mark).exists()):
        return Outcome(unseen=str(stage.root))
    for need in stage.needs.values():
        if not _shows_result(need):
            return Outcome(unseen=str(need.folder))
    deadline = time.monotonic() + (_PATIENCE if patience is None else patience)
    while True:
        try:
            return Outcome(result=run_stage(stage, threads))
        except Exception as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > deadline:
                return Outcome(error=str(error) or type(error).__name__)


def settle(future: Future[dict[str, Any]], stage: Stage, outcome: Outcome) -> None:
    """Give a future the result or the error that a node reports, later if it shows up late here."""
    Thread(target=_settle, args=(future, stage, outcome), daemon=True).start()


def _settle(future: Future[dict[str, Any]], stage: Stage, outcome: Outcome) -> None:
    unseen = outcome.unseen
    if outcome.result is not None:
        if _shows_result(stage):
            future.set_result(outcome.result)
            return
        unseen = str(stage.folder)  # the node wrote it elsewhere
    if unseen is None:
        future.set_exception(ValueError(outcome.error))
        return
    future.set_exception(
        LaunchError(
            f"the node {outcome.node} does not share {unseen!r}. Put the study (`out`) and its "
            "betons into a folder that all nodes see under the same path."
        )
    )


def _shows_result(stage: Stage) -> bool:
    return _appears(lambda: stage.result() is not None)


def _appears(is_there: Callable[[], bool]) -> bool:
    """Return whether a condition is true, now or within the patience."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(OSError):  # a network file system that changes its mind
            if is_there():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_TRIES_EVERY)
