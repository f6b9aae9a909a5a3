"""The nine targets with CoOp's splits: layouts, counts, downloads, and malformed split files."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torchvision.datasets

from dp4tl_ffcv import BetonIndex
from tests.writers import support
from tests.writers.support import check_refused, jpeg, names_of, put_all, stored
from writers.components.common import Expected, run

REPOSITORY = Path(__file__).resolve().parents[2]

Row = list[Any]


class Known(NamedTuple):
    """Published facts about a target."""

    split_file: str
    folder: str
    """Folder of the images, below CoOp's folder of the dataset."""
    path: str
    """Path of an image in the split file, from a class folder and a number."""
    classes: int
    counts: tuple[int, int, int]
    torchvision: tuple[str, str] | None = None
    """Class that downloads the images, and the folder of the images it makes."""


# fmt: off
KNOWN = {
    "dtd": Known(
        "split_zhou_DescribableTextures.json", "images", "{name}/{name}_{number:04}.jpg",
        47, (2_820, 1_128, 1_692), ("DTD", "dtd/dtd/images"),
    ),
    "flowers102": Known(
        "split_zhou_OxfordFlowers.json", "jpg", "image_{number:05}.jpg",
        102, (4_093, 1_633, 2_463), ("Flowers102", "flowers-102/jpg"),
    ),
    "ucf101": Known(
        "split_zhou_UCF101.json", "UCF-101-midframes", "{name}/v_{name}_g{number:02}_c01.jpg",
        101, (7_639, 1_898, 3_783),
    ),
    "food101": Known(
        "split_zhou_Food101.json", "images", "{name}/{number}.jpg",
        101, (50_500, 20_200, 30_300), ("Food101", "food-101/images"),
    ),
    "eurosat": Known(
        "split_zhou_EuroSAT.json", "2750", "{name}/{name}_{number}.jpg",
        10, (13_500, 5_400, 8_100), ("EuroSAT", "eurosat/2750"),
    ),
    "oxford_pets": Known(
        "split_zhou_OxfordPets.json", "images", "{name}_{number}.jpg",
        37, (2_944, 736, 3_669), ("OxfordIIITPet", "oxford-iiit-pet/images"),
    ),
    "stanford_cars": Known(
        "split_zhou_StanfordCars.json", ".", "cars_train/{number:05}.jpg",
        196, (6_509, 1_635, 8_041),
    ),
    "sun397": Known(
        "split_zhou_SUN397.json", "SUN397", "{name[0]}/{name}/indoor/sun_{number}.jpg",
        397, (15_880, 3_970, 19_850), ("SUN397", "SUN397"),
    ),
    "caltech101": Known(
        "split_zhou_Caltech101.json", "101_ObjectCategories", "{name}/image_{number:04}.jpg",
        100, (4_128, 1_649, 2_465), ("Caltech101", "caltech101/101_ObjectCategories"),
    ),
}
# fmt: on
SPLITS = ("train", "val", "test")
# The classes are not sorted by name, as in Flowers102 and Stanford Cars.
FOLDERS = ("Zebra", "Ant", "Mule")
CLASS_NAMES = ("grey zebra", "ant", "mule or donkey")

each_target = pytest.mark.parametrize("target", KNOWN)
each_fetched = pytest.mark.parametrize(
    "target", [name for name in KNOWN if KNOWN[name].torchvision]
)


def module_of(target: str) -> ModuleType:
    return import_module(f"writers.{target}")


def rows_of(target: str) -> dict[str, list[Row]]:
    """Return rows of three training images, two validation images and one test image per class."""
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


def make_tree(target: str, root: Path) -> dict[str, list[Row]]:
    """Make a small copy of a target: the split file, its images, and an unlisted image."""
    splits = rows_of(target)
    put_all(root / KNOWN[target].folder, {**images_of(splits), "other.jpg": jpeg(99)})
    write_split(root / KNOWN[target].split_file, splits)
    return splits


