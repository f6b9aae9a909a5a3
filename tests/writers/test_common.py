"""Checks before writing, finished and continued runs, the command line."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import writers
from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import ImageFiles, LazyImages
from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.support.images import jpeg as as_jpeg
from tests.support.images import picture
from tests.writers.support import stored
from writers.components.common import CountedOptions, Expected, run, write_splits

NAMES = ("ant", "bee")
WRITERS = sorted(each.name for each in iter_modules(writers.__path__) if not each.ispkg)


def samples(*images: bytes, labels: Any = None, first: int = 0) -> LazyImages:
    """Return samples of images, with labels 0, 1, 0... unless given."""
    count = len(images)
    labels = [number % 2 for number in range(count)] if labels is None else labels
    return LazyImages(images.__getitem__, labels, range(first, first + count))


def three(first: int = 0, *others: bytes) -> LazyImages:
    return samples(*(jpeg(first + i) for i in range(3)), *others, first=first)


def write(splits: Any, out: Path, names: Any = NAMES, **others: Any) -> dict[str, BetonIndex]:
    expected = others.pop("expected", None)
    options = CountedOptions(out=out, **{"num_workers": 0, **others})
    return write_splits("birds", splits, names, options, expected)


def test_manifests_record_the_options_that_change_samples(tmp_path: Path) -> None:
    written = write({"train": three(), "val": three(3)}, tmp_path / "out", jpeg_quality=77, seed=5)
    assert set(written) == {"train", "val"}
    assert stored(written["val"]) == {3 + i: (i % 2, jpeg(3 + i)) for i in range(3)}
    for split, index in written.items():
        assert index.path == tmp_path / "out" / f"{split}.beton"
        by = dict(index.manifest.written_by)
        del by["listing"]
        # Not the options with which a killed run may continue.
        assert by == {
            "writer": "birds",
            "split": split,
            "mode": "jpg",
            "jpeg_quality": 77,
            "max_resolution": None,
            "short_side": None,
            "decode_check": False,
            "baseline": False,
            "seed": 5,
            "shuffle": True,
            "classes": [],
            "max_per_class": None,
        }


def test_the_seed_gives_the_order_unless_shuffle_is_off(tmp_path: Path) -> None:
    orders = []
    for options in ({}, {"seed": 0}, {"seed": 1}, {"shuffle": False}):
        out = tmp_path / str(len(orders))
        index = write({"all": samples(*map(jpeg, range(20)))}, out, **options)["all"]
        orders.append(index.column("identifier").tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == orders[3] == list(range(20))


def of_classes(*counts: int, first: int = 0) -> LazyImages:
    """Return samples with so many images of each class, in turns of no regular order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return samples(*(jpeg(first + i) for i in range(len(labels))), labels=labels, first=first)


def test_chosen_classes_are_numbered_in_the_order_given(tmp_path: Path) -> None:
    source = of_classes(3, 4, 5)
    names = ("ant", "bee", "cat")
    written = write({"test": source}, tmp_path / "out", names, classes=("cat", "ant"), seed=2)
    numbers = {2: 0, 0: 1}
    expected = {i: (numbers[c], jpeg(i)) for i, c in enumerate(source.labels) if c in numbers}
    assert stored(written["test"]) == expected
    assert written["test"].manifest.class_names == ("cat", "ant")
    assert written["test"].manifest.written_by["classes"] == ["cat", "ant"]


@pytest.mark.parametrize(
    ("names", "classes", "why"),
    [
        (("ant", "bee"), ("cat",), "0 classes are called 'cat'. The classes are 'ant', 'bee'"),
        (("ant", "bee"), ("ant", "ant"), "each once"),
        (("ant", "ant"), ("ant",), "2 classes are called 'ant'"),
        (("ant", "bee", "cat"), ("cat",), "split train has no images of cat"),
    ],
)
def test_classes_that_cannot_be_chosen_are_refused(
    names: tuple[str, ...], classes: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=why):
        write({"train": three()}, tmp_path / "out", names, classes=classes)
    assert not (tmp_path / "out").exists()


