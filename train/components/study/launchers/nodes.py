"""Stages that run on other machines, which must share the study's folder with this one."""

import socket
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from dp4tl_ffcv.utils import read_json, write_json

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
    """Write a new mark to the study's folder, and return it. A node that reads it sees the folder.

    A folder at the same path on a disk of the node holds no mark, or an older one.
    """
    value = uuid4().hex
    write_json(root / "launched.json", {"mark": value})
    return value


def run_on_node(
    stage: Stage, mark: str, threads: int | None = None, *, patience: float | None = None
) -> Outcome:
    """Run a stage on a node. Errors are part of the outcome.

    The results of the stage's needs may show up late.

    Args:
        stage: the needs must be finished.
        mark: the value that `mark` returned.
        threads: threads of torch and of the loaders. None uses all cores.
        patience: seconds to wait for the lock of the stage's folder, which a dead node may hold for
            a while. None: 90.
    """
    if not _is_marked(stage.root, mark):
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
    """Give a future the result or the error that a node reports."""
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


def _is_marked(root: Path, mark: str) -> bool:
    try:
        return bool(read_json(root / "launched.json") == {"mark": mark})
    except (OSError, ValueError):
        return False


def _shows_result(stage: Stage) -> bool:
    """Return whether the result of a finished stage is visible here. Wait for it if it is not."""
    deadline = time.monotonic() + _PATIENCE
    while stage.result() is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_TRIES_EVERY)
    return True
