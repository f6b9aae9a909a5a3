"""The commands and the Python of README and guide, run on photos that the test draws."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dp4tl_ffcv import BetonIndex, Features, Scores, Selection
from dp4tl_ffcv.cli import main
from tests.support.images import picture
from tests.support.pages import blocks, commands

# The pages' targets have too few images here to choose a fraction by.
pytestmark = pytest.mark.filterwarnings("ignore:`keep` is 'auto'")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [(ROOT / name).read_text() for name in ("README.md", "docs/guide.md")]
SOURCE = ("circle", "cross", "frame", "square", "triangle")
TARGET = ("circle", "frame", "triangle")
PER_CLASS = {"source": 8, "target": 10}
COMMANDS = [words for page in PAGES for part in blocks(page, "bash") for words in commands(part)]
ELSEWHERE = ("imagenet", "/data/", "pets_train", "torchrun", "make")  # data that no test has


def runs_here(words: list[str]) -> bool:
    return not any(name in word for word in words for name in ELSEWHERE)


def draw_photos(folder: Path) -> None:
    for dataset, shapes in (("source", SOURCE), ("target", TARGET)):
        for shape in shapes:
            (folder / dataset / shape).mkdir(parents=True)
            for number in range(PER_CLASS[dataset]):
                image = Image.fromarray(picture(56, 64, 10 * SOURCE.index(shape) + number))
                image.save(folder / dataset / shape / f"{number}.png")


def in_miniature(words: list[str]) -> list[str]:
    """Add flags that make a command cheap. The last value of a flag counts."""
    if words[1] in ("pretrain", "finetune", "features", "prune"):
        words = [*words, "--resolution", "32", "--num-workers", "1"]
    if words[1] in ("pretrain", "finetune"):
        words = [*words, "--epochs", "1"]
    if words[1] == "pretrain":
        words = [*words, "--arch", "resnet8_w16"]
    if words[1] == "cluster":
        words = [*words, "--num-clusters", "2", "3"]
    return words


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands were run, one after the other."""
    home = tmp_path_factory.mktemp("readme")
    draw_photos(home / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for words in COMMANDS:
            if not runs_here(words):
                continue
            assert words[0] == "dp4tl"
            for name in {"lm_pets.npz", "lm_cars.npz"} & set(words):
                shutil.copy("lm.npz", name)
            main(in_miniature(words)[1:])
    return home


@pytest.mark.parametrize("dataset", ["source", "target"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_writers_write_betons(dataset: str, split: str, done: Path) -> None:
    index = BetonIndex.open(done / "betons" / dataset / f"{split}.beton")
    names = SOURCE if dataset == "source" else TARGET
    assert index.class_names() == names
    count = {"train": PER_CLASS[dataset] - 2, "val": 1, "test": 1}[split]
    assert index.class_counts().tolist() == [count] * len(names)


@pytest.mark.parametrize("run", ["target_40/surrogate", "runs/target_40", "runs/target"])
def test_the_recipes_finish(run: str, done: Path) -> None:
    folder = done / run
    result = json.loads((folder / "result.json").read_text())
    assert (done / result["checkpoint"]).is_file()
    assert (folder / "config.json").is_file()
    assert (folder / "log.jsonl").is_file()


def test_the_scores_come_from_the_features(done: Path) -> None:
    samples = {"source": 6 * len(SOURCE), "target": 8 * len(TARGET)}
    for name, count in samples.items():
        features = Features.load(done / "features" / name)
        assert (len(features), features.num_outputs) == (count, len(SOURCE))
    files = {"lm": "label_mapping", "fm": "feature_mapping", "random": "random"}
    for file, method in files.items():
        scores = Scores.load(done / f"{file}.npz")
        assert (scores.method, len(scores)) == (method, len(SOURCE))
    assert Scores.load(done / "lm.npz").scores.sum() == samples["target"]


def test_the_best_classes_are_selected_trained_on_and_exported(done: Path) -> None:
    selection = Selection.load(done / "lm_40.npz")
    source = BetonIndex.open(done / "betons/source/train.beton")
    selection.check(source)
    best = sorted(Scores.load(done / "lm.npz").ranking()[:2])
    assert selection.classes.tolist() == best
    assert Selection.load(done / "target_40/selection.npz").digest() == selection.digest()
    pretrained = json.loads((done / "runs/target_40/result.json").read_text())
    assert pretrained["retained_classes"] == 2
    assert pretrained["retained_samples"] == len(selection)
    exported = torch.load(done / "lm_40.indices", weights_only=True)
    assert exported.tolist() == selection.indices.tolist()
    compacted = BetonIndex.open(done / "betons/lm_40.beton")
    assert compacted.class_names() == tuple(SOURCE[each] for each in best)
    kept = source.column("identifier")[selection.indices]
    assert sorted(compacted.column("identifier")) == sorted(kept)
    pairs = BetonIndex.open(done / "target_40.beton")
    assert [part.name for part in pairs.fields] == ["image", "label"]


def test_the_python_runs(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)
    shutil.copy("lm_40.npz", "before.npz")
    drop_in, library = blocks(PAGES[0], "python")
    names: dict[str, object] = {}
    exec(compile(drop_in.replace("batch_size=256", "batch_size=4"), "README.md", "exec"), names)
    assert tuple(names["images"].shape) == (4, 3, 160, 160)  # type: ignore[attr-defined]
    library = library.replace('"features/target")', '"features/target", resolution=32)')
    exec(compile(library, "README.md", "exec"), names)
    assert Selection.load("lm_40.npz").digest() == Selection.load("before.npz").digest()


def test_commands_that_need_other_data_name_verbs_and_flags_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # do not wrap the names of configurations
    checked = 0
    for words in COMMANDS:
        if "dp4tl" not in words or runs_here(words):
            continue
        words = words[words.index("dp4tl") + 1 :]
        with pytest.raises(SystemExit):
            main([*words[: 2 if words[0] in ("write", "score") else 1], "--help"])
        shown = capsys.readouterr().out
        flags = {word for word in words if word.startswith("--")}
        assert flags <= set(re.findall(r"--[\w-]+", shown)), words
        if "--config" in words:
            assert words[words.index("--config") + 1] in shown
        checked += 1
    assert checked >= 7


def test_the_readme_is_short_and_starts_with_the_way_in() -> None:
    assert len(PAGES[0].splitlines()) <= 200
    targets = [line.split()[:2] for line in blocks(PAGES[0], "bash")[0].splitlines()]
    assert targets == [["make", name] for name in ("demo", "setup", "test")]
    makefile = (ROOT / "Makefile").read_text()
    for _, name in targets:
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE)
