"""A stage of a study: one piece of work, known by everything that its result depends on."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dp4tl_ffcv.utils import RunFolder, read_json, write_json


class Label(NamedTuple):
    """Name of a stage for readers, in the words of the study file."""

    text: str
    seed: int | None = None
    """Seed of the study. None: all seeds share the stage."""

    def __str__(self) -> str:
        return self.text if self.seed is None else f"{self.text}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One piece of work: betons, features, scores, a selection, or a run of a recipe."""

    kind: str
    """Name of the function in `work.py` that does the work."""
    facts: Mapping[str, Any]
    """JSON values that the result depends on, besides `needs`."""
    needs: Mapping[str, "Stage"] = field(default_factory=dict)
    """Stages whose results this stage uses, by their role."""
    paths: Mapping[str, Any] = field(default_factory=dict)
    """Paths of input files by role. `facts` or `needs` identify their content."""
    root: Path
    """Folder of the study."""
    label: Label = field(default_factory=lambda: Label(""))
    """Names the stage for readers. Equal stages may have different labels."""

    @cached_property
    def key(self) -> str:
        """Hash of the kind, the facts and the keys of the needs."""
        needs = {role: stage.key for role, stage in self.needs.items()}
        text = json.dumps([self.kind, self.facts, needs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Folder of the stage. Equal stages of any plan share it."""
        return self.root / self.kind / self.key

    @property
    def name(self) -> str:
        """Kind and label, such as `pretrain full, seed 0`."""
        return f"{self.kind} {self.label}"

    @property
    def run_folder(self) -> RunFolder:
        """The folder with the stage's result and lock."""
        return RunFolder(self.folder, {"kind": self.kind, **self.facts}, overwrite=True)

    def result(self) -> dict[str, Any] | None:
        """Return the result of the finished stage, or None."""
        return self.run_folder.finished()

    @property
    def state(self) -> Literal["finished", "failed", "not finished"]:
        """How far the stage is."""
        if self.result() is not None:
            return "finished"
        return "not finished" if self.failure is None else "failed"

    @property
    def failure(self) -> str | None:
        """The error with which the stage failed last, or None."""
        try:
            return str(read_json(self._failed)["error"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def set_failure(self, error: str | None) -> None:
        """Record an error, or forget it."""
        if error is None:
            self._failed.unlink(missing_ok=True)
        else:
            write_json(self._failed, {"error": error})

    @property
    def _failed(self) -> Path:
        return self.folder / "failed.json"


def with_needs(stages: Iterable[Stage]) -> list[Stage]:
    """Return stages and all that they need, each once, needs first."""
    found: dict[str, Stage] = {}

    def add(stage: Stage) -> Iterator[Stage]:
        if stage.key not in found:
            for need in stage.needs.values():
                yield from add(need)
            found[stage.key] = stage
            yield stage

    return [each for stage in stages for each in add(stage)]
