"""Tiny-ImageNet in the layout of its archive, with few classes and images."""

from pathlib import Path

import pytest

from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.writers.support import check_refused, names_of, stored, write
from writers import tiny_imagenet

WORDS = "n02012849\tcrane\nn01440764\ttench, Tinca tinca\nn03126707\tcrane\nn00001740\tentity\n"
WNIDS = ("n02012849", "n01440764", "n03126707")  # not sorted, as in the archive
LABELS = (1, 0, 2)  # of the WNIDs, sorted


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write four training images a class, three for validation, two for the test."""
    files = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(),
        "words.txt": WORDS.encode(),
        "val/val_annotations.txt": b"".join(
            f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n".encode() for i, wnid in enumerate(WNIDS)
        ),
        "test/images/test_0.JPEG": jpeg(98),
        "test/images/test_1.JPEG": jpeg(99),
    }
    for c, wnid in enumerate(WNIDS):
        files[f"val/images/val_{c}.JPEG"] = jpeg(20 + c)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        files |= {f"train/{wnid}/images/{wnid}_{i}.JPEG": jpeg(4 * c + i) for i in range(4)}
    return put_all(tmp_path / "root", files)


def test_images_labels_and_names_are_the_archives(root: Path, tmp_path: Path) -> None:
    written = write(tiny_imagenet, tmp_path / "out", root=root)
    assert set(written) == {"train", "val"}
    assert names_of(written["train"]) == (
        "tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"
    )  # fmt: skip
    assert set(stored(written["val"]).values()) == {(LABELS[c], jpeg(20 + c)) for c in range(3)}
    expected = {(LABELS[c], jpeg(4 * c + i)) for c in range(3) for i in range(4)}
    assert set(stored(written["train"]).values()) == expected


def test_a_test_split_and_classes_are_taken_from_train(root: Path, tmp_path: Path) -> None:
    options = {"root": root, "test": 0.25, "classes": ("crane (n03126707)", "tench, Tinca tinca")}
    written = write(tiny_imagenet, tmp_path / "out", **options)
    counts = {split: index.class_counts().tolist() for split, index in written.items()}
    assert counts == {"train": [3, 3], "val": [1, 1], "test": [1, 1]}
    with pytest.raises(ValueError, match=r"test\.beton is from an earlier run"):
        write(tiny_imagenet, tmp_path / "out", root=root)
    check_refused(tiny_imagenet, tmp_path / "other", "has a split val", root=root, val=0.1)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("wnids.txt", b"n02012849\nn01440764\n", "train has images of 'n03126707'"),
        ("val/images/val_9.JPEG", b"", r"1 images are either .* 'val_9\.JPEG'"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn02012849\n", "2 images are either"),
        ("wnids.txt", b"\xff", r"wnids\.txt"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    name: str, content: bytes, why: str, root: Path, tmp_path: Path
) -> None:
    put_all(root, {name: content})
    check_refused(tiny_imagenet, tmp_path / "out", why, root=root)


def test_counts_and_a_missing_file_are_named(root: Path, tmp_path: Path) -> None:
    why = "12 images in train instead of 100000"
    check_refused(tiny_imagenet, tmp_path / "out", why, root=root, check_counts=True, test=0.25)
    (root / "words.txt").unlink()
    check_refused(tiny_imagenet, tmp_path / "out", r"No 'words\.txt' in", root=root)
