"""Finding images and folders of a dataset."""

import gzip
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.files import put, put_all, tar_of
from writers.components.files import (
    find,
    folders_of,
    images_below,
    images_by_class,
    is_hidden,
    read_members,
    split_of,
)


def test_images_are_sorted_by_the_parts_of_their_paths(tmp_path: Path) -> None:
    names = (
        "a/z.jpg",
        "a b/c.PNG",
        "a.jpg",
        "b/deep/x.jpeg",
        ".a/y.jpg",
        "b/._x.jpg",
        "b/n.txt",
    )
    put_all(tmp_path, dict.fromkeys(names, b""))
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "up.jpg").symlink_to(tmp_path)
    (tmp_path / "link.webp").symlink_to("a.jpg")
    others: list[str] = []
    found = [str(Path(path).relative_to(tmp_path)) for path in images_below(tmp_path, others)]
    assert found == ["a/z.jpg", "a b/c.PNG", "a.jpg", "b/deep/x.jpeg", "link.webp"]
    ignored = [str(Path(path).relative_to(tmp_path)) for path in others]
    assert ignored == ["b/n.txt", "b/up", "b/up.jpg"]
    assert folders_of(tmp_path) == ["a", "a b", "b"]
    paths, classes = images_by_class(tmp_path)
    assert [Path(path).name for path in paths] == ["z.jpg", "c.PNG", "x.jpeg"]
    assert classes == ["a", "a b", "b"]


def test_a_path_with_a_hidden_part_is_hidden() -> None:
    names = ("a/b.jpg", "./a/../b.jpg", "a/._b.jpg", ".a/b.jpg")
    assert [is_hidden(name) for name in names] == [False, False, True, True]


def test_names_of_splits_are_understood_in_any_case() -> None:
    names = ["Train", "TRAINING", "train_set", "trainset", "Validation-Set", "dev", "test images"]
    assert [*map(split_of, names)] == ["train"] * 4 + ["val"] * 2 + ["test"]
    assert {*map(split_of, ["trains", "set", "", "contest", "tester", "pretrain"])} == {None}


@pytest.mark.parametrize("kind", ["gz", "xz", ""])
def test_files_of_a_compressed_archive_are_read(kind: str, tmp_path: Path) -> None:
    files = {"a/b": b"1", "c": bytes(3000), "d": b""}
    archive = put(tmp_path / "a.tar", tar_of(files, f"w:{kind}"))
    assert read_members(archive, ["a/b", "d", "none"]) == {"a/b": b"1", "d": b""}


@pytest.mark.parametrize("size", [-512, -1024, 1 << 70])
def test_a_compressed_archive_with_an_impossible_size_is_refused(size: int, tmp_path: Path) -> None:
    header = bytearray(tar_of({"a": b""})[:512])
    header[124:136] = (size & (1 << 96) - 1 | 1 << 95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = put(tmp_path / "a.tar.gz", gzip.compress(bytes(header) * 2 + bytes(1024)))
    with pytest.raises(ValueError, match=r"a\.tar\.gz (is damaged|has -?\d+ bytes)"):
        read_members(archive, ["a"])


def test_folders_may_be_nested_deeply(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(1200):
        folder = folder / "a"
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1200):
            Path("a").mkdir()
            os.chdir("a")
        Path("b.jpg").touch()
    finally:
        os.chdir(here)
    assert images_below(tmp_path) == [str(folder / "b.jpg")]
    subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # shutil.rmtree is recursive


def test_the_first_path_that_exists_is_found(tmp_path: Path) -> None:
    put_all(tmp_path, {"b/x": b"", "c": b""})
    assert find(tmp_path, "a", "b", "c", layout="photos") == tmp_path / "b"
    assert find(tmp_path, "a", "b/x", layout="photos") == tmp_path / "b" / "x"
    with pytest.raises(ValueError, match=r"^No 'd' or 'e/f' in '.*'\. --root must hold photos\.$"):
        find(tmp_path, "d", "e/f", layout="photos")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="No 'fifo' in"):
        find(tmp_path, "fifo", layout="photos")
    with pytest.raises(ValueError, match=r"^There is no folder '.*none'"):
        find(tmp_path / "none", "d", layout="photos")
