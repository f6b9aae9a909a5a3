"""Datasets of torchvision, from small folders that its classes can read."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from dp4tl_ffcv import read_image
from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.writers.support import check_refused, names_of, stored, write
from writers import torchvision as writer
from writers.torchvision import KNOWN

Files = dict[str, bytes]


def lines(*text: str) -> bytes:
    return "".join(f"{each}\n" for each in text).encode()


def images(*names: str) -> Files:
    return {name: jpeg(number) for number, name in enumerate(names)}


def dtd() -> Files:
    names = [f"{c}/{c}_{n:04}.jpg" for c in ("banded", "woven") for n in (1, 2, 3)]
    files = images(*(f"dtd/dtd/images/{name}" for name in names))
    for number, split in enumerate(("train", "val", "test")):
        files[f"dtd/dtd/labels/{split}1.txt"] = lines(names[number + 3], names[number])
        files[f"dtd/dtd/labels/{split}2.txt"] = lines(names[number], names[3])
    return files


def pets() -> Files:
    listed = {
        "trainval.txt": lines("Abyssinian_1 1 1 1", "Abyssinian_3 1 1 1", "basset_hound_2 2 2 1"),
        "test.txt": lines("basset_hound_1 2 2 1", "Abyssinian_2 1 1 1"),
    }
    names = [f"{name}_{n}.jpg" for name in ("Abyssinian", "basset_hound") for n in (1, 2, 3)]
    files = images(*(f"oxford-iiit-pet/images/{name}" for name in names))
    return files | {f"oxford-iiit-pet/annotations/{name}": text for name, text in listed.items()}


def aircraft() -> Files:
    data = "fgvc-aircraft-2013b/data"
    files = images(*(f"{data}/images/{n:07}.jpg" for n in range(6)))
    files[f"{data}/variants.txt"] = lines("707-320", "A300 B4")
    files[f"{data}/families.txt"] = lines("Boeing 707", "A300")
    for number, split in enumerate(("train", "val", "test")):
        for level, names in {"variant": ("A300 B4", "707-320"), "family": ("A300", "A300")}.items():
            rows = (f"{2 * number + n:07} {name}" for n, name in enumerate(names))
            files[f"{data}/images_{level}_{split}.txt"] = lines(*rows)
    return files


def caltech101() -> Files:
    folder = "caltech101/101_ObjectCategories"
    names = ("BACKGROUND_Google/image_0001", "ant/image_0001", "ant/image_0002", "yin/image_0001")
    return images(*(f"{folder}/{name}.jpg" for name in names))


def imagenette() -> Files:
    names = [f"{s}/{w}/{w}_{s}.JPEG" for s in ("train", "val") for w in ("n01440764", "n02102040")]
    return images(*(f"imagenette2/{name}" for name in names))


def eurosat() -> Files:
    names = ("Forest/Forest_1", "Forest/Forest_2", "River/River_1")
    return images(*(f"eurosat/2750/{name}.jpg" for name in names))


CASES: dict[str, tuple[Callable[[], Files], dict[str, int], tuple[str, ...]]] = {
    "Caltech101": (caltech101, {"all": 3}, ("ant", "yin")),
    "DTD": (dtd, {"train": 2, "val": 2, "test": 2}, ("banded", "woven")),
    "EuroSAT": (eurosat, {"all": 3}, ("Forest", "River")),
    "FGVCAircraft": (aircraft, {"train": 2, "val": 2, "test": 2}, ("707-320", "A300 B4")),
    "Imagenette": (
        imagenette,
        {"train": 2, "val": 2},
        ("tench, Tinca tinca", "English springer, English springer spaniel"),
    ),
    "OxfordIIITPet": (pets, {"train": 3, "test": 2}, ("Abyssinian", "Basset Hound")),
}


@pytest.mark.parametrize("name", CASES)
def test_files_keep_their_bytes_and_torchvisions_labels(name: str, tmp_path: Path) -> None:
    if name == "Caltech101":
        pytest.importorskip("scipy")
    make, counts, class_names = CASES[name]
    files = make()
    root = put_all(tmp_path / "root", files)
    written = write(writer, tmp_path / "out", root=root, name=name)
    assert {split: index.num_samples for split, index in written.items()} == counts
    kind = getattr(torchvision.datasets, name)
    for split, index in written.items():
        assert names_of(index) == class_names
        dataset = kind(str(root), **KNOWN[name][1][split][1])
        for number, (label, content) in stored(index).items():
            image, expected = dataset[number]
            assert label == expected
            assert content in files.values()
            pixels = np.asarray(image.convert("RGB")).astype(int)
            (sample_id,) = np.flatnonzero(index.column("identifier") == number)
            assert np.abs(read_image(index, int(sample_id)) - pixels).max() == 0


def idx(values: np.ndarray) -> bytes:
    """Return the format of MNIST's files for an array of uint8."""
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


