"""The file that describes a study, and the settings of `train.study`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from dp4tl_ffcv.report.names import AUTO as AUTO
from dp4tl_ffcv.report.names import FEWEST_SEEDS
from dp4tl_ffcv.report.names import FULL as FULL
from dp4tl_ffcv.utils import check_choice, check_int, check_number

from .config_file import check_forms, read_config_file

Budget = Literal["equal_epochs", "equal_steps"]
Keep = float | Literal["auto"]
Keeps = Mapping[Budget, Sequence[Keep]]
Mode = Literal["linear_probe", "full_finetuning"]
Combine = Literal["sum", "max", "rank", "round-robin"]
Launcher = Literal["local", "ray", "slurm"]
Settings = Mapping[str, Any]

RECIPES = ("pretrain", "pretrain-moco")
"""Recipes that make a surrogate."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `dp4tl study`."""

    file: Annotated[Path, tyro.conf.Positional]
    """The study, a YAML or JSON file."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/NAME)")
    ] = None
    """Folder of everything that the study writes. NAME is the name of the study file."""
    only: str = ""
    """Make only the stages whose names contain this text, and what they need."""
    launcher: Launcher = "local"
    """Run stages on this machine, on a Ray cluster, or as jobs of Slurm."""
    jobs: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint="(default: one per GPU, else per core)"),
    ] = None
    """Stages to run at a time. With Slurm, the default is 64."""
    address: Annotated[
        str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: this machine)")
    ] = None
    """Address of a Ray cluster, such as auto."""
    ray: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Resources of a stage on a Ray cluster, as NAME=VALUE: num_gpus=1 num_cpus=8 memory=16GiB."""
    slurm: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Parameters of submitit, as NAME=VALUE: timeout_min=240 slurm_partition=gpu mem_gb=16."""
    retry_failed: bool = False
    """Also repeat the stages that failed before."""
    dry_run: bool = False
    """Print a line per run, all seeds together, with its estimated time and disk, and stop."""
    status: bool = False
    """Print how far the study is, and stop."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.jobs is not None:
            check_int("jobs", self.jobs, 1)
        check_choice("launcher", self.launcher, get_args(Launcher))
        for name, launcher in (("address", "ray"), ("ray", "ray"), ("slurm", "slurm")):
            if getattr(self, name) and self.launcher != launcher:
                raise ValueError(f"`{name}` is for the launcher {launcher}; got {self.launcher}.")

    @property
    def folder(self) -> Path:
        """Folder of everything that the study writes. Absolute: nodes run in other folders."""
        return (self.out or Path("runs") / self.file.stem).absolute()


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A scoring method with its options."""

    method: str
    options: Settings = field(default_factory=dict)
    """Arguments of the method and of feature extraction. `clusters` is a number of pseudo-classes.
    """
    surrogate: str
    """Name of the surrogate that gives the features."""
    keeps: Keeps
    """Fractions of the source to retain, by budget."""
    combine: Combine | None = None
    """How the scores for the datasets of a target are combined. None: sum for votes, else rank."""
    pretrain: Settings = field(default_factory=dict)
    """Settings of the pretraining on the selections that replace those of the study."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which source, targets, methods and fractions are compared, and how each run is made.

    A dataset is the path of its betons with `{split}` in place of train, val and test. If the path
    begins with the name of an entry of `data`, that entry makes the betons; any other path is
    relative to the study file.
    """

    source: str
    """Dataset to pretrain on."""
    targets: Mapping[str, str | Sequence[str]]
    """Datasets to finetune on, by name. A list of such names is one target for the scores, which
    are combined; its runs are finetuned on each of the datasets."""
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Arguments of `dp4tl write`, without `--out`, by the name of the folder that they make. Each
    argument is the text that a command line would have."""
    methods: Mapping[str, Scoring]
    """Scoring methods by the name that the results show."""
    seeds: Sequence[int]
    """Seeds. Each has a surrogate, a full run and a run of each selection."""
    surrogates: Mapping[str, Settings | str]
    """Surrogates by name. Each is a mapping of settings that replace those of `pretrain`, a mapping
    with another `recipe` and its settings, or the name or path of weights. `samples` is the
    fraction of each class's samples to train on, drawn at random. Methods that name no surrogate
    use the first."""
    pretrain: Settings
    """Settings of `dp4tl pretrain`."""
    finetune: Mapping[Mode, Settings]
    """Settings of `dp4tl finetune`, by mode."""
    images: Settings = field(default_factory=dict)
    """Settings that all recipes share, such as `resolution`."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("targets", "methods", "seeds", "surrogates", "finetune"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty. Name at least one.")
        self._check_datasets()
        for mode in self.finetune:
            check_choice("finetune", mode, get_args(Mode))
        for scoring in self.methods.values():
            check_choice("surrogate", scoring.surrogate, tuple(self.surrogates))
            _check_keeps(scoring.keeps)
            if scoring.combine is not None:
                check_choice("combine", scoring.combine, get_args(Combine))
        for name, surrogate in self.surrogates.items():
            if not isinstance(surrogate, str):
                check_forms(f"surrogates: {name}", surrogate, _SAMPLES, optional=_SAMPLES)
                check_choice("recipe", surrogate.get("recipe", RECIPES[0]), RECIPES)
                check_number("samples", surrogate.get("samples", 1), above=0, at_most=1)
        _check_repeats("seeds", self.seeds)
        for seed in self.seeds:
            check_int("seeds", seed, 0)
        if FULL in self.methods:
            raise ValueError(f"`methods`: {FULL} means the full source. Choose another name.")

    def _check_datasets(self) -> None:
        for path in (self.source, *self.targets.values()):
            if isinstance(path, str) and "{split}" not in path:
                raise ValueError(f"a dataset is a path with {{split}} in it; got {path!r}.")
        for name in self.targets:
            if not self.datasets_of(name):
                raise ValueError(f"`targets: {name}` is empty. Name at least one dataset.")
            _check_repeats(f"targets: {name}", self.datasets_of(name))
            for each in self.datasets_of(name):
                if each not in self.datasets:
                    raise ValueError(
                        f"`targets: {name}` names {each!r}, which is no dataset of `targets`: "
                        f"{', '.join(self.datasets) or 'there is none'}."
                    )

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the targets that are one dataset."""
        return tuple(name for name, path in self.targets.items() if isinstance(path, str))

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Budgets of at least one method."""
        used = {budget for scoring in self.methods.values() for budget in scoring.keeps}
        return tuple(budget for budget in get_args(Budget) if budget in used)

    def datasets_of(self, target: str) -> tuple[str, ...]:
        """Return the names of the datasets that a target consists of."""
        value = self.targets[target]
        return (target,) if isinstance(value, str) else tuple(value)


def _check_keeps(keeps: Keeps) -> None:
    for budget, fractions in keeps.items():
        check_choice("keeps", budget, get_args(Budget))
        _check_repeats("keeps", fractions)
        for keep in fractions:
            if isinstance(keep, str):
                if keep != AUTO:
                    raise ValueError(f"`keeps` are fractions such as 0.5, or auto; got {keep!r}.")
            else:
                check_number("keeps", keep, above=0, at_most=1)
    if not any(keeps.values()):
        raise ValueError("`keeps` is empty. Name at least one.")


def _check_repeats(name: str, values: Sequence[Any]) -> None:
    """Refuse repeats: equal runs would count twice, as if there were more seeds."""
    if repeated := [each for place, each in enumerate(values) if each in values[:place]]:
        raise ValueError(f"`{name}` lists {repeated[0]} twice.")


_KEEPS = list[int | float | str] | dict[str, list[int | float | str]]
# Entries of a study file: their types, and an example of each.
_ENTRIES: dict[str, tuple[Any, str]] = {
    "source": (str, "source: imagenet/{split}.beton"),
    "targets": (dict[str, str | list[str]], "targets: {pets: 'pets/{split}.beton'}"),
    "data": (dict[str, list[int | float | str]], "data: {pets: [coop, --name, oxford_pets]}"),
    "methods": (dict[str, dict[str, Any]], "methods: {label_mapping: {}}"),
    "keeps": (_KEEPS, "keeps: [0.4, 0.2]"),
    "seeds": (int | list[int], "seeds: 8"),
    "surrogates": (dict[str, dict[str, Any] | str], "surrogates: {default: {}}"),
    "pretrain": (dict[str, Any], "pretrain: {arch: resnet18, epochs: 16}"),
    "finetune": (dict[str, dict[str, Any]], "finetune: {linear_probe: {epochs: 50}}"),
    "images": (dict[str, Any], "images: {resolution: 160}"),
}
_OPTIONAL = ("data", "images", "seeds")
_SAMPLES: dict[str, tuple[Any, str]] = {"samples": (int | float, "samples: 0.25")}
# Entries of a method that are no options.
_OF_STUDY: dict[str, tuple[Any, str]] = {
    "method": (str, "method: label_mapping"),
    "surrogate": (str, "surrogate: default"),
    "combine": (str, "combine: rank"),
    "keeps": _ENTRIES["keeps"],
    "pretrain": _ENTRIES["pretrain"],
}


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is malformed, or a value is missing, unknown or wrong.
    """
    try:
        values = _values(read_config_file(path))
        seeds = values.setdefault("seeds", FEWEST_SEEDS)
        if isinstance(seeds, int):
            values["seeds"] = list(range(check_int("seeds", seeds, 1)))
        values["methods"] = _scorings(values, values.pop("keeps"))
        return Study(**values)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a study: {error}") from error


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a study file with their types."""
    if unknown := sorted(given.keys() - _ENTRIES.keys()):
        names = ", ".join(_ENTRIES)
        raise ValueError(f"unknown entry {', '.join(unknown)}; a study file has {names}")
    # Arguments of `data` are texts: the class 1.10 is not the number 1.1.
    values = {name: each if name == "data" else _typed(each) for name, each in given.items()}
    if isinstance(values.get("methods"), list):
        values["methods"] = dict.fromkeys(map(str, values["methods"]))
    for name in ("pretrain", "images", "methods", "surrogates", "finetune"):
        if name in values:
            values[name] = _mapping(values[name])
    for name in ("methods", "surrogates", "finetune"):
        if isinstance(values.get(name), dict):
            values[name] = {key: _mapping(each) for key, each in values[name].items()}
    check_forms("", values, _ENTRIES, optional=_OPTIONAL)
    data = values.get("data", {})
    values["data"] = {name: [str(each) for each in arguments] for name, arguments in data.items()}
    return values


def _mapping(value: Any) -> Any:
    """Return an empty mapping for an entry without a value, as in `label_mapping:`."""
    return {} if value in ("", None) else value


def _scorings(values: Mapping[str, Any], keeps: Any) -> dict[str, Scoring]:
    """Return the methods. An entry without a method is named like it."""
    found = {}
    for name, entry in values["methods"].items():
        own = {key: entry[key] for key in _OF_STUDY if key in entry}
        if "pretrain" in own:
            own["pretrain"] = _mapping(own["pretrain"])
        check_forms(f"methods: {name}", own, _OF_STUDY, optional=_OF_STUDY)
        found[name] = Scoring(
            # The command line spells methods with hyphens.
            method=own.get("method", name).replace("-", "_"),
            options={key: value for key, value in entry.items() if key not in own},
            surrogate=own.get("surrogate", next(iter(values["surrogates"]), "")),
            keeps=_by_budget(own.get("keeps", keeps)),
            combine=own.get("combine"),
            pretrain=own.get("pretrain", {}),
        )
    return found


def _by_budget(keeps: Any) -> Keeps:
    return keeps if isinstance(keeps, dict) else dict.fromkeys(get_args(Budget), keeps)


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
