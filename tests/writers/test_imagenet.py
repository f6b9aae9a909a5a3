"""ImageNet from folders and from its archives: the same betons, labels by WNID, names, counts."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex
from tests.writers.support import jpeg, names_of, put_all, stored, tar_of
from writers import imagenet
from writers.components.common import Expected, run
from writers.imagenet import DEVKIT, Config, write

savemat = pytest.importorskip("scipy.io").savemat

# The devkit numbers the classes in another order than their WNIDs'; 4 and 5 are above the others.
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
VAL_LABELS = (2, 1, 0, 0, 2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect as many images as the trees of these tests have."""
    expected = Expected(classes=3, images={"train": len(TRAIN), "val": len(VAL)})
    real = imagenet.EXPECTED
    assert (real.classes, real.images) == (1000, {"train": 1_281_167, "val": 50_000})
    monkeypatch.setattr(imagenet, "EXPECTED", expected)


def devkit() -> dict[str, bytes]:
    """The devkit's files, as the archive holds them."""
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
        ("children", object),
        ("wordnet_height", object),
        ("num_train_images", object),
    ]
    rows = [
        (float(number), wnid, words, "a gloss", float(children), np.zeros((1, children)), 0.0, 3.0)
        for number, wnid, words, children in SYNSETS
    ]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return {
        f"{DEVKIT}/readme.txt": b"none",
        f"{DEVKIT}/data/meta.mat": meta.getvalue(),
        f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt": b"".join(
            b"%d\n" % number for number in TRUTH
        ),
    }


def train_tar() -> bytes:
    """A tar of tars, one per class, in which files stand in another order than by name."""
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


