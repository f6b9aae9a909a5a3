"""Finding images and folders of a dataset."""

from pathlib import Path

import pytest

from tests.support.files import put_all
from writers.components.files import find, folders_of, images_below, images_by_class, is_hidden


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


def test_the_first_path_that_exists_is_found(tmp_path: Path) -> None:
    put_all(tmp_path, {"b/x": b"", "c": b""})
    assert find(tmp_path, "a", "b", "c", layout="photos") == tmp_path / "b"
    assert find(tmp_path, "a", "b/x", layout="photos") == tmp_path / "b" / "x"
    with pytest.raises(ValueError, match=r"^No 'd' or 'e/f' in '.*'\. --root must hold photos\.$"):
        find(tmp_path, "d", "e/f", layout="photos")
    with pytest.raises(ValueError, match=r"^There is no folder '.*none'"):
        find(tmp_path / "none", "d", layout="photos")
