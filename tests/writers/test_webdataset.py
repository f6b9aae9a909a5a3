"""WebDataset shards to betons: how samples, labels and shards are told, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex
from tests.writers.support import jpeg, names_of, put_all, stored, tar_of
from writers import webdataset
from writers.components.common import run
from writers.webdataset import Config, shards_of, write


def shard(first: int, labels: list[Any], label: str = "cls") -> bytes:
    """Return a shard of images `jpeg(first)`, `jpeg(first + 1)`..., each with its label."""
    files = {}
    for number, each in enumerate(labels, first):
        files[f"{number:06}.jpg"] = jpeg(number)
        files[f"{number:06}.{label}"] = (
            each if isinstance(each, str) else json.dumps(each)
        ).encode()
    return tar_of(files)


def write_all(out: Path, **options: Any) -> dict[str, BetonIndex]:
    given = {name: str(each) if isinstance(each, Path) else each for name, each in options.items()}
    names = given.pop("class_names", None)
    return write(Config(out=out, class_names=names and Path(names), **{"num_workers": 0, **given}))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    files = {f"s-{n:03}.tar": shard(10 * n, [1, 0, 1]) for n in (9, 10, 11)}
    return put_all(tmp_path / "shards", {**files, "notes.txt": b"none"})


@pytest.mark.parametrize("pattern", ["", "s-{009..011}.tar", "s-0{09,10,11}.tar", "s-*.tar"])
def test_shards_are_named_by_folder_braces_or_glob(
    pattern: str, shards: Path, tmp_path: Path
) -> None:
    index = write_all(tmp_path / "out", train=str(shards / pattern), num_workers=2)["train"]
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
def test_brace_patterns_stand_for_what_they_do_in_a_shell(
    pattern: str, names: list[str], tmp_path: Path
) -> None:
    put_all(tmp_path, dict.fromkeys(names, b""))
    assert [path.name for path in shards_of("train", str(tmp_path / pattern))] == names


def test_every_split_has_one_numbering(tmp_path: Path) -> None:
    root = put_all(
        tmp_path, {"train.tar": shard(0, ["cat", "ant\n"]), "val.tar": shard(5, ["bee", "cat"])}
    )
    written = write_all(tmp_path / "out", train=root / "train.tar", val=root / "val.tar")
    assert names_of(written["train"]) == names_of(written["val"]) == ("ant", "bee", "cat")
    assert stored(written["train"]) == {0: (2, jpeg(0)), 1: (0, jpeg(1))}
    assert stored(written["val"]) == {0: (1, jpeg(5)), 1: (2, jpeg(6))}
    assert written["train"].manifest is not None
    assert written["train"].manifest.written_by["writer"] == "webdataset"


def test_class_names_come_from_a_file_and_number_texts(tmp_path: Path) -> None:
    root = put_all(
        tmp_path,
        {"i.tar": shard(0, [2, 0]), "t.tar": shard(0, ["cat", "ant"]), "n.txt": b"cat\nbee\nant\n"},
    )
    for name, labels in {"i.tar": [2, 0], "t.tar": [0, 2]}.items():
        index = write_all(tmp_path / "out", train=root / name, class_names=root / "n.txt")["train"]
        assert names_of(index) == ("cat", "bee", "ant")
        assert [label for _, (label, _) in sorted(stored(index).items())] == labels
        assert index.class_counts().tolist() == [1, 0, 1]


def test_labels_may_be_a_field_of_json(tmp_path: Path) -> None:
    labels = [{"label": 1, "wnid": "n02"}, {"label": 0, "wnid": "n01"}]
    root = put_all(tmp_path, {"a.tar": shard(0, labels, "json")})
    ints = write_all(tmp_path / "out", train=root / "a.tar", label="json")["train"]
    texts = write_all(tmp_path / "texts", train=root / "a.tar", label="json", json_field="wnid")
    assert stored(ints) == stored(texts["train"]) == {0: (1, jpeg(0)), 1: (0, jpeg(1))}
    assert names_of(texts["train"]) == ("n01", "n02")


def test_a_sample_is_what_is_called_the_same_up_to_the_first_dot(tmp_path: Path) -> None:
    files = {
        "__index__.json": b"{}",
        "a.b/01.JPG": jpeg(1),
        "a.b/01.seg.png": b"another image, which is not asked for",
        "a.b/01.cls": b"0",
        "a.b/._02.jpg": b"what other systems leave",
        "c/01.cls": b"1",
        "c/01.txt": b"a caption",
        "c/01.jpg": jpeg(2),
        "README": b"none",
    }
    root = put_all(tmp_path, {"a.tar": tar_of(files)})
    index = write_all(tmp_path / "out", train=root / "a.tar")["train"]
    assert stored(index) == {0: (0, jpeg(1)), 1: (1, jpeg(2))}


def test_the_image_can_be_one_of_several(tmp_path: Path) -> None:
    files = {"0.left.jpg": jpeg(1), "0.right.jpg": jpeg(2), "0.cls": b"0"}
    root = put_all(tmp_path, {"a.tar": tar_of(files)})
    index = write_all(tmp_path / "out", train=root / "a.tar", image=("right.jpg",))["train"]
    assert stored(index) == {0: (0, jpeg(2))}


# What cannot be written.


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"0.jpg": b"", "0.txt": b""}, r"0 of cls among jpg, txt in '0'"),
        ({"0.cls": b"1"}, r"0 of bmp/jfif/.* among cls in '0'"),
        ({"0.jpg": b"", "0.png": b"", "0.cls": b"0"}, r"2 of .* among jpg, png, cls in '0'"),
        ({"0.jpg": b"", "0.cls": b" "}, r"the label ''"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(
    files: dict[str, bytes], what: str, tmp_path: Path
) -> None:
    root = put_all(tmp_path, {"a.tar": tar_of(files)})
    with pytest.raises(
        ValueError, match=rf"`train` must have an image.*{what}.*a\.tar'\. .*--image"
    ):
        write_all(tmp_path / "out", train=root / "a.tar")


@pytest.mark.parametrize("label", [{"label": True}, {"label": 1.5}, {"other": 1}, [1]])
def test_a_label_of_another_kind_is_refused(label: Any, tmp_path: Path) -> None:
    root = put_all(tmp_path, {"a.tar": shard(0, [label], "json")})
    with pytest.raises(ValueError, match="the label"):
        write_all(tmp_path / "out", train=root / "a.tar", label="json")


def test_integers_beside_texts_are_refused(tmp_path: Path) -> None:
    root = put_all(tmp_path, {"a.tar": shard(0, [1, "ant"])})
    with pytest.raises(ValueError, match="throughout; got 1 and 'ant'"):
        write_all(tmp_path / "out", train=root / "a.tar")


def test_files_of_a_sample_that_are_apart_are_told_to_be_packed_together(tmp_path: Path) -> None:
    files = {"0.jpg": jpeg(0), "1.jpg": jpeg(1), "0.cls": b"0", "1.cls": b"1"}
    root = put_all(tmp_path, {"a.tar": tar_of(files)})
    with pytest.raises(
        ValueError, match=r"in '0' of .*elsewhere in the shard.*tar --sort=name"
    ) as e:
        write_all(tmp_path / "out", train=root / "a.tar")
    assert "--image" not in str(e.value)


@pytest.mark.parametrize("label", [-1, 1 << 24, 300_000_000, 10**30])
@pytest.mark.parametrize("named", [False, True])
def test_a_number_that_is_no_class_id_is_refused(label: int, named: bool, tmp_path: Path) -> None:
    root = put_all(tmp_path, {"a.tar": shard(0, [0, label]), "names.txt": b"ant\nbee\n"})
    names = root / "names.txt" if named else None
    with pytest.raises(ValueError, match=f"`label` must hold class ids from 0 .*got {label}"):
        write_all(tmp_path / "out", train=root / "a.tar", class_names=names)


@pytest.mark.parametrize("labels", [[0, 2], ["ant", "bee", "cat"]], ids=["integers", "texts"])
def test_labels_without_a_name_are_refused(labels: list[Any], tmp_path: Path) -> None:
    root = put_all(tmp_path, {"a.tar": shard(0, labels), "names.txt": b"ant\nbee\n"})
    with pytest.raises(ValueError, match=r"class names|'cat'"):
        write_all(tmp_path / "out", train=root / "a.tar", class_names=root / "names.txt")


def test_a_missing_shard_of_a_brace_pattern_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`train` must name.*no '.*s-012\.tar'"):
        write_all(tmp_path / "out", train=str(shards / "s-{009..012}.tar"))


@pytest.mark.parametrize("pattern", ["none", "none-*.tar", "{}.tar"])
def test_a_pattern_without_shards_is_refused(pattern: str, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`val` must name tar archives that are there"):
        write_all(tmp_path / "out", val=str(shards / pattern))


def test_shards_of_some_split_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`train`, `val` or `test`"):
        write_all(tmp_path / "out")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    root = put_all(tmp_path, {"a.tar": tar_of({"0.jpg": b""}, "w:gz")})
    with pytest.raises(ValueError, match=r"a\.tar.*compressed by gzip"):
        write_all(tmp_path / "out", train=root / "a.tar")


def test_the_command_line_gives_the_options(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--train {shards} --out {tmp_path / 'out'} --num-workers 0 --image jpg jpeg"
    run("webdataset", Config, write, webdataset.__doc__, arguments.split())
    expected = f"train: 9 images, 2 classes -> {tmp_path / 'out' / 'train.beton'}\n"
    assert capsys.readouterr().out == expected