def test_train_and_val_are_capped_per_class(tmp_path: Path) -> None:
    splits = {"train": of_classes(3, 9), "val": of_classes(6, 1), "test": of_classes(7, 7)}
    written = write(splits, tmp_path / "out", max_per_class=4)
    counts = {split: index.class_counts().tolist() for split, index in written.items()}
    assert counts == {"train": [3, 4], "val": [4, 1], "test": [7, 7]}
    labels = splits["train"].labels
    assert all(labels[i] == label for i, (label, _) in stored(written["train"]).items())


def test_a_cap_chooses_the_same_images_in_any_order(tmp_path: Path) -> None:
    chosen = []
    for number, options in enumerate(({}, {"shuffle": False}, {"seed": 1})):
        splits = {"train": Reversible(*map(jpeg, range(40)))}
        index = write(splits, tmp_path / str(number), max_per_class=5, **options)["train"]
        chosen.append(index.column("identifier").tolist())
    assert sorted(chosen[0]) == chosen[1] == sorted(chosen[1])
    assert set(chosen[2]) != set(chosen[0])
    assert chosen[0] == chosen[1][::-1]  # the samples' own shuffled order


class Reversible(LazyImages):
    """Samples whose shuffled order is the reversed order."""

    def __init__(self, *images: bytes, step: int = 1) -> None:
        ids = np.arange(len(images))[::step]
        super().__init__(lambda i: images[ids[i]], ids % 2, ids)
        self.images = images

    def shuffled(self, seed: int) -> "Reversible":
        assert seed in (0, 1)
        return Reversible(*self.images, step=-1)


def test_an_option_that_chooses_the_same_samples_writes_nothing(tmp_path: Path) -> None:
    """So betons of earlier versions, which do not record these options, are recognised."""
    write({"train": three()}, tmp_path)
    before = inodes(tmp_path)
    write({"train": three()}, tmp_path, max_per_class=2)
    assert inodes(tmp_path) == before
    write({"train": three()}, tmp_path, max_per_class=1)
    assert inodes(tmp_path) != before


# Errors before anything is written.


@pytest.mark.parametrize(
    ("val", "expected", "why"),
    [
        (three(), (2, {"train": 3, "val": 4}), "3 images in val instead of 4"),
        (three(), (3, {"train": 3}), "2 classes instead of 3"),
        (three(), (1, {"train": 2}), "3 images in train .* 2, 2 classes instead of 1"),
        (samples(jpeg(0), labels=[-1]), None, "labels from -1 to -1"),
        (samples(jpeg(0), labels=[2]), None, "labels from 2 to 2, but the 2 class names"),
        (samples(labels=np.zeros(0, dtype=int)), None, "The split val has no images"),
    ],
)
def test_wrong_counts_and_labels_are_refused(
    val: LazyImages, expected: Expected | None, why: str, tmp_path: Path
) -> None:
    splits = {"train": three(), "val": val}
    with pytest.raises(ValueError, match=f"{why}.*--no-check-counts" if expected else why):
        write(splits, tmp_path / "out", expected=expected)
    assert not (tmp_path / "out").exists()
    if expected:
        write(splits, tmp_path / "out", expected=expected, check_counts=False)


# Runs after other runs.


def inodes(out: Path) -> dict[str, int]:
    """Return the inode of each beton. A new file of the same name has another inode."""
    return {path.stem: path.stat().st_ino for path in out.glob("*.beton")}


def test_finished_splits_are_not_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="image 3"):
        write({"train": three(), "val": three(3, b"no image")}, tmp_path)
    before = inodes(tmp_path)
    assert set(before) == {"train"}
    capsys.readouterr()
    splits = {"train": three(), "val": three(3, jpeg(9))}
    written = write(splits, tmp_path, num_workers=1)
    assert inodes(tmp_path)["train"] == before["train"]
    assert stored(written["train"]) == {i: (i % 2, jpeg(i)) for i in range(3)}
    assert written["val"].num_samples == 4
    train = tmp_path / "train.beton"
    said = f"train: already written; delete {train} to write it again\n"
    assert capsys.readouterr().out == said
    train.unlink()
    write(splits, tmp_path)
    assert train.exists()


