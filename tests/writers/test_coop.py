"""CoOp's nine targets: layouts, counts, downloads, and malformed split files."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets

from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.writers.support import check_refused, names_of, stored, write
from writers import coop
from writers.coop import SPLITS, TARGETS

Row = list[Any]

# The classes are not sorted by name, as in Flowers102 and Stanford Cars.
CLASS_NAMES = {"Zebra": "grey zebra", "Ant": "ant", "Mule": "mule or donkey"}

each_target = pytest.mark.parametrize("target", TARGETS)
each_fetched = pytest.mark.parametrize("target", [k for k in TARGETS if TARGETS[k].torchvision])


def rows() -> dict[str, list[Row]]:
    """Return rows of three training images, two validation images and one test image per class."""
    return {
        split: [
            [f"{folder}/{split}_{number}.jpg", label, name]
            for label, (folder, name) in enumerate(CLASS_NAMES.items())
            for number in range(count)
        ]
        for split, count in zip(SPLITS, (3, 2, 1), strict=True)
    }


IMAGES = {
    row[0]: jpeg(number)
    for number, row in enumerate(row for each in rows().values() for row in each)
}


def split_name(target: str) -> str:
    return f"split_zhou_{TARGETS[target].split_file}.json"


def make_tree(target: str, root: Path, splits: Any = None) -> Path:
    """Make a small copy of a target: the split file, its images, and an unlisted image."""
    put_all(root / TARGETS[target].images[0], {**IMAGES, "other.jpg": jpeg(99)})
    return put_all(root, {split_name(target): json.dumps(splits or rows()).encode()})


def refused(target: str, root: Path, why: str, **options: Any) -> None:
    check_refused(coop, root / "out", why, name=target, root=root, **options)


@each_target
def test_images_keep_their_bytes_labels_names_and_positions(target: str, tmp_path: Path) -> None:
    root = make_tree(target, tmp_path / "root")
    written = write(coop, tmp_path / "out", name=target, root=root)
    assert list(written) == list(SPLITS)
    start = 0
    for split, index in written.items():
        expected = [(label, IMAGES[path]) for path, label, _ in rows()[split]]
        assert stored(index) == dict(enumerate(expected, start))
        assert names_of(index) == tuple(CLASS_NAMES.values())
        assert index.path == tmp_path / "out" / f"{split}.beton"
        assert index.manifest is not None
        by = index.manifest.written_by
        assert (by["writer"], by["name"], by["split"]) == ("coop", target, split)
        start += len(expected)


@each_target
def test_only_the_counts_that_the_help_lists_are_accepted(target: str, tmp_path: Path) -> None:
    (line,) = (each for each in str(coop.__doc__).splitlines() if each.split()[:1] == [target])
    *counts, classes = (int(number.replace(",", "")) for number in line.split()[1:5])
    found = zip(SPLITS, (9, 6, 3), counts, strict=True)
    why = [f"{count} images in {split} instead of {wanted}" for split, count, wanted in found]
    why.append(f"3 classes instead of {classes}")
    refused(target, make_tree(target, tmp_path), ", ".join(why), check_counts=True)


def test_a_writer_runs_as_a_module_with_a_split_file_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_tree("dtd", tmp_path / "root"), tmp_path / "out"
    mine = (root / split_name("dtd")).rename(tmp_path / "mine.json")
    command = ["writers/coop.py", "--name", "dtd", "--split-file", str(mine), "--num-workers", "0"]
    command += ["--root", str(root), "--out", str(out), "--no-check-counts"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.delitem(sys.modules, "writers.coop")
    runpy.run_module("writers.coop", run_name="__main__", alter_sys=True)
    said = capsys.readouterr().out
    assert said.startswith(f"train: 9 images, 3 classes -> {out / 'train.beton'}")


# Missing files.


@each_target
def test_missing_files_are_named(target: str, tmp_path: Path) -> None:
    make_tree(target, tmp_path)
    folder = tmp_path / TARGETS[target].images[0]
    gone = [folder / row[0] for row in rows()["test"][:2]]
    for path in gone:
        path.unlink()
    split_file = tmp_path / split_name(target)
    refused(target, tmp_path, f"2 of 18 images that {split_file} lists .*, such as '{gone[0]}'")
    split_file.unlink()
    refused(target, tmp_path, rf"'{split_file}'. Get {split_file.name} as CoOp's DATASETS\.md says")


# Malformed split files.


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"val": None}, "its keys are not train, val and test"),
        ({"extra": []}, "its keys are not train, val and test"),
        ({"val": {}}, "val is not a list"),
        ({"test": [["a.jpg", 0]]}, "the row"),
        ({"test": [["a.jpg", False, "grey zebra"]]}, "the row"),
        ({"test": [[7, 0, "grey zebra"]]}, "the row"),
        ({"test": [["a.jpg", 0, None]]}, "the row"),
        ({"test": [["a.jpg", 1, "grey zebra"]]}, "label 1 has the names 'ant' and 'grey zebra'"),
        ({"test": [["a.jpg", 4, "bee"]]}, "it has 4 labels, but not label 3"),
        ({"train": [], "val": [], "test": []}, "it has 0 labels"),
        (b"{", "Expecting property name"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b"[]", "its keys are not"),
    ],
)
def test_a_malformed_split_file_is_refused(
    change: dict[str, Any] | bytes, why: str, tmp_path: Path
) -> None:
    make_tree("dtd", tmp_path)
    if isinstance(change, dict):
        changed = {split: each for split, each in {**rows(), **change}.items() if each is not None}
        change = json.dumps(changed).encode()
    put_all(tmp_path, {split_name("dtd"): change})
    refused("dtd", tmp_path, f"is not a split file of CoOp: {why}")


@pytest.mark.parametrize(
    "path",
    [
        "../../secret.jpg",
        "Ant/../../../secret.jpg",
        "ABSOLUTE",
        "",
        ".",
        "..",
        "a/..",
        "a\0.jpg",
        "link.jpg",
    ],
)
def test_a_path_outside_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    splits = rows()
    splits["val"][0][0] = path.replace("ABSOLUTE", str(tmp_path / "secret.jpg"))
    root = make_tree("dtd", tmp_path / "root", splits)
    put_all(tmp_path, {"secret.jpg": jpeg(7)})
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    refused("dtd", root, "which leads out of --root|is no path|are missing")


def test_links_of_the_user_are_followed_inside_the_root(tmp_path: Path) -> None:
    """The images may be a link, and git-annex puts their content elsewhere below the root."""
    root = make_tree("dtd", tmp_path / "root")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    linked = write(coop, tmp_path / "linked", name="dtd", root=root)
    (root / "images").unlink()
    (root / ".git" / "annex").mkdir(parents=True)
    for number, name in enumerate(IMAGES):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / name).rename(root / ".git" / "annex" / str(number))
        (root / "images" / name).symlink_to(root / ".git" / "annex" / str(number))
    annexed = write(coop, tmp_path / "annexed", name="dtd", root=root)
    for split in SPLITS:
        assert stored(annexed[split]) == stored(linked[split])


@pytest.mark.parametrize("respelt", ["{}", "./{}", "x//..//{}"])
@pytest.mark.parametrize(("split", "where"), [("test", "train and test"), ("train", "in train")])
def test_an_image_that_is_listed_twice_is_refused(
    split: str, where: str, respelt: str, tmp_path: Path
) -> None:
    splits = rows()
    path, label, name = splits["train"][0]
    splits[split].append([respelt.format(path), label, name])
    refused("dtd", make_tree("dtd", tmp_path, splits), f"{path}' twice, .*{where}")


# Downloads, by a stand-in for torchvision's class that needs no network.


class Fetcher:
    """Stand-in for a class of torchvision: puts the images where the class does."""

    def __init__(self, target: str) -> None:
        self.target, self.calls = target, 0
        self.fails_with: Exception | None = None

    def __call__(self, root: str, *, download: bool) -> None:
        self.calls += 1
        assert download
        put_all(Path(root) / TARGETS[self.target].images[-1], IMAGES)
        if self.fails_with:
            raise self.fails_with


@pytest.fixture
def fetcher(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    """Replace torchvision's class, and give `tmp_path` the target's split file."""
    put_all(tmp_path, {split_name(target): json.dumps(rows()).encode()})
    stand_in = Fetcher(target)
    monkeypatch.setattr(torchvision.datasets, str(TARGETS[target].torchvision), stand_in)
    return stand_in


@each_fetched
def test_missing_images_are_downloaded_once(target: str, fetcher: Fetcher, tmp_path: Path) -> None:
    why = f"No '{TARGETS[target].images[0]}' .*--download gets them"
    check_refused(coop, tmp_path / "out", why, name=target, root=tmp_path)
    options = {"name": target, "root": tmp_path, "download": True}
    for name in ("one", "two"):
        written = write(coop, tmp_path / name, **options)
        labels = [label for _, label, _ in rows()["train"]]
        assert sorted(written["train"].labels().tolist()) == labels
    assert fetcher.calls == 1
    mine = make_tree(target, tmp_path / "mine")  # the images as CoOp extracts them
    write(coop, tmp_path / "three", **{**options, "root": mine})
    assert fetcher.calls == 1


@pytest.mark.parametrize("target", ["flowers102"])
def test_nothing_is_downloaded_without_the_split_file(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    (tmp_path / split_name(target)).unlink()
    refused(target, tmp_path, "There is no split file", download=True)
    assert fetcher.calls == 0


@pytest.mark.parametrize("target", ["flowers102"])
@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no gdown", name="gdown"), RuntimeError("MD5 differs")]
)
def test_an_error_of_a_download_is_raised_unless_only_scipy_is_missing(
    target: str, error: Exception, fetcher: Fetcher, tmp_path: Path
) -> None:
    fetcher.fails_with = error
    with pytest.raises(type(error), match=str(error)):
        write(coop, tmp_path / "out", name=target, root=tmp_path, download=True)
    (tmp_path / TARGETS[target].images[-1]).rename(tmp_path / "elsewhere")
    fetcher.fails_with = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    written = write(coop, tmp_path / "out", name=target, root=tmp_path, download=True)
    assert written["test"].num_samples == 3


@pytest.mark.parametrize("target", ["ucf101", "stanford_cars"])
def test_images_that_torchvision_lacks_cannot_be_downloaded(target: str, tmp_path: Path) -> None:
    root = make_tree(target, tmp_path)
    refused(target, root, f"torchvision cannot download {target}.*--help", download=True)


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    refused("imagenet", tmp_path, "`name` must be one of caltech101, .*; got 'imagenet'")
