"""Write betons of CIFAR-100: train, test and, with --val N, a validation split taken from train.

--root holds one of these, from www.cs.toronto.edu/~kriz/cifar.html:

    cifar-100-binary/  (train.bin, test.bin, fine_label_names.txt)
    cifar-100-binary.tar.gz
    cifar-100-python/  (train, test, meta)
    cifar-100-python.tar.gz

100 classes (the fine labels); 50,000 images for training and 10,000 for testing, of 32 x 32 pixels,
stored raw.
"""

from .components import cifar
from .components.common import Expected, run

DATASET = cifar.Cifar(
    name="cifar100",
    expected=Expected(classes=100, images={"train": 50_000, "test": 10_000}),
    binary=cifar.Version(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
    ),
    python=cifar.Version(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
    ),
    labels="fine_labels",
    label_bytes=2,
    torchvision="CIFAR100",
)
Config = cifar.Config
write = DATASET.write

if __name__ == "__main__":
    run(__name__)
