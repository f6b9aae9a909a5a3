"""Run folders: what a recipe was asked, what it logged, what came out, on which machine."""

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

from .artifacts import write_json
from .version import __version__

_PACKAGES = ("ffcv", "torch", "torchvision", "numba", "numpy")


class RunFolder:
    """A folder with `config.json`, `log.jsonl`, `checkpoints/`, `result.json`.

    A run is finished once its `result.json` is there, and the same configuration then need not run
    again. A run that was stopped starts over, unless it is asked to resume.

    Args:
        path: the folder.
        config: everything that the result depends on, as JSON values.
        overwrite: let a run of another configuration that is finished be replaced.
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
        """Return the result of an earlier run of the same configuration, or None."""
        config, result = (_read(self.path / name) for name in ("config.json", "result.json"))
        return result if result is not None and config == self.config else None

    def start(self, *, resume: bool = False) -> None:
        """Clear what an unfinished run left, and record the configuration.

        Args:
            resume: keep checkpoints and log of an unfinished run of the same configuration.

        Raises:
            ValueError: the folder holds a finished run of another configuration, or with `resume`
                checkpoints of an unfinished one, which only `overwrite` replaces, or something
                that no run has made.
        """
        before = _read(self.path / "config.json")
        has_result = _read(self.path / "result.json") is not None
        if not self.overwrite:
            self._check_replaceable(before, has_result, resume)
        if not (self.path / "config.json").exists() and self.checkpoints.exists():
            raise ValueError(
                f"`run` must be a new folder or an earlier run; got {str(self.path)!r}, which "
                "holds checkpoints of something else. Name another."
            )
        if resume and before == self.config and not has_result and self.checkpoints.exists():
            self._tidy()
            self.log({"event": "resume", **environment()})
            return
        for name in ("result.json", "log.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        if self.checkpoints.exists():
            shutil.rmtree(self.checkpoints)
        write_json(self.path / "config.json", self.config)
        self.log({"event": "start", **environment()})

    def _check_replaceable(self, before: Any, has_result: bool, resume: bool) -> None:
        if has_result and self.finished() is None:
            raise ValueError(
                f"`run` must be a new folder; got {str(self.path)!r}, which holds a finished run "
                "with other settings or inputs. Name another, delete it, or overwrite it."
            )
        if resume and isinstance(before, dict) and before != self.config and self._has_checkpoint():
            names = sorted(
                name
                for name in before.keys() | self.config.keys()
                if before.get(name) != self.config.get(name)
            )
            raise ValueError(
                f"`run` must be a new folder or a run to resume; got {str(self.path)!r}, which "
                f"holds an unfinished run with other values of {', '.join(names)}. Give it the "
                "same, name another folder, or overwrite it."
            )

    def _has_checkpoint(self) -> bool:
        return self.checkpoints.exists() and any(self.checkpoints.iterdir())

    def _tidy(self) -> None:
        """Delete what a killed run was writing: unfinished checkpoints, a line without its end."""
        for unfinished in self.checkpoints.glob(".*.part"):
            unfinished.unlink()
        log = self.path / "log.jsonl"
        if log.exists():
            length = log.read_bytes().rfind(b"\n") + 1
            os.truncate(log, length)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line to `log.jsonl`."""
        with (self.path / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write `result.json`, which marks the run as finished, and return its content."""
        # As JSON has them, tuples as lists: the same whether the run was taken over or not.
        full: dict[str, Any] = json.loads(json.dumps({**result, "environment": environment()}))
        write_json(self.path / "result.json", full)
        return full


def settings_of(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, paths as text: the start of a run's `config`."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(config).items()
    }


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a figure was measured with."""
    row: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu_name(),
        "python": platform.python_version(),
        "dp4tl_ffcv": __version__,
    }
    for name in _PACKAGES:
        try:
            row[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            row[name] = "absent"
    return row


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu_name() -> str:
    # Read from the driver, because asking torch would import it and open a context on the GPU.
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for card in cards:
        for line in card.read_text().splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    # A container may not show the driver's files; a process that computes on the GPU has a context.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "none"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or neither text nor JSON
        return None
