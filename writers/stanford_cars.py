"""Write betons of Stanford Cars with CoOp's splits.

--root is a folder with the extracted cars_train.tgz and cars_test.tgz:

    stanford_cars/
        cars_train/00001.jpg ...
        cars_test/00001.jpg ...
        split_zhou_StanfordCars.json

196 classes; 6,509 images for training, 1,635 for validation, 8,041 for testing. The test split is
the dataset's own. There is no --download: the dataset's links (ai.stanford.edu/~jkrause) are dead.
"""

from .components import coop
from .components.common import Expected, run

TARGET = coop.Target(
    name="stanford_cars",
    split_file="split_zhou_StanfordCars.json",
    images=(".",),
    expected=Expected(classes=196, images={"train": 6509, "val": 1635, "test": 8041}),
)
Config = coop.Config
write = TARGET.write

if __name__ == "__main__":
    run(__name__)
