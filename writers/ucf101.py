"""Write betons of UCF101 as CoOp has it, the middle frame of each video, split as CoOp does.

--root is a folder in which CoOp's UCF-101-midframes.zip is extracted (its DATASETS.md links to it):

    ucf101/
        UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg ...
        split_zhou_UCF101.json

7,639 images for training, 1,898 for validation and 3,783 for the test, of 101 classes.
Training and test are the first of UCF101's own splits. torchvision has the videos only, so there is
no --download.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="ucf101",
    split_file="split_zhou_UCF101.json",
    images=("UCF-101-midframes",),
    expected=Expected(classes=101, images={"train": 7639, "val": 1898, "test": 3783}),
)


@dataclass(frozen=True, kw_only=True)
class Config(coop.Config):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test and return the index of each."""
    return coop.write_target(TARGET, config)


if __name__ == "__main__":
    run(TARGET.name, Config, write, __doc__)
