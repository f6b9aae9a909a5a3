"""The file that describes a study, and the settings of `train.study`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from dp4tl_ffcv.utils import check_choice, check_entries, check_int, check_number

from .config_file import read_config_file

Budget = Literal["equal_epochs", "equal_steps"]
Mode = Literal["linear_probe", "full_finetuning", "from_scratch"]
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `dp4tl study`."""

    file: Annotated[Path, tyro.conf.Positional]
    """The study, a YAML or JSON file."""
    out: Path | None = None
    """Folder of everything that the study writes. None: runs/ and the name of the file."""
    only: str = ""
    """Make only the stages whose description contains this text, and what they need."""
    jobs: int | None = None
    """Stages at a time. None: one for each GPU, or for each core if there is no GPU."""
    retry_failed: bool = False
    """Also repeat the stages that failed before."""
    dry_run: bool = False
    """Print every run with its estimated time and disk, and stop."""
    status: bool = False
    """Print how far the study is, and stop."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.jobs is not None:
            check_int("jobs", self.jobs, 1)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A scoring method with its options."""

    method: str
    options: Settings = field(default_factory=dict)
    """Arguments of the method. `clusters` is a number of pseudo-classes."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which source, targets, methods and fractions are compared, and how each run is made.

    A dataset is the path of its betons with `{split}` in place of train, val and test. If the path
    begins with the name of an entry of `data`, that entry makes the betons; any other path is
    relative to the study file.
    """

    source: str
    """Dataset to pretrain on."""
    targets: Mapping[str, str]
    """Datasets to finetune on, by name."""
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Arguments of `dp4tl write`, without `--out`, by the name of the folder that they make."""
    methods: Mapping[str, Scoring]
    """Scoring methods by the name that the results show."""
    keeps: Sequence[float]
    """Fractions of the source to retain, below 1."""
    budgets: Sequence[Budget] = ("equal_epochs", "equal_steps")
    """Train on a selection for as many epochs as on the full source, or for as many steps."""
    seeds: Sequence[int]
    """Seeds. Each has a surrogate, a full run and a run of each selection."""
    surrogate: Settings
    """Settings of `dp4tl pretrain` for the surrogate that replace those of `pretrain`."""
    pretrain: Settings
    """Settings of `dp4tl pretrain`."""
    finetune: Mapping[Mode, Settings]
    """Settings of `dp4tl finetune`, by mode."""
    images: Settings = field(default_factory=dict)
    """Settings that both recipes share, such as `resolution`."""

    def __post_init__(self) -> None:
        """Check the values."""
        for path in (self.source, *self.targets.values()):
            if "{split}" not in path:
                raise ValueError(f"a dataset is a path with {{split}} in it; got {path!r}.")
        for keep in self.keeps:
            check_number("keeps", keep, above=0, at_most=1)
            if keep == 1:
                raise ValueError("`keeps` are fractions below 1. The full source always runs.")
        for budget in self.budgets:
            check_choice("budgets", budget, get_args(Budget))
        for mode in self.finetune:
            check_choice("finetune", mode, get_args(Mode))
        for name in ("targets", "methods", "keeps", "budgets", "seeds", "finetune"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty. Name at least one.")
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError("`seeds` holds a seed twice.")


_SEEDS = 8
# Types of the entries of a study file, after `methods` and `seeds` are completed.
_ENTRIES = {
    "source": str,
    "targets": dict[str, str],
    "data": dict[str, list[Any]],
    "methods": dict[str, dict[str, Any]],
    "keeps": list[int | float],
    "budgets": list[str],
    "seeds": list[int],
    "surrogate": dict[str, Any],
    "pretrain": dict[str, Any],
    "finetune": dict[str, dict[str, Any]],
    "images": dict[str, Any],
}
_OPTIONAL = ("data", "budgets", "images")


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is malformed, or a value is missing, unknown or wrong.
    """
    try:
        values = {name: _typed(value) for name, value in read_config_file(path).items()}
        if unknown := sorted(values.keys() - _ENTRIES.keys()):
            names = ", ".join(_ENTRIES)
            raise ValueError(f"there is no {', '.join(unknown)}; a study has {names}")
        seeds = values.get("seeds", _SEEDS)
        values["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
        values["methods"] = _methods(values.get("methods", {}))
        check_entries(values, _ENTRIES, optional=_OPTIONAL)
        scorings = {name: Scoring(**each) for name, each in values["methods"].items()}
        return Study(**{**values, "methods": scorings})
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a study: {error}") from error


def _methods(values: Any) -> Any:
    """Return method and options of each entry. An entry without a method is named like it."""
    if isinstance(values, list):
        values = {name: {} for name in values if isinstance(name, str)}
    if not isinstance(values, dict):
        return values
    return {
        name: {
            "method": options.get("method", name),
            "options": {key: value for key, value in options.items() if key != "method"},
        }
        for name, options in values.items()
        if isinstance(options, dict)
    }


def _typed(value: Any) -> Any:
    """Return the numbers, booleans and nulls that JSON would read, and all else as text."""
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each) for each in value]
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return value if isinstance(read, dict | list | str) else read
