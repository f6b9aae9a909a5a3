"""The runs of a study, and the stages that make them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.study import FULL, Budget, Keep, Mode, Study
from .graph import Graph
from .stages import Label, Stage


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pretraining and a finetuning run, which give one row of the results."""

    target: str
    """Dataset that is finetuned on."""
    scored_on: str
    """Target that the source is scored for: `target`, or several datasets with it among them."""
    method: str
    keep: Keep
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
        names = ("target", "scored_on", "method", "keep", "budget", "seed", "mode")
        return {name: getattr(self, name) for name in names}


class Plan:
    """All runs of a study, seed by seed.

    Args:
        study: the study.
        base: folder that paths in the study are relative to.
        root: folder of the stages.

    Raises:
        OSError, ValueError: as `Graph`.
    """

    def __init__(self, study: Study, base: Path, root: Path) -> None:
        self.study, self._graph = study, Graph(study, base, root)
        self.runs = [run for seed in study.seeds for run in self._runs_of(seed)]

    def _runs_of(self, seed: int) -> Iterator[Run]:
        study, graph = self.study, self._graph
        full = graph.pretrained(Label(FULL, seed), seed)
        for target in study.datasets:
            for budget in study.budgets:
                yield from self._runs(target, FULL, 1.0, budget, seed, None, full)
        for target in study.targets:
            for method, scoring in study.methods.items():
                scores = graph.scores(method, scoring, target, seed)
                scored = scores[0].label.text if len(scores) == 1 else f"{method} for {target}"
                for budget, keeps in scoring.keeps.items():
                    steps = {"full": full} if budget == "equal_steps" else {}
                    for keep in keeps:
                        label = Label(f"{scored}, keep {keep}", seed)
                        chosen = graph.selection(label, scores, keep, scoring.combine)
                        needs = {"selection": chosen, **steps}
                        label = Label(f"{label.text}, {budget}", seed)
                        trained = graph.pretrained(label, seed, needs, scoring.pretrain)
                        yield from self._runs(target, method, keep, budget, seed, chosen, trained)

    def _runs(
        self,
        target: str,
        method: str,
        keep: Keep,
        budget: Budget,
        seed: int,
        selection: Stage | None,
        pretrained: Stage,
    ) -> Iterator[Run]:
        for dataset in self.study.datasets_of(target):
            for mode in self.study.finetune:
                yield Run(
                    target=dataset,
                    scored_on=target,
                    method=method,
                    keep=keep,
                    budget=budget,
                    seed=seed,
                    mode=mode,
                    selection=selection,
                    pretrained=pretrained,
                    finetuned=self._graph.finetuned(pretrained, dataset, mode, seed),
                )
