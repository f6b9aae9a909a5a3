"""Write betons of Waterbirds with the train, val and test splits of its metadata.csv.

ROOT (--root) is the folder inside waterbird_complete95_forest2water2.tar.gz from
nlp.stanford.edu/data/dro:

    waterbird_complete95_forest2water2/
        metadata.csv  (img_id,img_filename,y,split,place,place_filename)
        001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg ...

It has 2 classes, and 4,795 training, 1,199 validation and 5,794 test images.

The identifier of a sample is its img_id in metadata.csv. Worst-group accuracy uses the groups
2 * y + place: landbirds on land, landbirds on water, waterbirds on land, waterbirds on water.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import SPLITS, CountedOptions, run, write_splits
from .components.files import find
from .components.listed import image_files

CLASS_NAMES = ("landbird", "waterbird")
EXPECTED = (2, {"train": 4795, "val": 1199, "test": 5794})


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions):
    """Options of the writer."""

    root: Path
    """Folder of metadata.csv and the folders of images."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write train, val and test and return the index of each."""
    metadata = find(config.root, "metadata.csv", layout="metadata.csv and the folders of images")
    samples = image_files(config.root, config.root, read_metadata(metadata), metadata)
    return write_splits("waterbirds", samples, CLASS_NAMES, config, EXPECTED)


def read_metadata(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Return path, class and img_id of each image by split."""
    splits: dict[str, list[tuple[str, int, int]]] = {split: [] for split in SPLITS}
    seen: set[int] = set()
    with utils.open_file(path) as stream:
        rows = csv.DictReader(TextIOWrapper(stream, encoding="utf-8", newline=""))
        for row in _rows_of(rows, path):
            try:
                name = str(row["img_filename"])
                identifier, label, split = (int(row[key]) for key in ("img_id", "y", "split"))
                if label not in (0, 1) or split not in (0, 1, 2) or identifier in seen:
                    raise ValueError
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"Line {rows.line_num} of {path} needs a unique img_id, an img_filename, y 0 "
                    f"or 1, and split 0, 1 or 2; it has {row}."
                ) from error
            seen.add(identifier)
            splits[SPLITS[split]].append((name, label, identifier))
    return splits


def _rows_of(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged after line {rows.line_num}: {error}.") from error


if __name__ == "__main__":
    run(__name__)
