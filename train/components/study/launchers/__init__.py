"""Where the stages of a study run: this machine, a Ray cluster or Slurm. A module for each."""

import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Protocol

from ....configs.study import Config
from ..stages import Stage


class LaunchError(ValueError):
    """The launcher cannot run stages. A study ends with this error; no stage counts as failed."""


class Launcher(Protocol):
    """Starts stages in other processes."""

    @property
    def slots(self) -> int:
        """Stages at a time, at least 1. A cluster's number may change."""
        ...

    def submit(self, stage: Stage) -> Future[dict[str, Any]]:
        """Start `run_stage(stage)`.

        The future gets the result, or an exception: that of the stage, `BrokenExecutor` if the
        process or the node of the stage died, or `LaunchError`.
        """
        ...


def launcher_of(config: Config, root: Path) -> AbstractContextManager[Launcher]:
    """Return the launcher that the settings name. Leaving its block early ends what runs.

    Args:
        config: settings of `dp4tl study`.
        root: folder of the study, which exists.

    Raises:
        LaunchError: there is no Ray cluster at the address, or no Slurm.
        ValueError: Ray or submitit is not installed, or a parameter is wrong.
    """
    if config.launcher == "ray":
        from .ray import RayCluster

        return RayCluster(root, config.address, config.jobs, config.ray)
    if config.launcher == "slurm":
        from .slurm import Slurm

        return Slurm(root, config.jobs, config.slurm)
    from .local import Local

    return Local(config.jobs)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop the block as Ctrl-C does, so that a launcher ends its stages.

    Further ones are ignored while the block ends. Signals that were ignored before, as by `nohup`,
    still are. Outside of the main thread, which alone gets signals, nothing changes.
    """
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def stop(*_: Any) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parameters_of(flag: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of parameters that are written as NAME=VALUE.

    Raises:
        ValueError: a text has another form.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"`{flag}` takes parameters as NAME=VALUE; got {text!r}.")
        values[name] = _number(value)
    return values


def _number(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
