"""The demo: a study of digits, whose relevant classes are known."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Selection, image_fields, write_beton
from dp4tl_ffcv.utils import read_json
from dp4tl_ffcv.writers import digits
from tests.support.images import picture
from train import demo
from train.components.study.plan import Plan
from train.components.study.stages import with_needs
from train.configs.demo import Config
from train.configs.study import read_study

SMALL = """
source: source_{split}.beton
targets: {digits: "target_{split}.beton"}
methods: {label_mapping: {}, random: {unit: class}}
keeps: {equal_epochs: [0.25]}
seeds: 2
images: {resolution: 8, crop_ratio: 1.0, flip: false}
pretrain: {arch: resnet8_w16, epochs: 1, batch_size: 40, lr: 0.1}
surrogates: {small: {}}
finetune:
  linear_probe: {epochs: 1, batch_size: 5}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A demo with noise for images."""
    folder = tmp_path_factory.mktemp("demo")
    for name, splits in (("source", ("train", "val")), ("target", ("train", "val", "test"))):
        names = digits.CLASS_NAMES[name]
        count = 2 * len(names)
        for place, split in enumerate(splits):
            samples = [
                (picture(8, 8, seed=n + place * count), n % len(names), n) for n in range(count)
            ]
            path = folder / f"{name}_{split}.beton"
            fields = image_fields(mode="raw")
            write_beton(path, samples, fields, class_names=names, num_workers=0)
    (folder / "small.yaml").write_text(SMALL)
    config = Config(file=folder / "small.yaml", out=folder / "out", jobs=1)
    assert demo.run_demo(config) == config.folder / "report.html"
    return config


def runs_of(config: Config) -> list[Any]:
    return Plan(read_study(config.file), config.file.parent, config.folder).runs


def test_a_second_demo_repeats_nothing(
    finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = with_needs(run.finetuned for run in runs_of(finished))
    assert demo.run_demo(finished) == finished.folder / "report.html"
    assert f"{len(stages)} stages, {len(stages)} finished before" in capsys.readouterr().out


def test_fresh_deletes_the_stages_of_the_demo_and_nothing_else(
    finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    (out / "pretrain" / "mine").mkdir()
    config = replace(finished, out=out, fresh=True)
    monkeypatch.setattr(demo, "study", lambda _: [])
    assert demo.run_demo(config) is None
    stages = with_needs(run.finetuned for run in runs_of(config))
    assert not any(stage.folder.exists() for stage in stages)
    assert (out / "pretrain" / "mine").exists()
    with pytest.raises(ValueError, match="`fresh` deletes results"):
        replace(config, dry_run=True)


def test_the_table_counts_the_relevant_classes_that_are_kept(finished: Config) -> None:
    lines = demo.found_by(runs_of(finished)).splitlines()
    assert lines[0].endswith("relevant classes found, of 10")
    relevant = set(np.flatnonzero(digits.relevant_classes()).tolist())
    for line, method in zip(lines[1:], ("label_mapping", "random"), strict=True):
        counts = [
            len(relevant & set(Selection.load(path).classes.tolist()))
            for run in runs_of(finished) if run.method == method
            for path in [run.selection.folder / "selection.npz"]
        ]  # fmt: skip
        shown = re.fullmatch(rf"{method} +0\.25  ([\d.]+) \((\d+), (\d+)\)", line)
        assert shown is not None, line
        assert [int(shown[2]), int(shown[3])] == counts
        assert float(shown[1]) == pytest.approx(np.mean(counts), abs=0.05)


def test_the_demo_compares_with_the_full_source_and_with_random_classes(tmp_path: Path) -> None:
    runs = runs_of(Config(out=tmp_path))
    assert {run.method for run in runs} == {"full", "label_mapping", "feature_mapping", "random"}
    assert {run.keep for run in runs} == {1.0, 0.25, 0.125}
    assert len({run.seed for run in runs}) >= 3  # two seeds give intervals that say nothing
    surrogates = {
        run.selection.needs["scores"].needs["target"].needs["surrogate"].facts["settings"]["seed"]
        for run in runs if run.method == "label_mapping"
    }  # fmt: skip
    assert len(surrogates) == len({run.seed for run in runs})


@pytest.mark.slow
def test_the_whole_demo_shows_what_the_paper_claims(tmp_path: Path) -> None:
    config = Config(out=tmp_path / "demo")
    demo.run_demo(config)
    compared = read_json(config.folder / "summary.json")["comparisons"]
    accuracy = {(row["method"], row["keep"], row["mode"]): row["accuracy"] for row in compared}
    for row in compared:
        if row["method"] != "random" and row["keep"] == 0.25:
            assert row["speedup_with_selection"] >= 2.0
            assert row["speedup"] >= 3.0
            assert row["accuracy"] > accuracy["random", 0.25, row["mode"]]
