"""CIFAR in its four published forms."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, read_image
from tests.support.files import put_all, tar_of
from tests.support.traps import Trap
from tests.writers.support import check_refused, names_of, python2, write
from writers import cifar
from writers.cifar import DATASETS, Cifar, Version

FORMS = ("binary folder", "binary archive", "python folder", "python archive")
NUM_TEST = 20

each_dataset = pytest.mark.parametrize("name", DATASETS)


# Small copies of the published files.


def names_in(name: str) -> list[str]:
    return [f"thing_{i}" for i in range(DATASETS[name].classes)]


def images_in(name: str, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (N, 32, 32, 3) and labels. CIFAR-10's classes have equally many images."""
    classes = DATASETS[name].classes
    count = NUM_TEST if split == "test" else {10: 5 * 20, 100: 300}[classes]
    rng = np.random.default_rng([count, classes])
    labels = rng.permutation(np.arange(count) % classes)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels


def files_in(kind: str, name: str = "cifar10") -> dict[str, bytes]:
    """Return the files of the binary or the Python version."""
    dataset = DATASETS[name]
    version: Version = getattr(dataset, kind)
    files = {}
    for split, names in (("train", version.train), ("test", (version.test,))):
        images, labels = images_in(name, split)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        parts = zip(names, np.split(planes, len(names)), np.split(labels, len(names)), strict=True)
        for file, pixels, ids in parts:
            content = binary_file if kind == "binary" else python_file
            files[f"{version.folder}/{file}"] = content(dataset, pixels, ids)
    if kind == "binary":
        class_names = ("\n".join(names_in(name)) + "\n\n").encode()
    else:
        key = b"label_names" if name == "cifar10" else b"fine_label_names"
        class_names = python2({key: [each.encode() for each in names_in(name)], b"num_vis": 3072})
    return files | {f"{version.folder}/{version.names}": class_names}


def binary_file(dataset: Cifar, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    coarse = np.full((len(labels), dataset.label_bytes - 1), 19, dtype=np.uint8)
    columns = [coarse, labels[:, None].astype(np.uint8), pixels]
    return np.concatenate(columns, axis=1).tobytes()


def python_file(dataset: Cifar, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    coarse = {} if dataset.label_bytes == 1 else {b"coarse_labels": [19] * len(labels)}
    entry = {
        b"batch_label": b"training batch 1 of 5",
        **coarse,
        dataset.labels.encode(): labels.tolist(),
        b"data": pixels,
        b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * len(labels),
    }
    return python2(entry)


def make(name: str, root: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put one form of a small copy into `root`. An archive becomes the published one."""
    kind, _, place = form.partition(" ")
    version: Version = getattr(DATASETS[name], kind)
    files = files_in(kind, name)
    if place == "folder":
        return put_all(root, files)
    data = tar_of({**files, f"{version.folder}/readme.html": b"about"}, "w:gz")
    publish(name, kind, data, monkeypatch)
    return put_all(root, {version.archive: data})


def publish(name: str, kind: str, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a version the MD5 of `archive`."""
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    version = replace(getattr(DATASETS[name], kind), md5=md5)
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], **{kind: version}))


def refused(root: Path, why: str, name: str = "cifar10", **options: Any) -> None:
    check_refused(cifar, root / "out", why, name=name, root=root, **options)


def check_images(name: str, split: str, index: BetonIndex) -> None:
    """Check that each sample of `index` is the image of `split` that its identifier counts."""
    images, labels = images_in(name, split)
    numbers = index.column("identifier")
    assert index.labels().tolist() == labels[numbers].tolist()
    for sample_id, number in enumerate(numbers.tolist()):
        np.testing.assert_array_equal(read_image(index, sample_id), images[number])