def write_split(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write(target: str, root: Path, out: Path, **options: Any) -> dict[str, BetonIndex]:
    return support.write(module_of(target), out, root=root, **options)


@each_target
def test_images_keep_their_bytes_labels_names_and_positions(target: str, tmp_path: Path) -> None:
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
def test_other_counts_than_the_published_ones_are_refused(target: str, tmp_path: Path) -> None:
    make_tree(target, tmp_path / "root")
    counts = zip(SPLITS, (9, 6, 3), KNOWN[target].counts, strict=True)
    why = [f"{count} images in {split} instead of {wanted}" for split, count, wanted in counts]
    why.append(f"3 classes instead of {KNOWN[target].classes}")
    options = {"root": tmp_path / "root", "check_counts": True}
    check_refused(module_of(target), tmp_path / "out", ", ".join(why), **options)


def test_a_complete_dataset_passes_the_check_of_counts(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "root")
    module = module_of("dtd")
    expected = Expected(classes=3, images={"train": 9, "val": 6, "test": 3})
    config = module.Config(root=tmp_path / "root", out=tmp_path / "out", num_workers=0)
    written = replace(module.TARGET, expected=expected).write(config)
    assert [index.num_samples for index in written.values()] == [9, 6, 3]


def test_the_split_file_may_be_elsewhere(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "root")
    mine = (tmp_path / "root" / KNOWN["dtd"].split_file).rename(tmp_path / "mine.json")
    written = write("dtd", tmp_path / "root", tmp_path / "out", split_file=mine)
    assert written["train"].num_samples == 9


def test_a_writer_runs_as_a_module(tmp_path: Path) -> None:
    make_tree("dtd", tmp_path / "root")
    command = [sys.executable, "-m", "writers.dtd", "--root", str(tmp_path / "root")]
    command += ["--out", str(tmp_path / "out"), "--num-workers", "0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("dp4tl write dtd: dtd has 9 images in train")
    assert len(done.stderr.splitlines()) == 1


# Missing files.


@each_target
def test_the_error_for_a_missing_split_file_says_where_to_get_it(
    target: str, tmp_path: Path
) -> None:
    make_tree(target, tmp_path / "root")
    split_file = tmp_path / "root" / KNOWN[target].split_file
    split_file.unlink()
    why = rf"'{split_file}'.*{split_file.name} as CoOp's DATASETS\.md says"
    check_refused(module_of(target), tmp_path / "out", why, root=tmp_path / "root")


@each_target
def test_the_error_for_missing_images_names_one(target: str, tmp_path: Path) -> None:
    splits = make_tree(target, tmp_path / "root")
    gone = [tmp_path / "root" / KNOWN[target].folder / row[0] for row in splits["test"][:2]]
    for path in gone:
        path.unlink()
    why = f"2 of 18 images that .*{KNOWN[target].split_file} lists are missing, such as '{gone[0]}'"
    check_refused(module_of(target), tmp_path / "out", why, root=tmp_path / "root")


@each_fetched
def test_the_error_for_a_missing_folder_offers_a_download(target: str, tmp_path: Path) -> None:
    write_split(tmp_path / KNOWN[target].split_file, rows_of(target))
    why = f"No '{KNOWN[target].folder}' .*--download gets them"
    check_refused(module_of(target), tmp_path / "out", why, root=tmp_path)


# Malformed split files.


def check_split_refused(root: Path, content: Any, why: str) -> None:
    """Check that a copy of DTD with another split file is refused."""
    make_tree("dtd", root)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    put_all(root, {KNOWN["dtd"].split_file: data, "secret.jpg": jpeg(7)})
    check_refused(module_of("dtd"), root / "out", why, root=root)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"val": None}, "its keys are not train, val and test"),
        ({"extra": []}, "its keys are not train, val and test"),
        ({"val": {}}, "val is not a list"),
        ({"test": [["a.jpg", 0]]}, "the row"),
        ({"test": [["a.jpg", 0, "grey zebra", 1]]}, "the row"),
        ({"test": [["a.jpg", "0", "grey zebra"]]}, "the row"),
        ({"test": [["a.jpg", False, "grey zebra"]]}, "the row"),
        ({"test": [["a.jpg", 0.0, "grey zebra"]]}, "the row"),
        ({"test": [[7, 0, "grey zebra"]]}, "the row"),
        ({"test": [["a.jpg", 0, None]]}, "the row"),
        ({"test": [["a.jpg", 1, "grey zebra"]]}, "label 1 has the names 'ant' and 'grey zebra'"),
        ({"test": [["a.jpg", 4, "bee"]]}, "it has 4 labels, but not label 3"),
        ({"test": [["a.jpg", -1, "bee"]]}, "it has 4 labels, but not label 3"),
        ({"train": [], "val": [], "test": []}, "it has 0 labels"),
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[]", "its keys are not"),
        (b"null", "its keys are not"),
    ],
)
def test_a_malformed_split_file_is_refused(
    change: dict[str, Any] | bytes, why: str, tmp_path: Path
) -> None:
    content: Any = change
    if isinstance(change, dict):
        changed = {**rows_of("dtd"), **change}
        content = {split: rows for split, rows in changed.items() if rows is not None}
    check_split_refused(tmp_path, content, f"is not a split file of CoOp: {why}")


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "Ant/../../secret.jpg", "ABSOLUTE", "", ".", "..", "a/..", "a\0.jpg"]
)
def test_a_path_outside_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    content = rows_of("dtd")
    content["val"][0][0] = path.replace("ABSOLUTE", str(tmp_path / "secret.jpg"))
    check_split_refused(tmp_path, content, "not inside the folder|are missing")


