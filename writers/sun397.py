"""Write betons of SUN397, split as CoOp does.

--root is a folder in which SUN397.tar.gz (vision.princeton.edu/projects/2010/SUN) is extracted:

    sun397/
        SUN397/a/abbey/sun_aaalbzqrimafwbiv.jpg ...
        split_zhou_SUN397.json

15,880 images for training, 3,970 for validation and 19,850 for the test, of 397 classes.
Training and test are the first of the dataset's own ten partitions, 50 and 50 images of each class;
the archive's other images are not used.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="sun397",
    split_file="split_zhou_SUN397.json",
    images=("SUN397",),
    expected=Expected(classes=397, images={"train": 15_880, "val": 3970, "test": 19_850}),
    torchvision="SUN397",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
