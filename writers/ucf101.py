"""Write betons of UCF101 (the middle frame of each video) with CoOp's splits.

--root is a folder with the extracted UCF-101-midframes.zip, which CoOp's DATASETS.md links to:

    ucf101/
        UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg ...
        split_zhou_UCF101.json

101 classes; 7,639 images for training, 1,898 for validation, 3,783 for testing. CoOp uses the first
of UCF101's own splits. There is no --download, because torchvision has only the videos.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="ucf101",
    split_file="split_zhou_UCF101.json",
    images=("UCF-101-midframes",),
    expected=Expected(classes=101, images={"train": 7639, "val": 1898, "test": 3783}),
)
Config = coop.Config
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
