"""The README's commands, run as they stand there, on photos that the test draws."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dp4tl_ffcv import BetonIndex, Features, Scores, Selection

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SOURCE = ("circle", "cross", "frame", "square", "triangle")
TARGET = ("circle", "frame", "triangle")
# Only numbers of images: the commands fix network, resolution and epochs.
PER_CLASS = {"source": 8, "target": 10}


def bash_blocks(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands_by_hand() -> str:
    _, start, rest = README.partition("<!-- by hand")
    part, end, _ = rest.partition("<!-- end of by hand -->")
    assert start
    assert end
    (block,) = bash_blocks(part)
    return block


def draw(shape: str, rng: np.random.Generator) -> Image.Image:
    """Draw a light shape on a dark ground, in colours and at a place of its own."""
    paper, ink = rng.integers(0, 90, 3), rng.integers(150, 256, 3)
    image = Image.new("RGB", (64, 56), tuple(map(int, paper)))
    brush = ImageDraw.Draw(image)
    left, top = rng.integers(8, 20, 2).tolist()
    right, bottom = left + 32, top + 32
    middle = (left + right) // 2, (top + bottom) // 2
    colour = tuple(map(int, ink))
    if shape == "circle":
        brush.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "cross":
        brush.line((left, middle[1], right, middle[1]), fill=colour, width=8)
        brush.line((middle[0], top, middle[0], bottom), fill=colour, width=8)
    elif shape == "triangle":
        brush.polygon([(left, bottom), (right, bottom), (middle[0], top)], fill=colour)
    else:
        fill = colour if shape == "square" else None
        brush.rectangle((left, top, right, bottom), fill=fill, outline=colour, width=4)
    return image


def draw_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for dataset, shapes in (("source", SOURCE), ("target", TARGET)):
        for shape in shapes:
            (folder / dataset / shape).mkdir(parents=True)
            for number in range(PER_CLASS[dataset]):
                draw(shape, rng).save(folder / dataset / shape / f"{number}.png")


def tools_of_this_interpreter(folder: Path) -> dict[str, str]:
    """Return an environment in which `python` and `dp4tl` are this interpreter's."""
    folder.mkdir()
    scripts = {"python": '"$@"', "dp4tl": '-c "from dp4tl_ffcv.cli import main; main()" "$@"'}
    for name, arguments in scripts.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}\n')
        script.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands were run, one after the other."""
    home = tmp_path_factory.mktemp("readme")
    draw_photos(home / "photos")
    run = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", commands_by_hand()],
        cwd=home,
        env=tools_of_this_interpreter(home / "bin"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return home


@pytest.mark.parametrize("dataset", ["source", "target"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_commands_write_betons_with_manifests(dataset: str, split: str, done: Path) -> None:
    index = BetonIndex.open(done / "betons" / dataset / f"{split}.beton")
    assert index.manifest is not None
    names = SOURCE if dataset == "source" else TARGET
    assert index.manifest.class_names == names
    share = {"train": PER_CLASS[dataset] - 2, "val": 1, "test": 1}[split]
    assert index.class_counts().tolist() == [share] * len(names)


@pytest.mark.parametrize("run", ["surrogate", "lm_40", "lm_40_probe"])
def test_the_commands_leave_finished_runs(run: str, done: Path) -> None:
    folder = done / "runs" / run
    result = json.loads((folder / "result.json").read_text())
    assert (done / result["checkpoint"]).is_file()
    assert (folder / "config.json").is_file()
    assert (folder / "log.jsonl").is_file()


def test_the_commands_score_the_target_and_the_source(done: Path) -> None:
    source = (PER_CLASS["source"] - 2) * len(SOURCE)
    target = (PER_CLASS["target"] - 2) * len(TARGET)
    for name, samples in (("target", target), ("source", source)):
        features = Features.load(done / "features" / name)
        assert len(features) == samples
        assert features.num_outputs == len(SOURCE)
    files = {"lm": "label_mapping", "fm": "feature_mapping", "random": "random"}
    for file, method in files.items():
        scores = Scores.load(done / f"{file}.npz")
        assert scores.method == method
        assert len(scores) == len(SOURCE)
    assert Scores.load(done / "lm.npz").scores.sum() == target


def test_the_commands_select_pretrain_on_and_export_the_best_classes(done: Path) -> None:
    selection = Selection.load(done / "lm_40.npz")
    selection.check(BetonIndex.open(done / "betons/source/train.beton"))
    best = Scores.load(done / "lm.npz").ranking()[:2]
    assert selection.classes.tolist() == sorted(best)
    pretrained = json.loads((done / "runs/lm_40/result.json").read_text())
    assert pretrained["retained_classes"] == 2
    assert pretrained["retained_samples"] == len(selection)
    exported = torch.load(done / "lm_40.indices", weights_only=True)
    assert exported.tolist() == selection.indices.tolist()
    compacted = BetonIndex.open(done / "betons/lm_40.beton")
    source = BetonIndex.open(done / "betons/source/train.beton")
    assert compacted.class_names() == tuple(SOURCE[each] for each in sorted(best))
    assert compacted.class_counts().tolist() == [PER_CLASS["source"] - 2] * 2
    kept = source.column("identifier")[selection.indices]
    assert sorted(compacted.column("identifier")) == sorted(kept)


def test_make_demo_and_make_test_are_the_whole_set_up() -> None:
    lines = bash_blocks(README)[0].splitlines()
    assert [line.partition("#")[0].split() for line in lines] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    before = README.partition("```")[0]
    assert "\n## " not in before
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
