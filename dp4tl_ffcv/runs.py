"""Run folders: settings, log, checkpoints and result of a run, and a description of the machine."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .atomic import lock_folder, unlock, write_json
from .errors import CheckpointError
from .stored import adding_filename, inode_of, read_json
from .version import __version__

# Locks of this process, by device and inode of the folder. A failed run keeps its lock until the
# process ends. The next run of the process needs it: a second lock of the same folder would fail.
_HELD: dict[tuple[int, ...], int] = {}
_PACKAGES = ("ffcv", "torch", "torchvision", "numba", "numpy")


class RunFolder:
    """A folder with `config.json`, `log.jsonl`, `checkpoints/`, `result.json`, and `dynamics.npz`.

    A run is finished once it has a `result.json`; the same configuration need not run again. An
    unfinished run starts over unless it is resumed.

    Args:
        path: the folder.
        config: everything that the result depends on, as JSON values.
        overwrite: delete a run of another configuration.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))
        self.overwrite = overwrite

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def finished(self) -> dict[str, Any] | None:
        """Return the result of a finished run of the same configuration, or None."""
        config, result = (_read(self.path / name) for name in ("config.json", "result.json"))
        return result if isinstance(result, dict) and config == self.config else None

    def start(self, *, resume: bool = False) -> None:
        """Record the configuration and delete the files of an unfinished run.

        The folder is locked against other processes until `finish`, or the end of the process.

        Args:
            resume: keep checkpoints and log of an unfinished run of the same configuration.

        Raises:
            BlockingIOError: another process runs in this folder.
            ValueError: the folder holds checkpoints, but no run.
            ValueError: without `overwrite`: it holds a finished run of another configuration.
            ValueError: without `overwrite` and with `resume`: it holds an unfinished run of another
                configuration.
        """
        if self.path.exists():
            self._lock()
        before = _read(self.path / "config.json")
        is_finished = _read(self.path / "result.json") is not None
        if not self.overwrite:
            self._check_replaceable(before, is_finished, resume)
        if not (self.path / "config.json").exists() and self.checkpoints.exists():
            raise ValueError(
                f"{str(self.path)!r} holds checkpoints but no run. Choose another folder."
            )
        if resume and before == self.config and not is_finished and self.checkpoints.exists():
            self._delete_unfinished_writes()
            self.log({"event": "resume", **environment()})
            return
        for name in ("result.json", "log.jsonl", "dynamics.npz"):
            (self.path / name).unlink(missing_ok=True)
        if self.checkpoints.exists():
            shutil.rmtree(self.checkpoints)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        write_json(self.path / "config.json", self.config)
        self.log({"event": "start", **environment()})

    def _check_replaceable(self, before: Any, is_finished: bool, resume: bool) -> None:
        if not isinstance(before, dict):  # missing or damaged
            before = self.config
        names = before.keys() | self.config.keys()
        changed = sorted(name for name in names if before.get(name) != self.config.get(name))
        has_checkpoint = self.checkpoints.exists() and any(self.checkpoints.iterdir())
        if is_finished and self.finished() is None:
            kind = "a finished run with other settings or inputs"
        elif resume and changed and has_checkpoint:
            kind = f"an unfinished run with other values of {', '.join(changed)}"
        else:
            return
        raise ValueError(
            f"{str(self.path)!r} holds {kind}. Choose another folder, or pass `overwrite`."
        )

    def _delete_unfinished_writes(self) -> None:
        """Delete checkpoints and the last log line if a killed run wrote them partially."""
        for unfinished in self.checkpoints.glob(".*.part"):
            unfinished.unlink()
        log = self.path / "log.jsonl"
        if log.exists():
            with log.open("rb+") as stream:
                stream.truncate(sum(len(line) for line in stream if line.endswith(b"\n")))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a JSON line to `log.jsonl`."""
        path = self.path / "log.jsonl"
        with adding_filename(path), path.open("ab", buffering=0) as stream:
            end = os.fstat(stream.fileno()).st_size
            line = (json.dumps(row) + "\n").encode()
            try:
                while line:
                    line = line[stream.write(line) :]
            except BaseException:
                stream.truncate(end)  # a later row would continue the line
                raise

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write `result.json`, which marks the run as finished, and return its content."""
        # Return JSON's types (lists for tuples), as `finished` does.
        full: dict[str, Any] = json.loads(json.dumps({**result, "environment": environment()}))
        write_json(self.path / "result.json", full)
        self.release()
        return full

    def release(self) -> None:
        """Let other processes use the folder, as the end of this process does."""
        if (held := _HELD.pop(inode_of(self.path), None)) is not None:
            unlock(held)

    def _lock(self) -> None:
        if inode_of(self.path) not in _HELD:
            file = lock_folder(self.path.resolve(), self.path)
            _HELD[inode_of(file)] = file


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """Return the checkpoint of a finished run, given its folder; any other path is returned as is.

    Raises:
        CheckpointError: the folder is not that of a finished run with a checkpoint.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    result = _read(folder / "result.json")
    name = result.get("checkpoint") if isinstance(result, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(
            f"{str(path)!r} is a folder, but not that of a finished run. Pass a run folder of "
            "`dp4tl pretrain`, or a checkpoint."
        )
    return folder / "checkpoints" / Path(name).name  # the folder may have moved


def settings_of(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, with paths as text."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(config).items()
    }


def environment() -> dict[str, Any]:
    """Describe the machine and the installed versions."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu_name(),
        "python": platform.python_version(),
        "dp4tl_ffcv": __version__,
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpu_name() -> str:
    # Read the driver's files: importing torch and opening a context would take seconds.
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in card.read_text().splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    # Containers may hide these files. A process that computes on the GPU already has a context.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "none"


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # missing, or not JSON
        return None
