"""CIFAR in its four published forms; pickles are read as Python 2 wrote them, and run nothing."""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, read_image
from tests.writers.support import names_of, put_all, tar_of
from writers import cifar10, cifar100
from writers.components.cifar import Cifar, Version
from writers.components.common import run
from writers.components.safe_unpickle import byte_rows, list_of, read_dict

MODULES = {"cifar10": cifar10, "cifar100": cifar100}
FORMS = ("binary folder", "binary archive", "python folder", "python archive")
NUM_TEST = 20

each_dataset = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


# What is published, small.


def train_size(module: ModuleType) -> int:
    return 5 * 20 if module is cifar10 else 300


def names_in(module: ModuleType) -> list[str]:
    return [f"thing_{i}" for i in range(module.DATASET.expected.classes)]


def images_in(module: ModuleType, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (N, 32, 32, 3) and labels; every class of CIFAR-10 is equally frequent."""
    count = train_size(module) if split == "train" else NUM_TEST
    rng = np.random.default_rng([count, module.DATASET.expected.classes])
    labels = rng.permutation(np.arange(count) % module.DATASET.expected.classes)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels


def files_in(module: ModuleType, version: Version) -> dict[str, bytes]:
    dataset: Cifar = module.DATASET
    files = {}
    for split, names in (("train", version.train), ("test", (version.test,))):
        images, labels = images_in(module, split)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        parts = zip(names, np.split(planes, len(names)), np.split(labels, len(names)), strict=True)
        for name, pixels, ids in parts:
            make = binary_file if version is dataset.binary else python_file
            files[f"{version.folder}/{name}"] = make(dataset, pixels, ids)
    names_file = f"{version.folder}/{version.names}"
    if version is dataset.binary:
        files[names_file] = ("\n".join(names_in(module)) + "\n\n").encode()
    else:
        key = b"label_names" if module is cifar10 else b"fine_label_names"
        names_of_classes = [name.encode() for name in names_in(module)]
        files[names_file] = python2({key: names_of_classes, b"num_vis": 3072})
    return files


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


def python2(value: Any) -> bytes:
    """Pickle as Python 2 does by protocol 2: its strings have an instruction of their own."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        items = (_python2(key) + _python2(item) for key, item in value.items())
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, bytes):
        return b"T" + pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + pack("<i", value)
    kind = b"cnumpy\ndtype\n(T\x02\0\0\0u1K\0K\x01tR(K\x03T\x01\0\0\0|NNNJ\xff\xff\xff\xff"
    kind += b"J\xff\xff\xff\xffK\0tb"
    rows, width = value.shape
    by_columns = not value.flags.c_contiguous
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tT\x01\0\0\0btR(K\x01("
        + _python2(rows)
        + _python2(width)
        + b"t"
        + kind
        + (b"\x88" if by_columns else b"\x89")
        + _python2(value.tobytes(order="F" if by_columns else "C"))
        + b"tb"
    )


def make(module: ModuleType, root: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put one form of a small copy into `root`, whose archive has the published MD5."""
    dataset: Cifar = module.DATASET
    kind, _, place = form.partition(" ")
    version: Version = getattr(dataset, kind)
    files = files_in(module, version)
    if place == "folder":
        return put_all(root, files)
    data = tar_of({**files, f"{version.folder}/readme.html": b"about"}, "w:gz")
    publish(module, kind, data, monkeypatch)
    return put_all(root, {version.archive: data})


def publish(module: ModuleType, kind: str, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    version = getattr(module.DATASET, kind)
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    changed = replace(module.DATASET, **{kind: replace(version, md5=md5)})
    monkeypatch.setattr(module, "DATASET", changed)


def write(module: ModuleType, root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    settings = {"check_counts": False, "num_workers": 0, **options}
    written: dict[str, BetonIndex] = module.write(module.Config(root=root, out=out, **settings))
    return written


def check_images(module: ModuleType, split: str, index: BetonIndex) -> None:
    """Each sample of `index` must be the image of `split` that its identifier counts."""
    images, labels = images_in(module, split)
    numbers = index.column("identifier")
    assert index.labels().tolist() == labels[numbers].tolist()
    for sample_id, number in enumerate(numbers.tolist()):
        np.testing.assert_array_equal(read_image(index, sample_id), images[number])


# What is written.


@each_dataset
@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_gives_the_same_pixels_labels_and_names(
    form: str, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(module, tmp_path / "root", form, monkeypatch)
    written = write(module, root, tmp_path / "out")
    assert list(written) == ["train", "test"]
    for split, index in written.items():
        count = len(images_in(module, split)[1])
        assert sorted(index.column("identifier").tolist()) == list(range(count))
        check_images(module, split, index)
        assert names_of(index) == tuple(names_in(module))
        assert (index.column("image")["mode"] == 1).all()  # ffcv's number of raw


def test_images_may_be_stored_as_jpegs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(cifar10, tmp_path / "root", "binary folder", monkeypatch)
    index = write(cifar10, root, tmp_path / "out", mode="jpg")["test"]
    assert (index.column("image")["mode"] == 0).all()


@each_dataset
def test_the_real_counts_are_expected(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(module, tmp_path / "root", "binary folder", monkeypatch)
    with pytest.raises(ValueError, match="images in train instead of 50000") as caught:
        write(module, root, tmp_path / "out", check_counts=True)
    assert f"{NUM_TEST} images in test instead of 10000" in str(caught.value)
    classes = module.DATASET.expected.classes
    with pytest.raises(ValueError, match=f"images in train instead of {50_000 - classes} "):
        write(module, root, tmp_path / "out", check_counts=True, val=classes)
    assert not (tmp_path / "out").exists()


@each_dataset
def test_archives_are_those_that_torchvision_knows(module: ModuleType) -> None:
    dataset: Cifar = module.DATASET
    known = getattr(torchvision.datasets, dataset.torchvision)
    assert known.filename == dataset.python.archive
    assert known.tgz_md5 == dataset.python.md5
    assert known.base_folder == dataset.python.folder
    assert [name for name, _ in known.train_list] == list(dataset.python.train)
    assert [name for name, _ in known.test_list] == [dataset.python.test]
    assert known.meta["filename"] == dataset.python.names


def test_the_command_line_takes_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(cifar100, tmp_path / "root", "python folder", monkeypatch)
    arguments = ["--root", str(root), "--out", str(tmp_path / "out"), "--no-check-counts"]
    arguments += ["--num-workers", "0", "--val", "100"]
    run("cifar100", cifar100.Config, cifar100.write, cifar100.__doc__, arguments)
    assert "val: 100 images, 100 classes" in capsys.readouterr().out


# Holding out images for validation.


def test_validation_images_are_drawn_evenly_from_the_classes_of_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path / "root", "binary folder", monkeypatch)
    written = write(cifar10, root, tmp_path / "out", val=30)
    assert list(written) == ["train", "val", "test"]
    assert written["val"].class_counts().tolist() == [3] * 10
    assert written["train"].class_counts().tolist() == [7] * 10
    assert written["test"].num_samples == NUM_TEST
    both = [*written["train"].column("identifier"), *written["val"].column("identifier")]
    assert sorted(both) == list(range(100))
    for split in ("train", "val"):
        check_images(cifar10, "train", written[split])


def test_validation_images_depend_on_the_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path / "root", "binary folder", monkeypatch)
    one, same, other = (
        set(write(cifar10, root, tmp_path / name, val=30, seed=seed)["val"].column("identifier"))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same != other


@pytest.mark.parametrize("val", [-10, 5, 100])
def test_shares_for_validation_that_cannot_be_drawn_are_refused(
    val: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path / "root", "binary folder", monkeypatch)
    with pytest.raises(ValueError, match="`val` must"):
        write(cifar10, root, tmp_path / "out", val=val)


def test_a_validation_beton_of_another_split_is_not_left_beside_all_of_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path / "root", "binary folder", monkeypatch)
    write(cifar10, root, tmp_path / "out", val=30)
    with pytest.raises(ValueError, match=r"got val\.beton"):
        write(cifar10, root, tmp_path / "out")


# What is missing or damaged.


@each_dataset
def test_a_folder_without_either_form_is_told_what_to_hold(
    module: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--download fetches it") as caught:
        write(module, tmp_path, tmp_path / "out")
    for version in (module.DATASET.binary, module.DATASET.python):
        assert version.folder in str(caught.value)
        assert version.archive in str(caught.value)


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_an_archive_with_another_md5_is_refused(kind: str, tmp_path: Path) -> None:
    version = getattr(cifar10.DATASET, kind)
    put_all(tmp_path, {version.archive: tar_of(files_in(cifar10, version), "w:gz")})
    with pytest.raises(ValueError, match=f"must have the MD5 {version.md5}"):
        write(cifar10, tmp_path, tmp_path / "out")


def test_an_archive_that_lacks_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = cifar10.DATASET.binary
    files = files_in(cifar10, version)
    del files[f"{version.folder}/data_batch_3.bin"]
    data = tar_of(files, "w:gz")
    publish(cifar10, "binary", data, monkeypatch)
    put_all(tmp_path, {version.archive: data})
    with pytest.raises(ValueError, match=r"must hold cifar-10-batches-bin/data_batch_3\.bin"):
        write(cifar10, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("form", ["binary folder", "python folder"])
def test_a_folder_that_lacks_a_file_is_refused(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path, form, monkeypatch)
    version = getattr(cifar10.DATASET, form.split()[0])
    (root / version.folder / version.train[2]).unlink()
    with pytest.raises(ValueError, match=f"no '{version.train[2]}'"):
        write(cifar10, root, tmp_path / "out")


@pytest.mark.parametrize("form", ["binary folder", "python folder"])
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_file_that_is_cut_short_is_named(
    place: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path, form, monkeypatch)
    version = getattr(cifar10.DATASET, form.split()[0])
    name = version.test if place == "test" else version.train[4]
    path = root / version.folder / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"`{name}` must be as CIFAR's home publishes it"):
        write(cifar10, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_and_images_must_be_equally_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path, "python folder", monkeypatch)
    entry = python2({b"labels": [1, 2, 3], b"data": np.zeros((2, 3072), dtype=np.uint8)})
    put_all(root, {"cifar-10-batches-py/test_batch": entry})
    with pytest.raises(ValueError, match="got 3 labels for 2 images"):
        write(cifar10, root, tmp_path / "out")


# --download, with torchvision's function replaced by one that needs no network.


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    data = tar_of(files_in(cifar10, cifar10.DATASET.python), "w:gz")
    publish(cifar10, "python", data, monkeypatch)
    calls: list[tuple[str, ...]] = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        calls.append((url, filename, md5))
        put_all(Path(root), {filename: data})

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    return calls


def test_download_fetches_the_archive_of_the_python_version(
    tmp_path: Path, fetched: list[tuple[str, ...]]
) -> None:
    index = write(cifar10, tmp_path / "root", tmp_path / "out", download=True)["train"]
    check_images(cifar10, "train", index)
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert fetched == [(url, "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")]


def test_an_archive_that_was_fetched_in_part_is_left_to_torchvision_to_fetch_again(
    tmp_path: Path, fetched: list[tuple[str, ...]]
) -> None:
    put_all(tmp_path / "root", {cifar10.DATASET.python.archive: b"the first bytes"})
    written = write(cifar10, tmp_path / "root", tmp_path / "out", download=True)
    assert written["train"].num_samples == 100
    assert len(fetched) == 1


def test_download_fetches_nothing_that_is_there(
    tmp_path: Path, fetched: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, form in enumerate(FORMS[:3]):
        root = make(cifar10, tmp_path / str(number), form, monkeypatch)
        write(cifar10, root, root / "out", download=True)
    assert fetched == []


# Pickles.


def arrays() -> list[NDArray[np.uint8]]:
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    return [rows, np.asfortranarray(rows), rows[:0]]


@pytest.mark.parametrize("array", arrays())
def test_arrays_are_what_numpy_itself_reads(array: NDArray[np.uint8]) -> None:
    data = python2({b"data": array, b"n": [1, 2]})
    with warnings.catch_warnings(action="ignore"):  # of the old name of numpy's module
        real = pickle.loads(data, encoding="bytes")
    ours = read_dict(data)
    np.testing.assert_array_equal(byte_rows(ours[b"data"], 4), real[b"data"])
    assert list_of(int, ours[b"n"]) == real[b"n"]


@pytest.mark.parametrize("width", [3, 5, 6, 12])
def test_arrays_must_have_the_width_that_is_asked_for(width: int) -> None:
    entry = read_dict(python2({b"data": arrays()[0]}))
    with pytest.raises(ValueError, match=r"an array of shape \(3, 4\) with 12 bytes"):
        byte_rows(entry[b"data"], width)


def test_arrays_must_be_of_bytes() -> None:
    entry = read_dict(python2({b"data": arrays()[0]}).replace(b"u1", b"i1"))
    with pytest.raises(ValueError, match="an array that is not of bytes"):
        byte_rows(entry[b"data"], 4)


def test_a_pickle_must_hold_a_dictionary() -> None:
    with pytest.raises(ValueError, match="a pickled list"):
        read_dict(python2([1, 2]))


class Trap:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(cifar10, tmp_path, "python folder", monkeypatch)
    trap = pickle.dumps({"data": Trap(os.mkdir, str(tmp_path / "sprung"))}, protocol)
    put_all(root, {f"cifar-10-batches-py/{name}": trap})
    with pytest.raises(ValueError, match=r"a pickle that names \w+\.mkdir"):
        write(cifar10, root, tmp_path / "out")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # it would have been


@pytest.mark.parametrize(
    "value",
    [Trap(getattr, "text", "upper"), Trap(eval, "1"), Trap(np.frombuffer, "12"), np.zeros(3)],
    ids=["getattr", "eval", "another of numpy", "a newer numpy"],
)
def test_other_names_in_a_pickle_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"a pickle that names \w+"):
        read_dict(pickle.dumps({"data": value}, 2))


def test_numpy_is_not_asked_for_types_that_a_pickle_wants() -> None:
    stand_in = read_dict(pickle.dumps({"data": Trap(np.dtype, "O")}, 2))["data"]
    assert not isinstance(stand_in, np.dtype)
    with pytest.raises(ValueError, match="no array"):
        byte_rows(stand_in, 4)


def outcome(function: Callable[[], Any]) -> Any:
    """Return what a function returns, or the message of its ValueError."""
    try:
        return function()
    except ValueError as error:
        return str(error)


@given(st.binary(max_size=200) | st.builds(bytes.__add__, st.just(b"\x80\x02"), st.binary()))
def test_any_bytes_give_a_dictionary_or_a_clear_error(data: bytes) -> None:
    given_back = outcome(lambda: read_dict(data))
    assert isinstance(given_back, dict) or given_back


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_a_changed_byte_gives_an_array_of_the_same_size_or_a_clear_error(position: int) -> None:
    data = bytearray(python2({b"data": np.zeros((40, 4), dtype=np.uint8)}))
    data[position % len(data)] ^= 0x55
    given_back = outcome(lambda: byte_rows(read_dict(bytes(data)).get(b"data"), 4))
    assert given_back if isinstance(given_back, str) else given_back.shape == (40, 4)