def test_a_finished_beton_is_indexed_if_an_earlier_run_was_not(tmp_path: Path) -> None:
    splits = {"train": samples(as_jpeg(picture(200, 200)))}
    write(splits, tmp_path, jpeg_index=False)
    file = tmp_path / "train.beton.jpegs"
    assert not file.exists()
    write(splits, tmp_path, jpeg_index=False)
    assert not file.exists()
    before = inodes(tmp_path)
    write(splits, tmp_path)
    assert file.exists()
    assert inodes(tmp_path) == before


def test_a_class_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(ValueError, match=r"'caf\\udce9' is not text in UTF-8. Rename the class"):
        write({"train": three()}, tmp_path / "out", names=("ant", name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", ["option", "class names", "labels", "file names", "manifest", "no manifest", "damage"]
)
def test_a_split_that_differs_is_written_again(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put_all(tmp_path / "root", {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})
    files, labels, names, others = ["a.jpg", "b.jpg"], [0, 1], NAMES, {}
    out = tmp_path / "out"
    first = write({"all": ImageFiles([root / name for name in files], labels)}, out)["all"]
    before, manifest = inodes(out), out / "all.beton.json"
    if change == "option":
        others["jpeg_quality"] = 50
    elif change == "class names":
        names = ("ant", "cat")
    elif change == "labels":
        labels.reverse()
    elif change == "file names":
        files.reverse()
    elif change == "manifest":
        manifest.write_text(manifest.read_text().replace(first.fingerprint, "0" * 64))
    elif change == "no manifest":
        manifest.unlink()
    else:
        first.path.write_bytes(first.path.read_bytes()[:-24])
    write({"all": ImageFiles([root / name for name in files], labels)}, out, names, **others)
    assert inodes(out) != before
    assert capsys.readouterr().out == ""


def test_a_split_with_skipped_images_is_written_again(tmp_path: Path) -> None:
    write({"all": three(0, b"no image")}, tmp_path, on_error="skip")
    repaired = write({"all": three(0, jpeg(9))}, tmp_path, on_error="skip")
    assert repaired["all"].num_samples == 4


# The command line.


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a writer of some samples as a command."""

    def run_writer(train: LazyImages, *arguments: str) -> None:
        writer: Any = ModuleType("writers.birds")
        writer.__spec__ = ModuleSpec(writer.__name__, None)
        writer.Config = CountedOptions
        names = [*NAMES, *(f"rare {number}" for number in range(7))]
        writer.write = lambda options: write_splits("birds", {"train": train}, names, options)
        monkeypatch.setitem(sys.modules, writer.__name__, writer)
        given = ["--out", str(tmp_path / "out"), "--num-workers", "0", *arguments]
        run(writer.__name__, given)

    return run_writer


def test_classes_without_images_and_skipped_images_are_printed(
    command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters that are no text, or that the output's encoding lacks, are printed as escapes."""
    put_all(tmp_path, {"good.jpg": jpeg(0)})
    bad = tmp_path / os.fsdecode("é ".encode() + b"\xff.jpg")
    bad.write_bytes(b"no image")
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii", errors="strict"))
    command(ImageFiles([tmp_path / "good.jpg", bad], [0, 1]), "--on-error", "skip")
    sys.stdout.flush()
    lines = stream.getvalue().decode().splitlines()
    assert lines[0] == f"train: 1 images, 9 classes -> {tmp_path / 'out' / 'train.beton'}"
    assert lines[1] == "  no images of bee, rare 0, rare 1, rare 2, rare 3 and 3 more"
    assert lines[2].startswith(f"  skipped {tmp_path}/\\xe9 \\udcff.jpg: ")


def test_an_error_prints_one_line_and_exits_with_1(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(three(0, b"no image"))
    assert ended.value.code == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "birds" in each]
    assert line.startswith("dp4tl write birds: Cannot encode image 3: ")


# All writers.


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(f"writers.{name}", ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: dp4tl write {name.replace('_', '-')} ")
    assert "Write " in said
    assert "--out PATH" in said


def test_importing_a_writer_is_fast() -> None:
    heavy = {"torch", "torchvision", "ffcv", "numba", "cv2", "PIL", "pyarrow", "scipy", "sklearn"}
    names = ", ".join(f"writers.{name}" for name in WRITERS)
    code = f"import sys, {names}; print({heavy} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
