"""docs/drop-in.md: its commands and Python run, in the order of the page, on a few photos."""

import re
import shlex
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import BetonIndex, PrunedLoader, Selection, image_fields, write_beton
from dp4tl_ffcv.cli import main
from dp4tl_ffcv.scoring import random_scores
from dp4tl_ffcv.utils import ImageFiles
from tests.conftest import Images
from tests.support.pages import commands
from writers import imagefolder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "drop-in.md").read_text()
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")
NUM_SAMPLES = {"train": 4, "val": 2}  # of each class


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@dataclass
class Followed:
    """Files and Python names after all blocks of the page ran."""

    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    """Python names that the page defines."""


def write_photos(photos: Images) -> None:
    """Write class folders like ImageNet's, betons of them, and the scores of a selection."""
    data = photos.path.read_bytes()
    index, used = photos.index, 0
    places = index.column("image")["data_ptr"].astype(int)
    ends = dict(zip(index.allocations["ptr"], index.allocations["size"], strict=True))
    for split, count in NUM_SAMPLES.items():
        for wnid in WNIDS:
            folder = Path("imagenet") / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                start = places[used]
                # Of names with and without leading zeros, timm's order is another one.
                name = f"{wnid}_{7 * number + 3}.JPEG"
                (folder / name).write_bytes(data[start : start + int(ends[start])])
                used += 1
    imagefolder.write(imagefolder.Config(root=Path("imagenet"), out=Path(), num_workers=0))
    for split in NUM_SAMPLES:
        for suffix in ("beton", "beton.json"):
            Path(f"{split}.{suffix}").rename(f"imagenet_{split}.{suffix}")
    index = BetonIndex.open("imagenet_train.beton")
    random_scores(index.num_classes, seed=1).save("pets_lm.npz")
    beton, out = "--beton imagenet_train.beton", "--out pets_lm_40.npz"
    main(shlex.split(f"select --scores pets_lm.npz --keep 0.4 {beton} {out}"))


@pytest.fixture(scope="module")
def followed(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """The page, followed in a folder of its own; timm's part where timm is installed."""
    done = Followed(tmp_path_factory.mktemp("drop_in"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(done.folder)
        write_photos(photos)
        for language, text in blocks():
            if language == "bash":
                for words in commands(text):
                    assert words[0] == "dp4tl"
                    main(words[1:])
            elif language == "python" and ("timm" not in text or find_spec("timm")):
                exec(compile(text, "docs/drop-in.md", "exec"), done.names)
    return done


def test_exports_and_compacted_files_hold_the_selection(followed: Followed) -> None:
    folder = followed.folder
    train, val = (Selection.load(folder / f"pets_lm_40{part}.npz") for part in ("", "_val"))
    assert len(train.classes) == 2
    assert val.classes.tolist() == train.classes.tolist()
    assert np.load(folder / "pets_lm_40.npy").tolist() == train.indices.tolist()
    for split, selection in (("train", train), ("val", val)):
        exported = torch.load(folder / f"pets_lm_40_{split}.indices", weights_only=True)
        assert exported.tolist() == selection.indices.tolist()
    for name, selection in (("", train), ("_val", val), ("_pairs", train)):
        index = BetonIndex.open(folder / f"imagenet_pets_40{name}.beton")
        assert index.num_samples == len(selection)
        assert np.unique(index.labels()).tolist() == train.classes.tolist()
    assert Selection.load(folder / "theirs.npz").indices.tolist() == train.indices.tolist()


def test_the_third_field_is_what_the_page_says(followed: Followed) -> None:
    options = {"batch_size": 2, "num_workers": 1, "pipelines": {"image": None}}
    batch = next(iter(PrunedLoader(followed.folder / "imagenet_train.beton", **options)))
    assert len(batch) == 2
    pairs = PrunedLoader(followed.folder / "imagenet_train_pairs.beton", **options)
    assert len(next(iter(pairs))) == 1
    options["pipelines"] = {"image": None, "identifier": None}
    batch = next(iter(PrunedLoader(followed.folder / "imagenet_train.beton", **options)))
    assert len(batch) == 1


def test_the_excluded_classes_are_the_pruned_ones(followed: Followed) -> None:
    selection = Selection.load(followed.folder / "pets_lm_40.npz")
    excluded = np.load(followed.folder / "exclude.npy")
    assert sorted([*excluded, *selection.classes]) == list(range(len(WNIDS)))


def test_a_subset_has_the_files_of_the_selection(followed: Followed) -> None:
    subset, selection = followed.names["subset"], followed.names["selection"]
    paths = [subset.dataset.samples[each][0] for each in subset.indices]
    wanted = {WNIDS[each] for each in selection.classes}
    assert {Path(path).parent.name for path in paths} == wanted
    assert len(paths) == NUM_SAMPLES["train"] * len(wanted)


@pytest.mark.skipif(not find_spec("timm"), reason="timm is an extra")
def test_timm_sees_the_classes_of_the_list(followed: Followed, monkeypatch: Any) -> None:
    from timm.data import create_dataset

    monkeypatch.chdir(followed.folder)
    dataset = create_dataset("", root="imagenet", split="train", class_map="pets_lm_40_classes.txt")
    selection = Selection.load("pets_lm_40.npz")
    names = [WNIDS[each] for each in selection.classes]
    for path, label in dataset.reader.samples:
        assert names[label] == Path(path).parent.name
    assert len(dataset) == len(selection)
    by_path = {Path(path).name for path, _ in followed.names["dataset_train"].reader.samples}
    assert by_path == {Path(path).name for path, _ in dataset.reader.samples}


def test_identifiers_are_the_numbers_of_the_whole_folder_where_the_writer_splits(
    followed: Followed, tmp_path: Path
) -> None:
    from torchvision.datasets import ImageFolder

    root = followed.folder / "imagenet" / "train"
    imagefolder.write(
        imagefolder.Config(root=root, out=tmp_path, num_workers=0, val=0.25, test=0.25)
    )
    folder = ImageFolder(root)
    for split in ("train", "val", "test"):
        index = BetonIndex.open(tmp_path / f"{split}.beton")
        sizes = [
            Path(folder.samples[each][0]).stat().st_size for each in index.column("identifier")
        ]
        assert sizes == index.sample_bytes().tolist()


def test_betons_in_the_order_of_their_dataset_need_no_identifier(
    followed: Followed, tmp_path: Path
) -> None:
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(followed.folder / "imagenet" / "train")
    paths, labels = zip(*folder.samples, strict=True)
    write_beton(tmp_path / "a.beton", ImageFiles(paths, labels), image_fields(), seed=None)
    index = BetonIndex.open(tmp_path / "a.beton")
    assert index.labels().tolist() == folder.targets
