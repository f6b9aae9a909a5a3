"""Folders of images: splits, class ids, identifiers, ignored files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp4tl_ffcv import BetonIndex, read_image
from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.support.images import as_file
from tests.writers.support import check_refused, names_of, stored, write
from writers import imagefolder


def fill(root: Path, classes: dict[str, int]) -> Path:
    names = [f"{name}/{i:03}.jpg" for name, count in classes.items() for i in range(count)]
    return put_all(root, {name: jpeg(seed) for seed, name in enumerate(names)})


def write_one(root: Path, out: Path, **options: Any) -> BetonIndex:
    """Write all images as the training split."""
    return write(imagefolder, out, root=root, val=0.0, test=0.0, **options)["train"]


def test_each_class_is_split_by_the_fractions(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"cat": 20, "ant": 10, "bee": 40})
    written = write(imagefolder, tmp_path / "out", root=tmp_path / "root", val=0.2, test=0.1)
    counts = {split: index.class_counts().tolist() for split, index in written.items()}
    assert counts == {"train": [7, 28, 14], "val": [2, 8, 4], "test": [1, 4, 2]}
    for index in written.values():
        assert names_of(index) == ("ant", "bee", "cat")
        assert index.manifest.written_by["writer"] == "imagefolder"
    ids = np.concatenate([index.column("identifier") for index in written.values()])
    assert sorted(ids.tolist()) == list(range(70))


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", {"ant": 30, "bee": 30})
    one, same, other = (
        write(imagefolder, tmp_path / f"out{number}", root=root, seed=seed)["val"]
        for number, seed in enumerate((3, 3, 4))
    )
    assert one.path.read_bytes() == same.path.read_bytes()
    assert set(one.column("identifier")) != set(other.column("identifier"))


def test_a_split_root_keeps_its_splits_and_has_one_numbering(tmp_path: Path) -> None:
    fill(tmp_path / "root" / "train", {"ant": 3, "cat": 2})
    fill(tmp_path / "root" / "val", {"bee": 2, "cat": 1})
    written = write(imagefolder, tmp_path / "out", root=tmp_path / "root")
    labels = {"train": [0, 0, 0, 2, 2], "val": [1, 1, 2]}
    assert set(written) == set(labels)
    for split, index in written.items():
        assert names_of(index) == ("ant", "bee", "cat")
        assert [label for _, (label, _) in sorted(stored(index).items())] == labels[split]


def test_missing_splits_of_a_split_root_are_drawn_from_train(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root / "train", {"ant": 10, "cat": 20})
    fill(root / "val", {"ant": 3, "cat": 1})
    written = write(imagefolder, tmp_path / "out", root=root, test=0.3, max_per_class=9)
    counts = {split: index.class_counts().tolist() for split, index in written.items()}
    assert counts == {"train": [7, 9], "val": [3, 1], "test": [3, 6]}
    drawn = [stored(written[split]).keys() for split in ("train", "test")]
    assert drawn[0].isdisjoint(drawn[1])
    check_refused(
        imagefolder, tmp_path / "o", "has a split val. Leave out --val", root=root, val=0.1
    )


def test_jpegs_of_every_suffix_keep_their_bytes(tmp_path: Path) -> None:
    names = ("ant/0.jpg", "ant/deeper/1.jpeg", "bee/2.JPE", "bee/3.jfif")
    files = {name: jpeg(seed) for seed, name in enumerate(names)}
    index = write_one(put_all(tmp_path / "root", files), tmp_path / "out", num_workers=2)
    assert stored(index) == {i: (i // 2, jpeg(i)) for i in range(4)}


def test_hidden_and_other_files_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "root", {"ant": 2, ".cache": 2, ".git": 1})
    hidden = ("ant/.thumbnails/one.jpg", "ant/._one.jpg")
    put_all(root, dict.fromkeys(hidden, b"not an image"))
    index = write_one(root, tmp_path / "out")
    assert index.num_samples == 2
    assert names_of(index) == ("ant",)
    assert capsys.readouterr().out == ""
    put_all(root, {"loose.jpg": b"", "ant/more/notes.txt": b"", "bee/a.HEIC": b"", "bee/b": b""})
    put_all(root, {"bee/c.heic": b""})
    (root / "ant" / "pictures").symlink_to(root / "ant")
    os.mkfifo(root / "ant" / "pipe.jpg")
    (root / "ant" / "zero.jpg").symlink_to("/dev/zero")
    assert write_one(root, tmp_path / "again").num_samples == 2
    said = capsys.readouterr().out
    kinds = {
        "1 images outside of class folders", "1 *.txt", "2 *.heic", "1 files without a suffix",
        "1 links to folders", "2 devices",
    }  # fmt: skip
    listed = said.removeprefix("ignored ").partition(", such as ")[0].split(", ")
    assert len(listed) == 6
    assert {*listed[:5]} < kinds
    assert listed[5] == "1 other kinds"


def test_a_broken_link_is_an_error_and_other_links_are_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", {"ant": 1})
    (root / "ant" / "link.jpg").symlink_to(root / "ant" / "000.jpg")
    (root / "bee").symlink_to(root / "ant")
    assert write_one(root, tmp_path / "out").num_samples == 4
    (root / "ant" / "broken.jpg").symlink_to(root / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"Cannot encode .*broken\.jpg"):
        write_one(root, tmp_path / "again")


def test_images_without_a_known_suffix_are_named(tmp_path: Path) -> None:
    put_all(tmp_path / "root" / "ant", {"a.heic": b"", "b.heic": b"", "c": b""})
    why = r"No images .*Known suffixes: .*\.gif.* Files there: 2 \.heic, 1 none"
    check_refused(imagefolder, tmp_path / "out", why, root=tmp_path / "root")


def test_a_gif_is_an_image(tmp_path: Path) -> None:
    content = as_file(Image.new("RGB", (9, 7), "red").quantize(4), "GIF")
    root = put_all(tmp_path / "root" / "ant", {"a.gif": content}).parent
    index = write_one(root, tmp_path / "out", mode="raw")
    assert (read_image(index, 0) == (255, 0, 0)).all()


# Splits and classes.


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("training_set", "test-set"), ("TRAIN", "eval")],
)
def test_common_names_of_splits_are_understood(train: str, test: str, tmp_path: Path) -> None:
    fill(tmp_path / "root" / train, {"ant": 2, "bee": 1})
    fill(tmp_path / "root" / test, {"ant": 1, "bee": 1})
    written = write(imagefolder, tmp_path / "out", root=tmp_path / "root")
    assert {split: len(index) for split, index in written.items()} == {"train": 3, "test": 2}
    assert {names_of(index) for index in written.values()} == {("ant", "bee")}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (
            ("source/ant", "source/bee", "target/cow", "target/dog"),
            "source' holds the folder 'ant'",
        ),
        (("a/images/ant", "a/images/bee", "b/images/ant"), "a' holds the folder 'images/ant'"),
        (("seg_train/seg_train/ant", "seg_train/seg_train/bee", "seg_test/ant"), "'seg_train/ant'"),
        (("a/ant", "b/ant", "b/bee"), "b' holds the folder 'ant'.* pass --nested-classes"),
        (("source/train/ant", "target/val/dog"), "source' holds the folder 'train'"),
        (("a/train/ant", "a/train/bee", "stray"), "a' holds the folder 'train'"),
        (("a/ant", "a/bee", "stray"), "a' holds the folder 'ant'"),
        (("bee", "ant/test", "ant"), "ant' holds the folder 'test'"),
        (("photos/ant", "photos/bee"), "photos' holds the folder 'ant'"),
        (("train/x/ant", "train/x/bee"), "train/x' holds the folder 'ant'"),
        (
            ("train/ant", "train/bee", "val/images"),
            "folders of val, such as 'images', is a class of train",
        ),
        (("val/ant", "valid/ant"), "two folders for the split val: 'val' and 'valid'"),
        (("Train/ant", "bee"), r"both splits \(Train\) and other folders, such as 'bee'"),
        (("bus", "train"), "If 'train' is a class, rename its folder"),
        (("train/ant", "val/ant", "notes"), "If 'notes' is a class, .* else move it out of --root"),
        (("caf\u00e9", "cafe\u0301"), "in different Unicode forms"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_folders_that_rather_hold_the_classes_are_refused(
    files: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    put_all(tmp_path / "root", {f"{name}/{n}.jpg": jpeg(n) for n, name in enumerate(files)})
    check_refused(imagefolder, tmp_path / "out", why, root=tmp_path / "root")


@pytest.mark.parametrize(
    "files",
    [
        ("ant/images", "bee/images", "cat/images"),  # as in Tiny ImageNet
        ("ant/images", "ant/more", "ant", "bee/images", "cat"),
        ("ant/images", "ant/images/more", "bee/x/y/z"),
    ],
    ids=["one folder", "an image of its own", "a chain of folders"],
)
def test_images_in_folders_below_their_class_belong_to_it(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    put_all(tmp_path / "root", {f"{name}/{n}.jpg": jpeg(n) for n, name in enumerate(files)})
    index = write_one(tmp_path / "root", tmp_path / "out")
    assert names_of(index) == tuple(sorted({name.split("/")[0] for name in files}))


@pytest.mark.parametrize(
    "files",
    [("cat/day", "cat/night", "dog/day", "dog/night"), ("ant/red", "ant/test", "ant", "bee")],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_nested_classes_are_read_if_the_user_says_so(
    split: str, files: tuple[str, ...], tmp_path: Path
) -> None:
    named = {f"{split}{name}/{n}.jpg": jpeg(n) for n, name in enumerate(files)}
    root = put_all(tmp_path / "root", named)
    check_refused(imagefolder, tmp_path / "out", "pass --nested-classes", root=root)
    index = write_one(root, tmp_path / "out", nested_classes=True)
    assert names_of(index) == tuple(sorted({name.split("/")[0] for name in files}))
    assert len(index) == len(files)


def test_splits_that_are_not_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "flat", {"train/ant": 2, "val/ant": 2, "val/bee": 1, "test": 2})
    assert set(write(imagefolder, tmp_path / "out", root=root)) == {"train", "val"}
    said = capsys.readouterr().out
    assert f"test is not written: {str(root / 'test')!r} has no images in class folders\n" in said
    assert "1 classes of val are not in train, such as 'bee'\n" in said
    root = fill(tmp_path / "few", {"ant": 2})
    assert set(write(imagefolder, tmp_path / "shares", root=root, test=0.0)) == {"train"}
    said = capsys.readouterr().out
    assert said == "val is not written: no class has enough images for a share of 0.1\n"


# Errors.


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        ([], "--root is not a folder"),
        (["."], "No images in the class folders"),
        (["ant"], "No images in the class folders"),
        (["train/ant"], "No images in the class folders"),
        (["train", "bus"], r"has both splits \(train\) and other folders, such as 'bus'"),
    ],
)
def test_a_folder_that_is_not_a_dataset_is_refused(
    folders: list[str], why: str, tmp_path: Path
) -> None:
    for folder in folders:
        put_all(tmp_path / "root" / folder, {"notes.txt": b"none"})
    check_refused(imagefolder, tmp_path / "out", why, root=tmp_path / "root")


def test_fractions_that_leave_no_training_images_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", {"ant": 4})
    why = "--val and --test must be fractions with a sum below 1"
    for val, test in ((0.5, 0.5), (1.0, 0.0), (-0.1, 0.1)):
        check_refused(imagefolder, tmp_path / "out", why, root=root, val=val, test=test)


def test_betons_of_an_earlier_split_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", {"ant": 10})
    write(imagefolder, tmp_path / "out", root=root, val=0.2, test=0.2)
    with pytest.raises(ValueError, match=r"val\.beton is from an earlier run"):
        write(imagefolder, tmp_path / "out", root=root, val=0.0, test=0.2)
