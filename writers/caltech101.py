"""Write betons of Caltech-101 with CoOp's splits.

--root is a folder with the extracted 101_ObjectCategories.tar.gz from
data.caltech.edu/records/mzrjq-6wc02:

    caltech-101/
        101_ObjectCategories/accordion/image_0001.jpg ...
        split_zhou_Caltech101.json

100 classes; 4,128 images for training, 1,649 for validation, 2,465 for testing. CoOp leaves out
BACKGROUND_Google, and Faces_easy, whose images are also in Faces.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="caltech101",
    split_file="split_zhou_Caltech101.json",
    images=("101_ObjectCategories", "caltech101/101_ObjectCategories"),
    expected=Expected(classes=100, images={"train": 4128, "val": 1649, "test": 2465}),
    torchvision="Caltech101",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