@each_dataset
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_gives_the_same_samples(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(name, tmp_path / "root", form, monkeypatch)
    written = write(cifar, tmp_path / "out", name=name, root=root)
    assert list(written) == ["train", "test"]
    for split, index in written.items():
        count = len(images_in(name, split)[1])
        assert sorted(index.column("identifier").tolist()) == list(range(count))
        check_images(name, split, index)
        assert names_of(index) == tuple(names_in(name))
        assert (index.column("image")["mode"] == 1).all()  # ffcv's number of raw


@each_dataset
def test_other_counts_than_the_published_ones_are_refused(name: str, tmp_path: Path) -> None:
    root = put_all(tmp_path, files_in("binary", name))
    why = f"images in train instead of 50000, {NUM_TEST} images in test instead of 10000"
    refused(root, why, name, check_counts=True)
    refused(root, why, name, check_counts=True, val=0.1)


@each_dataset
def test_torchvision_knows_the_same_archives(name: str) -> None:
    dataset = DATASETS[name]
    known = getattr(torchvision.datasets, name.upper())
    assert known.filename == dataset.python.archive
    assert known.tgz_md5 == dataset.python.md5
    assert known.base_folder == dataset.python.folder
    assert [name for name, _ in known.train_list] == list(dataset.python.train)
    assert [name for name, _ in known.test_list] == [dataset.python.test]
    assert known.meta["filename"] == dataset.python.names


# Validation images.


def test_validation_images_are_drawn_evenly_from_the_classes_of_train(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", files_in("binary"))
    options = {"name": "cifar10", "root": root}
    drawn = {}
    for out, seed in (("one", 1), ("same", 1), ("other", 2)):
        written = write(cifar, tmp_path / out, val=0.3, seed=seed, **options)
        assert list(written) == ["train", "val", "test"]
        assert written["val"].class_counts().tolist() == [3] * 10
        assert written["train"].class_counts().tolist() == [7] * 10
        assert written["test"].num_samples == NUM_TEST
        drawn[out] = set(written["val"].column("identifier").tolist())
        assert drawn[out] | set(written["train"].column("identifier")) == set(range(100))
        for split in ("train", "val"):
            check_images("cifar10", "train", written[split])
    assert drawn["one"] == drawn["same"] != drawn["other"]
    with pytest.raises(ValueError, match=r"val\.beton is from an earlier run"):
        write(cifar, tmp_path / "one", **options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"val": 500}, r"fractions .*, such as 0\.1 for a tenth; got 500 and 0"),
        ({"test": 0.1}, "has a split test. Leave out --test"),
    ],
)
def test_validation_images_that_cannot_be_drawn_are_refused(
    options: dict[str, float], why: str, tmp_path: Path
) -> None:
    refused(put_all(tmp_path, files_in("binary")), why, **options)


# Missing and damaged files.


@each_dataset
def test_the_error_for_an_empty_folder_names_every_form(name: str, tmp_path: Path) -> None:
    versions = (DATASETS[name].binary, DATASETS[name].python)
    names = [name for version in versions for name in (version.folder, version.archive)]
    why = f"No {' or '.join(map(repr, names))} in .*--download gets it"
    refused(tmp_path, why, name)


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_an_archive_with_another_md5_is_refused(kind: str, tmp_path: Path) -> None:
    version = getattr(DATASETS["cifar10"], kind)
    put_all(tmp_path, {version.archive: tar_of(files_in(kind), "w:gz")})
    refused(tmp_path, f"its MD5 is .*, not {version.md5}")


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_a_missing_or_damaged_file_is_named(kind: str, tmp_path: Path) -> None:
    version = getattr(DATASETS["cifar10"], kind)
    files = files_in(kind)
    for file in (version.train[4], version.test, version.names):
        path = put_all(tmp_path, files) / version.folder / file
        path.write_bytes(b"\xff" if file == version.names else path.read_bytes()[:-100])
        refused(tmp_path, f"{file} is damaged")
        path.unlink()
        refused(tmp_path, f"No '{file}' in")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([1, 2, 3], "3 int64 labels for 2 images"),
        ([b"1", b"2"], "labels for 2 images"),
        (b"12", "labels for 2 images"),
    ],
)
def test_each_image_needs_an_integer_label(labels: Any, why: str, tmp_path: Path) -> None:
    put_all(tmp_path, files_in("python"))
    entry = python2({b"labels": labels, b"data": np.zeros((2, 3072), dtype=np.uint8)})
    put_all(tmp_path, {"cifar-10-batches-py/test_batch": entry})
    refused(tmp_path, why)


# Downloads, by a stand-in for torchvision's function that needs no network.


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    data = tar_of(files_in("python"), "w:gz")
    publish("cifar10", "python", data, monkeypatch)
    calls: list[tuple[str, ...]] = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        calls.append((url, filename, md5))
        put_all(Path(root), {filename: data})

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    return calls


def test_the_python_version_is_downloaded_unless_there_is_a_complete_form(
    tmp_path: Path, fetched: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, form in enumerate(FORMS[:3]):
        root = make("cifar10", tmp_path / str(number), form, monkeypatch)
        write(cifar, root / "out", name="cifar10", root=root, download=True)
    assert fetched == []
    partial = put_all(tmp_path / "part", {DATASETS["cifar10"].python.archive: b"the first bytes"})
    for root in (tmp_path / "root", partial):
        written = write(cifar, root / "out", name="cifar10", root=root, download=True)
        check_images("cifar10", "train", written["train"])
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert fetched == [(url, "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")] * 2


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_calls_a_function_is_refused_without_calling_it(
    file: str, tmp_path: Path
) -> None:
    put_all(tmp_path, files_in("python"))
    trap = pickle.dumps({"data": Trap(tmp_path / "sprung")}, 2)
    put_all(tmp_path, {f"cifar-10-batches-py/{file}": trap})
    refused(tmp_path, r"the pickle names __builtin__\.getattr")
    assert not (tmp_path / "sprung").exists()
