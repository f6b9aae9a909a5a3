"""ImageNet from folders and from archives: equal betons, labels, class names, counts."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all, tar_of
from tests.writers.support import check_refused, names_of, stored, write
from writers import imagenet
from writers.imagenet import DEVKIT, META

savemat = pytest.importorskip("scipy.io").savemat

# ILSVRC2012_IDs are not in the order of the WNIDs. 4 and 5 are parents of the others.
SYNSETS = [
    (1, "n02012849", "crane", 0),
    (2, "n01440764", "tench, Tinca tinca", 0),
    (3, "n03126707", "crane", 0),
    (4, "n00001740", "entity", 2),
    (5, "n00001930", "physical entity", 3),
]
WNIDS = ("n01440764", "n02012849", "n03126707")
NAMES = ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
TRAIN = {
    f"{wnid}/{wnid}_{number}.JPEG": jpeg(100 * label + number)
    for label, wnid in enumerate(WNIDS)
    for number in (10026, 18, 7)
}
VAL = {f"ILSVRC2012_val_{number:08}.JPEG": jpeg(500 + number) for number in range(1, 6)}
TRUTH = (3, 1, 2, 2, 3)  # ILSVRC2012_IDs
TRUTH_FILE = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
VAL_LABELS = (2, 1, 0, 0, 2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect the number of images that these tests have."""
    expected = (3, {"train": len(TRAIN), "val": len(VAL)})
    real = imagenet.EXPECTED
    assert real == (1000, {"train": 1_281_167, "val": 50_000})
    monkeypatch.setattr(imagenet, "EXPECTED", expected)


def devkit() -> dict[str, bytes]:
    """Return the files of the devkit's archive."""
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    names += ("wordnet_height", "num_train_images")
    rows = [
        (float(number), wnid, words, "a gloss", float(children), np.zeros((1, children)), 0.0, 3.0)
        for number, wnid, words, children in SYNSETS
    ]
    kinds = [(name, object) for name in names]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return {
        f"{DEVKIT}/readme.txt": b"none",
        f"{DEVKIT}/data/meta.mat": meta.getvalue(),
        TRUTH_FILE: b"".join(b"%d\n" % number for number in TRUTH),
    }


