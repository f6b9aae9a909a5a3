"""Class folders to betons: numbering, splits, and images of every kind that photos come in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv import BetonIndex, read_image
from tests.writers.support import jpeg, put_all, stored
from writers.components.common import run
from writers.imagefolder import Config, write

RED, GREEN, BLUE = (220, 30, 30), (30, 220, 30), (30, 30, 220)


def put(root: Path, name: str, colour: tuple[int, ...] = RED, side: int = 24) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)
    return path


def fill(root: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        for number in range(count):
            put(root, f"{name}/{number:03}.png", (number, 2 * number, 90))


def write_all(root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    return write(Config(root=root, out=out, **{"num_workers": 0, **options}))


def labels_in_order(index: BetonIndex) -> list[int]:
    """Return the labels in the order of the listing, which identifiers count."""
    labels: list[int] = index.labels()[np.argsort(index.column("identifier"))].tolist()
    return labels


def only_image(root: Path, out: Path) -> NDArray[np.uint8]:
    """Write a root that holds one image and return it as it is read again."""
    (index,) = write_all(root, out, val=0.0, test=0.0, jpeg_quality=95).values()
    assert index.num_samples == 1
    return read_image(index, 0)


# Splits and classes.


def test_a_root_of_classes_is_split_by_share_in_every_class(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"cat": 20, "ant": 10, "bee": 40})
    written = write_all(tmp_path / "root", tmp_path / "out", val=0.2, test=0.1)
    counts = {split: index.class_counts().tolist() for split, index in written.items()}
    assert counts == {"train": [7, 28, 14], "val": [2, 8, 4], "test": [1, 4, 2]}
    for split, index in written.items():
        assert index.path == tmp_path / "out" / f"{split}.beton"
        assert index.manifest is not None
        assert index.manifest.class_names == ("ant", "bee", "cat")
        assert list(index.manifest.class_counts) == counts[split]
        assert index.manifest.written_by["writer"] == "imagefolder"
        assert index.manifest.written_by["split"] == split


def test_no_image_is_in_two_splits_and_none_is_lost(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"ant": 13, "bee": 7})
    written = write_all(tmp_path / "root", tmp_path / "out", val=0.3, test=0.3)
    ids = np.concatenate([index.column("identifier") for index in written.values()])
    assert sorted(ids.tolist()) == list(range(20))


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"ant": 30, "bee": 30})
    options = ({"seed": 3}, {"seed": 3}, {"seed": 4})
    one, same, other = (
        write_all(tmp_path / "root", tmp_path / f"out{number}", **each)["val"]
        for number, each in enumerate(options)
    )
    assert one.path.read_bytes() == same.path.read_bytes()
    assert set(one.column("identifier")) != set(other.column("identifier"))


def test_a_split_root_is_taken_as_it_is_with_one_numbering_for_all(tmp_path: Path) -> None:
    fill(tmp_path / "root" / "train", {"ant": 3, "cat": 2})
    fill(tmp_path / "root" / "val", {"bee": 2, "cat": 1})
    written = write_all(tmp_path / "root", tmp_path / "out")
    assert set(written) == {"train", "val"}
    names = ("ant", "bee", "cat")
    assert all(index.manifest and index.manifest.class_names == names for index in written.values())
    assert labels_in_order(written["train"]) == [0, 0, 0, 2, 2]
    assert labels_in_order(written["val"]) == [1, 1, 2]
    assert written["train"].class_counts().tolist() == [3, 0, 2]
    assert written["train"].num_classes == written["val"].num_classes == 3
    assert not (tmp_path / "out" / "test.beton").exists()


def test_images_keep_the_label_and_the_number_of_their_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, colour in (("blue", BLUE), ("green", GREEN), ("red", RED)):
        put(root, f"{name}/deeper/one.PNG", colour)
    index = write_all(root, tmp_path / "out", val=0.0, test=0.0)["train"]
    assert labels_in_order(index) == [0, 1, 2]
    for sample_id, label in enumerate(index.labels()):
        pixels = read_image(index, sample_id).astype(int)
        assert np.abs(pixels - (BLUE, GREEN, RED)[label]).max() < 12


def test_samples_are_stored_in_random_order_unless_asked_otherwise(tmp_path: Path) -> None:
    fill(tmp_path / "root" / "train", {"ant": 15, "bee": 15})
    for shuffle in (True, False):
        index = write_all(tmp_path / "root", tmp_path / str(shuffle), shuffle=shuffle)["train"]
        identifiers = index.column("identifier").tolist()
        assert (identifiers == list(range(30))) is not shuffle
        assert labels_in_order(index) == [0] * 15 + [1] * 15


def test_jpegs_that_need_no_change_keep_their_bytes(tmp_path: Path) -> None:
    files = {f"{name}/{i}.jpg": jpeg(i) for i, name in enumerate(("ant", "ant", "bee"))}
    root = put_all(tmp_path / "root", files)
    index = write_all(root, tmp_path / "out", val=0.0, test=0.0, num_workers=2)["train"]
    assert [stored(index)[i] for i in range(3)] == list(zip([0, 0, 1], files.values(), strict=True))


def test_hidden_folders_and_other_files_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root, {"ant": 2, ".cache": 2, ".git": 1})
    (root / "ant" / "notes.txt").write_text("not an image")
    put(root, "loose.png")
    index = write_all(root, tmp_path / "out", val=0.0, test=0.0)["train"]
    assert index.num_samples == 2
    assert index.manifest is not None
    assert index.manifest.class_names == ("ant",)


def test_every_suffix_of_a_jpeg_is_known(tmp_path: Path) -> None:
    suffixes = ("jpg", "jpeg", "JPE", "jfif")
    files = {f"ant/{i}.{suffix}": jpeg(i) for i, suffix in enumerate(suffixes)}
    root = put_all(tmp_path / "root", files)
    index = write_all(root, tmp_path / "out", val=0.0, test=0.0)["train"]
    assert stored(index) == {i: (0, jpeg(i)) for i in range(4)}


def test_a_notice_counts_what_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    for split in ("train", "val"):
        put_all(root / split, {"ant/0.jpg": jpeg(0), "ant/more/notes.txt": b"", "ant/.x": b""})
    write_all(root, tmp_path / "out")
    said = capsys.readouterr().out
    first = root / "train" / "ant" / "more" / "notes.txt"
    assert said == f"passed over (no images, or links to folders): 2, such as {first}\n"
    (root / "val" / "ant" / "linked").symlink_to(root / "train" / "ant")
    written = write_all(root, tmp_path / "again")
    assert written["val"].num_samples == 1
    assert "links to folders): 3, such" in capsys.readouterr().out
    fill(tmp_path / "plain", {"ant": 2})
    write_all(tmp_path / "plain", tmp_path / "quiet", val=0.0, test=0.0)
    assert capsys.readouterr().out == ""


def test_hidden_files_and_folders_within_a_class_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "ant/one.png")
    put(root, "ant/.thumbnails/one.png")
    (root / "ant" / "._one.png").write_bytes(b"what other systems leave beside a file")
    index = write_all(root, tmp_path / "out", val=0.0, test=0.0)["train"]
    assert index.num_samples == 1


# Kinds of images.


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_a_camera_noted_is_honoured(orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (32, 48), BLUE)
    upright.paste(RED, (0, 0, 16, 24))  # red at the top left, green at the top right
    upright.paste(GREEN, (16, 0, 32, 24))
    stored_as = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(stored_as[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "root" / "ant").mkdir(parents=True)
    stored.save(tmp_path / "root" / "ant" / "photo.jpg", exif=exif, quality=95, subsampling=0)
    pixels = only_image(tmp_path / "root", tmp_path / "out")
    assert pixels.shape == (48, 32, 3)
    for (row, column), colour in {(8, 5): RED, (8, 26): GREEN, (40, 16): BLUE}.items():
        assert np.abs(pixels[row, column].astype(int) - colour).max() < 30


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "jpg"), ("P", "png"), ("1", "png"), ("RGBA", "png"), ("LA", "png")],
)
def test_other_modes_become_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "root" / "ant").mkdir(parents=True)
    image = Image.new("RGB", (24, 20), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "root" / "ant" / f"one.{suffix}")
    pixels = only_image(tmp_path / "root", tmp_path / "out")
    assert pixels.shape == (20, 24, 3)
    assert pixels.min() > 245


def test_palette_colours_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "root" / "ant").mkdir(parents=True)
    image = Image.new("RGB", (24, 24), GREEN).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "root" / "ant" / "one.png")
    pixels = only_image(tmp_path / "root", tmp_path / "out")
    assert np.abs(pixels.astype(int) - GREEN).max() < 12


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    (tmp_path / "root" / "ant").mkdir(parents=True)
    image = Image.fromarray(np.full((24, 24), 100 * 256 + 7, dtype=np.uint16))
    image.save(tmp_path / "root" / "ant" / "one.png")
    pixels = only_image(tmp_path / "root", tmp_path / "out")
    assert np.abs(pixels.astype(int) - 100).max() < 4


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    (tmp_path / "root" / "ant").mkdir(parents=True)
    image = Image.new("RGB", (24, 24), RED).convert("CMYK")
    image.save(tmp_path / "root" / "ant" / "one.jpg", quality=95)
    pixels = only_image(tmp_path / "root", tmp_path / "out")
    assert np.abs(pixels.astype(int) - RED).max() < 12


def test_large_images_are_shrunk_to_the_longer_side(tmp_path: Path) -> None:
    (tmp_path / "root" / "ant").mkdir(parents=True)
    Image.new("RGB", (100, 50), RED).save(tmp_path / "root" / "ant" / "one.png")
    index = write_all(tmp_path / "root", tmp_path / "out", val=0, test=0, max_resolution=40)[
        "train"
    ]
    assert read_image(index, 0).shape == (20, 40, 3)


# What cannot be written.


def test_unreadable_images_are_left_out_and_listed_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put_all(tmp_path / "root", {"ant/bad.jpg": b"no image", "ant/good.jpg": jpeg(0)})
    arguments = ["--root", str(root), "--out", str(tmp_path / "out"), "--on-error", "skip"]
    run("imagefolder", Config, write, None, [*arguments, "--val", "0", "--test", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train: 1 images, 1 classes -> {tmp_path / 'out' / 'train.beton'}"
    assert "left out" in lines[1]
    assert str(root / "ant" / "bad.jpg") in lines[1]


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "cut"])
def test_an_unreadable_image_is_named_and_leaves_no_beton(
    content: bytes | None, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    fill(root, {"ant": 4})
    good = put(root, "ant/good.jpg", side=64)
    bad = root / "ant" / "bad one.jpg"
    bad.write_bytes(good.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=r"bad one\.jpg"):
        write_all(root, tmp_path / "out", val=0.0, test=0.0)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("layout", ["nothing", "classes without images", "splits without images"])
def test_a_root_without_images_is_refused(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if layout != "nothing":
        part = root / "train" if layout.startswith("splits") else root
        (part / "ant").mkdir(parents=True)
        (part / "ant" / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="class folders with images"):
        write_all(root, tmp_path / "out")


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`root` must be a folder"):
        write_all(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize("shares", [(0.5, 0.5), (1.0, 0.0), (-0.1, 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(
    shares: tuple[float, float], tmp_path: Path
) -> None:
    fill(tmp_path / "root", {"ant": 4})
    with pytest.raises(ValueError, match="`val` and `test`"):
        write_all(tmp_path / "root", tmp_path / "out", val=shares[0], test=shares[1])


def test_the_command_ends_with_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "writers.imagefolder", "--root", "none", "--out", "out"]
    environment_root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=environment_root, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "`root` must be a folder" in line


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"train": 3, "bus": 3})
    with pytest.raises(ValueError, match="either splits or classes; got train beside 'bus'"):
        write_all(tmp_path / "root", tmp_path / "out")


def test_betons_of_an_earlier_split_are_not_left_beside_new_ones(tmp_path: Path) -> None:
    fill(tmp_path / "root", {"ant": 10})
    write_all(tmp_path / "root", tmp_path / "out", val=0.2, test=0.2)
    with pytest.raises(ValueError, match=r"`out`.*val\.beton"):
        write_all(tmp_path / "root", tmp_path / "out", val=0.0, test=0.2)
