"""Run the stages of a study on a Ray cluster."""

import logging
import math
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Self

from dp4tl_ffcv.utils import parse_bytes, requires

from ..stages import Stage
from . import LaunchError, parameters_of
from .nodes import mark, run_on_node, settle

_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # in options, on nodes
_SECONDS = 10.0  # to reach a cluster


class RayCluster:
    """A Ray cluster, which places each stage on a node with free GPUs or cores, and memory.

    Every node needs this package, and must see the study's folder and the betons under the same
    paths. A stage whose node dies runs again on another one.

    Args:
        root: folder of the study.
        address: address of a running cluster, such as `auto`. None starts Ray on this machine.
        jobs: stages at a time. None: as many as the nodes have resources for. Pass a number to
            let a cluster grow with its queue.
        parameters: resources of a stage as NAME=VALUE: `num_cpus`, `num_gpus` and `memory`. The
            default is one GPU with its share of the cores, or one core if there is no GPU.

    Raises:
        LaunchError: there is no cluster at `address`, or no node has these resources.
        ValueError: Ray is not installed, or a parameter is wrong.
    """

    def __init__(
        self, root: Path, address: str | None, jobs: int | None, parameters: tuple[str, ...]
    ) -> None:
        given = _resources(parameters)
        with requires("ray", "the launcher ray"):
            import ray
        self._ray: Any = ray
        self._jobs = jobs
        self._connect(address)
        try:
            self._needed = {**self._share(), **given}
            if jobs is None and not self._places():
                asked = " ".join(f"{name}={value:g}" for name, value in self._needed.items())
                raise LaunchError(f"no node of the Ray cluster has {asked} for a stage.")
        except BaseException:
            ray.shutdown()
            raise
        # A stage that dies is repeated by the schedule, for all launchers alike.
        self._run = self._ray.remote(run_on_node).options(max_retries=0, **self._needed)
        self._threads = max(1, int(self._needed.get("num_cpus", 1)))
        self._mark = mark(root)

    @property
    def slots(self) -> int:
        """Stages that the living nodes have resources for, or 1 if no node is left."""
        return self._jobs or max(1, self._places())

    def submit(self, stage: Stage) -> Future[dict[str, Any]]:
        """Start a stage on a node."""
        future: Future[dict[str, Any]] = Future()
        running = self._run.remote(stage, self._mark, self._threads).future()
        running.add_done_callback(lambda done: self._settle(future, stage, done))
        return future

    def _settle(self, future: Future[dict[str, Any]], stage: Stage, done: Future[Any]) -> None:
        error, failed = done.exception(), self._ray.exceptions
        dead = (failed.WorkerCrashedError, failed.NodeDiedError, failed.OutOfMemoryError)
        if error is None:
            settle(future, stage, done.result())
        elif isinstance(error, dead):
            future.set_exception(BrokenExecutor(str(error)))
        else:
            text = str(error).strip().splitlines()[-1]
            future.set_exception(LaunchError(f"Ray cannot run a stage: {text}"))

    def _connect(self, address: str | None) -> None:
        options: dict[str, Any] = {"address": address}
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options = {
                "address": "local",
                "num_cpus": len(os.sched_getaffinity(0)),
                "include_dashboard": False,
            }
        try:
            _check_reachable(address)
            with _own_sigterm():
                self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise LaunchError(
                f"no Ray cluster answers at `address` {address!r}: {why} Start one by `ray start "
                "--head`, or leave `address` out to use this machine alone."
                if address
                else f"Ray does not start on this machine: {why}"
            ) from error

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _share(self) -> dict[str, float]:
        """Return one GPU with its share of the cores of its node, or one core."""
        with_gpus = [node for node in self._nodes() if node.get("GPU", 0) >= 1]
        if not with_gpus:
            return {"num_cpus": 1}
        cores = min(node.get("CPU", 0) // node["GPU"] for node in with_gpus)
        return {"num_cpus": cores, "num_gpus": 1}

    def _places(self) -> int:
        """Return the number of stages that fit on the living nodes."""
        needed = {_NAMES[name]: value for name, value in self._needed.items() if value}
        return sum(
            min(int(node.get(name, 0) / value) for name, value in needed.items())
            for node in self._nodes()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()  # ends what still runs


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block: Ray sets one that ends the process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, before)


def _resources(parameters: tuple[str, ...]) -> dict[str, float]:
    given = parameters_of("ray", parameters)
    for name, value in given.items():
        if name not in _NAMES:
            raise ValueError(f"`ray` has no parameter {name}; there are {', '.join(_NAMES)}.")
        if name == "memory":
            given[name] = parse_bytes("ray memory", value)
        elif isinstance(value, str) or not 0 <= value < math.inf:
            raise ValueError(f"{name} of `ray` must be a number, at least 0; got {value!r}.")
    if given and not any(given.values()):
        raise ValueError("`ray` asks for no resource, so that all stages would run at once.")
    return given


def _check_reachable(address: str | None) -> None:
    """Raise ConnectionError if nothing listens at HOST:PORT. Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), _SECONDS).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error
