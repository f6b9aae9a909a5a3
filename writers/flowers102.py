"""Write betons of Oxford Flowers 102 with CoOp's splits.

--root is a folder with the extracted 102flowers.tgz from robots.ox.ac.uk/~vgg/data/flowers/102:

    oxford_flowers/
        jpg/image_00001.jpg ...
        split_zhou_OxfordFlowers.json

102 classes; 4,093 images for training, 1,633 for validation, 2,463 for testing. CoOp trains on half
of each class, unlike the dataset's own `setid.mat`, which trains on 1,020 images.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="flowers102",
    split_file="split_zhou_OxfordFlowers.json",
    images=("jpg", "flowers-102/jpg"),
    expected=Expected(classes=102, images={"train": 4093, "val": 1633, "test": 2463}),
    torchvision="Flowers102",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
