"""Waterbirds: splits, labels and identifiers of metadata.csv, which is not trusted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex
from tests.writers.support import jpeg, names_of, put_all, stored
from writers import waterbirds
from writers.components.common import run

HEADER = "img_id,img_filename,y,split,place,place_filename"
FOLDERS = ("001.Black_footed_Albatross", "009.Brewer_Blackbird")


def rows_of() -> dict[int, list[str]]:
    """Rows by img_id, as in the real file: in the order of img_id, from 1, splits mixed."""
    rows = {}
    for number in range(24):
        label, place, split = number % 2, number // 2 % 2, number // 4 % 3
        path = f"{FOLDERS[label]}/Bird_{number:04}.jpg"
        place_file = "/b/bamboo_forest/00000131.jpg"
        rows[number + 1] = [str(number + 1), path, str(label), str(split), str(place), place_file]
    return rows


def make_tree(root: Path, rows: Mapping[int, list[str]]) -> Path:
    put_all(root, {row[1]: jpeg(number) for number, row in rows_of().items()})
    write_metadata(root, rows)
    return root


def write_metadata(root: Path, rows: Mapping[int, list[str]], header: str = HEADER) -> None:
    lines = [header, *(",".join(row) for row in rows.values())]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def write(root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    settings = {"check_counts": False, "num_workers": 0, **options}
    return waterbirds.write(waterbirds.Config(root=root, out=out, **settings))


def test_each_image_goes_to_its_split_with_its_label_its_id_and_its_bytes(tmp_path: Path) -> None:
    rows = rows_of()
    written = write(make_tree(tmp_path / "root", rows), tmp_path / "out")
    assert list(written) == ["train", "val", "test"]
    for number, index in enumerate(written.values()):
        mine = {i: (int(row[2]), jpeg(i)) for i, row in rows.items() if row[3] == str(number)}
        assert stored(index) == mine
        assert len(mine) == 8
        assert names_of(index) == ("landbird", "waterbird")


def test_the_real_counts_are_expected(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root", rows_of())
    with pytest.raises(ValueError, match=r"--no-check-counts") as caught:
        write(root, tmp_path / "out", check_counts=True)
    for split, count in {"train": 4795, "val": 1199, "test": 5794}.items():
        assert f"8 images in {split} instead of {count}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'metadata\.csv'"):
        write(tmp_path, tmp_path / "out")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root", rows_of())
    gone = root / rows_of()[5][1]
    gone.unlink()
    with pytest.raises(ValueError, match=f"{gone.name}', of 24"):
        write(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, "x"), (0, "6"), (0, ""), (2, "2"), (2, "-1"), (2, "1.0"), (3, "3"), (3, "train")],
)
def test_a_value_that_its_column_cannot_have_is_refused_with_its_line(
    column: int, value: str, tmp_path: Path
) -> None:
    rows = rows_of()
    rows[7][column] = value  # line 8, after the header
    root = make_tree(tmp_path / "root", rows)
    with pytest.raises(ValueError, match=r"metadata\.csv.* in line 8\."):
        write(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_short_line_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root", rows_of())
    write_metadata(root, {**rows_of(), 24: ["24", "a.jpg"]})
    with pytest.raises(ValueError, match="in line 25"):
        write(root, tmp_path / "out")
    write_metadata(root, rows_of(), header="img_id,filename,y,split,place,place_filename")
    with pytest.raises(ValueError, match="must have img_id, img_filename, y, split"):
        write(root, tmp_path / "out")


def test_a_path_outside_the_folder_and_one_named_twice_are_refused(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root", rows_of())
    (tmp_path / "secret.jpg").write_bytes(jpeg(0))
    for path, why in (("../secret.jpg", "inside their folder"), (rows_of()[1][1], "twice")):
        rows = rows_of()
        rows[24][1] = path
        write_metadata(root, rows)
        with pytest.raises(ValueError, match=why):
            write(root, tmp_path / "out")


def test_the_command_line_takes_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(tmp_path / "root", rows_of())
    arguments = ["--root", str(root), "--out", str(tmp_path / "out"), "--no-check-counts"]
    arguments += ["--num-workers", "0"]
    run("waterbirds", waterbirds.Config, waterbirds.write, waterbirds.__doc__, arguments)
    assert "test: 8 images, 2 classes" in capsys.readouterr().out
