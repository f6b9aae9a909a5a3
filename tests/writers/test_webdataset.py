"""WebDataset shards: samples, labels, shard patterns, and malformed shards."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex
from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all, tar_of
from tests.writers.support import check_refused, names_of, stored, write
from writers import webdataset
from writers.webdataset import shards_of


def shard(first: int, labels: list[Any], label: str = "cls") -> bytes:
    """Return a shard of images `jpeg(first)`, `jpeg(first + 1)`..., each with its label."""
    files = {}
    for number, each in enumerate(labels, first):
        files[f"{number:06}.jpg"] = jpeg(number)
        files[f"{number:06}.{label}"] = (
            each if isinstance(each, str) else json.dumps(each)
        ).encode()
    return tar_of(files)


def write_shard(root: Path, data: bytes, **options: Any) -> BetonIndex:
    """Write one shard as the training split."""
    shard = put_all(root, {"a.tar": data}) / "a.tar"
    return write(webdataset, root / "out", train_shards=str(shard), **options)["train"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    files = {f"s-{n:03}.tar": shard(10 * n, [1, 0, 1]) for n in (9, 10, 11)}
    return put_all(tmp_path / "shards", {**files, "notes.txt": b"none"})


@pytest.mark.parametrize("pattern", ["", "s-{009..011}.tar", "s-0{09,10,11}.tar", "s-*.tar"])
def test_a_folder_a_brace_pattern_or_a_glob_names_shards(
    pattern: str, shards: Path, tmp_path: Path
) -> None:
    given = {"train_shards": str(shards / pattern), "num_workers": 2}
    index = write(webdataset, tmp_path / "out", **given)["train"]
    numbers = [90, 91, 92, 100, 101, 102, 110, 111, 112]
    assert stored(index) == {
        i: (label, jpeg(number))
        for i, (label, number) in enumerate(zip([1, 0, 1] * 3, numbers, strict=True))
    }
    assert names_of(index) == ("0", "1")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{a,b}-{1..2}", ["a-1", "a-2", "b-1", "b-2"]),
        ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),
    ],
)
def test_brace_patterns_expand_as_in_a_shell(
    pattern: str, names: list[str], tmp_path: Path
) -> None:
    put_all(tmp_path, dict.fromkeys(names, b""))
    assert [path.name for path in shards_of("train", str(tmp_path / pattern))] == names


def test_every_split_has_one_numbering(tmp_path: Path) -> None:
    shards = {"train.tar": shard(0, ["cat", "ant\n"]), "val.tar": shard(5, ["bee", "cat"])}
    put_all(tmp_path, shards)
    given = {f"{split}_shards": str(tmp_path / f"{split}.tar") for split in ("train", "val")}
    written = write(webdataset, tmp_path / "out", **given)
    assert names_of(written["train"]) == names_of(written["val"]) == ("ant", "bee", "cat")
    assert stored(written["train"]) == {0: (2, jpeg(0)), 1: (0, jpeg(1))}
    assert stored(written["val"]) == {0: (1, jpeg(5)), 1: (2, jpeg(6))}


def test_a_split_that_is_added_leaves_the_others_as_they_are(shards: Path, tmp_path: Path) -> None:
    given = {"train_shards": str(shards)}
    train = write(webdataset, tmp_path / "out", **given)["train"].path
    before = train.stat().st_ino
    write(webdataset, tmp_path / "out", val_shards=str(shards / "s-009.tar"), **given)
    assert train.stat().st_ino == before


@pytest.mark.parametrize("labels", [[2, 0], ["ant", "cat"]])
def test_a_file_gives_the_class_names_and_their_order(labels: list[Any], tmp_path: Path) -> None:
    names = put_all(tmp_path, {"names.txt": b"cat\nbee\nant\n"}) / "names.txt"
    index = write_shard(tmp_path, shard(0, labels), class_names=names)
    assert names_of(index) == ("cat", "bee", "ant")
    assert stored(index) == {0: (2, jpeg(0)), 1: (0, jpeg(1))}


def test_labels_may_be_a_field_of_json(tmp_path: Path) -> None:
    labels = [{"label": 1, "wnid": "n02"}, {"label": 0, "wnid": "n01"}]
    data = shard(0, labels, "json")
    for field, names in (("label", ("0", "1")), ("wnid", ("n01", "n02"))):
        index = write_shard(tmp_path, data, label="json", json_field=field)
        assert stored(index) == {0: (1, jpeg(0)), 1: (0, jpeg(1))}
        assert names_of(index) == names


def test_files_with_equal_names_up_to_the_first_dot_make_a_sample(tmp_path: Path) -> None:
    files = {
        "__index__.json": b"{}",
        "a.b/01.JPG": jpeg(1),
        "a.b/01.seg.png": b"another image",
        "a.b/01.cls": b"0",
        "a.b/._02.jpg": b"metadata of macOS",
        "c/01.cls": b"1",
        "c/01.txt": b"a caption",
        "c/01.jpg": jpeg(2),
        "README": b"none",
    }
    index = write_shard(tmp_path, tar_of(files))
    assert stored(index) == {0: (0, jpeg(1)), 1: (1, jpeg(2))}
    files = {"0.left.jpg": jpeg(1), "0.right.jpg": jpeg(2), "0.cls": b"0"}
    index = write_shard(tmp_path, tar_of(files), image=("right.jpg",))
    assert stored(index) == {0: (0, jpeg(2))}


# Errors.


def of_files(**files: bytes) -> bytes:
    return tar_of({name.replace("_", "."): data for name, data in files.items()})


NAMED = {"class_names": "names.txt"}


@pytest.mark.parametrize(
    ("data", "options", "why"),
    [
        (of_files(a_jpg=b"", a_txt=b""), {}, "Sample 'a' of .* 0 files cls instead of 1 among jpg"),
        (of_files(a_cls=b"1"), {}, "0 files avif/bmp/.* instead of 1 among cls.*--image"),
        (of_files(a_jpg=b"", a_png=b"", a_cls=b"0"), {}, "2 files .* among jpg, png, cls"),
        (of_files(a_jpg=b"", a_cls=b" "), {}, "the label ''.*--image and --label"),
        (of_files(a_jpg=b"", b_jpg=b"", a_cls=b"0"), {}, "'a' of .*elsewhere.* tar --sort=name"),
        (shard(0, [{"label": True}], "json"), {"label": "json"}, "the label True"),
        (shard(0, [{"label": 1.5}], "json"), {"label": "json"}, r"the label 1\.5"),
        (shard(0, [{"other": 1}], "json"), {"label": "json"}, "the label None"),
        (shard(0, [1, "ant"]), {}, "mix integer and text labels, such as 1 and 'ant'"),
        (shard(0, [0, -1]), {}, r"`label` must be at least 0; got -1\."),
        (shard(0, [0, 1 << 20]), {}, r"`label` must be at most 1048575; got 1048576\."),
        (shard(0, [0, 10**30]), NAMED, "`label` must be at most 1048575"),
        (shard(0, [0, 2]), NAMED, "labels from 0 to 2, but the 2 class names"),
        (shard(0, ["ant", "cat"]), NAMED, "lacks 1 class names, .* 'cat'"),
        # An id of its own: the archive holds the time, and pytest would make it the test's name.
        pytest.param(tar_of({"0.jpg": b""}, "w:gz"), {}, r"a\.tar.*compressed by gzip", id="gzip"),
    ],
)
def test_a_malformed_shard_is_refused(
    data: bytes, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    root = put_all(tmp_path, {"a.tar": data, "names.txt": b"ant\nbee\n"})
    if "class_names" in options:
        options = {"class_names": root / options["class_names"]}
    check_refused(webdataset, tmp_path / "out", why, train_shards=str(root / "a.tar"), **options)


def test_class_names_that_are_no_text_in_utf_8_are_refused(shards: Path, tmp_path: Path) -> None:
    put_all(tmp_path, {"latin.txt": "café\nbar\n".encode("latin-1")})
    os.mkfifo(tmp_path / "fifo.txt")
    given = {"train_shards": str(shards), "class_names": tmp_path / "latin.txt"}
    check_refused(webdataset, tmp_path / "out", r"--class-names '.*latin\.txt' is not .*", **given)
    given["class_names"] = tmp_path / "fifo.txt"
    with pytest.raises(OSError, match=r"FIFO .*fifo\.txt"):
        write(webdataset, tmp_path / "out", **given)


def test_a_mark_of_the_encoding_is_no_part_of_a_class_name(shards: Path, tmp_path: Path) -> None:
    put_all(tmp_path, {"names.txt": b"\xef\xbb\xbfcat\r\ndog\r\n"})
    given = {"train_shards": str(shards), "class_names": tmp_path / "names.txt"}
    assert names_of(write(webdataset, tmp_path / "out", **given)["train"]) == ("cat", "dog")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"train_shards": "s-{009..012}.tar"}, r"--train-shards .* there is no '.*s-012\.tar'"),
        ({"val_shards": "none"}, "--val-shards .*none"),
        ({"val_shards": "{}.tar"}, "--val-shards"),
        ({}, "--train-shards, --val-shards or --test-shards"),
    ],
)
def test_missing_shards_are_refused(
    options: dict[str, str], why: str, shards: Path, tmp_path: Path
) -> None:
    given = {name: str(shards / pattern) for name, pattern in options.items()}
    check_refused(webdataset, tmp_path / "out", why, **given)
