"""Parquet folders of `datasets`: splits, columns, class names, groups that are read."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.files import numbered_jpeg as jpeg
from tests.support.files import put_all
from tests.writers.support import check_refused, names_of, stored, write
from writers import huggingface
from writers.components import parquet
from writers.components.parquet import ParquetImages

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "ant", "bee"]  # a ClassLabel's names need not be sorted
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
}
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': cat
          '1': ant
          '2': bee
  splits:
  - name: train
    num_examples: 5
---
# A dataset
"""
TRAIN = {n: (label, jpeg(n)) for n, label in enumerate([0, 1, 2, 0, 2, 1, 1])}
VAL = {0: (1, jpeg(7)), 1: (0, jpeg(8))}


def put(
    path: Path,
    labels: Sequence[Any],
    first: int = 0,
    features: Mapping[str, Any] | None = FEATURES,
    rows_per_group: int = 2,
    **columns: Any,
) -> Path:
    """Write images `jpeg(first)`... with labels, as `datasets` does."""
    images = [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(first, first + len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels), **columns})
    if features is not None:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of seven and two images, the seven in two files."""
    root = tmp_path / "root"
    put(root / "data" / "train-00000-of-00002.parquet", [0, 1, 2, 0])
    put(root / "data" / "train-00001-of-00002.parquet", [2, 1, 1], first=4)
    put(root / "data" / "validation-00000-of-00001.parquet", [1, 0], first=7)
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_keep_their_bytes_labels_and_rows(
    num_workers: int, root: Path, tmp_path: Path
) -> None:
    written = write(huggingface, tmp_path / "out", root=root, num_workers=num_workers)
    assert set(written) == {"train", "val"}
    assert stored(written["train"]) == TRAIN
    assert stored(written["val"]) == VAL
    assert names_of(written["train"]) == names_of(written["val"]) == tuple(NAMES)
    assert written["train"].column("identifier").tolist() != list(range(7))
    in_order = write(huggingface, tmp_path / "ordered", root=root, shuffle=False)["train"]
    assert in_order.column("identifier").tolist() == list(range(7))
    assert stored(in_order) == TRAIN


@pytest.mark.parametrize(
    "files",
    [
        ("train-00000-of-00001-8b3b2b1e0c.parquet", "validation-00000-of-00001-8b3b2b1e.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
        ("train.parquet", "dev.parquet"),
    ],
)
def test_names_of_files_or_folders_give_the_split(files: tuple[str, str], tmp_path: Path) -> None:
    put(tmp_path / "root" / files[0], [0, 1])
    put(tmp_path / "root" / files[1], [1, 0], first=7)
    put(tmp_path / "root" / ".cache" / "train.parquet", [1])
    written = write(huggingface, tmp_path / "out", root=tmp_path / "root")
    assert stored(written["val"]) == VAL
    assert written["train"].num_samples == 2
    one = write(huggingface, tmp_path / "one", root=tmp_path / "root", splits=("validation",))
    assert set(one) == {"val"}


def test_readme_md_gives_names_columns_and_counts_that_files_lack(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = put_all(tmp_path / "root", {"README.md": CARD.encode()})
    put(root / "train.parquet", [2, 1, 0], features=None)
    why = "3 images in train instead of 5.*--no-check-counts"
    check_refused(huggingface, tmp_path / "out", why, root=root, check_counts=True)
    assert names_of(write(huggingface, tmp_path / "out", root=root)["train"]) == tuple(NAMES)


def test_class_names_in_the_readme_are_text(tmp_path: Path) -> None:
    card = CARD.replace("ant", "no").replace("bee", "1.0")
    root = put_all(tmp_path / "root", {"README.md": card.encode()})
    put(root / "train.parquet", [2, 1, 0], features=None)
    index = write(huggingface, tmp_path / "out", root=root)["train"]
    assert names_of(index) == ("cat", "no", "1.0")


def test_without_metadata_the_usual_columns_are_read(tmp_path: Path) -> None:
    put(tmp_path / "root" / "train.parquet", [2, 0], features=None, other=["x", "y"])
    index = write(huggingface, tmp_path / "out", root=tmp_path / "root")["train"]
    assert names_of(index) == ("0", "1", "2")
    assert index.class_counts().tolist() == [1, 0, 1]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    features = {**FEATURES, "coarse": {"names": ["a", "b"], "_type": "ClassLabel"}}
    put(root / "train.parquet", [2, 0], features=features, coarse=[0, 1])
    why = "Pass --label-column. Candidates: label, coarse; columns of the file: image, label"
    check_refused(huggingface, out, why, root=root)
    index = write(huggingface, out, root=root, label_column="coarse")["train"]
    assert stored(index) == {0: (0, jpeg(0)), 1: (1, jpeg(1))}
    assert names_of(index) == ("a", "b")


def test_images_may_be_bytes_or_files(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", {"images/5.jpg": jpeg(5)})
    images = [{"bytes": None, "path": "images/5.jpg"}]
    pq.write_table(pa.table({"image": images, "label": [0]}), root / "train.parquet")
    pq.write_table(pa.table({"image": [jpeg(6)], "label": [0]}), root / "test.parquet")
    written = write(huggingface, tmp_path / "out", root=root)
    assert stored(written["train"]) == {0: (0, jpeg(5))}
    assert stored(written["test"]) == {0: (0, jpeg(6))}


def test_each_group_is_read_once_and_memory_holds_one_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [0] * 60 + [1] * 60
    paths = [put(tmp_path / f"{n}.parquet", labels, 120 * n, rows_per_group=6) for n in range(2)]
    samples = ParquetImages.of(tmp_path, paths, "image", "label")
    assert len(samples.groups) == 40
    opened: list[Path] = []
    open_parquet = parquet.open_parquet

    def count(path: Path) -> Any:
        opened.append(path)
        return open_parquet(path)

    monkeypatch.setattr(parquet, "open_parquet", count)
    assert [samples[i][0] for i in range(240)] == [jpeg(n) for n in range(240)]
    assert len(opened) == 40
    monkeypatch.setattr(parquet, "WINDOW", 5 * int(samples.groups[:, 3].max()))
    shuffled = samples.shuffled(seed=3)
    assert 5 <= shuffled.held <= 6
    for i in range(240):
        content, label, identifier = shuffled[i]
        assert (content, label) == (jpeg(identifier), identifier % 120 // 60)
        assert shuffled._images_of.cache_info().currsize <= shuffled.held
    assert len(opened) == 80
    order = shuffled.identifiers
    assert sorted(order.tolist()) == list(range(240))
    assert np.array_equal(order, samples.shuffled(seed=3).identifiers)
    assert not np.array_equal(order, samples.shuffled(seed=4).identifiers)
    assert len(set((order[:24] // 6).tolist())) >= 4  # images of several groups, mixed


# Errors.


@pytest.mark.parametrize("other", ["eval", "test_set"])
def test_two_names_of_one_split_are_refused(other: str, tmp_path: Path) -> None:
    put(tmp_path / "root" / "test.parquet", [0, 1])
    put(tmp_path / "root" / f"{other}.parquet", [0, 1])
    why = f"two names for the split test: '{other}' and 'test'"
    if other > "test":
        why = f"two names for the split test: 'test' and '{other}'"
    check_refused(huggingface, tmp_path / "out", why, root=tmp_path / "root")


OTHER_NAMES = {**FEATURES, "label": {"names": sorted(NAMES), "_type": "ClassLabel"}}


def without_labels(root: Path) -> None:
    put(root / "data" / "test-00000-of-00001.parquet", [-1, -1])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            lambda root: (root / "data" / "train-00000-of-00002.parquet").unlink(),
            "has 1 files instead of 2 numbered ones; 00000 is missing",
        ),
        (
            lambda root: put(root / "small" / "train.parquet", [0]),
            "The split train is in '.*data' and in '.*small'",
        ),
        (
            lambda root: put(root / "data" / "test.parquet", [0], features=OTHER_NAMES),
            "different columns or class names",
        ),
        (without_labels, "The split test has labels from -1 to -1"),
        (
            lambda root: (root / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1"),
            r"00001-of-00002\.parquet is damaged or not parquet",
        ),
        (lambda root: root.rename(root.with_name("elsewhere")), "No parquet files"),
    ],
)
def test_a_damaged_dataset_is_refused(
    damage: Callable[[Path], Any], why: str, root: Path, tmp_path: Path
) -> None:
    damage(root)
    check_refused(huggingface, tmp_path / "out", why, root=root)


def test_a_split_without_labels_can_be_left_out(root: Path, tmp_path: Path) -> None:
    without_labels(root)
    assert set(write(huggingface, tmp_path / "out", root=root, splits=("train",))) == {"train"}
    why = "`splits` must be one of test, train, val; got 'extra'"
    check_refused(huggingface, tmp_path / "other", why, root=root, splits=("extra",))


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["a", "b"], "must hold class ids; got 'a'"),
        ([0, None], "must hold class ids; got None"),
        ([1.0, 0.7], r"must hold class ids; got 1\.0"),
        ([True, False], "must hold class ids; got True"),
        ([0, 1 << 20], "must be at most 1048575; got 1048576"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "must be at most 1048575; got 18446744073709"),
    ],
)
def test_labels_that_are_not_class_ids_are_refused(labels: Any, why: str, tmp_path: Path) -> None:
    put(tmp_path / "root" / "train.parquet", labels)
    check_refused(huggingface, tmp_path / "out", f"`label of .*{why}", root=tmp_path / "root")


@pytest.mark.parametrize("column", ["struct", "text", "bytes as text"])
@pytest.mark.parametrize("path", ["ABSOLUTE", "../secret.jpg", "link.jpg", "/dev/zero", "", "a/.."])
def test_a_path_outside_the_folder_is_refused(path: str, column: str, tmp_path: Path) -> None:
    root = put_all(tmp_path, {"secret.jpg": jpeg(7), "root/inside.jpg": jpeg(8)}) / "root"
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    path = path.replace("ABSOLUTE", str(tmp_path / "secret.jpg"))
    images: dict[str, list[Any]] = {
        "struct": [{"bytes": None, "path": path}, {"bytes": None, "path": "inside.jpg"}],
        "text": [path, "inside.jpg"],
        "bytes as text": [{"bytes": path or "/", "path": None}],
    }
    table = {"image": images[column], "label": [0] * len(images[column])}
    pq.write_table(pa.table(table), root / "train.parquet")
    with pytest.raises(ValueError, match=r"leads out of --root|has no image"):
        write(huggingface, tmp_path / "out", root=root)
    if column != "bytes as text":
        index = write(huggingface, tmp_path / "skip", root=root, on_error="skip")["train"]
        assert [data for _, data in stored(index).values()] == [jpeg(8)]


@pytest.mark.parametrize(
    "head",
    [
        "a: &a [x, x]\nb: [*a, *a]\ndataset_info: {}",
        "dataset_info: [",
        "dataset_info: " + "[" * 5000,
        "dataset_info: {features: [3]}",
        "dataset_info: {splits: [{name: train, num_examples: many}]}",
        "dataset_info: {splits: 3}",
        "dataset_info: {}\n" + "# x\n" * (1 << 18),
    ],
    ids=["anchors", "syntax", "nested", "features", "counts", "no list", "more than 1 MiB"],
)
def test_a_damaged_description_is_refused_unless_the_files_have_one(
    head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "root" / "train.parquet", [0, 1], features=None)
    put_all(tmp_path / "root", {"README.md": f"---\n{head}\n---\n".encode()})
    why = r"description of the dataset in .*(README\.md|parquet) is damaged"
    check_refused(huggingface, tmp_path / "out", why, root=tmp_path / "root")
    put(tmp_path / "root" / "train.parquet", [0, 1])  # which names columns and classes itself
    index = write(huggingface, tmp_path / "out", root=tmp_path / "root")["train"]
    assert names_of(index) == tuple(NAMES)
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ignored the description") for line in said) == 1


def test_a_damaged_parquet_file_is_named(root: Path, tmp_path: Path) -> None:
    """Wherever it is damaged, the error is a ValueError that names the file."""
    path = root / "data" / "validation-00000-of-00001.parquet"
    whole = path.read_bytes()
    errors = 0
    for at in range(4, len(whole), len(whole) // 25):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            write(huggingface, tmp_path / str(at), root=root, splits=("val",))
        except ValueError as error:
            errors += "validation-00000" in str(error)
    assert errors >= 5


def test_statistics_that_do_not_fit_the_schema_do_not_end_the_process(
    root: Path, tmp_path: Path
) -> None:
    path = root / "data" / "validation-00000-of-00001.parquet"
    optional, required = b"\x25\x02\x18\x05bytes", b"\x25\x00\x18\x05bytes"  # in the schema
    whole = path.read_bytes()
    assert optional in whole
    path.write_bytes(whole.replace(optional, required))
    script = (
        "import sys; from pathlib import Path; from writers import huggingface;"
        "huggingface.write(huggingface.Config(root=Path(sys.argv[1]), out=Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "validation-00000-of-00001.parquet is damaged or not parquet" in done.stderr


@pytest.mark.parametrize(
    ("size", "forged"), [(-200, b"\x8f\x03"), (0, b"\x80\x00")], ids=["negative", "none"]
)
def test_a_forged_size_of_a_group_is_refused_or_does_no_harm(
    size: int, forged: bytes, root: Path, tmp_path: Path
) -> None:
    path = root / "data" / "validation-00000-of-00001.parquet"
    about = pq.ParquetFile(path).metadata.row_group(0).total_byte_size
    assert 64 <= about < 8192  # two bytes of seven bits each, for twice the number
    stored_size = bytes([0x16, (2 * about & 127) | 128, 2 * about >> 7])
    whole = path.read_bytes()
    assert whole.count(stored_size + b"\x16") == 1
    path.write_bytes(whole.replace(stored_size + b"\x16", b"\x16" + forged + b"\x16"))
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == size
    if size < 0:
        why = rf"validation-00000.*it states {size} bytes for its row group 0"
        check_refused(huggingface, tmp_path / "out", why, root=root)
    else:
        assert len(write(huggingface, tmp_path / "out", root=root)["val"]) == 2


def test_more_rows_than_the_file_can_hold_images_are_refused(tmp_path: Path) -> None:
    rows = 1_100_000
    table = pa.table({"image": pa.nulls(rows, pa.binary()), "label": np.zeros(rows, np.int64)})
    path = put_all(tmp_path / "root", {"train.parquet": b""}) / "train.parquet"
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 20_000
    why = r"train\.parquet is .* 1100000 rows in a file of \d+ bytes"
    check_refused(huggingface, tmp_path / "out", why, root=tmp_path / "root")


def test_images_that_shrink_as_no_image_does_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "WINDOW", 1 << 20)
    path = put_all(tmp_path / "root", {"train.parquet": b""}) / "train.parquet"
    table = pa.table({"image": [bytes(4 << 20), b"x"], "label": [0, 1]})
    pq.write_table(table, path, compression="zstd")
    why = r"it states 4\d+ bytes for its row group 0, in a file of \d+ bytes"
    check_refused(huggingface, tmp_path / "out", why, root=tmp_path / "root")


def test_an_image_that_is_stored_once_does_not_fill_memory_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "WINDOW", 1 << 20)
    table = pa.table(
        {"image": [np.random.default_rng(0).bytes(20_000)] * 3000, "label": [0] * 3000}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    samples = ParquetImages.of(tmp_path, [tmp_path / "train.parquet"], "image", "label")
    with pytest.raises(ValueError, match=r"train\.parquet is damaged .*group 0 is larger than"):
        samples[0]


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(0), "path": None}, {"bytes": None, "path": None}]
    (tmp_path / "root").mkdir()
    pq.write_table(pa.table({"image": images, "label": [0, 0]}), tmp_path / "root/train.parquet")
    with pytest.raises(ValueError, match=r"no image in .*train\.parquet:1"):
        write(huggingface, tmp_path / "out", root=tmp_path / "root")
