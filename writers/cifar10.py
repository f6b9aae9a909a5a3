"""Write betons of CIFAR-10: train, test and, with --val N, a validation split taken from train.

--root holds one of these, from www.cs.toronto.edu/~kriz/cifar.html:

    cifar-10-batches-bin/  (data_batch_1.bin to data_batch_5.bin, test_batch.bin, batches.meta.txt)
    cifar-10-binary.tar.gz
    cifar-10-batches-py/   (data_batch_1 to data_batch_5, test_batch, batches.meta)
    cifar-10-python.tar.gz

10 classes; 50,000 images for training and 10,000 for testing, of 32 x 32 pixels, stored raw.
"""

from .components import cifar
from .components.common import Expected, run

DATASET = cifar.Cifar(
    name="cifar10",
    expected=Expected(classes=10, images={"train": 50_000, "test": 10_000}),
    binary=cifar.Version(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
    ),
    python=cifar.Version(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        names="batches.meta",
    ),
    labels="labels",
    label_bytes=1,
    torchvision="CIFAR10",
)
Config = cifar.Config
write = DATASET.write

if __name__ == "__main__":
    run(__name__)
