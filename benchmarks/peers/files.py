"""The retained files as a dataset of PyTorch, and its `DataLoader`."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.job import Epochs, Job


class Files(Dataset[tuple[Any, int]]):
    """Images and ids, as a `Subset` of a folder yields them."""

    def __init__(self, job: Job, read: Callable[[str], Any]) -> None:
        self.samples = list(zip(map(str, job.paths), job.ids, strict=True))
        self.read = read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        path, label = self.samples[number]
        return self.read(path), label


def load_files(job: Job, read: Callable[[str], Any], **options: Any) -> Epochs:
    """Load with PyTorch's DataLoader in the process that asks for the batches.

    A worker process on the same core would take more processor time, because it has to start and
    passes each batch on.
    """
    torch.manual_seed(job.seed)
    loader = DataLoader(Files(job, read), batch_size=job.batch_size, shuffle=True, **options)
    return lambda _: loader


def augment(job: Job) -> Any:
    """Return torchvision's random resized crop and flip, version 2, which it recommends."""
    from torchvision.transforms import v2

    size = (job.side, job.side)
    crop = v2.RandomResizedCrop(size, scale=job.scale, ratio=job.ratio, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])
