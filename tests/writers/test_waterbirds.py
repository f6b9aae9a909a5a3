"""Waterbirds: splits, labels and identifiers of metadata.csv, and malformed metadata."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.writers.support import check_refused, names_of, stored, write
from writers import waterbirds

HEADER = "img_id,img_filename,y,split,place,place_filename"
FOLDERS = ("001.Black_footed_Albatross", "009.Brewer_Blackbird")


def rows_of() -> dict[int, list[str]]:
    """Return rows by img_id. As in the published file, img_id starts at 1 and splits are mixed."""
    rows = {}
    for number in range(24):
        label, place, split = number % 2, number // 2 % 2, number // 4 % 3
        path = f"{FOLDERS[label]}/Bird_{number:04}.jpg"
        place_file = "/b/bamboo_forest/00000131.jpg"
        rows[number + 1] = [str(number + 1), path, str(label), str(split), str(place), place_file]
    return rows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = put_all(tmp_path / "root", {row[1]: jpeg(number) for number, row in rows_of().items()})
    return write_metadata(root, rows_of())


def write_metadata(root: Path, rows: Mapping[int, list[str]], header: str = HEADER) -> Path:
    lines = [header, *(",".join(row) for row in rows.values())]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def test_images_keep_their_splits_labels_ids_and_bytes(root: Path, tmp_path: Path) -> None:
    counts = {"train": 4795, "val": 1199, "test": 5794}.items()
    why = ", ".join(f"8 images in {split} instead of {count}" for split, count in counts)
    check_refused(waterbirds, tmp_path / "out", why, root=root, check_counts=True)
    written = write(waterbirds, tmp_path / "out", root=root)
    assert list(written) == ["train", "val", "test"]
    for number, index in enumerate(written.values()):
        rows = {i: row for i, row in rows_of().items() if row[3] == str(number)}
        assert len(rows) == 8
        assert stored(index) == {i: (int(row[2]), jpeg(i)) for i, row in rows.items()}
        assert names_of(index) == ("landbird", "waterbird")


def test_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    gone = root / rows_of()[5][1]
    gone.unlink()
    why = f"1 of 24 images that .*metadata.csv lists are missing, such as '{gone}'"
    check_refused(waterbirds, tmp_path / "out", why, root=root)
    (root / "metadata.csv").unlink()
    check_refused(waterbirds, tmp_path / "out", r"No 'metadata\.csv'", root=root)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, "6"),  # the id of another row
        (0, ""),
        (2, "2"),
        (2, "-1"),
        (2, "1.0"),
        (3, "3"),
        (3, "train"),
    ],
)
def test_an_invalid_value_is_refused(column: int, value: str, root: Path, tmp_path: Path) -> None:
    rows = rows_of()
    rows[7][column] = value  # line 8, after the header
    write_metadata(root, rows)
    why = "Line 8 of .* needs a unique img_id"
    check_refused(waterbirds, tmp_path / "out", why, root=root)


@pytest.mark.parametrize("value", [b"a" * 200_000, b"\xff"], ids=["long", "encoding"])
def test_a_value_that_is_no_text_is_refused(value: bytes, root: Path, tmp_path: Path) -> None:
    with open(root / "metadata.csv", "ab") as stream:
        stream.write(b"25," + value + b",0,0,0,a\n")
    check_refused(waterbirds, tmp_path / "out", r"metadata\.csv is damaged after line", root=root)


def test_a_short_line_and_a_missing_column_are_refused(root: Path, tmp_path: Path) -> None:
    write_metadata(root, {**rows_of(), 24: ["24", "a.jpg"]})
    check_refused(waterbirds, tmp_path / "out", "Line 25", root=root)
    write_metadata(root, rows_of(), header=HEADER.replace("img_filename", "filename"))
    check_refused(waterbirds, tmp_path / "out", "needs a unique img_id, an img_filename", root=root)
