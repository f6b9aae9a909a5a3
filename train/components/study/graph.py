"""The stages of a study, each with what it needs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import sha256_of_file

from ...configs.pretrain_moco import Config as MocoConfig
from ...configs.study import Keep, Mode, Scoring, Study
from .options import check_dynamics, check_methods, check_outputs, difficulty_of, is_extraction
from .settings import check_settings, check_weights
from .stages import Label, Stage

_SURROGATE_SEED = 1000  # is added to the seed: a surrogate never equals the full run
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """Betons of a dataset, which may not exist yet if a stage writes them."""

    name: str
    """Name of a target, or `source`."""
    pattern: str
    """Path with `{split}` in place of the split."""
    stage: Stage | None = None

    def beton(self, split: str) -> tuple[Path, str]:
        """Return the path of a split, and what identifies its content."""
        path = Path(self.pattern.replace("{split}", split))
        if self.stage is not None:
            return path, path.name
        try:
            return path, BetonIndex.open(path).fingerprint
        except (FileNotFoundError, NotADirectoryError) as error:
            entry = self.name if self.name == "source" else f"targets: {self.name}"
            raise ValueError(
                f"`{entry}`: there is no file {str(path)!r}, and `data` has no entry that is "
                "named as the first part of the path."
            ) from error


class Graph:
    """Makes the stages of a study. Two stages with the same content are equal, and run once.

    Args:
        study: the study.
        base: folder that paths in the study are relative to.
        root: folder of the stages.

    Raises:
        OSError: a beton that no entry of `data` makes cannot be read.
        ValueError: there is no such beton; or a method, an option or a setting is unknown or wrong,
            see `check_methods` and `check_settings`.
    """

    def __init__(self, study: Study, base: Path, root: Path) -> None:
        check_methods(study)
        check_settings(study)
        self.study, self._base, self._root = study, base, root
        self._source = self._dataset("source", study.source)
        self._targets = {
            name: self._dataset(name, path)
            for name, path in study.targets.items()
            if isinstance(path, str)
        }

    # -- training --------------------------------------------------------------------------------
    def pretrained(
        self,
        label: Label,
        seed: int,
        needs: Mapping[str, Stage] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Stage:
        """Return the pretraining on the source, or on the need `selection`, with other settings."""
        settings = {**self.study.images, **self.study.pretrain, **(changes or {}), "seed": seed}
        facts = {"settings": settings}
        return self._stage("pretrain", label, facts, needs, self._source, ("train", "val"))

    def finetuned(self, pretrained: Stage, target: str, mode: Mode, seed: int) -> Stage:
        """Return the finetuning of a pretrained model on a target."""
        settings = {**self.study.images, **self.study.finetune[mode], "mode": mode, "seed": seed}
        label = Label(f"{pretrained.label.text}, {mode} on {target}", seed)
        facts, needs = {"settings": settings}, {"pretrained": pretrained}
        return self._stage("finetune", label, facts, needs, self._targets[target], _SPLITS)

    def _surrogate(self, name: str, seed: int) -> Stage:
        given = self.study.surrogates[name]
        if isinstance(given, str):
            return self._weights(name, given)
        label, seed = Label(f"surrogate {name}", seed), _SURROGATE_SEED + seed
        settings = {
            name: value for name, value in given.items() if name not in ("recipe", "samples")
        }
        needs = {}
        if "samples" in given:
            needs["selection"] = self._sample(label, given["samples"], seed)
        if given.get("recipe", "pretrain") == "pretrain":
            return self.pretrained(label, seed, needs, settings)
        known = {field.name for field in fields(MocoConfig)}
        images = {name: value for name, value in self.study.images.items() if name in known}
        facts = {"settings": {**images, **settings, "seed": seed}}
        return self._stage("pretrain_moco", label, facts, needs, self._source, ("train",))

    def _sample(self, label: Label, share: float, seed: int) -> Stage:
        """Return the selection of a share of the samples of each class, drawn at random."""
        facts: dict[str, Any] = {"method": "random", "options": {"unit": "sample", "seed": seed}}
        scores = self._stage("score", label, facts, None, self._source, ("train",), "beton")
        facts, needs = {"keep": share, "balanced": True}, {"scores": scores}
        return self._stage("selection", label, facts, needs, self._source, ("train",), "beton")

    def _weights(self, name: str, given: str) -> Stage:
        label, path = Label(f"surrogate {name}"), self._base / given
        if not path.is_file():
            check_weights(f"surrogates: {name}", given, path)
            return self._stage("weights", label, {"name": given})
        facts, paths = {"sha256": sha256_of_file(path)}, {"file": path}
        return Stage(kind="weights", label=label, facts=facts, paths=paths, root=self._root)

    # -- selection -------------------------------------------------------------------------------
    def scores(self, name: str, scoring: Scoring, target: str, seed: int) -> list[Stage]:
        """Return the scores for each dataset of a target, or one if the target does not matter."""
        surrogate = self._surrogate(scoring.surrogate, seed)
        found = [
            self._score(name, scoring.method, scoring.options, dataset, surrogate, seed)
            for dataset in self.study.datasets_of(target)
        ]
        return list({stage.key: stage for stage in found}.values())

    def selection(
        self, label: Label, scores: Sequence[Stage], keep: Keep, combine: str | None
    ) -> Stage:
        """Return the selection of a fraction of the source by scores, which are combined."""
        several = len(scores) > 1
        needs = {f"scores {n}" if several else "scores": s for n, s in enumerate(scores)}
        if "clusters" in scores[0].needs:
            needs["clusters"] = scores[0].needs["clusters"]
        facts = {"keep": keep, **({"combine": combine} if combine and several else {})}
        return self._stage("selection", label, facts, needs, self._source, ("train",), "beton")

    def _score(
        self,
        name: str,
        method: str,
        given: Mapping[str, Any],
        target: str,
        surrogate: Stage,
        seed: int,
    ) -> Stage:
        flags, needs = {*methods.get(method).flags}, dict[str, Stage]()
        extraction = {name: given[name] for name in given if is_extraction(name, flags)}
        options = {name: given[name] for name in given if name not in extraction}
        check_outputs(name, method, extraction, classifier=surrogate.kind != "pretrain_moco")
        source = self._features(surrogate, self._source, extraction)
        if "target" in flags:
            needs["target"] = self._features(surrogate, self._targets[target], extraction)
        if "source" in flags:
            needs["source"] = source
        if (count := options.pop("clusters", None)) is not None:
            label = Label(f"{count} of {source.label.text}", source.label.seed)
            needs["clusters"] = self._stage(
                "clusters", label, {"clusters": count}, {"source": source}
            )
        if "models" in flags:
            needs["surrogate"] = surrogate
        if "dynamics" in flags:
            check_dynamics(name, options, surrogate.facts.get("settings", {}))
            needs["dynamics"] = surrogate
        if "outcomes" in flags:
            needs["outcomes"] = self._outcomes(name, target, seed, **options.pop("influence", {}))
        if "difficulty" in flags:
            inner, chosen = difficulty_of(options)
            options.pop("difficulty", None)
            chosen = {**extraction, **chosen}
            needs["difficulty"] = self._score(
                f"{inner} in {name}", inner, chosen, target, surrogate, seed
            )
        files = self._files(name, methods.get(method).flags, options)
        own = {"seed": seed, **self._crops(surrogate)}
        provided = {name: own[name] for name in flags & own.keys()}
        facts = {"method": method, "options": {**provided, **options}, **_contents(files)}
        used = (self._source, ("train",), "beton") if "beton" in flags else ()
        label = Label(f"{name} for {target}" if _sees_target(needs) else name, seed)
        scored = self._stage("score", label, facts, needs, *used)
        return replace(scored, paths={**scored.paths, **files})

    def _files(
        self, name: str, flags: Mapping[str, Any], options: dict[str, Any]
    ) -> dict[str, Path]:
        """Take the options that are files, such as a list of classes, out of `options`."""
        files = {
            option: self._base / options[option] for option in options if flags[option] is Path
        }
        for option, path in files.items():
            del options[option]
            if not path.is_file():
                raise ValueError(f"`{name}`: {option} names {str(path)!r}, which is no file.")
        return files

    def _outcomes(
        self,
        name: str,
        target: str,
        seed: int,
        runs: int = 40,
        pretrain: Mapping[str, Any] | None = None,
        probe: Mapping[str, Any] | None = None,
    ) -> Stage:
        """Return what probes get right after pretraining on random halves of the classes."""
        study, common = self.study, {**self.study.images, "seed": seed}
        settings = {**common, **study.pretrain, **(pretrain or {})}
        facts = {"runs": runs, "settings": settings}
        label = Label(f"for {name}", seed)
        halves = self._stage("halves", label, facts, None, self._source, ("train",))
        settings = {**common, **study.finetune.get("linear_probe", {}), **(probe or {})}
        label, facts = Label(f"{label.text} on {target}", seed), {"settings": settings}
        needs, dataset = {"halves": halves}, self._targets[target]
        return self._stage("influence", label, facts, needs, dataset, _SPLITS)

    def _features(self, surrogate: Stage, dataset: Dataset, options: Mapping[str, Any]) -> Stage:
        made: dict[str, Any] = self._crops(surrogate)
        if surrogate.kind == "pretrain_moco":  # which has no classifier
            made["logits"] = False
        made.update(options)
        words = [dataset.name, "by", surrogate.label.text]
        words += [f"{name}={value}" for name, value in options.items()]
        label, needs = Label(" ".join(words), surrogate.label.seed), {"surrogate": surrogate}
        facts = {"settings": made}
        return self._stage("features", label, facts, needs, dataset, ("train",), "beton")

    def _crops(self, surrogate: Stage) -> dict[str, Any]:
        """Return the settings of center crops of the size that a surrogate was trained on."""
        own = surrogate.facts.get("settings", {})
        settings = {**self.study.images, **self.study.pretrain, **own}
        return {name: settings[name] for name in ("resolution", "crop_ratio") if name in settings}

    # -- any stage -------------------------------------------------------------------------------
    def _stage(
        self,
        kind: str,
        label: Label,
        facts: Mapping[str, Any],
        needs: Mapping[str, Stage] | None = None,
        dataset: Dataset | None = None,
        splits: tuple[str, ...] = (),
        role: str | None = None,
    ) -> Stage:
        """Return a stage that reads splits of a dataset, under their names or as `role`."""
        needs, paths, read = {**(needs or {})}, dict[str, Path](), dict[str, str]()
        if dataset is not None:
            for split in splits:
                paths[role or split], read[role or split] = dataset.beton(split)
            if dataset.stage is not None:
                needs["data"] = dataset.stage
        facts = {**facts, **({"reads": read} if read else {})}
        return Stage(kind=kind, label=label, facts=facts, needs=needs, paths=paths, root=self._root)

    def _dataset(self, name: str, path: str) -> Dataset:
        first, _, rest = path.partition("/")
        if first not in self.study.data:
            return Dataset(name, str(self._base / path))
        stage = Stage(
            kind="write",
            label=Label(first),
            facts={"arguments": [_fact(each) for each in self.study.data[first]]},
            paths={"folder": self._base},
            root=self._root,
        )
        return Dataset(name, str(stage.folder / "betons" / rest), stage)


def _fact(argument: str) -> float | str:
    """Return an argument of a writer, as a number if that has the same text.

    Folders of earlier versions have numbers.
    """
    with suppress(ValueError, RecursionError):
        read = json.loads(argument)
        if type(read) in (int, float) and str(read) == argument:
            return cast(float, read)
    return argument


def _contents(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the fact that identifies the content of files, if there are any."""
    return {"files": {name: sha256_of_file(path) for name, path in files.items()}} if files else {}


def _sees_target(needs: Mapping[str, Stage]) -> bool:
    """Return whether scores with these needs depend on the target."""
    inner = [needs["difficulty"].needs] if "difficulty" in needs else []
    return bool({"target", "outcomes"} & needs.keys()) or any(map(_sees_target, inner))
