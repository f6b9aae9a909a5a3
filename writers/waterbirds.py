"""Write betons of Waterbirds: train, val and test as metadata.csv says.

--root is the folder that waterbird_complete95_forest2water2.tar.gz (nlp.stanford.edu/data/dro)
makes:

    waterbird_complete95_forest2water2/
        metadata.csv  (img_id,img_filename,y,split,place,place_filename)
        001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg ...

4,795 images for training, 1,199 for validation and 5,794 for the test, of 2 classes.

The identifier of a sample is its img_id, which leads to the rest of its row in metadata.csv. Its
group, by which worst-group accuracy is taken, is 2 * y + place: landbirds on land and on water,
then waterbirds on land and on water.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from dp4tl_ffcv import BetonIndex

from .components.common import Expected, Options, run, write_splits
from .components.files import find
from .components.listed import image_files

CLASS_NAMES = ("landbird", "waterbird")
SPLITS = ("train", "val", "test")
COLUMNS = ("img_id", "img_filename", "y", "split")
EXPECTED = Expected(classes=2, images={"train": 4795, "val": 1199, "test": 5794})


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    root: Path
    """Folder of metadata.csv and the folders of images."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    metadata = find(config.root, "metadata.csv", layout="metadata.csv and the folders of images")
    samples = image_files(config.root, read_metadata(metadata), metadata)
    return write_splits("waterbirds", samples, CLASS_NAMES, config, EXPECTED)


def read_metadata(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Return path, class and img_id of each image by split.

    Raises:
        ValueError: a column is missing, or a value is not one that the column may have.
    """
    splits: dict[str, list[tuple[str, int, int]]] = {split: [] for split in SPLITS}
    seen: set[int] = set()
    with open(path, newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        for row in rows:
            values = [row.get(column) for column in COLUMNS]
            try:
                name = str(row["img_filename"])
                identifier, label, split = (int(row[key]) for key in ("img_id", "y", "split"))
                if label not in (0, 1) or split not in (0, 1, 2) or identifier in seen:
                    raise ValueError
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"`{path}` must have {', '.join(COLUMNS)} in each line, with an img_id of its "
                    f"own, y 0 or 1, split 0, 1 or 2; got {values} in line {rows.line_num}. "
                    "Take the file of the dataset's archive."
                ) from error
            seen.add(identifier)
            splits[SPLITS[split]].append((name, label, identifier))
    return splits


if __name__ == "__main__":
    run("waterbirds", Config, write, __doc__)
