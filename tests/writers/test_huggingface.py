"""Parquet folders of `datasets` to betons: splits, columns, names, and what reading them takes."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex
from tests.writers.support import jpeg, names_of, put_all, stored
from writers import huggingface
from writers.components import parquet
from writers.components.common import run
from writers.components.parquet import ParquetImages
from writers.huggingface import Config, write

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "ant", "bee"]  # a ClassLabel's names need not be sorted
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
}
CARD = """---
license: mit
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
    num_bytes: 100.0
    num_examples: {count}
  - name: validation
    num_bytes: 100
    num_examples: 2
configs:
- config_name: default
---
# A dataset
"""


def put(
    path: Path,
    labels: Sequence[int],
    first: int = 0,
    features: Mapping[str, Any] | None = FEATURES,
    rows_per_group: int = 2,
    **columns: Any,
) -> Path:
    """Write images `jpeg(first)`... with labels, in the way `datasets` does."""
    images = [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(first, first + len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels), **columns})
    if features is not None:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_all(root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    return write(Config(root=root, out=out, **{"num_workers": 0, **options}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of seven and two images, the seven in two files."""
    root = tmp_path / "root"
    put(root / "data" / "train-00000-of-00002.parquet", [0, 1, 2, 0])
    put(root / "data" / "train-00001-of-00002.parquet", [2, 1, 1], first=4)
    put(root / "data" / "validation-00000-of-00001.parquet", [1, 0], first=7)
    return root


TRAIN = {n: (label, jpeg(n)) for n, label in enumerate([0, 1, 2, 0, 2, 1, 1])}
VAL = {0: (1, jpeg(7)), 1: (0, jpeg(8))}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_keep_their_bytes_labels_and_rows(
    num_workers: int, root: Path, tmp_path: Path
) -> None:
    written = write_all(root, tmp_path / "out", num_workers=num_workers)
    assert set(written) == {"train", "val"}
    assert stored(written["train"]) == TRAIN
    assert stored(written["val"]) == VAL
    assert names_of(written["train"]) == names_of(written["val"]) == tuple(NAMES)
    assert written["train"].column("identifier").tolist() != list(range(7))
    in_order = write_all(root, tmp_path / "ordered", shuffle=False)["train"]
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
def test_splits_are_told_by_the_names_of_files_or_folders(
    files: tuple[str, str], tmp_path: Path
) -> None:
    put(tmp_path / "root" / files[0], [0, 1])
    put(tmp_path / "root" / files[1], [1, 0], first=7)
    put(tmp_path / "root" / ".cache" / "train.parquet", [1])
    written = write_all(tmp_path / "root", tmp_path / "out")
    assert stored(written["val"]) == VAL
    assert written["train"].num_samples == 2
    assert set(write_all(tmp_path / "root", tmp_path / "one", splits=("validation",))) == {"val"}


