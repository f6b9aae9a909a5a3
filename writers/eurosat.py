"""Write betons of EuroSAT, its RGB images of 64 pixels, split as CoOp does.

--root is a folder in which EuroSAT.zip (madm.dfki.de/files/sentinel) is extracted:

    eurosat/
        2750/AnnualCrop/AnnualCrop_1.jpg ...
        split_zhou_EuroSAT.json

13,500 images for training, 5,400 for validation and 8,100 for the test, of 10 classes.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="eurosat",
    split_file="split_zhou_EuroSAT.json",
    images=("2750", "eurosat/2750"),
    expected=Expected(classes=10, images={"train": 13_500, "val": 5400, "test": 8100}),
    torchvision="EuroSAT",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
