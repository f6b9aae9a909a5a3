"""Write betons of Oxford Flowers 102, split as CoOp does.

--root is a folder in which 102flowers.tgz (robots.ox.ac.uk/~vgg/data/flowers/102) is extracted:

    oxford_flowers/
        jpg/image_00001.jpg ...
        split_zhou_OxfordFlowers.json

4,093 images for training, 1,633 for validation and 2,463 for the test, of 102 classes.
CoOp's split is its own, half of each class for training, not the 1,020 images of `setid.mat`.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="flowers102",
    split_file="split_zhou_OxfordFlowers.json",
    images=("jpg", "flowers-102/jpg"),
    expected=Expected(classes=102, images={"train": 4093, "val": 1633, "test": 2463}),
    torchvision="Flowers102",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
