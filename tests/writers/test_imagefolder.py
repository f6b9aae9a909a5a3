"""Folders of images: splits, class ids, identifiers, ignored files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex
from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
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


def test_jpegs_of_every_suffix_keep_their_bytes(tmp_path: Path) -> None:
    names = ("ant/0.jpg", "ant/deeper/1.jpeg", "bee/2.JPE", "bee/3.jfif")
    files = {name: jpeg(seed) for seed, name in enumerate(names)}
    index = write_one(put_all(tmp_path / "root", files), tmp_path / "out", num_workers=2)
    assert stored(index) == {i: (i // 2, jpeg(i)) for i in range(4)}


def test_hidden_and_other_files_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "root", {"ant": 2, ".cache": 2, ".git": 1})
    hidden = ("loose.jpg", "ant/.thumbnails/one.jpg", "ant/._one.jpg")
    put_all(root, dict.fromkeys(hidden, b"not an image"))
    index = write_one(root, tmp_path / "out")
    assert index.num_samples == 2
    assert names_of(index) == ("ant",)
    assert capsys.readouterr().out == ""
    notes = put_all(root, {"ant/more/notes.txt": b""}) / "ant" / "more" / "notes.txt"
    (root / "ant" / "pictures").symlink_to(root / "ant")
    assert write_one(root, tmp_path / "again").num_samples == 2
    said = f"ignored 2 other files and links to folders, such as {notes}\n"
    assert capsys.readouterr().out == said


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
