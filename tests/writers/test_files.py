"""What writers find in a folder: images in order, folders, and the first place that is there."""

from pathlib import Path

import pytest

from tests.writers.support import put_all
from writers.components.files import find, folders_of, images_below, is_hidden


def test_images_are_listed_in_order_of_their_parts_and_without_hidden_ones(tmp_path: Path) -> None:
    names = [
        "a/z.jpg",
        "a b/c.PNG",
        "a.jpg",
        "b/deep/er/x.jpeg",
        ".a/y.jpg",
        "b/._x.jpg",
        "b/n.txt",
    ]
    put_all(tmp_path, dict.fromkeys(names, b""))
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "up.jpg").symlink_to(tmp_path)
    (tmp_path / "link.webp").symlink_to("a.jpg")
    others: list[str] = []
    found = [str(Path(path).relative_to(tmp_path)) for path in images_below(tmp_path, others)]
    assert found == ["a/z.jpg", "a b/c.PNG", "a.jpg", "b/deep/er/x.jpeg", "link.webp"]
    assert [str(Path(path).relative_to(tmp_path)) for path in others] == [
        "b/n.txt",
        "b/up",
        "b/up.jpg",
    ]
    assert folders_of(tmp_path) == ["a", "a b", "b"]


@pytest.mark.parametrize(
    ("name", "hidden"),
    [("a/b.jpg", False), ("./a/../b.jpg", False), ("a/._b.jpg", True), (".a/b.jpg", True)],
)
def test_what_is_hidden(name: str, hidden: bool) -> None:
    assert is_hidden(name) is hidden


def test_the_first_place_that_is_there_is_found(tmp_path: Path) -> None:
    put_all(tmp_path, {"b/x": b"", "c": b""})
    assert find(tmp_path, "a", "b", "c", layout="some") == tmp_path / "b"
    assert find(tmp_path, "a", "b/x", layout="some") == tmp_path / "b" / "x"
    with pytest.raises(ValueError, match=r"^`root` must hold photos; got no 'd' or 'e/f' in '"):
        find(tmp_path, "d", "e/f", layout="photos")
    with pytest.raises(ValueError, match="no folder"):
        find(tmp_path / "none", "d", layout="photos")