def train_tar() -> bytes:
    """Return a tar of tars, one per class, with files that are not sorted."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, data in reversed(TRAIN.items()):
        wnid, _, file = name.partition("/")
        classes.setdefault(f"{wnid}.tar", {})[file] = data
    return tar_of({name: tar_of(files) for name, files in classes.items()})


def in_folders() -> dict[str, bytes]:
    val = zip(VAL.items(), VAL_LABELS, strict=True)
    return {
        **{f"train/{name}": data for name, data in TRAIN.items()},
        **{f"val/{WNIDS[label]}/{name}": data for (name, data), label in val},
    }


def in_archives() -> dict[str, bytes]:
    return {
        "ILSVRC2012_img_train.tar": train_tar(),
        "ILSVRC2012_img_val.tar": tar_of(VAL),
        f"{DEVKIT}.tar.gz": tar_of(devkit(), "w:gz"),
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return put_all(tmp_path_factory.mktemp("archives"), in_archives())


def test_archives_are_read_without_extracting_them(archives: Path, tmp_path: Path) -> None:
    before = sorted(archives.rglob("*"))
    written = write(imagenet, tmp_path / "out", root=archives, num_workers=2, check_counts=True)
    assert sorted(archives.rglob("*")) == before
    assert set(written) == {"train", "val"}
    assert stored(written["train"]) == {
        i: (WNIDS.index(name[:9]), TRAIN[name]) for i, name in enumerate(sorted(TRAIN))
    }
    assert stored(written["val"]) == {
        i: (VAL_LABELS[i], data) for i, data in enumerate(VAL.values())
    }
    assert names_of(written["train"]) == names_of(written["val"]) == NAMES
    assert written["train"].manifest.written_by["writer"] == "imagenet"


@pytest.mark.parametrize("val", ["by class", "flat"])
def test_folders_give_the_same_bytes_as_archives(val: str, archives: Path, tmp_path: Path) -> None:
    files = {**in_folders(), **devkit()}
    if val == "flat":
        files = {name: data for name, data in files.items() if not name.startswith("val/")}
        files |= {f"val/{name}": data for name, data in VAL.items()}
    root = put_all(tmp_path / "root", files)
    one = write(imagenet, tmp_path / "archives", root=archives)
    other = write(imagenet, tmp_path / "folders", root=root)
    assert one["train"].path.read_bytes() == other["train"].path.read_bytes()
    assert names_of(other["val"]) == NAMES
    if val == "flat":  # otherwise images are listed by class
        alone = write(imagenet, tmp_path / "val", root=root, splits=("val",), check_counts=True)
        assert set(alone) == {"val"}
        for each in (other, alone):
            assert one["val"].path.read_bytes() == each["val"].path.read_bytes()
    assert sorted(stored(one["val"]).values()) == sorted(stored(other["val"]).values())


def test_without_the_devkit_wnids_name_the_classes(tmp_path: Path) -> None:
    written = write(imagenet, tmp_path / "out", root=put_all(tmp_path / "root", in_folders()))
    assert names_of(written["train"]) == names_of(written["val"]) == WNIDS
    val = sorted(zip(VAL_LABELS, VAL.values(), strict=True))
    assert sorted(stored(written["val"]).values()) == val


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    files = in_folders()
    files["train/n01440764/._n01440764_18.JPEG"] = b"metadata of macOS"
    files["train/.thumbnails/n01440764_18.JPEG"] = b"a thumbnail"
    files["train/n01440764/notes.txt"] = b"none"
    root = put_all(tmp_path / "root", files)
    assert write(imagenet, tmp_path / "out", root=root)["train"].num_samples == len(TRAIN)
    inner = tar_of({"._n1_1.JPEG": b"", "a.txt": b"", "n1_1.JPEG": jpeg(1)})
    root = put_all(tmp_path / "tar", {"ILSVRC2012_img_train.tar": tar_of({"n00000001.tar": inner})})
    archive = write(imagenet, tmp_path / "out2", root=root, splits=("train",))
    assert stored(archive["train"]) == {0: (0, jpeg(1))}


# Errors.


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_meta() -> dict[str, bytes]:
    return {name: data for name, data in devkit().items() if not name.endswith("meta.mat")}


def folders_in_devkit() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in devkit():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
    return stream.getvalue()


def flat(*names: str) -> dict[str, bytes]:
    return {f"val/{name}": jpeg(0) for name in names}


@pytest.mark.parametrize(
    ("files", "split", "why"),
    [
        ({"val/n1/a.JPEG": b""}, "train", "No 'train' or 'ILSVRC2012_img_train.tar'.*train/WNID"),
        ({"train/n1/a.JPEG": b""}, "val", "No 'val' or 'ILSVRC2012_img_val.tar' .*val/WNID"),
        (flat(*VAL), "val", rf"labels of val are missing\. Put {DEVKIT}\.tar\.gz"),
        (without_meta(), "val", r"lacks .*meta\.mat"),
        ({f"{DEVKIT}.tar.gz": tar_of(without_meta(), "w:gz")}, "val", r"lacks .*meta\.mat"),
        ({f"{DEVKIT}.tar.gz": half(tar_of(devkit(), "w:gz"))}, "val", "is damaged"),
        ({f"{DEVKIT}.tar.gz": b"text"}, "val", "is damaged"),
        ({f"{DEVKIT}.tar.gz": folders_in_devkit()}, "val", r"lacks .*meta\.mat"),
        (flat(*VAL, "other.JPEG") | devkit(), "val", "image '.*other.JPEG', .* numbers 1 to 5"),
        (flat("ILSVRC2012_val_00000006.JPEG") | devkit(), "val", "00000006.JPEG', .* 1 to 5"),
        ({"ILSVRC2012_img_train.tar": tar_of(VAL)}, "train", "a tar of 1,000 tars"),
        ({f"{DEVKIT}/{META}": b"not from Matlab", TRUTH_FILE: b"1"}, "val", "is damaged"),
        (devkit() | {TRUTH_FILE: b"1 7 9"}, "val", "is damaged"),
        (devkit() | {TRUTH_FILE: bytes(1 << 21)}, "val", "has more than 1048576 bytes"),
        ({"val/images/a.JPEG": jpeg(0)}, "val", "'images' in .* is not a class of ImageNet"),
        ({"train/train/n01440764/a.JPEG": jpeg(0)}, "train", "'train' in .* is not a class"),
    ],
)
def test_a_folder_that_is_not_the_dataset_is_refused(
    files: dict[str, bytes], split: str, why: str, tmp_path: Path
) -> None:
    root = put_all(tmp_path / "root", files)
    check_refused(imagenet, tmp_path / "out", why, root=root, splits=(split,))


def test_a_lack_of_memory_is_no_damage_of_the_devkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("scipy.io.loadmat", fail)
    root = put_all(tmp_path, {f"{DEVKIT}.tar.gz": tar_of(devkit(), "w:gz")})
    with pytest.raises(MemoryError):
        imagenet.read_devkit(root)