def test_names_and_columns_come_from_the_card_where_files_say_nothing(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = put_all(tmp_path / "root", {"README.md": CARD.format(count=3).encode()})
    put(root / "train.parquet", [2, 1, 0], features=None)
    index = write_all(root, tmp_path / "out")["train"]
    assert names_of(index) == tuple(NAMES)


def test_without_features_usual_columns_are_taken_and_classes_are_numbers(tmp_path: Path) -> None:
    put(tmp_path / "root" / "train.parquet", [2, 0], features=None, other=["x", "y"])
    index = write_all(tmp_path / "root", tmp_path / "out")["train"]
    assert names_of(index) == ("0", "1", "2")
    assert index.class_counts().tolist() == [1, 0, 1]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    features = {**FEATURES, "coarse": {"names": ["a", "b"], "_type": "ClassLabel"}}
    put(tmp_path / "root" / "train.parquet", [2, 0], features=features, coarse=[0, 1])
    with pytest.raises(ValueError, match=r"`label_column`.*label or coarse.*--label-column"):
        write_all(tmp_path / "root", tmp_path / "out")
    index = write_all(tmp_path / "root", tmp_path / "out", label_column="coarse")["train"]
    assert stored(index) == {0: (0, jpeg(0)), 1: (1, jpeg(1))}
    assert names_of(index) == ("a", "b")


def test_images_may_be_bytes_alone_or_files_beside(tmp_path: Path) -> None:
    root = put_all(tmp_path / "root", {"images/5.jpg": jpeg(5)})
    images = [{"bytes": None, "path": "images/5.jpg"}]
    pq.write_table(pa.table({"image": images, "label": [0]}), root / "train.parquet")
    pq.write_table(pa.table({"image": [jpeg(6)], "label": [0]}), root / "test.parquet")
    written = write_all(root, tmp_path / "out")
    assert stored(written["train"]) == {0: (0, jpeg(5))}
    assert stored(written["test"]) == {0: (0, jpeg(6))}


# What reading takes.


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Say how many groups of rows have been decompressed since the last time."""
    opened: list[Path] = []
    really = parquet.open_parquet

    def count(path: Path) -> Any:
        opened.append(path)
        return really(path)

    def since() -> int:
        number = len(opened)
        opened.clear()
        return number

    monkeypatch.setattr(parquet, "open_parquet", count)
    return since


def test_a_group_is_read_once_in_any_order_and_memory_is_one_window(
    reads: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [0] * 60 + [1] * 60
    paths = [put(tmp_path / f"{n}.parquet", labels, 120 * n, rows_per_group=6) for n in range(2)]
    samples = ParquetImages.of(paths, "image", "label")
    assert len(samples.groups) == 40
    reads()
    assert [samples[i][0] for i in range(240)] == [jpeg(n) for n in range(240)]
    assert reads() == 40
    monkeypatch.setattr(parquet, "WINDOW", 5 * int(samples.groups[:, 3].max()))
    shuffled = samples.shuffled(seed=3)
    assert 5 <= shuffled.held <= 6
    for i in range(240):
        content, label, identifier = shuffled[i]
        assert (content, label) == (jpeg(identifier), identifier % 120 // 60)
        assert len(shuffled._cache) <= shuffled.held
    assert reads() == 40
    order = shuffled.identifiers
    assert sorted(order.tolist()) == list(range(240))
    assert np.array_equal(order, samples.shuffled(seed=3).identifiers)
    assert not np.array_equal(order, samples.shuffled(seed=4).identifiers)
    assert len(set((order[:24] // 6).tolist())) >= 4  # images of several groups, mixed


# What cannot be written.


def test_a_dataset_with_other_counts_than_its_card_says_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    root = put_all(tmp_path / "root", {"README.md": CARD.format(count=5).encode()})
    put(root / "train.parquet", [0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"4 images in train instead of 5.*--no-check-counts"):
        write_all(root, tmp_path / "out")
    assert write_all(root, tmp_path / "out", check_counts=False)["train"].num_samples == 4


def test_a_missing_file_of_a_split_is_named(root: Path, tmp_path: Path) -> None:
    (root / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"`train` must be whole, .* 2 files.*got 1 without 00000"):
        write_all(root, tmp_path / "out")


def test_two_configurations_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "root" / "small" / "train.parquet", [0])
    put(tmp_path / "root" / "large" / "train.parquet", [0])
    with pytest.raises(ValueError, match=r"one configuration.*train in '.*large' and in '.*small'"):
        write_all(tmp_path / "root", tmp_path / "out")


def test_files_that_name_their_classes_differently_are_refused(root: Path, tmp_path: Path) -> None:
    other = {**FEATURES, "label": {"names": sorted(NAMES), "_type": "ClassLabel"}}
    put(root / "data" / "test.parquet", [0], features=other)
    with pytest.raises(ValueError, match="differ in their columns or class names"):
        write_all(root, tmp_path / "out")


def test_a_split_without_labels_is_refused_and_can_be_left_out(root: Path, tmp_path: Path) -> None:
    put(root / "data" / "test-00000-of-00001.parquet", [-1, -1])
    with pytest.raises(ValueError, match="`test` must have labels from 0 to 2"):
        write_all(root, tmp_path / "out")
    assert set(write_all(root, tmp_path / "out", splits=("train",))) == {"train"}
    with pytest.raises(ValueError, match="`splits` must be some of test, train, val"):
        write_all(root, tmp_path / "out", splits=("extra",))


@pytest.mark.parametrize("labels", [["a", "b"], [0, None]], ids=["texts", "none"])
def test_labels_that_are_no_integers_are_refused(labels: list[Any], tmp_path: Path) -> None:
    put(tmp_path / "root" / "train.parquet", labels, features=None)
    with pytest.raises(ValueError, match=r"`label_column` must hold a class id in each row"):
        write_all(tmp_path / "root", tmp_path / "out")


@pytest.mark.parametrize("label", [1 << 24, 300_000_000, 2**64 - 1])
@pytest.mark.parametrize("features", [None, FEATURES], ids=["numbers", "names"])
def test_a_number_that_is_no_class_id_is_refused(
    label: int, features: Mapping[str, Any] | None, tmp_path: Path
) -> None:
    labels = pa.array([0, label], pa.uint64())
    put(tmp_path / "root" / "train.parquet", labels, features=features)
    with pytest.raises(
        ValueError, match=f"`label_column` must hold class ids from 0 .*got {label}"
    ):
        write_all(tmp_path / "root", tmp_path / "out")


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(0), "path": None}, {"bytes": None, "path": None}]
    (tmp_path / "root").mkdir()
    pq.write_table(pa.table({"image": images, "label": [0, 0]}), tmp_path / "root/train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet:1"):
        write_all(tmp_path / "root", tmp_path / "out")


def test_a_file_that_is_cut_is_refused(root: Path, tmp_path: Path) -> None:
    path = root / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"00001-of-00002\.parquet` must be a whole parquet file"):
        write_all(root, tmp_path / "out")


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`root` must hold parquet files"):
        write_all(tmp_path, tmp_path / "out")


def test_the_command_line_gives_the_options(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--root {root} --out {tmp_path / 'out'} --splits validation --num-workers 0"
    run("huggingface", Config, write, huggingface.__doc__, arguments.split())
    expected = f"val: 2 images, 3 classes -> {tmp_path / 'out' / 'val.beton'}\n"
    assert capsys.readouterr().out == f"{expected}  no images of bee\n"
