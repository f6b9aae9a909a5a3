"""The runs of a study, and the stages that make them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.scoring import methods

from ...configs.study import Budget, Mode, Scoring, Study
from .stages import Stage

FULL = "full"
_SURROGATE_SEED = 1000  # is added to the seed: a surrogate never equals the full run
# Arguments of methods that a study can provide.
_PROVIDED = {
    "target", "source", "clusters", "models", "difficulty", "beton", "seed", "resolution",
    "crop_ratio",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pretraining and a finetuning run, which give one row of the results."""

    target: str
    method: str
    keep: float
    budget: Budget
    seed: int
    mode: Mode
    selection: Stage | None
    """None for the full source."""
    pretrained: Stage
    finetuned: Stage

    @property
    def about(self) -> dict[str, Any]:
        """Target, method, fraction, budget, seed and mode, which begin the row of the run."""
        names = ("target", "method", "keep", "budget", "seed", "mode")
        return {name: getattr(self, name) for name in names}


class Plan:
    """All runs of a study, seed by seed.

    Args:
        study: the study.
        base: folder that paths in the study are relative to.
        root: folder of the stages.

    Raises:
        OSError: a beton that no entry of `data` makes cannot be opened.
        ValueError: a method is unknown, or needs more than a study has.
    """

    def __init__(self, study: Study, base: Path, root: Path) -> None:
        self.study, self._base, self._root = study, base, root
        self._source = self._dataset(study.source)
        self._targets = {name: self._dataset(path) for name, path in study.targets.items()}
        for name, scoring in study.methods.items():
            missing = {*methods.get(scoring.method).required} - _PROVIDED - {*scoring.options}
            if missing:
                raise ValueError(
                    f"the method {name} needs {', '.join(sorted(missing))}. Give them as options."
                )
        self.runs = [run for seed in study.seeds for run in self._runs_of(seed)]

    def _runs_of(self, seed: int) -> Iterator[Run]:
        study, settings = self.study, {**self.study.images, **self.study.pretrain}
        full = self._pretrain(settings, seed)
        surrogate = self._pretrain({**settings, **study.surrogate}, _SURROGATE_SEED + seed)
        for target in study.targets:
            for budget in study.budgets:
                yield from self._runs(target, FULL, 1.0, budget, seed, None, full)
            for method, scoring in study.methods.items():
                scores = self._score(scoring, target, surrogate, seed)
                for keep in study.keeps:
                    chosen = self._select(scores, keep)
                    for budget in study.budgets:
                        steps = {"full": full} if budget == "equal_steps" else {}
                        trained = self._pretrain(settings, seed, {"selection": chosen, **steps})
                        yield from self._runs(target, method, keep, budget, seed, chosen, trained)

    def _runs(
        self,
        target: str,
        method: str,
        keep: float,
        budget: Budget,
        seed: int,
        selection: Stage | None,
        pretrained: Stage,
    ) -> Iterator[Run]:
        for mode in self.study.finetune:
            yield Run(
                target=target,
                method=method,
                keep=keep,
                budget=budget,
                seed=seed,
                mode=mode,
                selection=selection,
                pretrained=pretrained,
                finetuned=self._finetune(pretrained, target, mode, seed),
            )

    # -- stages ----------------------------------------------------------------------------------
    def _pretrain(
        self, settings: Mapping[str, Any], seed: int, needs: Mapping[str, Stage] | None = None
    ) -> Stage:
        facts = {"settings": {**settings, "seed": seed}}
        return self._stage("pretrain", facts, needs, self._source, ("train", "val"))

    def _finetune(self, pretrained: Stage, target: str, mode: Mode, seed: int) -> Stage:
        settings = {**self.study.images, **self.study.finetune[mode], "mode": mode, "seed": seed}
        needs = {} if mode == "from_scratch" else {"pretrained": pretrained}
        splits = ("train", "val", "test")
        return self._stage("finetune", {"settings": settings}, needs, self._targets[target], splits)

    def _features(self, surrogate: Stage, dataset: "Dataset") -> Stage:
        names = ("resolution", "crop_ratio")
        settings = {**self.study.images, **self.study.pretrain}
        facts = {"settings": {name: settings[name] for name in names if name in settings}}
        return self._stage(
            "features", facts, {"surrogate": surrogate}, dataset, ("train",), "beton"
        )

    def _score(self, scoring: Scoring, target: str, surrogate: Stage, seed: int) -> Stage:
        options = dict(scoring.options)
        count = options.pop("clusters", None)
        flags, needs = {*methods.get(scoring.method).flags}, dict[str, Stage]()
        if "target" in flags:
            needs["target"] = self._features(surrogate, self._targets[target])
        if "source" in flags:
            needs["source"] = self._features(surrogate, self._source)
        if count is not None:
            features = {"source": self._features(surrogate, self._source)}
            needs["clusters"] = self._stage("clusters", {"clusters": count}, features)
        if "models" in flags:
            needs["surrogate"] = surrogate
        if "difficulty" in flags:
            difficulty = Scoring(method=options.pop("difficulty", "el2n"))
            needs["difficulty"] = self._score(difficulty, target, surrogate, seed)
        images = {**self.study.images, **self.study.pretrain, "seed": seed}
        given = {name: images[name] for name in flags & images.keys()}
        facts = {"method": scoring.method, "options": {**given, **options}}
        used = (self._source, ("train",), "beton") if "beton" in flags else ()
        return self._stage("score", facts, needs, *used)

    def _select(self, scores: Stage, keep: float) -> Stage:
        needs = {"scores": scores}
        if "clusters" in scores.needs:
            needs["clusters"] = scores.needs["clusters"]
        return self._stage("selection", {"keep": keep}, needs, self._source, ("train",), "beton")

    def _stage(
        self,
        kind: str,
        facts: Mapping[str, Any],
        needs: Mapping[str, Stage] | None = None,
        dataset: "Dataset | None" = None,
        splits: tuple[str, ...] = (),
        role: str | None = None,
    ) -> Stage:
        """Return a stage that reads splits of a dataset, under their names or as `role`."""
        needs, paths, read = dict(needs or {}), {}, {}
        if dataset is not None:
            for split in splits:
                paths[role or split], read[role or split] = dataset.beton(split)
            if dataset.stage is not None:
                needs["data"] = dataset.stage
        facts = {**facts, **({"reads": read} if read else {})}
        return Stage(kind=kind, facts=facts, needs=needs, paths=paths, root=self._root)

    def _dataset(self, path: str) -> "Dataset":
        first, _, rest = path.partition("/")
        if first not in self.study.data:
            return Dataset(str(self._base / path))
        facts = {"arguments": list(self.study.data[first])}
        stage = Stage(kind="write", facts=facts, root=self._root)
        return Dataset(str(stage.folder / "betons" / rest), stage)


@dataclass(frozen=True)
class Dataset:
    """Betons of a dataset, which may not exist yet if a stage writes them."""

    pattern: str
    """Path with `{split}` in place of the split."""
    stage: Stage | None = None

    def beton(self, split: str) -> tuple[Path, str]:
        """Return the path of a split, and what identifies its content."""
        path = Path(self.pattern.replace("{split}", split))
        return path, path.name if self.stage else BetonIndex.open(path).fingerprint
