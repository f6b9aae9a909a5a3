"""Write betons of Food-101, split as CoOp does.

--root is the folder that food-101.tar.gz (data.vision.ee.ethz.ch/cvl) makes:

    food-101/
        images/apple_pie/1005649.jpg ...
        split_zhou_Food101.json

50,500 images for training, 20,200 for validation and 30,300 for the test, of 101 classes.
CoOp's split is its own, 500, 200 and 300 images of each class, not the 750 and 250 of `meta/`.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="food101",
    split_file="split_zhou_Food101.json",
    images=("images", "food-101/images"),
    expected=Expected(classes=101, images={"train": 50_500, "val": 20_200, "test": 30_300}),
    torchvision="Food101",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
