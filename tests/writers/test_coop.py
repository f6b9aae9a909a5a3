"""The nine targets in the layout of their archives, split by CoOp's file, which is not trusted."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torchvision.datasets

from dp4tl_ffcv import BetonIndex
from tests.writers.support import jpeg, names_of, put_all, stored
from writers.components.common import Expected, run

REPOSITORY = Path(__file__).resolve().parents[2]

Row = list[Any]


@dataclass(frozen=True)
class Known:
    """What is publicly known of a target: its split file and layout, and CoOp's table of counts."""

    split_file: str
    folder: str
    """Of the images, below CoOp's folder of the dataset."""
    path: str
    """Of an image, as in the split file, from a class folder and a number."""
    classes: int
    counts: tuple[int, int, int]
    torchvision: tuple[str, str] | None
    """The class that can fetch the images, and where it puts them."""


KNOWN = {
    "dtd": Known(
        "split_zhou_DescribableTextures.json",
        "images",
        "{name}/{name}_{number:04}.jpg",
        47,
        (2820, 1128, 1692),
        ("DTD", "dtd/dtd/images"),
    ),
    "flowers102": Known(
        "split_zhou_OxfordFlowers.json",
        "jpg",
        "image_{number:05}.jpg",
        102,
        (4093, 1633, 2463),
        ("Flowers102", "flowers-102/jpg"),
    ),
    "ucf101": Known(
        "split_zhou_UCF101.json",
        "UCF-101-midframes",
        "{name}/v_{name}_g{number:02}_c01.jpg",
        101,
        (7639, 1898, 3783),
        None,
    ),
    "food101": Known(
        "split_zhou_Food101.json",
        "images",
        "{name}/{number}.jpg",
        101,
        (50_500, 20_200, 30_300),
        ("Food101", "food-101/images"),
    ),
    "eurosat": Known(
        "split_zhou_EuroSAT.json",
        "2750",
        "{name}/{name}_{number}.jpg",
        10,
        (13_500, 5400, 8100),
        ("EuroSAT", "eurosat/2750"),
    ),
    "oxford_pets": Known(
        "split_zhou_OxfordPets.json",
        "images",
        "{name}_{number}.jpg",
        37,
        (2944, 736, 3669),
        ("OxfordIIITPet", "oxford-iiit-pet/images"),
    ),
    "stanford_cars": Known(
        "split_zhou_StanfordCars.json",
        ".",
        "cars_train/{number:05}.jpg",
        196,
        (6509, 1635, 8041),
        None,
    ),
    "sun397": Known(
        "split_zhou_SUN397.json",
        "SUN397",
        "{name[0]}/{name}/indoor/sun_{number}.jpg",
        397,
        (15_880, 3970, 19_850),
        ("SUN397", "SUN397"),
    ),
    "caltech101": Known(
        "split_zhou_Caltech101.json",
        "101_ObjectCategories",
        "{name}/image_{number:04}.jpg",
        100,
        (4128, 1649, 2465),
        ("Caltech101", "caltech101/101_ObjectCategories"),
    ),
}
SPLITS = ("train", "val", "test")
# Classes in an order that is not that of their names, as Flowers102 and Stanford Cars have them.
FOLDERS = ("Zebra", "Ant", "Mule")
CLASS_NAMES = ("grey zebra", "ant", "mule or donkey")

each_target = pytest.mark.parametrize("target", KNOWN)
each_fetched = pytest.mark.parametrize(
    "target", [name for name in KNOWN if KNOWN[name].torchvision]
)


def module_of(target: str) -> ModuleType:
    return import_module(f"writers.{target}")


def rows_of(target: str) -> dict[str, list[Row]]:
    """Three images of each class for training, two for validation, one for the test."""
    numbers = iter(range(1, 100))
    splits: dict[str, list[Row]] = {}
    for split, count in zip(SPLITS, (3, 2, 1), strict=True):
        splits[split] = [
            [KNOWN[target].path.format(name=folder, number=next(numbers)), label, name]
            for label, (folder, name) in enumerate(zip(FOLDERS, CLASS_NAMES, strict=True))
            for _ in range(count)
        ]
    return splits


