"""Write betons of CIFAR-100: train and test, and with --val N a part of train for validation.

--root holds one of these, from www.cs.toronto.edu/~kriz/cifar.html:

    cifar-100-binary/  (train.bin, test.bin, fine_label_names.txt)
    cifar-100-binary.tar.gz
    cifar-100-python/  (train, test, meta)
    cifar-100-python.tar.gz

50,000 images of 32 pixels for training and 10,000 for the test, of 100 classes (the fine labels);
stored raw.
"""

from dataclasses import dataclass

from dp4tl_ffcv import BetonIndex

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


@dataclass(frozen=True, kw_only=True)
class Config(cifar.Config):
    """What to write."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each."""
    return cifar.write_cifar(DATASET, config)


if __name__ == "__main__":
    run(DATASET.name, Config, write, __doc__)
