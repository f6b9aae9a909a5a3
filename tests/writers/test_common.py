"""What every writer relies on: checks before the first byte, listings, messages, the command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex, ImageFiles
from tests.writers.support import jpeg, put_all, stored
from writers.common import (
    Expected,
    Options,
    find,
    folders_of,
    images_below,
    is_hidden,
    run,
    write_splits,
)

NAMES = ("ant", "bee")


def options(out: Path, **others: Any) -> Options:
    return Options(out=out, **{"num_workers": 0, **others})


def three(first: int = 0) -> list[tuple[bytes, int, int]]:
    return [(jpeg(first + i), i % 2, first + i) for i in range(3)]


def test_splits_are_written_with_what_wrote_them(tmp_path: Path) -> None:
    given = options(tmp_path / "out", jpeg_quality=77, seed=5)
    splits = {"train": three(), "val": three(3)}
    expected = Expected(2, {"train": 3, "val": 3, "test": 9})
    written = write_splits("birds", splits, NAMES, given, expected)
    assert set(written) == {"train", "val"}
    assert stored(written["val"]) == {3 + i: (i % 2, jpeg(3 + i)) for i in range(3)}
    for split, index in written.items():
        assert index.path == tmp_path / "out" / f"{split}.beton"
        assert index.manifest is not None
        by = index.manifest.written_by
        assert (by["writer"], by["split"], by["jpeg_quality"]) == ("birds", split, 77)
        assert (by["seed"], by["shuffle"]) == (5, True)
        # What changes no byte is left out, so that a killed run is continued under other values.
        assert not {"out", "num_workers", "check_counts"} & set(by)


def test_the_order_depends_on_the_seed_and_can_be_kept(tmp_path: Path) -> None:
    samples = [(jpeg(i), 0, i) for i in range(20)]

    def order(name: str, **others: Any) -> list[int]:
        given = options(tmp_path / name, **others)
        index = write_splits("birds", {"all": samples}, NAMES, given, None)["all"]
        identifiers: list[int] = index.column("identifier").tolist()
        return identifiers

    one, other = order("one"), order("other", seed=1)
    assert one == order("same")
    assert one != other
    assert sorted(one) == sorted(other) == order("kept", shuffle=False) == list(range(20))


def test_the_listing_tells_other_names_and_labels(tmp_path: Path) -> None:
    put_all(tmp_path, {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})

    def listing(names: list[str], labels: list[int]) -> str:
        samples = ImageFiles([tmp_path / name for name in names], labels)
        index = write_splits("birds", {"all": samples}, NAMES, options(tmp_path / "out"), None)
        assert index["all"].manifest is not None
        return str(index["all"].manifest.written_by["listing"])

    first = listing(["a.jpg", "b.jpg"], [0, 1])
    others = [listing(["b.jpg", "a.jpg"], [0, 1]), listing(["a.jpg", "b.jpg"], [1, 0])]
    assert len({first, *others}) == 3
    assert listing(["a.jpg", "b.jpg"], [0, 1]) == first


# What is refused, before anything is written.


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        (Expected(2, {"train": 3, "val": 4}), "3 images in val instead of 4;"),
        (Expected(3, {"train": 3}), "2 classes instead of 3;"),
        (Expected(1, {"train": 2}), "3 images in train instead of 2 and 2 classes instead of 1;"),
    ],
)
def test_other_counts_are_refused_unless_they_are_not_checked(
    expected: Expected, what: str, tmp_path: Path
) -> None:
    splits = {"train": three(), "val": three()}
    message = rf"`birds` must be complete; got {what[:-1]}\. .*--no-check-counts"
    with pytest.raises(ValueError, match=message):
        write_splits("birds", splits, NAMES, options(tmp_path / "out"), expected)
    assert not (tmp_path / "out").exists()
    given = options(tmp_path / "out", check_counts=False)
    assert set(write_splits("birds", splits, NAMES, given, expected)) == {"train", "val"}


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_refused_in_any_split(label: int, tmp_path: Path) -> None:
    splits = {"train": three(), "val": [(jpeg(0), label, 0)]}
    with pytest.raises(ValueError, match=rf"`val` must have labels from 0 to 1.*got.* {label}"):
        write_splits("birds", splits, NAMES, options(tmp_path / "out"), None)
    assert not (tmp_path / "out").exists()


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`val` must hold at least one image"):
        write_splits("birds", {"train": three(), "val": []}, NAMES, options(tmp_path / "out"), None)
    assert not (tmp_path / "out").exists()


# Files and folders.


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
    (tmp_path / "link.webp").symlink_to("a.jpg")
    found = [str(Path(path).relative_to(tmp_path)) for path in images_below(tmp_path)]
    assert found == ["a/z.jpg", "a b/c.PNG", "a.jpg", "b/deep/er/x.jpeg", "link.webp"]
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


# The command.


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    bad: bool = False


def write(config: Config) -> dict[str, BetonIndex]:
    samples = [*three(), (b"no image", 0, 9)] if config.bad else three()
    return write_splits("birds", {"train": samples, "val": three()}, NAMES, config, None)


def test_the_command_prints_each_split_and_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--num-workers", "0", "--on-error", "skip", "--bad"]
    run("birds", Config, write, "Write birds.", arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train: 3 images, 2 classes -> {tmp_path / 'train.beton'}"
    assert lines[1].startswith("  left out 3: ")
    assert lines[2] == f"val: 3 images, 2 classes -> {tmp_path / 'val.beton'}"


def test_the_command_names_classes_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_few(config: Config) -> dict[str, BetonIndex]:
        names = [*NAMES, *(f"rare {number}" for number in range(7))]
        return write_splits("birds", {"train": three()}, names, config, None)

    run("birds", Config, write_few, None, ["--out", str(tmp_path), "--num-workers", "0"])
    lines = capsys.readouterr().out.splitlines()
    rare = ", ".join(f"rare {number}" for number in range(5))
    assert lines[1:] == [f"  no images of {rare} and 2 more"]


def test_an_error_ends_the_command_with_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("birds", Config, write, None, ["--out", str(tmp_path), "--num-workers", "0", "--bad"])
    assert ended.value.code == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "writers.birds" in each]
    assert "`" in line
