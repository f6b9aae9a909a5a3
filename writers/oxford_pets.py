"""Write betons of Oxford-IIIT Pets (37 breeds) with CoOp's splits.

--root is a folder with the extracted images.tar.gz from robots.ox.ac.uk/~vgg/data/pets:

    oxford_pets/
        images/Abyssinian_1.jpg ...
        split_zhou_OxfordPets.json

37 classes; 2,944 images for training, 736 for validation, 3,669 for testing. The test split is the
dataset's own test.txt.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="oxford_pets",
    split_file="split_zhou_OxfordPets.json",
    images=("images", "oxford-iiit-pet/images"),
    expected=Expected(classes=37, images={"train": 2944, "val": 736, "test": 3669}),
    torchvision="OxfordIIITPet",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
