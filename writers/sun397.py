"""Write betons of SUN397 with CoOp's splits.

--root is a folder with the extracted SUN397.tar.gz from vision.princeton.edu/projects/2010/SUN:

    sun397/
        SUN397/a/abbey/sun_aaalbzqrimafwbiv.jpg ...
        split_zhou_SUN397.json

397 classes; 15,880 images for training, 3,970 for validation, 19,850 for testing. CoOp uses the
first of the dataset's ten partitions, 50 training and 50 test images per class. The archive's other
images are ignored.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="sun397",
    split_file="split_zhou_SUN397.json",
    images=("SUN397",),
    expected=Expected(classes=397, images={"train": 15_880, "val": 3970, "test": 19_850}),
    torchvision="SUN397",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
