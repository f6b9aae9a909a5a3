"""Write betons of Caltech-101, split as CoOp does.

--root is a folder in which 101_ObjectCategories.tar.gz (data.caltech.edu/records/mzrjq-6wc02) is
extracted:

    caltech-101/
        101_ObjectCategories/accordion/image_0001.jpg ...
        split_zhou_Caltech101.json

4,128 images for training, 1,649 for validation and 2,465 for the test, of 100 classes.
CoOp leaves out BACKGROUND_Google and Faces_easy, which has the images of Faces once more.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="caltech101",
    split_file="split_zhou_Caltech101.json",
    images=("101_ObjectCategories", "caltech101/101_ObjectCategories"),
    expected=Expected(classes=100, images={"train": 4128, "val": 1649, "test": 2465}),
    torchvision="Caltech101",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