def images_of(splits: dict[str, list[Row]]) -> dict[str, bytes]:
    paths = [row[0] for split in SPLITS for row in splits[split]]
    return {path: jpeg(number) for number, path in enumerate(paths)}


def make_tree(target: str, root: Path, folder: str | None = None) -> dict[str, list[Row]]:
    """Make a small copy of a target: the split file, its images, and one that no split has."""
    splits = rows_of(target)
    put_all(root / (folder or KNOWN[target].folder), {**images_of(splits), "other.jpg": jpeg(99)})
    write_split(root / KNOWN[target].split_file, splits)
    return splits


def write_split(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write(target: str, root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    module = module_of(target)
    settings = {"check_counts": False, "num_workers": 0, **options}
    written: dict[str, BetonIndex] = module.write(module.Config(root=root, out=out, **settings))
    return written


# What is written.


@each_target
def test_images_of_each_split_keep_their_bytes_labels_names_and_numbers(
    target: str, tmp_path: Path
) -> None:
    splits = make_tree(target, tmp_path / "root")
    written = write(target, tmp_path / "root", tmp_path / "out")
    assert list(written) == list(SPLITS)
    images = images_of(splits)
    in_order = [(row[1], images[row[0]]) for split in SPLITS for row in splits[split]]
    start = 0
    for split, index in written.items():
        end = start + len(splits[split])
        assert stored(index) == dict(enumerate(in_order[start:end], start))
        assert names_of(index) == CLASS_NAMES
        assert index.path == tmp_path / "out" / f"{split}.beton"
        assert index.manifest is not None
        assert index.manifest.written_by["writer"] == target
        assert index.manifest.written_by["split"] == split
        start = end


@each_target
def test_counts_other_than_those_of_the_paper_are_refused_before_the_first_byte(
    target: str, tmp_path: Path
) -> None:
    make_tree(target, tmp_path / "root")
    with pytest.raises(ValueError, match=r"--no-check-counts") as caught:
        write(target, tmp_path / "root", tmp_path / "out", check_counts=True)
    message = str(caught.value)
    for split, count, wanted in zip(SPLITS, (9, 6, 3), KNOWN[target].counts, strict=True):
        assert f"{count} images in {split} instead of {wanted}" in message
    assert f"3 classes instead of {KNOWN[target].classes}" in message
    assert not (tmp_path / "out").exists()


def test_a_whole_dataset_passes_the_check_of_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree("dtd", tmp_path / "root")
    module = module_of("dtd")
    expected = Expected(classes=3, images={"train": 9, "val": 6, "test": 3})
    monkeypatch.setattr(module, "TARGET", replace(module.TARGET, expected=expected))
    written = write("dtd", tmp_path / "root", tmp_path / "out", check_counts=True)
    assert [index.num_samples for index in written.values()] == [9, 6, 3]


def test_the_split_file_may_lie_elsewhere(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "root")
    mine = (tmp_path / "root" / KNOWN["dtd"].split_file).rename(tmp_path / "mine.json")
    written = write("dtd", tmp_path / "root", tmp_path / "out", split_file=mine)
    assert written["train"].num_samples == 9


@each_target
def test_the_command_line_takes_the_options(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree(target, tmp_path / "root")
    module = module_of(target)
    arguments = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    arguments += ["--no-check-counts", "--num-workers", "0", "--no-shuffle"]
    run(target, module.Config, module.write, module.__doc__, arguments)
    assert "train: 9 images, 3 classes" in capsys.readouterr().out
    index = BetonIndex.open(tmp_path / "out" / "val.beton")
    assert index.column("identifier").tolist() == list(range(9, 15))


def test_a_writer_runs_as_a_module(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "root")
    command = [sys.executable, "-m", "writers.dtd", "--root", str(tmp_path / "root")]
    command += ["--out", str(tmp_path / "out"), "--num-workers", "0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("writers.dtd: `dtd` must be complete; got 9 images in train")
    assert len(done.stderr.splitlines()) == 1


# What is missing.


@each_target
def test_a_missing_split_file_is_named_with_where_to_get_it(target: str, tmp_path: Path) -> None:
    make_tree(target, tmp_path / "root")
    split_file = tmp_path / "root" / KNOWN[target].split_file
    split_file.unlink()
    with pytest.raises(ValueError, match="torchvision cannot fetch it") as caught:
        write(target, tmp_path / "root", tmp_path / "out")
    assert str(split_file) in str(caught.value)
    assert "DATASETS.md" in str(caught.value)


@each_target
def test_a_missing_image_is_named_and_leaves_no_beton(target: str, tmp_path: Path) -> None:
    splits = make_tree(target, tmp_path / "root")
    gone = [tmp_path / "root" / KNOWN[target].folder / row[0] for row in splits["test"][:2]]
    for path in gone:
        path.unlink()
    with pytest.raises(ValueError, match=r"and 1 more, of 18") as caught:
        write(target, tmp_path / "root", tmp_path / "out")
    assert str(gone[0]) in str(caught.value)
    assert KNOWN[target].split_file in str(caught.value)
    assert not (tmp_path / "out").exists()


@each_fetched
def test_a_missing_folder_of_images_is_named_and_how_to_fetch_it(
    target: str, tmp_path: Path
) -> None:
    write_split(tmp_path / KNOWN[target].split_file, rows_of(target))
    with pytest.raises(ValueError, match=r"--download fetches them") as caught:
        write(target, tmp_path, tmp_path / "out")
    assert repr(KNOWN[target].folder) in str(caught.value)


# Split files that are not CoOp's.


def change(row: Row) -> Callable[[dict[str, Any]], None]:
    """Put `row` in the place of the first of the test."""

    def put(content: dict[str, Any]) -> None:
        content["test"][0] = row

    return put


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content.pop("val"), "other keys"),
        (lambda content: content.update(extra=[]), "other keys"),
        (lambda content: content.update(val={}), "no list under 'val'"),
        (change(["a.jpg", 0]), "the row"),
        (change(["a.jpg", 0, "grey zebra", 1]), "the row"),
        (change(["a.jpg", "0", "grey zebra"]), "the row"),
        (change(["a.jpg", False, "grey zebra"]), "the row"),
        (change(["a.jpg", 0.0, "grey zebra"]), "the row"),
        (change([7, 0, "grey zebra"]), "the row"),
        (change(["a.jpg", 0, None]), "the row"),
        (change(["a.jpg", 1, "grey zebra"]), "the names 'ant' and 'grey zebra' for label 1"),
        (change(["a.jpg", 4, "bee"]), "4 labels, and none of them is 3"),
        (change(["a.jpg", -1, "bee"]), "4 labels, and none of them is 3"),
        (lambda content: content.update(train=[], val=[], test=[]), "0 labels"),
    ],
)
def test_a_split_file_of_another_form_is_refused(
    damage: Callable[[dict[str, Any]], None], why: str, tmp_path: Path
) -> None:
    content = make_tree("dtd", tmp_path / "root")
    damage(content)
    write_split(tmp_path / "root" / KNOWN["dtd"].split_file, content)
    with pytest.raises(ValueError, match="the file that CoOp publishes") as caught:
        write("dtd", tmp_path / "root", tmp_path / "out")
    assert f"got {why}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_split_file_that_is_not_json_of_an_object_is_refused(text: str, tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "root")
    (tmp_path / "root" / KNOWN["dtd"].split_file).write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match="the file that CoOp publishes"):
        write("dtd", tmp_path / "root", tmp_path / "out")


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "Ant/../../secret.jpg", "ABSOLUTE", "", ".", "..", "a/..", "a\0.jpg"]
)
def test_a_path_that_leaves_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    content = make_tree("dtd", tmp_path / "root")
    (tmp_path / "root" / "secret.jpg").write_bytes(jpeg(7))
    absolute = str(tmp_path / "root" / "secret.jpg")
    content["val"][0][0] = path.replace("ABSOLUTE", absolute)
    write_split(tmp_path / "root" / KNOWN["dtd"].split_file, content)
    with pytest.raises(ValueError, match=r"inside their folder|must hold the images"):
        write("dtd", tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("respelt", ["{}", "./{}", "x/../{}", "x//..//{}"])
@pytest.mark.parametrize(("split", "where"), [("test", "train and test"), ("train", "in train")])
def test_an_image_that_is_named_twice_is_refused(
    split: str, where: str, respelt: str, tmp_path: Path
) -> None:
    content = make_tree("dtd", tmp_path / "root")
    path, label, name = content["train"][0]
    content[split].append([respelt.format(path), label, name])
    write_split(tmp_path / "root" / KNOWN["dtd"].split_file, content)
    with pytest.raises(ValueError, match=f"{path}' twice, .*{where}"):
        write("dtd", tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --download, with a class of torchvision that is replaced by one that needs no network.


@dataclass
class Fetcher:
    """Stands in for a dataset of torchvision: puts the images where the real one does."""

    target: str
    fails_with: Exception | None = None
    calls: int = 0

    def __call__(self, root: str, *, download: bool) -> None:
        self.calls += 1
        assert download
        known = KNOWN[self.target]
        assert known.torchvision is not None
        put_all(Path(root) / known.torchvision[1], images_of(rows_of(self.target)))
        if self.fails_with:
            raise self.fails_with


@pytest.fixture
def fetcher(target: str, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    known = KNOWN[target]
    assert known.torchvision is not None
    stand_in = Fetcher(target)
    monkeypatch.setattr(torchvision.datasets, known.torchvision[0], stand_in)
    return stand_in


@each_fetched
def test_download_fetches_the_images_once_to_where_torchvision_puts_them(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    splits = rows_of(target)
    write_split(tmp_path / "root" / KNOWN[target].split_file, splits)
    for name in ("one", "two"):
        written = write(target, tmp_path / "root", tmp_path / name, download=True)
        labels = [row[1] for row in splits["train"]]
        assert sorted(written["train"].labels().tolist()) == labels
    assert fetcher.calls == 1


@each_fetched
def test_download_fetches_nothing_that_is_there_as_coop_places_it(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    make_tree(target, tmp_path / "root")
    write(target, tmp_path / "root", tmp_path / "out", download=True)
    assert fetcher.calls == 0


@pytest.mark.parametrize("target", ["flowers102"])
def test_download_fetches_nothing_before_the_split_file_is_there(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="torchvision cannot fetch it"):
        write(target, tmp_path / "root", tmp_path / "out", download=True)
    assert fetcher.calls == 0


@pytest.mark.parametrize("target", ["flowers102"])
def test_torchvision_may_lack_scipy_for_annotations_that_are_not_needed(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    fetcher.fails_with = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    write_split(tmp_path / "root" / KNOWN[target].split_file, rows_of(target))
    written = write(target, tmp_path / "root", tmp_path / "out", download=True)
    assert written["test"].num_samples == 3


@pytest.mark.parametrize("target", ["flowers102"])
@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no gdown", name="gdown"), RuntimeError("MD5 differs")]
)
def test_what_goes_wrong_in_a_download_is_raised(
    target: str, error: Exception, fetcher: Fetcher, tmp_path: Path
) -> None:
    fetcher.fails_with = error
    write_split(tmp_path / "root" / KNOWN[target].split_file, rows_of(target))
    with pytest.raises(type(error), match=str(error)):
        write(target, tmp_path / "root", tmp_path / "out", download=True)


@pytest.mark.parametrize("target", ["ucf101", "stanford_cars"])
def test_download_is_not_offered_where_torchvision_cannot(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = module_of(target)
    arguments = ["--root", str(tmp_path), "--out", str(tmp_path), "--download"]
    with pytest.raises(SystemExit) as caught:
        run(target, module.Config, module.write, module.__doc__, arguments)
    assert caught.value.code == 2
    assert "--download" in capsys.readouterr().err