def test_images_in_memory_keep_their_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [0, 9, 3, 3, 1]
    pixels = {split: rng.integers(0, 256, (5, 28, 28)) for split in ("train", "t10k")}
    files = {}
    for split, each in pixels.items():
        files[f"FashionMNIST/raw/{split}-images-idx3-ubyte"] = idx(each)
        files[f"FashionMNIST/raw/{split}-labels-idx1-ubyte"] = idx(np.array(labels))
    root = put_all(tmp_path / "root", files)
    written = write(
        writer, tmp_path / "out", root=root, name="FashionMNIST", mode="raw", num_workers=2
    )
    assert set(written) == {"train", "test"}
    for index, each in ((written["train"], pixels["train"]), (written["test"], pixels["t10k"])):
        rgb = np.repeat(each[..., None], 3, axis=3).astype(np.uint8)
        assert stored(index) == {i: (labels[i], rgb[i].tobytes()) for i in range(5)}
    assert names_of(written["train"])[9] == "Ankle boot"


def test_missing_splits_are_drawn_from_train_or_all(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", {**pets(), **eurosat()})
    options = {"root": root, "name": "OxfordIIITPet", "num_workers": 1}
    pet = write(writer, tmp_path / "pets", val=0.4, **options)
    assert {split: len(index) for split, index in pet.items()} == {"train": 2, "val": 1, "test": 2}
    assert sorted(i for s in ("train", "val") for i in stored(pet[s])) == [0, 1, 2]
    assert stored(pet["test"]) == stored(write(writer, tmp_path / "whole", **options)["test"])
    euro = write(writer, tmp_path / "euro", root=root, name="EuroSAT", test=0.5)
    assert {split: len(index) for split, index in euro.items()} == {"train": 2, "test": 1}
    with pytest.raises(ValueError, match=r"val\.beton is from an earlier run"):
        write(writer, tmp_path / "pets", **options)
    for split in ("all", "test"):
        why = "drawn from train, which is not written" if split == "test" else "one of train, test"
        given = {**options, "splits": (split,), "val": 0.4}
        check_refused(writer, tmp_path / "out", why, **given)
    check_refused(writer, tmp_path / "out", "has a split test", test=0.4, **options)


def test_a_dataset_without_class_names_gets_numbers(tmp_path: Path) -> None:
    table = "Filename;Width;ClassId\n00000.ppm;16;1\n00001.ppm;16;0\n"
    files = {
        "gtsrb/GTSRB/Training/00000/00000_00000.ppm": jpeg(0),
        "gtsrb/GTSRB/Training/00001/00000_00000.ppm": jpeg(1),
        "gtsrb/GTSRB/Final_Test/Images/00000.ppm": jpeg(2),
        "gtsrb/GTSRB/Final_Test/Images/00001.ppm": jpeg(3),
        "gtsrb/GT-final_test.csv": table.encode(),
    }
    root = put_all(tmp_path / "root", files)
    written = write(writer, tmp_path / "out", root=root, name="GTSRB")
    assert names_of(written["train"]) == names_of(written["test"]) == ("0", "1")
    assert stored(written["train"]) == {0: (0, jpeg(0)), 1: (1, jpeg(1))}
    assert stored(written["test"]) == {0: (1, jpeg(2)), 1: (0, jpeg(3))}


def test_arguments_are_passed_on_and_splits_can_be_chosen(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", {**dtd(), **aircraft()})
    other = write(
        writer, tmp_path / "dtd", root=root, name="DTD", arguments=("partition=2",), splits=("val",)
    )
    assert set(other) == {"val"}
    assert [label for _, (label, _) in sorted(stored(other["val"]).items())] == [0, 1]
    by_family = ("annotation_level=family",)
    families = write(
        writer,
        tmp_path / "f",
        root=root,
        name="FGVCAircraft",
        arguments=by_family,
        check_counts=True,
    )
    assert names_of(families["test"]) == ("Boeing 707", "A300")
    assert families["test"].class_counts().tolist() == [0, 2]


def test_help_lists_every_known_dataset_of_torchvision() -> None:
    listed = str(writer.__doc__).partition("The datasets: ")[2].partition(".")[0].split()
    assert {name.strip(",") for name in listed} == set(KNOWN)
    for name in KNOWN:
        assert hasattr(torchvision.datasets, name)


# Errors.


def test_other_counts_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    options = {"root": put_all(tmp_path / "root", dtd()), "name": "DTD", "check_counts": True}
    why = "2 images in train instead of 1880, .* 2 classes instead of 47"
    check_refused(writer, tmp_path / "out", why, **options)


def test_a_missing_image_file_is_named(tmp_path: Path) -> None:
    files = dtd()
    del files["dtd/dtd/images/woven/woven_0001.jpg"]
    root = put_all(tmp_path / "root", files)
    with pytest.raises(ValueError, match=r"Cannot encode .*woven_0001\.jpg: .*No such file"):
        write(writer, tmp_path / "out", root=root, name="DTD")


@pytest.mark.parametrize("name", ["../../../../secret", "/secret", "images/../../../../secret"])
def test_a_list_cannot_name_an_image_outside_of_the_root(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    files = aircraft()
    given = name.replace("/secret", f"{tmp_path}/secret") if name[0] == "/" else name
    files["fgvc-aircraft-2013b/data/images_variant_test.txt"] = lines(f"{given} A300 B4")
    root = put_all(tmp_path / "root", files)
    options = {"root": root, "name": "FGVCAircraft"}
    check_refused(writer, tmp_path / "out", "which leads out of --root", **options)


def test_links_in_the_folder_of_a_dataset_are_followed(tmp_path: Path) -> None:
    stored_at = put_all(tmp_path / "store", dtd()) / "dtd"
    (tmp_path / "root").mkdir()
    (tmp_path / "root/dtd").symlink_to(stored_at)
    written = write(writer, tmp_path / "out", root=tmp_path / "root", name="DTD")
    assert len(written["train"]) == 2


def test_a_damaged_list_is_named_with_the_dataset(tmp_path: Path) -> None:
    files = aircraft()
    files["fgvc-aircraft-2013b/data/images_variant_test.txt"] = lines("0000001 no such variant")
    root = put_all(tmp_path / "root", files)
    why = r"torchvision cannot open FGVCAircraft in '.*KeyError\('no such variant'\)"
    check_refused(writer, tmp_path / "out", why, root=root, name="FGVCAircraft")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": "DTD"}, "torchvision cannot open DTD in '.*or pass --download"),
        ({"name": "CIFAR10"}, "torchvision cannot open CIFAR10 in '.*or pass --download"),
        ({"name": "Food101"}, "torchvision cannot open Food101 in '.*or pass --download"),
        ({"name": "SVHN"}, "torchvision cannot open SVHN in '.*or pass --download"),
        ({"name": "FER2013", "download": True}, "torchvision cannot download FER2013"),
        ({"name": "VOC"}, "`name` must be one of Caltech101, .*got 'VOC'"),
        ({"name": "SVHN", "splits": ("val",)}, "`splits` must be one of train, test; got 'val'"),
        ({"name": "DTD", "arguments": ("a",)}, "--arguments must be NAME=VALUE; got 'a'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    check_refused(writer, tmp_path / "out", why, root=tmp_path, **options)


@pytest.mark.parametrize("label", [1.7, 1.0, "1", None, (1, 2)], ids=str)
def test_a_label_that_is_no_integer_is_refused(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        samples = (("0.jpg", np.int64(0)), ("1.jpg", label))

        def __init__(self, root: str) -> None:
            pass

        def __len__(self) -> int:
            return 2

    monkeypatch.setattr(torchvision.datasets, "EuroSAT", Other)
    why = "has no labels" if label is None else r"EuroSAT has the label .*1.*--arguments"
    check_refused(writer, tmp_path / "out", why, root=tmp_path, name="EuroSAT")


def test_download_is_off_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Fetches:
        def __init__(self, root: str, download: bool = True) -> None:
            asked.append(download)
            raise RuntimeError("nothing there.")

    monkeypatch.setattr(torchvision.datasets, "SEMEION", Fetches)
    options = {"root": tmp_path, "name": "SEMEION"}
    check_refused(writer, tmp_path / "out", "nothing there", **options)
    check_refused(writer, tmp_path / "out", "nothing there", download=True, **options)
    assert asked == [False, True]
