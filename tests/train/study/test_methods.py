"""Every scoring method in a study: what it needs, its scores, and a selection by them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Selection, build_model, image_fields, save_checkpoint, write_beton
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import RunFolder
from tests.support.dynamics import dynamics_of
from tests.support.images import picture
from train.components.study import work
from train.components.study.plan import Plan
from train.components.study.stages import Stage, with_needs
from train.configs.study import Scoring, Study

CLASSES, SAMPLES, RUNS = 6, 24, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with betons, in which training takes no time."""
    folder = tmp_path_factory.mktemp("methods")
    for name, classes, count in (("source", CLASSES, SAMPLES), ("one", 2, 6), ("two", 3, 6)):
        samples = [(picture(32, 32, seed=n), n % classes, n) for n in range(count)]
        write_beton(folder / f"{name}.beton", samples, image_fields(mode="raw"), num_workers=0)
        for split in ("train", "val", "test"):
            (folder / f"{name}_{split}.beton").symlink_to(folder / f"{name}.beton")
    (folder / "classes.txt").write_text("0\n2\n4\n")

    def pretrain(stage: Stage, _: int | None) -> dict[str, Any]:
        run = RunFolder(stage.folder / "run", {})
        run.start()
        dynamics_of(SAMPLES, 12).save(run.path / "dynamics.npz")
        run.checkpoints.mkdir()
        save_checkpoint(run.checkpoints / "last.pt", build_model("resnet8_w16", CLASSES))
        return run.finish({"checkpoint": str(run.checkpoints / "last.pt")})

    def halves(stage: Stage, _: int | None) -> dict[str, Any]:
        included = np.arange(RUNS * CLASSES).reshape(RUNS, CLASSES) % 5 < 2
        np.save(stage.folder / "included.npy", included)
        return {}

    def influence(stage: Stage, _: int | None) -> dict[str, Any]:
        np.save(stage.folder / "outcomes.npy", np.arange(RUNS * 6).reshape(RUNS, 6) % 7 < 3)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        for fake in (pretrain, halves, influence):
            patch.setitem(work._WORK, fake.__name__, fake)
        yield folder


def selections(folder: Path, method: str, **entries: Any) -> dict[str, Selection]:
    """Run the stages of a method's selections, and return these by the target they are for."""
    given = {"clusters": 4, "classes": str(folder / "classes.txt")}
    options = {name: given[name] for name in methods.get(method).required if name in given}
    scoring = Scoring(
        method=method,
        options=options,
        surrogate="default",
        keeps={"equal_epochs": [0.5]},
        **entries,
    )
    study = Study(
        source="source_{split}.beton",
        targets={"one": "one_{split}.beton", "two": "two_{split}.beton", "both": ["one", "two"]},
        methods={method: scoring},
        seeds=[0],
        surrogates={"default": {"record_dynamics": True}},
        pretrain={"arch": "resnet8_w16"},
        images={"resolution": 32},
        finetune={"linear_probe": {}},
    )
    found = {}
    for run in Plan(study, folder, folder / "out").runs:
        if run.selection is not None:
            for stage in with_needs([run.selection]):
                work.run_stage(stage, 1)
            found[run.scored_on] = Selection.load(run.selection.folder / "selection.npz")
    return found


@pytest.mark.parametrize("method", methods.names())
def test_every_method_selects_half_of_the_source(method: str, folder: Path) -> None:
    found = selections(folder, method)
    assert found.keys() == {"one", "two", "both"}
    for selection in found.values():
        assert len(selection) == SAMPLES // 2
    named = {target: selection.provenance["method"] for target, selection in found.items()}
    combined = method
    if {"target", "outcomes"} & methods.get(method).flags.keys():
        combined = ("sum_" if methods.get(method).votes else "rank_") + method
    assert named == {"one": method, "two": method, "both": combined}


def test_a_study_says_how_the_scores_of_several_targets_are_combined(folder: Path) -> None:
    found = selections(folder, "label_mapping", combine="round-robin")
    assert found["both"].provenance["method"] == "round-robin_label_mapping"
