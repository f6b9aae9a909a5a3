"""Write betons of EuroSAT (RGB images of 64 x 64 pixels) with CoOp's splits.

--root is a folder with the extracted EuroSAT.zip from madm.dfki.de/files/sentinel:

    eurosat/
        2750/AnnualCrop/AnnualCrop_1.jpg ...
        split_zhou_EuroSAT.json

10 classes; 13,500 images for training, 5,400 for validation, 8,100 for testing.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="eurosat",
    split_file="split_zhou_EuroSAT.json",
    images=("2750", "eurosat/2750"),
    expected=Expected(classes=10, images={"train": 13_500, "val": 5400, "test": 8100}),
    torchvision="EuroSAT",
)
Config = coop.DownloadConfig
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