@pytest.mark.parametrize("respelt", ["{}", "./{}", "x/../{}", "x//..//{}"])
@pytest.mark.parametrize(("split", "where"), [("test", "train and test"), ("train", "in train")])
def test_an_image_that_is_listed_twice_is_refused(
    split: str, where: str, respelt: str, tmp_path: Path
) -> None:
    content = rows_of("dtd")
    path, label, name = content["train"][0]
    content[split].append([respelt.format(path), label, name])
    check_split_refused(tmp_path, content, f"{path}' twice, .*{where}")


# Downloads, by a stand-in for torchvision's class that needs no network.


@dataclass
class Fetcher:
    """Stand-in for a class of torchvision: puts the images where the class does."""

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
def test_missing_images_are_downloaded_once(target: str, fetcher: Fetcher, tmp_path: Path) -> None:
    splits = rows_of(target)
    write_split(tmp_path / "root" / KNOWN[target].split_file, splits)
    for name in ("one", "two"):
        written = write(target, tmp_path / "root", tmp_path / name, download=True)
        labels = [row[1] for row in splits["train"]]
        assert sorted(written["train"].labels().tolist()) == labels
    assert fetcher.calls == 1


@each_fetched
def test_images_in_coops_layout_are_not_downloaded(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    make_tree(target, tmp_path / "root")
    write(target, tmp_path / "root", tmp_path / "out", download=True)
    assert fetcher.calls == 0


@pytest.mark.parametrize("target", ["flowers102"])
def test_nothing_is_downloaded_without_the_split_file(
    target: str, fetcher: Fetcher, tmp_path: Path
) -> None:
    why = "torchvision cannot download it"
    check_refused(module_of(target), tmp_path / "out", why, root=tmp_path / "root", download=True)
    assert fetcher.calls == 0


@pytest.mark.parametrize("target", ["flowers102"])
def test_scipy_is_not_needed_to_download_images(
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
def test_an_error_of_a_download_is_raised(
    target: str, error: Exception, fetcher: Fetcher, tmp_path: Path
) -> None:
    fetcher.fails_with = error
    write_split(tmp_path / "root" / KNOWN[target].split_file, rows_of(target))
    with pytest.raises(type(error), match=str(error)):
        write(target, tmp_path / "root", tmp_path / "out", download=True)


@pytest.mark.parametrize("target", ["ucf101", "stanford_cars"])
def test_download_is_not_an_option_if_torchvision_cannot(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--root", str(tmp_path), "--out", str(tmp_path), "--download"]
    with pytest.raises(SystemExit) as caught:
        run(f"writers.{target}", arguments)
    assert caught.value.code == 2
    assert "--download" in capsys.readouterr().err
