"""Write betons of Stanford Cars, split as CoOp does.

--root is a folder in which cars_train.tgz and cars_test.tgz are extracted:

    stanford_cars/
        cars_train/00001.jpg ...
        cars_test/00001.jpg ...
        split_zhou_StanfordCars.json

6,509 images for training, 1,635 for validation and 8,041 for the test, of 196 classes.
The test images are the dataset's own. The links of its home (ai.stanford.edu/~jkrause) are broken,
and torchvision cannot fetch it any more either: there is no --download.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="stanford_cars",
    split_file="split_zhou_StanfordCars.json",
    images=(".",),
    expected=Expected(classes=196, images={"train": 6509, "val": 1635, "test": 8041}),
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.Config):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
