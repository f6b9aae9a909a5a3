"""Write betons of Food-101 with CoOp's splits.

--root is the folder inside food-101.tar.gz from data.vision.ee.ethz.ch/cvl:

    food-101/
        images/apple_pie/1005649.jpg ...
        split_zhou_Food101.json

101 classes; 50,500 images for training, 20,200 for validation, 30,300 for testing. CoOp splits each
class into 500, 200 and 300 images, unlike the dataset's own `meta/`, which has 750 and 250.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="food101",
    split_file="split_zhou_Food101.json",
    images=("images", "food-101/images"),
    expected=Expected(classes=101, images={"train": 50_500, "val": 20_200, "test": 30_300}),
    torchvision="Food101",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
