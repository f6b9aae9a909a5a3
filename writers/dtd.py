"""Write betons of the Describable Textures Dataset (DTD) with CoOp's splits.

--root is the folder inside dtd-r1.0.1.tar.gz from robots.ox.ac.uk/~vgg/data/dtd:

    dtd/
        images/banded/banded_0002.jpg ...
        split_zhou_DescribableTextures.json

47 classes; 2,820 images for training, 1,128 for validation, 1,692 for testing.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="dtd",
    split_file="split_zhou_DescribableTextures.json",
    images=("images", "dtd/dtd/images"),
    expected=Expected(classes=47, images={"train": 2820, "val": 1128, "test": 1692}),
    torchvision="DTD",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
