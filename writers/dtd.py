"""Write betons of the Describable Textures Dataset (DTD), split as CoOp does.

--root is the folder that dtd-r1.0.1.tar.gz (robots.ox.ac.uk/~vgg/data/dtd) makes:

    dtd/
        images/banded/banded_0002.jpg ...
        split_zhou_DescribableTextures.json

2,820 images for training, 1,128 for validation and 1,692 for the test, of 47 classes.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="dtd",
    split_file="split_zhou_DescribableTextures.json",
    images=("images", "dtd/dtd/images"),
    expected=Expected(classes=47, images={"train": 2820, "val": 1128, "test": 1692}),
    torchvision="DTD",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