def write_all(root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    return write(Config(root=root, out=out, **{"num_workers": 0, **options}))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return put_all(tmp_path_factory.mktemp("archives"), in_archives())


def test_archives_are_written_without_unpacking_them(archives: Path, tmp_path: Path) -> None:
    before = sorted(archives.rglob("*"))
    written = write_all(archives, tmp_path / "out", num_workers=2)
    assert sorted(archives.rglob("*")) == before
    assert set(written) == {"train", "val"}
    train = sorted(TRAIN)  # what identifiers count
    assert stored(written["train"]) == {
        i: (WNIDS.index(name[:9]), TRAIN[name]) for i, name in enumerate(train)
    }
    assert stored(written["val"]) == {
        i: (VAL_LABELS[i], data) for i, data in enumerate(VAL.values())
    }
    assert names_of(written["train"]) == names_of(written["val"]) == NAMES
    assert written["train"].manifest is not None
    assert written["train"].manifest.written_by["writer"] == "imagenet"


@pytest.mark.parametrize("val", ["by class", "flat"])
def test_folders_give_the_same_bytes_as_the_archives(
    val: str, archives: Path, tmp_path: Path
) -> None:
    files = {**in_folders(), **devkit()}
    if val == "flat":
        files = {name: data for name, data in files.items() if not name.startswith("val/")}
        files |= {f"val/{name}": data for name, data in VAL.items()}
    root = put_all(tmp_path / "root", files)
    one = write_all(archives, tmp_path / "archives")
    other = write_all(root, tmp_path / "folders")
    assert one["train"].path.read_bytes() == other["train"].path.read_bytes()
    assert names_of(other["val"]) == NAMES
    if val == "flat":  # else the order of the listing is by class
        assert one["val"].path.read_bytes() == other["val"].path.read_bytes()
    assert sorted(stored(one["val"]).values()) == sorted(stored(other["val"]).values())


def test_without_the_devkit_classes_are_named_by_their_wnids(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", in_folders())
    written = write_all(root, tmp_path / "out")
    assert names_of(written["train"]) == names_of(written["val"]) == WNIDS
    assert sorted(stored(written["val"]).values()) == sorted(
        zip(VAL_LABELS, VAL.values(), strict=True)
    )


def test_one_split_can_be_written_alone(archives: Path, tmp_path: Path) -> None:
    written = write_all(archives, tmp_path / "out", splits=("val",))
    assert set(written) == {"val"}
    assert names_of(written["val"]) == NAMES


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    files = in_folders()
    files["train/n01440764/._n01440764_18.JPEG"] = b"what other systems leave"
    files["train/.thumbnails/n01440764_18.JPEG"] = b"a small one"
    files["train/n01440764/notes.txt"] = b"none"
    folders = write_all(put_all(tmp_path / "root", files), tmp_path / "out")
    assert folders["train"].num_samples == len(TRAIN)
    inner = tar_of({"._n1_1.JPEG": b"", "a.txt": b"", "n1_1.JPEG": jpeg(1)})
    root = put_all(tmp_path / "tar", {"ILSVRC2012_img_train.tar": tar_of({"n1.tar": inner})})
    archive = write_all(root, tmp_path / "out2", splits=("train",), check_counts=False)
    assert stored(archive["train"]) == {0: (0, jpeg(1))}


# What cannot be written.


def test_missing_images_and_classes_are_an_error_unless_counts_are_not_checked(
    tmp_path: Path,
) -> None:
    files = in_folders()
    for name in [name for name in files if "n03126707" in name]:
        del files[name]
    root = put_all(tmp_path / "root", files)
    with pytest.raises(
        ValueError,
        match=r"6 images in train instead of 9 and 3 images in val instead of 5 and 2 classes "
        r"instead of 3.*--no-check-counts",
    ):
        write_all(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written = write_all(root, tmp_path / "out", check_counts=False)
    assert written["train"].class_counts().tolist() == [3, 3]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_not_there_is_an_error_that_says_what_belongs_where(
    split: str, tmp_path: Path
) -> None:
    files = in_folders() | in_archives()
    kept = {name: data for name, data in files.items() if split not in name}
    with pytest.raises(ValueError, match=rf"{split}/WNID.*got no '{split}' or 'ILSVRC2012_img_"):
        write_all(put_all(tmp_path / "root", kept), tmp_path / "out")


def test_a_flat_val_needs_the_devkit(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", {f"val/{name}": data for name, data in VAL.items()})
    with pytest.raises(ValueError, match=rf"`root` must hold {DEVKIT}\.tar\.gz.*got neither"):
        write_all(root, tmp_path / "out", splits=("val",))


def test_a_devkit_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    files = {name: data for name, data in devkit().items() if not name.endswith("meta.mat")}
    root = put_all(tmp_path / "root", in_folders() | files)
    with pytest.raises(ValueError, match=r"whole devkit.*meta\.mat"):
        write_all(root, tmp_path / "out")
    whole = tar_of(devkit(), "w:gz")
    for number, data in enumerate((whole[: len(whole) // 2], tar_of(files, "w:gz"), b"text")):
        root = put_all(tmp_path / str(number), in_folders() | {f"{DEVKIT}.tar.gz": data})
        with pytest.raises(ValueError, match="whole devkit"):
            write_all(root, tmp_path / "out")


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000006.JPEG", "other.JPEG"])
def test_a_validation_image_without_a_label_is_named(name: str, tmp_path: Path) -> None:
    files = {f"val/{each}": jpeg(0) for each in (*VAL, name)}
    root = put_all(tmp_path / "root", files | devkit())
    with pytest.raises(ValueError, match=rf"1 to 5.*{name}"):
        write_all(root, tmp_path / "out", splits=("val",))


def test_another_archive_under_the_name_of_train_is_refused(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", {"ILSVRC2012_img_train.tar": tar_of(VAL)})
    with pytest.raises(ValueError, match="tar of 1,000 tars"):
        write_all(root, tmp_path / "out", splits=("train",))


# The command line.


def test_the_command_line_gives_the_options(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Config] = []

    def remember(config: Config) -> dict[str, BetonIndex]:
        given.append(config)
        return {}

    arguments = f"--root {archives} --out {tmp_path} --splits val --max-resolution 400 "
    arguments += "--no-check-counts --no-shuffle --num-workers 0 --on-error skip"
    run("imagenet", Config, remember, imagenet.__doc__, arguments.split())
    assert given == [
        Config(
            root=archives,
            out=tmp_path,
            splits=("val",),
            max_resolution=400,
            check_counts=False,
            shuffle=False,
            num_workers=0,
            on_error="skip",
        )
    ]
    with pytest.raises(SystemExit) as ended:
        run("imagenet", Config, remember, imagenet.__doc__, ["--help"])
    assert ended.value.code == 0
    assert "ILSVRC2012_img_train.tar" in capsys.readouterr().out


def test_errors_end_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("imagenet", Config, write, None, ["--root", str(tmp_path), "--out", str(tmp_path)])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("writers.imagenet: `root` must hold train/WNID/*.JPEG or")
