"""torchvision with Pillow: a `Subset` of an `ImageFolder`, as in PyTorch's ImageNet examples."""

from typing import Any

from benchmarks.peers.job import Epochs, Job

DISTRIBUTION = "torchvision"
REQUIRES = ("torchvision", "PIL")


def load(job: Job) -> Epochs:
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms import v2

    from benchmarks.peers.files import augment, load_files

    transform = v2.Compose([augment(job), v2.PILToTensor()])

    def read(path: str) -> Any:
        return transform(pil_loader(path))

    return load_files(job, read)
