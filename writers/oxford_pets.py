"""Write betons of Oxford-IIIT Pets, 37 breeds, split as CoOp does.

--root is a folder in which images.tar.gz (robots.ox.ac.uk/~vgg/data/pets) is extracted:

    oxford_pets/
        images/Abyssinian_1.jpg ...
        split_zhou_OxfordPets.json

2,944 images for training, 736 for validation and 3,669 for the test, of 37 classes.
The test images are those of the dataset's own test.txt.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="oxford_pets",
    split_file="split_zhou_OxfordPets.json",
    images=("images", "oxford-iiit-pet/images"),
    expected=Expected(classes=37, images={"train": 2944, "val": 736, "test": 3669}),
    torchvision="OxfordIIITPet",
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.DownloadConfig):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
